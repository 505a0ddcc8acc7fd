//! Keys that are read and checked but belong to parts that come later: setting one changes nothing yet, and whoever sets one
//! is told so.

use super::Config;

impl Config {
    /// The keys that differ from their default and that nothing acts upon in this version.
    pub fn without_effect(&self) -> Vec<&'static str> {
        let default = Self::default();
        let (l, d) = (&self.limits, &default.limits);
        let changed = [
            ("roles.enabled", self.roles != default.roles),
            ("paths.panels", self.paths.panels != default.paths.panels),
            ("paths.data", self.paths.data != default.paths.data),
            ("sql.listen", self.sql != default.sql),
            ("otlp", self.otlp != default.otlp),
            ("auth", self.auth != default.auth),
            ("limits.live-keys", l.live_keys != d.live_keys),
            ("limits.run-retention", l.run_retention != d.run_retention),
            ("limits.agent-retention", l.agent_retention != d.agent_retention),
            ("limits.tombstone-retention", l.tombstone_retention != d.tombstone_retention),
            ("limits.stop-grace", l.stop_grace != d.stop_grace),
            ("limits.cascade-depth", l.cascade_depth != d.cascade_depth),
            ("limits.http-body-bytes", l.http_body_bytes != d.http_body_bytes),
        ];
        changed.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_that_someone_set_are_named() {
        let mut config = Config::default();
        assert!(config.without_effect().is_empty());
        config.limits.live_keys += 1;
        config.limits.record_bytes += 1;
        assert_eq!(config.without_effect(), ["limits.live-keys"]);
    }
}
