//! Blindness (X5) of a whole sidecar on a real broker: runs that fall silent, and a backlog that waited for it.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::end_to_end::Site;
use crate::support::sidecar::eventually;

const SOON: Duration = Duration::from_secs(60);

impl Site {
    /// Kind, cause and tenant of what the audit says of blindness, in the order of the topic.
    fn blindness(&self) -> Vec<(String, String, String)> {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let records = self.read(&self.topics.audit).into_iter();
        let values = records.map(|r| serde_json::from_slice::<Value>(&r.payload.unwrap()).unwrap());
        let of = values.filter(|v| text(&v["kind"]).starts_with("blindness"));
        of.map(|v| (text(&v["kind"]), text(&v["after"]["cause"]), text(&v["tenant_id"]))).collect()
    }

    /// How often it began and how often it ended, for a cause.
    fn turns(&self, cause: &str) -> (usize, usize) {
        let all = self.blindness();
        let of = |kind: &str| all.iter().filter(|b| b.0 == kind && b.1 == cause).count();
        (of("blindness.began"), of("blindness.ended"))
    }
}

#[test]
fn silent_runs_and_a_backlog_make_policies_unknown_until_the_sidecar_has_caught_up() {
    let settings = "idle-timeout = \"1s\"\n[blindness]\nlag = \"1s\"\nsilence = \"2s\"\n[limits]\nstep-records = 250";
    let Some(site) = Site::new("blind", 1, settings) else { return };
    let half = site.lines.len() / 2;
    let mut sidecar = site.sidecar(0);
    sidecar.await_restored(1);
    site.feed_lines(&site.lines[..half], Duration::ZERO);
    eventually("silence begins", SOON, || site.turns("SILENCE").0 > 0);
    sidecar.terminate();
    let before = site.turns("LAG");
    site.feed_lines(&site.lines[half..], Duration::ZERO);
    let fed = Instant::now();
    eventually("the backlog is old", SOON, || fed.elapsed() > Duration::from_millis(1_500));
    let sidecar = site.sidecar(1);
    eventually("lag begins", SOON, || site.turns("LAG").0 > before.0);
    // whoever became blind by lag sees again at the end of the input
    eventually("lag ends", SOON, || site.turns("LAG").0 == site.turns("LAG").1);
    eventually("silence ends", SOON, || site.turns("SILENCE").1 > 0);
    sidecar.terminate();
    let all = site.blindness();
    let alerts = site.read(&site.topics.alerts);
    let told = alerts.iter().filter(|r| String::from_utf8_lossy(r.payload.as_deref().unwrap()).contains("are UNKNOWN"));
    assert!(told.count() > 0, "a person is told");
    println!("blind on a real broker: {all:?}");
}
