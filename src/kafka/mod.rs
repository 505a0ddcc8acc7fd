//! The exactly-once shell: clients, the transactional loop, steps and checkpoints, restore, rebalance, dead letters, and the
//! in-process mock. It knows nothing of policies or decisions: it drives any [`core::Core`].
//!
//! [`shell::Shell`] runs the loop on the calling thread: one consumer, one transactional producer, one core per owned
//! partition. What a core decides, the record of the steps it took and the offsets it consumed commit as one transaction
//! ([`transaction`]); its state goes to a compacted topic every few seconds ([`checkpoint`]) and comes back by reading that
//! and re-running the recorded steps ([`restore`]). [`resize`] moves it when the number of partitions grows.

pub mod checkpoint;
pub mod client;
pub mod core;
pub mod errors;
pub mod follow;
pub mod mock;
pub mod outbox;
pub mod produce;
pub mod provision;
pub mod reader;
pub mod recorded;
pub mod resize;
pub mod shell;
pub mod status;
pub mod steps;
pub mod subscribe;
pub mod topics;
pub mod transaction;

mod deadletter;
mod delivery;
mod group;
pub mod history;
mod hold;
mod partition;
mod refusal;
mod restore;
mod session;
mod standing;
mod trace;
mod waiting;

pub use client::{BrokerKind, ClientSettings, GroupProtocol, ShellConfig, StartAt};
pub use errors::Error;
pub use mock::Mock;
pub use shell::{CoreFactory, Ended, Handle, Shell};
pub use status::{Event, Observer, Status};
pub use topics::Topics;
