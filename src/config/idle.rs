//! Roles that a configuration leaves without work, and what whoever configures them so is told.

use super::{Config, Role};

impl Config {
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
