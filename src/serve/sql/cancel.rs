//! Requests to stop a statement: they come over a connection of their own and name the other by a number and a secret (CancelRequest).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// Connections that can be asked to stop what they do.
#[derive(Debug, Default)]
pub(super) struct Cancels(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: i32,
    live: HashMap<i32, (i32, Arc<Notify>)>,
}

/// One connection's place; it is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) id: i32,
    pub(super) secret: i32,
    asked: Arc<Notify>,
    cancels: Arc<Cancels>,
}

impl Cancels {
    /// A place for one more connection.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(super) fn register(self: &Arc<Self>) -> Result<Key, getrandom::Error> {
        let secret = getrandom::u32()?.cast_signed();
        let asked = Arc::new(Notify::new());
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // more than 2^31 connections ago a number may be taken still
        let id = loop {
            state.last = state.last.checked_add(1).unwrap_or(1);
            if !state.live.contains_key(&state.last) {
                break state.last;
            }
        };
        state.live.insert(id, (secret, asked.clone()));
        drop(state);
        Ok(Key { id, secret, asked, cancels: self.clone() })
    }

    /// Stops what a connection does now. Nobody is told whether there was such a connection.
    pub(super) fn cancel(&self, id: i32, secret: i32) -> bool {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = state.live.get(&id).filter(|(known, _)| *known == secret).map(|(_, asked)| asked.clone());
        drop(state);
        asked.as_ref().inspect(|asked| asked.notify_waiters()).is_some()
    }
}

impl Key {
    /// Ends when somebody asks; what was asked before is forgotten.
    pub(super) fn asked(&self) -> tokio::sync::futures::Notified<'_> {
        self.asked.notified()
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.cancels.0.lock().unwrap_or_else(PoisonError::into_inner).live.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn only_who_knows_the_secret_stops_a_statement_and_only_the_one_that_runs() {
        let cancels = Arc::new(Cancels::default());
        let (one, other) = (cancels.register().unwrap(), cancels.register().unwrap());
        assert!(cancels.cancel(one.id, one.secret), "nothing runs: nothing is stopped, now or later");
        {
            let (running, beside) = (one.asked(), other.asked());
            tokio::pin!(running, beside);
            assert!((&mut running).now_or_never().is_none() && (&mut beside).now_or_never().is_none());
            assert!(!cancels.cancel(one.id, one.secret.wrapping_add(1)) && !cancels.cancel(99, 0));
            assert!((&mut running).now_or_never().is_none());
            assert!(cancels.cancel(one.id, one.secret));
            assert!(running.now_or_never().is_some() && beside.now_or_never().is_none());
        }
        let (id, secret) = (one.id, one.secret);
        drop(one);
        assert!(!cancels.cancel(id, secret));
    }
}
