//! The control contract in the core (P5, P7, P8, P11): signed commands, the one writer, and partitions that follow it.

use std::collections::BTreeMap;
use std::sync::Arc;

use runwarden::cli::load;
use runwarden::clock::{SECOND, Wall};
use runwarden::decide::commands::{Command, Keyring};
use runwarden::kafka::core::{Core, Input, InputBatch, OutRecord, Record, StateChange, StepInput, Topic};
use runwarden::pipeline::terms::{self, IN_FORCE, Texts, Tuning, set_digest};
use runwarden::pipeline::{InForce, Own, Partition, Settings};
use runwarden::policy::Snapshot;
use runwarden::telemetry::tenant_partition;
use serde_json::{Value, json};

/// 2026-01-05T00:00:00Z.
const DAY: i64 = 1_767_571_200;

const LIMIT: &str = "{id: run, name: Run, enforcement_mode: BLOCK, binding: RUN_START, limits: [{id: tokens, limit_type: T, metric: run_tokens, max: 100}]}";

fn tuning() -> Tuning {
    let mut keys = Keyring::default();
    keys.add("k", b"a key that both sides know", 5);
    keys.add("low", b"a key for those who propose", 3);
    Tuning { keys: Arc::new(keys), ..load::defaults() }
}

fn texts() -> Texts {
    Texts::demo()
}

fn following(texts: &Texts) -> Settings {
    let texts = Texts { policies: Vec::new(), ..texts.clone() };
    let mut settings = terms::following(load::build(&texts, tuning()).unwrap().settings);
    settings.future_at = Some(Wall(i64::MAX));
    settings
}

/// A cluster of partitions that follow one writer, stepped by hand.
struct Cluster {
    cores: Vec<Partition>,
    settings: Arc<Settings>,
    number: u64,
    offset: i64,
    next: u64,
    in_force: Option<Vec<u8>>,
    said: Vec<OutRecord>,
}

impl Cluster {
    fn new(partitions: i32) -> Self {
        let settings = Arc::new(following(&texts()));
        let core = |partition| Partition::new(Arc::clone(&settings), Own { partition, partitions }).unwrap();
        let cores = (0..partitions).map(core).collect();
        Self { cores, settings, number: 0, offset: 0, next: 0, in_force: None, said: Vec::new() }
    }

    /// With these policies in force.
    fn under(partitions: i32, policies: &str) -> Self {
        let mut cluster = Self::new(partitions);
        let result = cluster.apply(0, 0, &texts(), &[("p.yaml", policies)]);
        assert_eq!(result["status"], "ACCEPTED", "{result}");
        cluster
    }

    fn owner(&self, key: &str) -> usize {
        usize::try_from(tenant_partition(key, i32::try_from(self.cores.len()).unwrap())).unwrap()
    }

    fn raw(&mut self, at: i64, partition: usize, input: Input, key: &str, payload: &[u8]) -> Vec<OutRecord> {
        let record = Record {
            offset: self.offset,
            timestamp: 0,
            key: Some(key.as_bytes()),
            payload: Some(payload),
            headers: &[],
        };
        self.offset += 1;
        self.number += 1;
        let inputs = vec![InputBatch { input, records: vec![record], at_end: false }];
        let input =
            StepInput { number: self.number, now: Wall((DAY + at) * SECOND), inputs, replaying: false, finish: false };
        let records = self.cores[partition].step(&input).unwrap().records;
        for record in &records {
            if record.key == IN_FORCE.as_bytes() {
                self.in_force.clone_from(&record.payload);
            }
        }
        self.said.extend(records.iter().cloned());
        records
    }

    /// Gives the terms on the topic to every partition.
    fn follow(&mut self) {
        let Some(payload) = &self.in_force else { return };
        let (_, in_force) = InForce::read(payload, [Arc::clone(&self.settings)], &tuning()).unwrap();
        for core in &mut self.cores {
            core.follow(&in_force).unwrap();
        }
    }

    fn send(&mut self, at: i64, payload: &[u8]) -> Value {
        let owner = self.owner("*");
        let records = self.raw(at, owner, Input::Commands, "*", payload);
        self.follow();
        let result = records.iter().find(|r| r.topic == Topic::CommandResults).unwrap();
        serde_json::from_slice(result.payload.as_deref().unwrap()).unwrap()
    }

    fn command(&mut self, at: i64, kind: &str, principal: &str, authority: u8, body: Value) -> Command {
        self.next += 1;
        Command {
            command_id: format!("c-{}", self.next),
            kind: kind.into(),
            tenant_id: "*".into(),
            principal: principal.into(),
            authority,
            issued_at: (DAY + at) * SECOND,
            body,
            key_id: None,
        }
    }

    /// A signed command of a person.
    fn ask(&mut self, at: i64, kind: &str, body: Value) -> Value {
        let command = self.command(at, kind, "user:ada", 4, body);
        let payload = tuning().keys.sign(command, "k").unwrap();
        self.send(at, &payload)
    }

    fn apply(&mut self, at: i64, generation: u64, texts: &Texts, policies: &[(&str, &str)]) -> Value {
        let mut files: BTreeMap<String, String> =
            policies.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        if generation > 0 {
            files.insert("set.yaml".into(), format!("generation: {generation}"));
        }
        let terms = texts.terms(&tuning());
        let body = json!({
            "generation": generation, "digest": set_digest(&files, &terms), "policies": files, "queries": terms.queries,
            "prices": terms.prices, "settings": terms.settings,
        });
        let command = self.command(at, "policy_set.apply", "system:files@a", 5, body);
        let payload = tuning().keys.sign(command, "k").unwrap();
        self.send(at, &payload)
    }

    /// A step of a run of tenant acme; what is said of it.
    fn tokens(&mut self, at: i64, run: &str, tokens: i64) -> Vec<Value> {
        let event = json!({
            "event_time": (DAY + at) * 1000, "event_type": "run.step", "tenant_id": "acme", "run_id": run, "input_tokens": tokens,
        });
        let owner = self.owner("acme");
        let records = self.raw(at, owner, Input::Telemetry, "acme", event.to_string().as_bytes());
        on(&records, Topic::Signals)
    }

    /// Everything is lost but the checkpoints.
    fn crash(&mut self, kept: &[Vec<StateChange>]) {
        let partitions = i32::try_from(self.cores.len()).unwrap();
        for (partition, kept) in (0..).zip(kept) {
            let mut core = Partition::new(Arc::clone(&self.settings), Own { partition, partitions }).unwrap();
            for change in kept {
                core.restore(&change.key, change.value.as_ref().unwrap()).unwrap();
            }
            core.restored().unwrap();
            self.cores[usize::try_from(partition).unwrap()] = core;
        }
    }

    fn checkpoint(&mut self) -> Vec<Vec<StateChange>> {
        let whole = |core: &mut Partition| {
            core.mark_all_dirty();
            core.take_changes().into_iter().filter(|c| c.value.is_some()).collect()
        };
        self.cores.iter_mut().map(whole).collect()
    }

    fn audit(&self) -> Vec<Value> {
        on(&self.said, Topic::Audit)
    }
}

fn on(said: &[OutRecord], topic: Topic) -> Vec<Value> {
    let payloads = said.iter().filter(|r| r.topic == topic).filter_map(|r| r.payload.as_deref());
    payloads.map(|p| serde_json::from_slice(p).unwrap()).collect()
}

fn kinds(signals: &[Value]) -> Vec<&str> {
    signals.iter().map(|s| s["kind"].as_str().unwrap()).collect()
}

fn policy(id: &str, tenant: &str, max: u32) -> Value {
    json!({
        "id": id, "name": id, "tenant": tenant, "enforcement_mode": "BLOCK", "conflict_strategy": "EXPLICIT_PRIORITY",
        "limits": [{"id": "l", "limit_type": "U", "metric": "run_tokens", "max": max}],
    })
}

#[test]
fn a_core_takes_no_telemetry_before_terms_are_in_force_and_adopts_them_at_a_step() {
    let mut cluster = Cluster::new(2);
    assert!(cluster.cores.iter().all(|c| !c.is_governed()));
    cluster.apply(0, 0, &texts(), &[("p.yaml", LIMIT)]);
    assert_eq!(kinds(&cluster.tokens(1, "r", 200)), ["NEAR", "BREACH"]);
    let owner = cluster.owner("acme");
    assert!(cluster.cores[owner].is_governed() && cluster.cores[owner].wants_checkpoint());
}

#[test]
fn a_run_keeps_the_terms_it_is_bound_to_through_a_policy_change_and_a_crash() {
    let mut cluster = Cluster::under(2, LIMIT);
    let started = json!({"event_time": DAY * 1000, "event_type": "run.started", "tenant_id": "acme", "run_id": "old"});
    let owner = cluster.owner("acme");
    cluster.raw(0, owner, Input::Telemetry, "acme", started.to_string().as_bytes());
    let first: Value = serde_json::from_slice(cluster.in_force.as_deref().unwrap()).unwrap();
    let laxer = LIMIT.replace("max: 100", "max: 1000");
    assert_eq!(cluster.apply(1, 0, &texts(), &[("p.yaml", &laxer)])["status"], "ACCEPTED");
    assert_eq!(cluster.tokens(2, "new", 200).len(), 0, "a new run is under the new terms");
    let kept = cluster.checkpoint();
    cluster.crash(&kept);
    cluster.follow();
    let signals = cluster.tokens(3, "old", 200);
    assert_eq!(kinds(&signals), ["NEAR", "BREACH"], "the old run is under those of its start");
    assert!(signals.iter().all(|s| s["snapshot_id"] == first["snapshot_id"] && s["policy_version"] == 1));
    assert_eq!(cluster.tokens(4, "new", 200).len(), 0);
}

#[test]
fn a_forged_command_changes_nothing_and_is_on_the_audit_topic() {
    let mut cluster = Cluster::under(2, LIMIT);
    let before = cluster.in_force.clone();
    let mut forged = Vec::new();
    for key in ["none", "wrong", "unknown", "changed"] {
        let command = cluster.command(
            1,
            "limit.disable",
            "user:eve",
            5,
            json!({"tenant": "*", "policy_id": "run", "limit_id": "tokens"}),
        );
        let mut fields: Value = match key {
            "none" => serde_json::to_value(&command).unwrap(),
            _ => serde_json::from_slice(&tuning().keys.sign(command, "k").unwrap()).unwrap(),
        };
        match key {
            "wrong" => fields["mac"] = "00".repeat(32).into(),
            "unknown" => fields["key_id"] = "another".into(),
            "changed" => fields["body"]["policy_id"] = "another".into(),
            _ => {}
        }
        forged.push(fields.to_string().into_bytes());
    }
    for payload in &forged {
        let result = cluster.send(2, payload);
        assert_eq!((&result["status"], &result["code"]), (&json!("REFUSED"), &json!("authority")), "{result}");
    }
    assert_eq!(cluster.in_force, before);
    assert_eq!(kinds(&cluster.tokens(3, "r", 200)), ["NEAR", "BREACH"], "the limit is in force");
    let refused: Vec<Value> = cluster.audit().into_iter().filter(|a| a["refused"] == true).collect();
    assert_eq!(refused.len(), 4);
    for audit in refused {
        assert_eq!(audit["principal"], "unverified:user:eve");
        assert_eq!((&audit["authority"], &audit["after"]["claimed_authority"]), (&json!(1), &json!(5)));
    }
}

#[test]
fn a_command_sent_twice_counts_once_also_after_a_crash_and_its_id_is_nobody_elses() {
    let mut cluster = Cluster::under(1, LIMIT);
    let command =
        cluster.command(1, "proposal.create", "service:lessons", 3, json!({"policy": policy("p", "acme", 5)}));
    let payload = tuning().keys.sign(command.clone(), "low").unwrap();
    let first = cluster.send(1, &payload);
    assert_eq!(first["status"], "ACCEPTED", "{first}");
    let kept = cluster.checkpoint();
    cluster.crash(&kept);
    let said = cluster.said.len();
    let later = Command { issued_at: command.issued_at + SECOND, principal: "service:other".into(), ..command.clone() };
    assert_eq!(cluster.send(2, &tuning().keys.sign(later, "k").unwrap()), first, "whoever sends it again, and when");
    assert_eq!(cluster.said.len() - said, 1, "an answer and nothing else");
    let other = Command { body: json!({"policy": policy("q", "acme", 5)}), ..command };
    assert_eq!(cluster.send(3, &tuning().keys.sign(other, "k").unwrap())["code"], "id_reused");
}

#[test]
fn an_id_is_not_burnt_by_who_has_no_right_to_use_it() {
    let mut cluster = Cluster::under(1, LIMIT);
    let command = cluster.command(1, "limit.disable", "user:ada", 4, json!({"policy_id": "run", "limit_id": "tokens"}));
    let forged = serde_json::to_vec(&command).unwrap();
    assert_eq!(cluster.send(1, &forged)["status"], "REFUSED");
    assert_eq!(cluster.send(1, &tuning().keys.sign(command, "k").unwrap())["status"], "ACCEPTED");
}

#[test]
fn old_early_unknown_and_wrongly_keyed_commands_are_answered_with_the_reason() {
    let mut cluster = Cluster::under(2, LIMIT);
    let body = json!({"policy_id": "run", "limit_id": "tokens"});
    let command = cluster.command(0, "limit.disable", "user:ada", 4, body);
    let sign = |command| tuning().keys.sign(command, "k").unwrap();
    assert_eq!(cluster.send(24 * 3600 + 1, &sign(command.clone()))["code"], "stale");
    let early = Command { command_id: "early".into(), issued_at: (DAY + 25 * 3600) * SECOND, ..command.clone() };
    assert_eq!(cluster.send(24 * 3600 + 2, &sign(early))["code"], "future");
    let unknown = Command { command_id: "u".into(), kind: "make.coffee".into(), ..command.clone() };
    assert_eq!(cluster.send(24 * 3600 + 3, &sign(unknown))["code"], "unknown_command");
    let keyed = Command { command_id: "keyed".into(), issued_at: (DAY + 24 * 3600) * SECOND, ..command };
    let owner = cluster.owner("acme");
    let said = cluster.raw(24 * 3600 + 4, owner, Input::Commands, "acme", &sign(keyed));
    assert_eq!(on(&said, Topic::CommandResults)[0]["code"], "key");
}

#[test]
fn a_command_on_another_partition_is_sent_on_to_the_writer() {
    let mut cluster = Cluster::new(3);
    let wrong = (cluster.owner("*") + 1) % 3;
    let command = cluster.command(0, "limit.disable", "user:ada", 4, json!({}));
    let payload = tuning().keys.sign(command, "k").unwrap();
    let said = cluster.raw(0, wrong, Input::Commands, "*", &payload);
    assert_eq!(said.len(), 1);
    assert_eq!((said[0].topic, said[0].partition), (Topic::Repartition, i32::try_from(cluster.owner("*")).ok()));
}

#[test]
fn bytes_that_are_no_command_are_kept_as_a_described_dead_letter() {
    let mut cluster = Cluster::under(1, LIMIT);
    for bytes in [&b"a secret"[..], b"{}", b"{\"command_id\":\"c\"}"] {
        let said = cluster.raw(1, 0, Input::Commands, "*", bytes);
        let letters: Vec<_> = said.iter().filter(|r| r.topic == Topic::DeadLetter).collect();
        assert_eq!(letters.len(), 1);
        assert!(!String::from_utf8_lossy(letters[0].payload.as_deref().unwrap()).contains("a secret"));
    }
}

#[test]
fn of_conflicting_proposals_one_is_approved_and_the_other_is_told_why() {
    let mut cluster = Cluster::under(1, LIMIT);
    let global = cluster.ask(1, "proposal.create", json!({"policy": policy("everywhere", "*", 5)}));
    let tenant = cluster.ask(1, "proposal.create", json!({"policy": policy("here", "acme", 6)}));
    let id = |result: &Value| result["result"]["proposal_id"].clone();
    let first = cluster.ask(2, "proposal.approve", json!({"proposal_id": id(&tenant), "reason": "needed"}));
    let second = cluster.ask(2, "proposal.approve", json!({"proposal_id": id(&global), "reason": "needed too"}));
    assert_eq!(first["status"], "ACCEPTED", "{first}");
    assert_eq!((&second["status"], &second["code"]), (&json!("REFUSED"), &json!("conflict")));
    assert!(second["reason"].as_str().unwrap().contains("GOV-POL-001"));
    assert_eq!(second["conflicts"][0]["conflict_type"], "THRESHOLD_CONTRADICTION");
    assert_eq!(kinds(&cluster.tokens(3, "r", 6)), ["NEAR", "BREACH"], "what was approved governs");
    let audit = cluster.audit();
    let lived = audit.iter().map(|a| a["kind"].as_str().unwrap().to_owned());
    let lived: Vec<String> = lived.filter(|kind| !kind.starts_with("intervention.")).collect();
    let expected = [
        "policy_set.applied",
        "proposal.created",
        "proposal.created",
        "proposal.approved",
        "policy.activated",
        "command.refused",
    ];
    assert_eq!(lived, expected);
}

#[test]
fn a_set_that_does_not_hold_is_refused_whole_with_file_line_and_column() {
    let mut cluster = Cluster::under(1, LIMIT);
    let before = cluster.in_force.clone();
    let wrong = "id: a\nname: A\nlimits:\n  - {id: l, limit_type: T, metric: run_tokns, max: 5}\n";
    let result = cluster.apply(1, 0, &texts(), &[("ok.yaml", LIMIT), ("sub/wrong.yaml", wrong)]);
    assert_eq!((&result["status"], &result["code"]), (&json!("REFUSED"), &json!("invalid")));
    assert!(result["reason"].as_str().unwrap().contains("sub/wrong.yaml:4:"), "{}", result["reason"]);
    let mut broken = texts();
    broken.metrics[0].1 = broken.metrics[0].1.replace("sum", "sun");
    let result = cluster.apply(2, 0, &broken, &[("p.yaml", LIMIT)]);
    assert!(result["code"] == "invalid" && result["reason"].as_str().unwrap().contains("metrics/"), "{result}");
    assert_eq!(cluster.in_force, before);
}

#[test]
fn an_override_reaches_a_run_that_is_bound_already_and_ends_by_itself() {
    let mut cluster = Cluster::under(1, LIMIT);
    assert_eq!(kinds(&cluster.tokens(1, "r", 85)), ["NEAR"]);
    let granted = cluster.ask(
        2,
        "override.grant",
        json!({"tenant": "acme", "policy_tenant": "*", "policy_id": "run", "minutes": 5, "reason": "a demo"}),
    );
    assert_eq!(granted["status"], "ACCEPTED", "{granted}");
    let signals = cluster.tokens(3, "r", 200);
    assert_eq!(kinds(&signals), ["RESOLVED"], "the level ends, and nothing is stopped");
    assert_eq!(signals[0]["reason"], "policy_changed");
    let deadline = cluster.cores[0].next_deadline().unwrap();
    assert!(deadline <= Wall((DAY + 2 + 300) * SECOND), "somebody looks when its time is over");
    cluster.tokens(2 + 300, "other", 1);
    cluster.follow();
    let signals = cluster.tokens(2 + 301, "r", 1);
    assert_eq!(kinds(&signals), ["NEAR", "BREACH"]);
    let ended = cluster.audit().into_iter().find(|a| a["kind"] == "override.expired").unwrap();
    assert_eq!((&ended["principal"], &ended["after"]["status"]), (&json!("system:runwarden"), &json!("EXPIRED")));
}

#[test]
fn editing_one_query_keeps_the_state_of_all_others() {
    let mut cluster = Cluster::under(2, LIMIT);
    assert_eq!(cluster.tokens(1, "r", 60).len(), 0);
    let mut edited = texts();
    let other = edited.metrics.iter_mut().find(|(name, _)| name.ends_with("run_steps.sql")).unwrap();
    other.1 = other.1.replace("run.step", "run.started");
    edited.metrics.retain(|(name, _)| !name.ends_with("run_risk_max.sql"));
    let result = cluster.apply(2, 0, &edited, &[("p.yaml", LIMIT)]);
    assert_eq!(result["status"], "ACCEPTED", "{result}");
    let owner = cluster.owner("acme");
    let metrics = cluster.cores[owner].metrics().len();
    assert_eq!(metrics, texts().metrics.len() - 1);
    let signals = cluster.tokens(3, "r", 60);
    assert_eq!(kinds(&signals), ["NEAR", "BREACH"], "60 before and 60 after make 120");
    assert_eq!(signals[1]["value"], 120);
}

#[test]
fn what_ended_before_other_queries_came_in_force_stays_ended_after_a_crash() {
    let mut cluster = Cluster::under(1, LIMIT);
    let mut kept = BTreeMap::new();
    let mut checkpoint = |core: &mut Partition| {
        for change in core.take_changes() {
            match change.value {
                Some(value) => drop(kept.insert(change.key, value)),
                None => drop(kept.remove(&change.key)),
            }
        }
        kept.clone()
    };
    cluster.tokens(1, "r", 90);
    cluster.tokens(2, "s", 90);
    let before = checkpoint(&mut cluster.cores[0]);
    // the run ends, and its windows close; then the queries change, all between two checkpoints
    let ended =
        json!({"event_time": (DAY + 3) * 1000, "event_type": "run.completed", "tenant_id": "acme", "run_id": "r"});
    cluster.raw(3, 0, Input::Telemetry, "acme", ended.to_string().as_bytes());
    cluster.tokens(7_200, "s", 1);
    let mut edited = texts();
    edited.metrics.retain(|(name, _)| !name.ends_with("run_risk_max.sql"));
    assert_eq!(cluster.apply(7_201, 0, &edited, &[("p.yaml", LIMIT)])["status"], "ACCEPTED");
    cluster.tokens(7_202, "s", 1);
    let after = checkpoint(&mut cluster.cores[0]);
    assert!(before.keys().any(|key| !after.contains_key(key)), "something ended");
    let state = |core: &mut Partition| -> BTreeMap<Vec<u8>, Vec<u8>> {
        core.mark_all_dirty();
        core.take_changes().into_iter().filter_map(|c| Some((c.key, c.value?))).collect()
    };
    let live = state(&mut cluster.cores[0]);
    let (_, in_force) = InForce::read(cluster.in_force.as_deref().unwrap(), [], &tuning()).unwrap();
    let mut again = Partition::new(in_force.settings, Own { partition: 0, partitions: 1 }).unwrap();
    after.iter().for_each(|(key, value)| again.restore(key, value).unwrap());
    again.restored().unwrap();
    let restored = state(&mut again);
    let names = |state: &BTreeMap<Vec<u8>, Vec<u8>>| -> Vec<String> {
        state.keys().map(|key| String::from_utf8_lossy(key).into_owned()).collect()
    };
    assert_eq!(names(&restored), names(&live), "nothing comes back, nothing is lost");
}

#[test]
fn another_core_given_the_same_commands_says_the_same() {
    let play = || {
        let mut cluster = Cluster::under(1, LIMIT);
        cluster.ask(1, "policy.create", json!({"policy": policy("p", "acme", 50)}));
        cluster.ask(2, "proposal.approve", json!({"proposal_id": "c-2", "reason": "yes"}));
        cluster.ask(3, "policy.update", json!({"policy": policy("p", "acme", 40)}));
        cluster.ask(4, "proposal.reject", json!({"proposal_id": "c-2", "reason": "no"}));
        cluster.ask(5, "override.grant", json!({"tenant": "acme", "policy_id": "p", "minutes": 1, "reason": "r"}));
        cluster.ask(6, "override.revoke", json!({"override_id": "c-6"}));
        cluster.ask(7, "rule.retire", json!({"tenant": "acme", "policy_id": "p"}));
        let kept = cluster.checkpoint();
        cluster.crash(&kept);
        cluster.ask(8, "policy.delete", json!({"tenant": "acme", "policy_id": "p"}));
        cluster.said
    };
    let (one, two) = (play(), play());
    let refused = on(&one, Topic::CommandResults).into_iter().find(|r| r["status"] == "REFUSED");
    assert_eq!(refused, None);
    assert!(one == two, "equal input, equal output");
}

#[test]
fn the_record_of_the_terms_in_force_is_refused_when_it_was_changed() {
    let cluster = Cluster::under(1, LIMIT);
    let text = String::from_utf8(cluster.in_force.clone().unwrap()).unwrap();
    assert!(InForce::read(text.as_bytes(), [], &tuning()).is_ok());
    let changed = text.replace("\"max\":100", "\"max\":999");
    assert_ne!(changed, text);
    assert!(
        InForce::read(changed.as_bytes(), [], &tuning())
            .is_err_and(|e| e.to_string().contains("changed after it was written"))
    );
    let snapshot: Value = serde_json::from_str(&text).unwrap();
    assert!(Snapshot::from_json(&snapshot["snapshot"].to_string()).is_ok());
}

#[test]
fn a_silence_mutes_the_notice_of_a_tenant_and_not_the_intervention_and_ends_by_itself() {
    let stop = "{id: run, name: Run, enforcement_mode: BLOCK, limits: [{id: tokens, limit_type: T, metric: run_tokens, max: 100}]}";
    let mut cluster = Cluster::under(3, stop);
    let matchers = json!([{"name": "run", "operator": "=~", "value": "noisy.*"}]);
    let ends = (DAY + 100) * 1_000;
    let body = |comment: &str| json!({"tenant": "acme", "matchers": matchers, "ends_at": ends, "comment": comment});
    let refused = cluster.ask(1, "silence.create", body(""));
    assert_eq!(refused["code"], "comment");
    let everything = json!({"tenant": "acme", "matchers": [], "ends_at": ends, "comment": "x"});
    assert_eq!(cluster.ask(1, "silence.create", everything)["code"], "matchers");
    let made = cluster.ask(2, "silence.create", body("migration"));
    assert_eq!(made["status"], "ACCEPTED", "{made}");
    let told = |cluster: &mut Cluster, at, run: &str, tokens| {
        let before = cluster.said.len();
        cluster.tokens(at, run, tokens);
        let said = &cluster.said[before..];
        (on(said, Topic::Alerts), on(said, Topic::Interventions))
    };
    let (alerts, ordered) = told(&mut cluster, 3, "noisy-1", 200);
    assert_eq!(alerts[0]["silenced_by"], json!([made["result"]["silence_id"]]), "{alerts:?}");
    assert_eq!((ordered.len(), &ordered[0]["state"]), (1, &json!("ISSUED")), "it is stopped all the same");
    let (alerts, _) = told(&mut cluster, 4, "quiet-1", 200);
    assert_eq!(alerts[0]["silenced_by"], json!([]));
    // its time is over: the owner of `*` says so, and the alert that is still open is told
    cluster.ask(101, "policy.delete", json!({"policy_id": "nobody"}));
    let record = cluster.said.iter().rev().find(|r| r.key.starts_with(b"acme/silence/")).unwrap();
    let record: Value = serde_json::from_slice(record.payload.as_deref().unwrap()).unwrap();
    assert_eq!((&record["status"], &record["revision"]), (&json!("EXPIRED"), &json!(2)));
    let (alerts, _) = told(&mut cluster, 102, "other", 1);
    assert!(alerts.iter().any(|a| a["runs"] == json!(["noisy-1"]) && a["silenced_by"] == json!([])), "{alerts:?}");
}
