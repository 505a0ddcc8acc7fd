//! `[otlp]`: where spans come from, and whose they are.

use std::net::SocketAddr;

use super::reader::Section;
use super::{Config, Tls, Topics, loopback, tenant, tls};
use crate::telemetry::otlp::{AgentUsage, Encoding, Names, Settings};
use crate::telemetry::redact::Redactor;

/// `[otlp]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Otlp {
    /// Where to listen.
    pub listen: SocketAddr,
    /// How it speaks TLS; `None`: in clear.
    pub tls: Option<Tls>,
    /// Tenant of spans that name none.
    pub default_tenant: String,
    /// Which attributes say whose a span is.
    pub names: Names,
    /// When the usage of agents counts.
    pub agent_usage: AgentUsage,
    /// Whether root spans start and end runs.
    pub root_is_run: bool,
    /// Largest request, bytes: as sent, and unpacked.
    pub request_bytes: usize,
    /// Most spans of a request.
    pub request_spans: usize,
    /// Most bytes of requests, and of their events on the way to Kafka, at once.
    pub in_flight_bytes: usize,
    /// Topic that a collector exports to; `None`: none is read.
    pub topic: Option<String>,
    /// How its records are written.
    pub encoding: Encoding,
}

pub(super) fn otlp(s: &mut Section<'_, '_>, above: Option<&Tls>) -> Otlp {
    const MIB: usize = 1 << 20;
    let d = Names::default();
    let names = |s: &mut Section<'_, '_>, key: &'static str, default: &[String]| {
        let default: Vec<&str> = default.iter().map(String::as_str).collect();
        s.texts(key, &default)
    };
    let otlp = Otlp {
        listen: s.address("listen", loopback(4318)),
        tls: tls::tls(s, above),
        default_tenant: tenant(s, "default-tenant", "default"),
        names: Names {
            tenant: names(s, "tenant-attributes", &d.tenant),
            project: names(s, "project-attributes", &d.project),
            run: names(s, "run-attributes", &d.run),
            parent_run: names(s, "parent-run-attributes", &d.parent_run),
            task: names(s, "task-attributes", &d.task),
            agent: names(s, "agent-attributes", &d.agent),
            team: names(s, "team-attributes", &d.team),
            api_key: names(s, "api-key-attributes", &d.api_key),
            human: names(s, "human-attributes", &d.human),
            cost: names(s, "cost-attributes", &d.cost),
        },
        agent_usage: s.choice(
            "agent-usage",
            AgentUsage::Remote,
            &[("remote", AgentUsage::Remote), ("never", AgentUsage::Never)],
        ),
        root_is_run: s.flag("root-is-run", true),
        request_bytes: s.number("request-bytes", 16 * MIB, 1_024..=1_024 * MIB),
        request_spans: s.number("request-spans", 20_000, 1..=1_000_000),
        in_flight_bytes: s.number("in-flight-bytes", 64 * MIB, 1_024..=16 * 1_024 * MIB),
        topic: s.or_none("topic"),
        encoding: s.choice(
            "encoding",
            Encoding::Proto,
            &[("otlp_proto", Encoding::Proto), ("otlp_json", Encoding::Json)],
        ),
    };
    if otlp.in_flight_bytes / 2 < otlp.request_bytes {
        s.refuse("in-flight-bytes", "must be at least twice request-bytes: a request is held packed and unpacked");
    }
    otlp
}

impl Topics {
    /// Every name.
    pub(super) fn names(&self) -> [&str; 18] {
        [
            &self.telemetry,
            &self.commands,
            &self.outcomes,
            &self.signals,
            &self.alerts,
            &self.interventions,
            &self.runs,
            &self.lessons,
            &self.policies,
            &self.policy_level,
            &self.evaluations,
            &self.audit,
            &self.command_results,
            &self.live,
            &self.dead_letter,
            &self.repartition,
            &self.steps,
            &self.checkpoint,
        ]
    }
}

impl Config {
    /// How spans become events, as this configuration wants it.
    pub fn mapping(&self) -> Settings {
        Settings {
            names: self.otlp.names.clone(),
            default_tenant: self.otlp.default_tenant.clone(),
            agent_usage: self.otlp.agent_usage,
            root_is_run: self.otlp.root_is_run,
            spans: self.otlp.request_spans,
            attributes: self.telemetry.attributes.clone(),
            forbidden: self.telemetry.forbidden.clone(),
            depth: self.limits.nesting_depth,
        }
    }

    /// The attributes of `[otlp]` that are never kept.
    pub(super) fn forbidden_names(&self) -> Vec<String> {
        let redactor = Redactor::new([], self.telemetry.forbidden.iter().map(String::as_str), 1);
        let names = self.otlp.names.lists().into_iter().flatten();
        names.filter(|name| redactor.forbids(name)).cloned().collect()
    }
}
