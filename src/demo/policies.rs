//! The demo's policies: `config/demo/policies/`, compiled in so that the binary needs no files.

/// File name and YAML (several documents each) of every policy file.
pub const FILES: &[(&str, &str)] = &[
    ("agents.yaml", include_str!("../../config/demo/policies/agents.yaml")),
    ("keys-and-tenants.yaml", include_str!("../../config/demo/policies/keys-and-tenants.yaml")),
    ("runs.yaml", include_str!("../../config/demo/policies/runs.yaml")),
];

/// Limits of the demo by metric, as the files state them. Only for tests of the traffic against the policies.
#[cfg(test)]
pub(super) fn limits() -> std::collections::BTreeMap<String, f64> {
    let mut limits = std::collections::BTreeMap::new();
    for (name, text) in FILES {
        for document in serde_saphyr::from_multiple::<serde_json::Value>(text).expect(name) {
            for limit in document["limits"].as_array().expect("limits") {
                let metric = limit["metric"].as_str().expect("metric").to_owned();
                limits.insert(metric, limit["max"].as_f64().expect("max"));
            }
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_of_the_directory_is_compiled_in() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo/policies");
        let mut found: Vec<String> =
            directory.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        found.sort();
        assert_eq!(found, FILES.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>());
    }

    #[test]
    fn the_demo_shows_every_mode_and_more_than_one_action() {
        let text: String = FILES.iter().map(|(_, text)| *text).collect();
        for word in ["BLOCK", "WARN", "AUDIT", "STOP", "KILL", "PAUSE", "REJECT"] {
            assert!(text.contains(&format!(": {word}\n")), "{word}");
        }
        assert_eq!(limits().len(), 6, "one limit per metric");
    }
}
