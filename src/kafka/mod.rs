//! The exactly-once shell: clients, the transactional loop, steps and checkpoints, restore, rebalance, dead letters, and the
//! in-process mock. It knows nothing of policies or decisions: it drives any [`core::Core`].

pub mod core;
