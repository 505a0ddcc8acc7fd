//! A directory of policy files as one set, and what is wrong with it as a whole (X2).

use std::collections::BTreeMap;
use std::fmt;

use super::fault::{Fault, nearest};
use super::model::{LimitStatus, Mode, OnBreach, Place, Policy, Status, Strategy};
use super::read::parse;
use super::scope::{Level, Scope};

/// Name of the file that carries the set's generation.
const SET_FILE: &str = "set.yaml";

/// The policies of a set of files.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicySet {
    policies: Vec<Policy>,
    files: Vec<String>,
}

impl PolicySet {
    /// Reads every file; (name, text) pairs.
    ///
    /// # Errors
    /// Every fault of every file, and ids that stand twice.
    pub fn new(texts: &[(String, String)]) -> Result<Self, Vec<Fault>> {
        let (mut policies, mut faults, mut files): (Vec<Policy>, Vec<Fault>, Vec<String>) = Default::default();
        for (file, text) in texts.iter().filter(|(f, _)| !f.ends_with(SET_FILE)) {
            files.push(file.clone());
            match parse(file, text) {
                Ok(more) => policies.extend(more),
                Err(more) => faults.extend(more),
            }
        }
        let mut seen: BTreeMap<(String, String), (String, Place)> = BTreeMap::new();
        for policy in &policies {
            let at = (policy.file.clone(), policy.place);
            if let Some((file, place)) = seen.insert((policy.tenant.clone(), policy.id.clone()), at) {
                let message = format!("the policy `{}` stands already in {file}:{}", policy.id, place.line);
                let help = Some("give it another id".to_owned());
                faults.push(Fault::new(&policy.file, policy.place, "id", message, help));
            }
        }
        if faults.is_empty() { Ok(Self { policies, files }) } else { Err(faults) }
    }

    /// The policies in the order of the files.
    pub fn policies(&self) -> &[Policy] {
        &self.policies
    }
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The set is refused.
    Error,
    /// It governs less than it seems to.
    Warning,
    /// Good to know.
    Note,
}

/// Something `check` has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// Where, what, and what would be right.
    pub fault: Fault,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        write!(f, "{word}: {}", self.fault)
    }
}

/// What the check knows of a metric: name, scope, and whether it decides at the crossing row.
pub type Known = (String, Scope, bool);

/// Finds what governs nothing and what cannot mean what it says; worst first.
pub fn check(set: &PolicySet, metrics: &[Known]) -> Vec<Finding> {
    let mut all = Vec::new();
    for policy in &set.policies {
        let mut say = |severity, place: Place, path: &str, message: String, help: Option<String>| {
            all.push(Finding { severity, fault: Fault::new(&policy.file, place, path, message, help) });
        };
        if policy.status == Status::Retired || policy.enforcement_mode == Mode::Disabled {
            say(Severity::Warning, policy.place, "", format!("`{}` governs nothing: it is off", policy.id), None);
        }
        if policy.condition.is_some() {
            let message = format!("the condition of `{}` is read and kept, but not evaluated yet", policy.id);
            say(Severity::Note, policy.place, "condition", message, None);
        }
        if policy.scope.level == Level::Tenant
            && policy.tenant != "*"
            && !policy.scope.level_ids.is_empty()
            && !policy.scope.level_ids.contains(&policy.tenant)
        {
            let message = format!("`{}` matches nothing: its tenant is not among scope.level_ids", policy.id);
            say(Severity::Error, policy.place, "scope.level_ids", message, None);
        }
        for limit in &policy.limits {
            let path = format!("limits.{}", limit.id);
            if limit.status == LimitStatus::Disabled {
                say(Severity::Warning, limit.place, &path, "the limit is off".to_owned(), None);
            }
            let harmless = limit.enforcement != super::model::Enforcement::Block;
            if harmless && limit.on_breach != OnBreach::None {
                let message = format!("on_breach {} has no effect with enforcement {}", limit.on_breach, limit.enforcement);
                say(Severity::Warning, limit.place, &path, message, Some("use enforcement: BLOCK".to_owned()));
            }
            let Some((name, scope, early)) = metrics.iter().find(|(n, ..)| *n == limit.metric) else {
                let help = nearest(&limit.metric, metrics.iter().map(|m| m.0.as_str()));
                let help = help.map(|n| format!("did you mean `{n}`?"));
                say(Severity::Error, limit.place, &path, format!("no metric is named `{}`", limit.metric), help);
                continue;
            };
            if let Some(key) = policy.scope.lacks(*scope) {
                let message = format!("`{}` selects by {key}, but groups of `{name}` are by {}", policy.id, scope.key_field());
                say(Severity::Error, limit.place, &path, message, Some("use a metric of that scope".to_owned()));
            }
            if !early {
                let message = format!("`{name}` decides when its window closes, not at the row that crosses");
                say(Severity::Note, limit.place, &path, message, None);
            }
        }
    }
    ambiguities(set, &mut all);
    let limited = |name: &str| set.policies.iter().any(|p| p.limits.iter().any(|l| l.metric == name));
    for (name, ..) in metrics.iter().filter(|(n, ..)| !limited(n)) {
        let fault = Fault::new("queries", Place { line: 1, column: 1 }, name, "no policy limits this metric".to_owned(), None);
        all.push(Finding { severity: Severity::Note, fault });
    }
    for file in set.files.iter().filter(|f| !set.policies.iter().any(|p| p.file == **f)) {
        let fault = Fault::new(file, Place { line: 1, column: 1 }, "", "the file holds no policy".to_owned(), None);
        all.push(Finding { severity: Severity::Warning, fault });
    }
    all.sort_by(|a, b| (a.severity, &a.fault).cmp(&(b.severity, &b.fault)));
    all
}

/// FAIL_CLOSED policies of equal precedence on one metric that differ: their runs stop at binding.
fn ambiguities(set: &PolicySet, all: &mut Vec<Finding>) {
    let closed = |p: &&Policy| p.conflict_strategy == Strategy::FailClosed && p.enforcement_mode == Mode::Block;
    for (i, a) in set.policies.iter().enumerate().filter(|(_, p)| closed(p)) {
        for b in set.policies[i + 1..].iter().filter(|b| b.precedence == a.precedence && b.scope == a.scope) {
            for (x, y) in a.limits.iter().flat_map(|x| b.limits.iter().map(move |y| (x, y))) {
                let same = x.metric == y.metric && x.enforcement == y.enforcement;
                if same && (x.max, x.near, x.on_breach) != (y.max, y.near, y.on_breach) {
                    let message = format!("ambiguous with `{}/{}`: runs that both bind are stopped", b.id, y.id);
                    let help = Some("give one of them a lower precedence".to_owned());
                    let fault = Fault::new(&a.file, x.place, &format!("limits.{}", x.id), message, help);
                    all.push(Finding { severity: Severity::Warning, fault });
                }
            }
        }
    }
}
