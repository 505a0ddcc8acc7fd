//! The policies of a directory: files in, one set out.
//!
//! Invariant: the set depends on names and texts only, not on the order in which files are given.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::fault::{Fault, quoted};
use super::model::Policy;
use super::read::{parse_generation, parse_partly};
use super::snapshot::Snapshot;

/// Most policies of one set.
const MAX_POLICIES: usize = 100_000;

/// A file and how many policies it gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSummary {
    /// Its name as given.
    pub name: String,
    /// Policies read from it.
    pub policies: usize,
}

/// Policies read from files, with ids unique within their tenant.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PolicySet {
    policies: Vec<Policy>,
    generation: u64,
    files: Vec<FileSummary>,
    digest: String,
}

impl PolicySet {
    /// Reads a set from (file name, text) pairs. `set.yaml` gives the generation; `.yaml`, `.yml` and `.json` hold policies;
    /// anything else is a fault. Which files to read is the caller's choice.
    ///
    /// # Errors
    /// Every fault of every file, by file and place.
    pub fn from_files(files: &[(String, String)]) -> Result<Self, Vec<Fault>> {
        let (set, faults) = Self::read(files);
        if faults.is_empty() { Ok(set) } else { Err(faults) }
    }

    /// As [`Self::from_files`], but gives what could be read beside the faults, so that `check` can report on it too.
    pub fn read(files: &[(String, String)]) -> (Self, Vec<Fault>) {
        let mut ordered: Vec<&(String, String)> = files.iter().collect();
        ordered.sort();
        let mut set = Self::default();
        let mut faults = Vec::new();
        let mut found: BTreeMap<(Arc<str>, Arc<str>), Policy> = BTreeMap::new();
        let mut digest = Sha256::new();
        for (name, text) in ordered {
            // lengths first, so that no two sets of files hash alike
            digest.update((name.len() as u64).to_be_bytes());
            digest.update(name.as_bytes());
            digest.update((text.len() as u64).to_be_bytes());
            digest.update(text.as_bytes());
            let base = name.rsplit(['/', '\\']).next().unwrap_or(name);
            if base == "set.yaml" {
                match parse_generation(name, text) {
                    Ok(generation) => set.generation = set.generation.max(generation),
                    Err(more) => faults.extend(more),
                }
                continue;
            }
            if ![".yaml", ".yml", ".json"].iter().any(|end| base.ends_with(end)) {
                let at = super::model::Place { line: 1, column: 1 };
                let help = Some("policies are read from .yaml, .yml and .json".to_owned());
                faults.push(Fault::new(name, at, "", "not a policy file".to_owned(), help));
                continue;
            }
            let (policies, more) = parse_partly(name, text);
            faults.extend(more);
            set.files.push(FileSummary { name: name.clone(), policies: policies.len() });
            for policy in policies {
                let key = (policy.tenant.clone(), policy.id.clone());
                if let Some(first) = found.get(&key) {
                    let message =
                        format!("the id {} is there twice for tenant {}", quoted(&policy.id), quoted(&policy.tenant));
                    let help = Some(format!("first in {}:{}", first.file, first.place.line));
                    faults.push(Fault::new(name, policy.place, "id", message, help));
                } else if found.len() >= MAX_POLICIES {
                    let message = format!("a set holds at most {MAX_POLICIES} policies");
                    faults.push(Fault::new(name, policy.place, "", message, None));
                    break;
                } else {
                    found.insert(key, policy);
                }
            }
        }
        set.policies = found.into_values().collect();
        for byte in digest.finalize() {
            // writing to a String cannot fail
            write!(set.digest, "{byte:02x}").unwrap_or_default();
        }
        (set, faults)
    }

    /// A set of policies that come from no files; of two with one (tenant, id) the first counts.
    pub fn of(policies: impl IntoIterator<Item = Policy>) -> Self {
        let mut found = BTreeMap::new();
        for policy in policies {
            found.entry((policy.tenant.clone(), policy.id.clone())).or_insert(policy);
        }
        Self { policies: found.into_values().collect(), ..Self::default() }
    }

    /// The policies by tenant and id.
    pub fn policies(&self) -> &[Policy] {
        &self.policies
    }

    /// The policies, taken out.
    pub fn into_policies(self) -> Vec<Policy> {
        self.policies
    }

    /// The generation in `set.yaml`; 0 without one.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The policy files by name.
    pub fn files(&self) -> &[FileSummary] {
        &self.files
    }

    /// SHA-256 over names and texts, in hexadecimal.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Counts versions up: a policy that is in the previous snapshot keeps its version when its content is the same, and
    /// gets the next when it differs.
    #[must_use]
    pub fn following(mut self, previous: &Snapshot) -> Self {
        for policy in &mut self.policies {
            if let Some(old) = previous.policy(&policy.tenant, &policy.id) {
                policy.version = old.version;
                if policy.content() != old.content() {
                    policy.version = old.version.saturating_add(1);
                }
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, id: &str, max: u32) -> (String, String) {
        let text = format!(
            "id: {id}\nname: N\nlimits:\n- {{id: l, limit_type: TOKENS_PER_RUN, metric: run_tokens, max: {max}}}\n"
        );
        (name.to_owned(), text)
    }

    #[test]
    fn a_set_does_not_depend_on_the_order_of_files() {
        let (a, b) = (file("a.yaml", "z", 1), file("b.yaml", "a", 2));
        let generation = ("sub/set.yaml".to_owned(), "generation: 7\n".to_owned());
        let one = PolicySet::from_files(&[a.clone(), b.clone(), generation.clone()]).unwrap();
        let two = PolicySet::from_files(&[generation, b, a]).unwrap();
        assert_eq!(one, two);
        assert_eq!(one.generation(), 7);
        assert_eq!(one.policies().iter().map(|p| &*p.id).collect::<Vec<_>>(), ["a", "z"]);
    }

    #[test]
    fn an_id_twice_within_a_tenant_is_a_fault_that_names_the_first() {
        let faults = PolicySet::from_files(&[file("a.yaml", "x", 1), file("b.yaml", "x", 2)]).unwrap_err();
        assert_eq!(faults.len(), 1);
        assert!(faults[0].to_string().contains("first in a.yaml:1"), "{}", faults[0]);
        let mut other = file("b.yaml", "x", 2);
        other.1.push_str("tenant: acme\n");
        assert!(PolicySet::from_files(&[file("a.yaml", "x", 1), other]).is_ok(), "another tenant's id is its own");
    }

    #[test]
    fn a_generation_must_be_a_whole_number() {
        let bad = ("set.yaml".to_owned(), "generation: -1".to_owned());
        assert!(PolicySet::from_files(&[bad]).is_err());
        let bad = ("set.yaml".to_owned(), "generatoin: 1".to_owned());
        let faults = PolicySet::from_files(&[bad]).unwrap_err();
        assert!(faults[0].to_string().contains("did you mean `generation`"));
    }

    #[test]
    fn versions_count_up_only_when_the_content_changes() {
        let first = PolicySet::from_files(&[file("a.yaml", "x", 1), file("b.yaml", "y", 1)]).unwrap();
        let snapshot = Snapshot::new(first.into_policies(), BTreeMap::new(), "", "");
        let mut moved = file("elsewhere.yaml", "x", 1);
        moved.1.insert_str(0, "# a comment\n");
        let next = PolicySet::from_files(&[moved, file("b.yaml", "y", 2), file("c.yaml", "z", 1)]).unwrap();
        let versions: Vec<u32> = next.following(&snapshot).policies().iter().map(|p| p.version).collect();
        assert_eq!(versions, [1, 2, 1]);
    }
}
