//! What is wrong with a set as a whole: limits that do not count, policies that match nothing, terms that contradict.
//!
//! A file's own faults are [`super::parse`]'s; here every policy is valid by itself. A limit that does not count is the
//! worst bug, so what governs nothing is an error, and what only reads oddly is a warning or a note.

use std::collections::BTreeMap;

use super::active::Active;
use super::arbitrate::terms;
use super::condition::{Conditions, Fields};
use super::conflict::{Conflict, ConflictSeverity, ConflictType, conflicts};
use super::depend::dependency_faults;
use super::fault::{Fault, nearest, quoted};
use super::model::{Enforcement, Limit, LimitStatus, Mode, OnBreach, Place, Policy, Status, Strategy};
use super::names::names;
use super::reach::{Reach, admitted};
use super::scope::{Key, Scope, Selector};
use super::set::PolicySet;

/// Most ambiguities reported; they grow with the square of the policies.
const MAX_AMBIGUITIES: usize = 100;

/// Most other policies named in one warning about conflicts.
const MAX_OTHERS: usize = 5;

names! {
    /// How bad a finding is.
    Severity {
        /// It must be put right.
        Error = "error",
        /// It is probably not meant.
        Warning = "warning",
        /// Good to know.
        Note = "note",
    }
}

/// One thing found in a set of policies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The file; empty when it is about no file.
    pub file: String,
    /// Line, from 1; 0 when it is about the whole file or set.
    pub line: u64,
    /// Column, from 1; 0 likewise.
    pub column: u64,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

impl From<Fault> for Finding {
    fn from(fault: Fault) -> Self {
        let message = if fault.path.is_empty() { fault.message } else { format!("{}: {}", fault.path, fault.message) };
        Self {
            file: fault.file,
            line: fault.line,
            column: fault.column,
            severity: Severity::Error,
            message,
            help: fault.help,
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:", self.file)?;
            if self.line > 0 {
                write!(f, "{}:{}:", self.line, self.column)?;
            }
            f.write_str(" ")?;
        }
        write!(f, "{}: {}", self.severity, self.message)?;
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

/// Checks a set against the metrics: (name, scope, whether early results can raise). Findings come in order of file and
/// place. With `strict`, warnings are errors.
pub fn check(set: &PolicySet, metrics: &[(String, Scope, bool)], strict: bool) -> Vec<Finding> {
    examine(set, metrics, strict, true)
}

/// As [`check`], but leaves conflicts between policies to whoever asks for them by themselves.
pub fn check_apart(set: &PolicySet, metrics: &[(String, Scope, bool)]) -> Vec<Finding> {
    examine(set, metrics, false, false)
}

fn examine(set: &PolicySet, metrics: &[(String, Scope, bool)], strict: bool, together: bool) -> Vec<Finding> {
    let by_name = metrics.iter().map(|(name, scope, early)| (name.as_str(), (*scope, *early))).collect();
    let mut checker = Checker { metrics: by_name, findings: Vec::new() };
    for file in set.files() {
        if file.policies == 0 {
            checker.add(
                Severity::Error,
                &file.name,
                Place::default(),
                "the file governs nothing: no policy was read".to_owned(),
                None,
            );
        }
    }
    for policy in set.policies() {
        checker.policy(policy);
    }
    if together {
        checker.ambiguities(set.policies());
        checker.conflicts(set.policies());
    }
    checker.findings.extend(dependency_faults(set.policies()).into_iter().map(Finding::from));
    checker.coverage(set.policies());
    let mut findings = checker.findings;
    if strict {
        for finding in findings.iter_mut().filter(|f| f.severity == Severity::Warning) {
            finding.severity = Severity::Error;
        }
    }
    findings.sort();
    findings
}

/// Compiles the conditions of a set over the fields there are. Each fault is an error where the condition is written.
pub fn check_conditions(set: &PolicySet, fields: &Fields) -> Vec<Finding> {
    let (conditions, faults) = Conditions::compile(set.policies(), fields);
    let mut findings: Vec<Finding> = faults.into_iter().map(Finding::from).collect();
    for condition in conditions.compiled().iter().filter(|c| !c.utilization.is_empty()) {
        let (tenant, id) = &condition.policy;
        let Some(policy) = set.policies().iter().find(|p| p.tenant == *tenant && p.id == *id) else { continue };
        findings.push(Finding {
            file: policy.file.to_string(),
            line: policy.place.line,
            column: policy.place.column,
            severity: Severity::Warning,
            message: format!(
                "policy {}: run.utilization.{} is always unknown in this version",
                quoted(id),
                condition.utilization.join(" ")
            ),
            help: Some("limit the metric itself, or read a field of telemetry".to_owned()),
        });
    }
    findings
}

/// What limits compete within: metric, enforcement and, under FAIL_CLOSED, precedence.
type Kind<'p> = (&'p str, Enforcement, i64);

struct Checker<'m> {
    metrics: BTreeMap<&'m str, (Scope, bool)>,
    findings: Vec<Finding>,
}

impl Checker<'_> {
    fn add(&mut self, severity: Severity, file: &str, at: Place, message: String, help: Option<String>) {
        let file = file.to_owned();
        self.findings.push(Finding { file, line: at.line, column: at.column, severity, message, help });
    }

    fn policy(&mut self, policy: &Policy) {
        let about = |text: &str| format!("policy {}: {text}", quoted(&policy.id));
        let at = policy.place;
        if policy.status == Status::Retired {
            return self.add(Severity::Warning, &policy.file, at, about("is RETIRED and governs nothing"), None);
        }
        if policy.enforcement_mode == Mode::Disabled {
            return self.add(Severity::Warning, &policy.file, at, about("is DISABLED and governs nothing"), None);
        }
        if let Some(why) = matches_nothing(policy) {
            self.add(Severity::Error, &policy.file, at, about(&format!("matches nothing: {why}")), None);
        }
        if policy.condition.is_none() && policy.limits.iter().all(|l| l.status == LimitStatus::Disabled) {
            self.add(Severity::Error, &policy.file, at, about("governs nothing: every limit is DISABLED"), None);
        }
        for limit in policy.limits.iter().filter(|l| l.status == LimitStatus::Active) {
            self.limit(policy, limit);
        }
        for (n, limit) in policy.limits.iter().enumerate() {
            let rivals = |other: &&Limit| {
                other.metric == limit.metric && other.enforcement == limit.enforcement && policy.enforces(other)
            };
            let counts = limit.status == LimitStatus::Active && policy.enforces(limit);
            if counts && policy.limits[..n].iter().filter(|l| l.status == LimitStatus::Active).any(|l| rivals(&l)) {
                let text = format!(
                    "limit {} competes with another {} limit of its own policy on {}: only one result remains",
                    quoted(&limit.id),
                    limit.enforcement,
                    quoted(&limit.metric)
                );
                let help = Some("use another enforcement, or one limit".to_owned());
                self.add(Severity::Warning, &policy.file, limit.place, about(&text), help);
            }
        }
    }

    fn limit(&mut self, policy: &Policy, limit: &Limit) {
        let about = |text: String| format!("policy {}, limit {}: {text}", quoted(&policy.id), quoted(&limit.id));
        let (file, at) = (&*policy.file, limit.place);
        let Some((scope, early)) = self.metrics.get(&*limit.metric).copied() else {
            let help = match nearest(&limit.metric, self.metrics.keys().copied()) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => "metrics are the files under queries/metrics".to_owned(),
            };
            let text = about(format!("there is no metric {}", quoted(&limit.metric)));
            return self.add(Severity::Error, file, at, text, Some(help));
        };
        if let Some(key) = policy.scope.beyond(scope) {
            let text = about(format!(
                "never matches: the policy selects by {}, which groups of the {scope} metric {} do not have",
                key.field(),
                quoted(&limit.metric)
            ));
            let help = Some("widen the policy's scope, or limit a metric that is grouped by that key".to_owned());
            self.add(Severity::Error, file, at, text, help);
        }
        if !early {
            let text = about(format!("decides at window close only: {} is not monotone", quoted(&limit.metric)));
            self.add(Severity::Note, file, at, text, None);
        }
        if limit.enforcement == Enforcement::Block
            && limit.on_breach == OnBreach::None
            && policy.enforcement_mode == Mode::Block
        {
            let text = about("blocks nothing: on_breach is none, so a breach signals and alerts only".to_owned());
            self.add(
                Severity::Warning,
                file,
                at,
                text,
                Some("say PAUSE, STOP or KILL, or `enforcement: WARN`".to_owned()),
            );
        }
        if limit.fallback_model.is_some() && limit.enforcement != Enforcement::Degrade {
            let text = about(format!("fallback_model is for DEGRADE, here it is {}", limit.enforcement));
            self.add(Severity::Warning, file, at, text, None);
        }
    }

    /// Limits that FAIL_CLOSED cannot order and that can meet on one run or group. A warning: that such terms stop the run is
    /// what the strategy is for; only other maxima of one limit type are a BLOCKING conflict.
    fn ambiguities(&mut self, policies: &[Policy]) {
        let mut rivals: BTreeMap<Kind<'_>, Vec<(&Policy, &Limit)>> = BTreeMap::new();
        for policy in policies.iter().filter(|p| p.counts()) {
            for limit in policy.limits.iter().filter(|l| l.status == LimitStatus::Active && policy.enforces(l)) {
                rivals.entry((&limit.metric, limit.enforcement, policy.precedence)).or_default().push((policy, limit));
            }
        }
        let mut found = 0;
        for ((metric, enforcement, precedence), group) in rivals {
            for (n, (first, limit)) in group.iter().enumerate() {
                // policies come by (tenant, id), so the earlier of a pair is the one whose strategy counts
                if first.conflict_strategy != Strategy::FailClosed {
                    continue;
                }
                for (other, rival) in group.iter().skip(n + 1) {
                    // another `max` of one limit type is a THRESHOLD_CONTRADICTION, and said as such
                    let contradiction = limit.limit_type == rival.limit_type && limit.max != rival.max;
                    if contradiction || terms(limit) == terms(rival) || !meet(first, other) {
                        continue;
                    }
                    found += 1;
                    if found > MAX_AMBIGUITIES {
                        let text = format!("more than {MAX_AMBIGUITIES} pairs are ambiguous under FAIL_CLOSED");
                        return self.add(Severity::Warning, "", Place::default(), text, None);
                    }
                    let text = format!(
                        "policy {}, limit {}: ambiguous under FAIL_CLOSED with {}/{} ({}:{}): both {enforcement} {} at precedence {precedence} \
                         with different terms, so what both match is stopped",
                        quoted(&first.id),
                        quoted(&limit.id),
                        other.id,
                        rival.id,
                        other.file,
                        rival.place.line,
                        quoted(metric)
                    );
                    let help = Some("give them different precedences, or equal max, near and action".to_owned());
                    self.add(Severity::Warning, &first.file, limit.place, text, help);
                }
            }
        }
    }

    /// Pairs that contradict: BLOCKING ones are errors, each where its first policy is; the others are gathered to one warning
    /// for each policy and type.
    fn conflicts(&mut self, policies: &[Policy]) {
        let found = conflicts(policies);
        let place = |tenant: &str, id: &str| {
            let at = policies.binary_search_by(|p| (&*p.tenant, &*p.id).cmp(&(tenant, id))).ok();
            at.and_then(|at| policies.get(at)).map(|p| (p.file.clone(), p.place)).unwrap_or_default()
        };
        let mut gathered: BTreeMap<(&str, &str, ConflictType), Vec<&Conflict>> = BTreeMap::new();
        for conflict in &found.conflicts {
            let Conflict { policy_a_tenant: tenant, policy_a_id: id, conflict_type, .. } = conflict;
            if conflict.severity == ConflictSeverity::Warning {
                gathered.entry((tenant, id, *conflict_type)).or_default().push(conflict);
                continue;
            }
            let (file, at) = place(tenant, id);
            let (other, there) = place(&conflict.policy_b_tenant, &conflict.policy_b_id);
            let text = format!(
                "{conflict_type} with {} ({other}:{}): {}; for example {}",
                quoted(&conflict.policy_b_id),
                there.line,
                conflict.explanation,
                conflict.witness
            );
            let text = format!("policy {}: {text}", quoted(id));
            self.add(Severity::Error, &file, at, text, Some(conflict.recommended_action.clone()));
        }
        for ((tenant, id, of), pairs) in gathered {
            let Some(first) = pairs.first() else { continue };
            let (file, at) = place(tenant, id);
            let others: Vec<String> = pairs.iter().skip(1).take(MAX_OTHERS).map(|c| quoted(&c.policy_b_id)).collect();
            let more = match (others.is_empty(), pairs.len() - 1 - others.len()) {
                (true, _) => String::new(),
                (false, 0) => format!("; likewise with {}", others.join(" ")),
                (false, n) => format!("; likewise with {} and {n} more", others.join(" ")),
            };
            let with = quoted(&first.policy_b_id);
            let (why, run) = (&first.explanation, &first.witness);
            let text = format!("policy {}: {of} with {with}: {why}; for example {run}{more}", quoted(id));
            self.add(Severity::Warning, &file, at, text, Some(first.recommended_action.clone()));
        }
        if !found.complete {
            let text = "there are more conflicts of a type than are listed; resolve these, and check again".to_owned();
            self.add(Severity::Warning, "", Place::default(), text, None);
        }
    }

    fn coverage(&mut self, policies: &[Policy]) {
        let limited: std::collections::BTreeSet<&str> = policies
            .iter()
            .filter(|p| p.counts())
            .flat_map(|p| p.limits.iter().filter(|l| l.status == LimitStatus::Active).map(|l| &*l.metric))
            .collect();
        let free: Vec<&str> = self.metrics.keys().copied().filter(|name| !limited.contains(name)).collect();
        for name in free {
            self.add(
                Severity::Note,
                "",
                Place::default(),
                format!("no policy limits the metric {}", quoted(name)),
                None,
            );
        }
        if policies.iter().any(Policy::counts)
            && !policies.iter().any(|p| p.counts() && p.enforcement_mode == Mode::Block)
        {
            let help = Some("`enforcement_mode: BLOCK` turns a policy on".to_owned());
            let text = "nothing is enforced: no policy is in BLOCK mode".to_owned();
            self.add(Severity::Note, "", Place::default(), text, help);
        }
    }
}

/// Whether one run can be under both at once.
fn meet(a: &Policy, b: &Policy) -> bool {
    let runs = Reach::of(a).zip(Reach::of(b)).is_some_and(|(a, b)| a.meets(&b));
    runs && (a.active.is_none() && b.active.is_none() || Active::common(a.active.as_ref(), b.active.as_ref()).is_some())
}

fn matches_nothing(policy: &Policy) -> Option<String> {
    let key = Key::ALL.into_iter().find(|key| admitted(policy, *key).is_some_and(|ids| ids.is_empty()))?;
    let Selector { level_ids, ids, .. } = &policy.scope;
    Some(if key == Key::Tenant {
        format!("its tenant {} is not among level_ids {}", quoted(&policy.tenant), level_ids.join(" "))
    } else {
        format!("no {} is in both ids {} and level_ids {}", key.field(), ids.join(" "), level_ids.join(" "))
    })
}

#[cfg(test)]
mod tests;
