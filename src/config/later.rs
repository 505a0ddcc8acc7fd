//! Keys that are read and checked but belong to parts that come later: setting one changes nothing yet, and whoever sets one
//! is told so.

use super::{Config, Role};

impl Config {
    /// The keys that differ from their default and that nothing acts upon in this version.
    pub fn without_effect(&self) -> Vec<&'static str> {
        let default = Self::default();
        let (l, d) = (&self.limits, &default.limits);
        let changed = [("limits.http-body-bytes", l.http_body_bytes != d.http_body_bytes)];
        changed.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
    }

    /// The enabled roles that have nothing to do: channels, where none is configured.
    pub fn idle_roles(&self) -> Vec<Role> {
        let idle = |role: &Role| *role == Role::Channels && self.channels.to.is_empty();
        self.roles.iter().copied().filter(idle).collect()
    }

    /// What a process does that plays no other roles than those with nothing to do; `None`: it plays one that has.
    pub fn idle_process(&self) -> Option<String> {
        let idle = self.idle_roles();
        let names: Vec<&str> = idle.iter().map(|role| role.as_str()).collect();
        (idle.len() == self.roles.len()).then(|| {
            format!(
                "this process only answers /metrics, /healthz, /readyz and /status.json: there is nothing to do \
                 for the role{} {} alone without [[channels.to]]; add \"core\" to [roles] enabled to own partitions and decide, \"edge\" for verdicts, \
                 \"serve\" for the status page",
                if names.len() == 1 { "" } else { "s" },
                names.join(" and ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_that_someone_set_are_named() {
        let mut config = Config::default();
        assert!(config.without_effect().is_empty());
        config.limits.http_body_bytes += 1;
        config.limits.live_keys += 1;
        config.limits.record_bytes += 1;
        assert_eq!(config.without_effect(), ["limits.http-body-bytes"]);
    }

    #[test]
    fn a_process_without_work_is_told_so_and_what_would_give_it_some() {
        let mut config = Config::default();
        assert_eq!(config.idle_process(), None);
        config.roles = [Role::Channels].into();
        assert!(
            config.idle_process().is_some_and(|said| said.contains("role channels alone") && said.contains("\"core\""))
        );
        config.roles = [Role::Edge, Role::Channels].into();
        assert_eq!((config.idle_process(), config.idle_roles()), (None, vec![Role::Channels]));
        config.roles = [Role::Channels, Role::Serve].into();
        assert_eq!((config.idle_process(), config.idle_roles()), (None, vec![Role::Channels]));
    }
}
