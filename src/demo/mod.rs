//! What `runwarden demo` adds to the sidecar: made-up traffic, its policies, and a live summary in the terminal.
//!
//! Nothing here decides anything: the traffic goes through Kafka like anyone's, and the screen shows what came out of the
//! topics. The traffic is the same for the same seed and start, however it is cut into calls.

pub mod feed;
pub mod policies;
pub mod random;
pub mod screen;
pub mod traffic;
