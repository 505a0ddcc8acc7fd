use std::fs;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::alert::{Sender, TENANT};
use super::monitor::AlertType;
use super::testing::{Folder, Memory, signal, tables};
use super::watch::{Monitor, Settings};
use super::*;
use crate::clock::SECOND;
use crate::decide::commands::Command;
use crate::serve::tables::Scope;

const NOW: Wall = Wall(1_800_000_000 * SECOND);
const MINUTE: Micros = 60 * SECOND;
const ONE: (&str, &str, &str) =
    ("A", "SELECT signal_id FROM signals", "min_rows: 1, warmup: 0, alert_after: 10m, alert_enabled: true");

fn later(minutes: i64) -> Wall {
    Wall(NOW.0 + minutes * MINUTE)
}

fn panels(folder: &Folder, tables: Memory) -> Arc<Panels> {
    let metrics = Arc::new(Metrics::register(&Registry::new(), &[]).unwrap());
    Arc::new(Panels::load(folder.source(), Arc::new(tables), metrics, NOW).unwrap())
}

fn monitor(panels: &Arc<Panels>) -> Monitor {
    let sender = Sender { principal: "system:serve@1".into(), tenant: TENANT.into() };
    let settings = Settings { interval: Duration::from_secs(300), renew: Duration::from_secs(43_200), sender };
    Monitor::new(Arc::clone(panels), settings, NOW)
}

fn figure(panels: &Panels, series: &str) -> String {
    let text = panels.metrics.encode().unwrap();
    let line =
        text.lines().find_map(|line| line.strip_prefix(series)).unwrap_or_else(|| panic!("{series} is not there"));
    line.trim().to_owned()
}

/// Keeps what is sent.
fn keep(sent: &mut Vec<Command>) -> impl FnMut(&Command) -> Result<(), String> + Send + '_ {
    |command| {
        sent.push(command.clone());
        Ok(())
    }
}

#[tokio::test]
async fn an_empty_panel_is_counted_shown_and_alerted_of_by_a_command_that_waits_until_it_can_be_sent() {
    let folder = Folder::new(&[ONE]);
    let panels = panels(&folder, tables(&[]));
    let mut monitor = monitor(&panels);
    assert_eq!(figure(&panels, "panel_health_status{panel_id=\"A\"}"), "1", "from the start");
    let mut sent: Vec<Command> = Vec::new();
    for minutes in [0, 5, 10] {
        let round = monitor.round(later(minutes), &mut keep(&mut sent)).await;
        assert_eq!((round.unhealthy, round.sent), (0, 0), "minute {minutes}");
    }
    let round = monitor.round(later(15), &mut |_| Err("no broker".into())).await;
    assert_eq!((round.unhealthy, round.sent, round.waiting), (1, 0, 1));
    let round = monitor.round(later(20), &mut keep(&mut sent)).await;
    assert_eq!((round.sent, round.waiting), (1, 0));
    let [raised] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!((raised.kind.as_str(), raised.tenant_id.as_str(), raised.issued_at), ("alert.raise", "*", later(20).0));
    assert_eq!(raised.body["fingerprint"], "A/EMPTY_PANEL");
    assert_eq!(figure(&panels, "panel_empty_total{panel_id=\"A\"}"), "1");
    assert_eq!(figure(&panels, "panel_health_status{panel_id=\"A\"}"), "0");
    assert_eq!(figure(&panels, "panel_stale_total{panel_id=\"A\"}"), "0");
    assert_eq!(panels.get("a").unwrap().alert_type(), Some(AlertType::EmptyPanel));
}

#[tokio::test]
async fn a_query_that_fails_is_a_filter_break_and_hot_reload_mends_it() {
    let folder = Folder::new(&[ONE]);
    let panels = panels(&folder, tables(&[signal("s", "acme", NOW.0, 0)]));
    let mut monitor = monitor(&panels);
    let mut sent: Vec<Command> = Vec::new();
    let round = monitor.round(later(5), &mut |_| Ok(())).await;
    assert_eq!((round.panels, round.healthy), (1, 1));
    // written by somebody who did not check: what is in force goes on
    folder.write(&[("A", "SELECT signal_idd FROM signals", ONE.2)]);
    let Reread::Refused(faults) = panels.reread(later(6)).await else {
        panic!("a query that does not plan is refused")
    };
    assert!(faults[0].to_string().contains("signal_idd"), "{faults:?}");
    assert_eq!(panels.reread(later(6)).await, Reread::Unchanged, "told once, not every two seconds");
    assert_eq!(monitor.round(later(10), &mut |_| Ok(())).await.healthy, 1);
    // it plans, and fails when it is run
    folder.write(&[("A", "SELECT signal_id FROM signals WHERE CAST(signal_id AS BIGINT) > 0", ONE.2)]);
    assert_eq!(panels.reread(later(11)).await, Reread::Taken);
    let round = monitor.round(later(15), &mut keep(&mut sent)).await;
    assert_eq!((round.unhealthy, sent.len()), (1, 1));
    assert_eq!(
        (&sent[0].body["fingerprint"], &sent[0].body["severity"]),
        (&json!("A/FILTER_BREAK"), &json!("CRITICAL"))
    );
    assert_eq!(figure(&panels, "panel_filter_break_total{panel_id=\"A\"}"), "1");
    folder.write(&[ONE]);
    assert_eq!(panels.reread(later(16)).await, Reread::Taken);
    let round = monitor.round(later(20), &mut keep(&mut sent)).await;
    assert_eq!((round.healthy, sent.last().unwrap().kind.as_str()), (1, "alert.clear"));
}

#[tokio::test]
async fn a_broken_registry_is_refused_whole_and_a_panel_that_goes_takes_its_alert_along() {
    let two =
        [("A", ONE.1, "min_rows: 0"), ("B", ONE.1, "min_rows: 1, warmup: 0, alert_after: 0, alert_enabled: true")];
    let folder = Folder::new(&two);
    let panels = panels(&folder, tables(&[]));
    let mut monitor = monitor(&panels);
    let mut sent: Vec<Command> = Vec::new();
    monitor.round(later(5), &mut keep(&mut sent)).await;
    assert_eq!(sent.len(), 1);
    fs::write(folder.path().join("panels.yaml"), "panels: [{id: A}]\nmore: 1\n").unwrap();
    let Reread::Refused(faults) = panels.reread(later(6)).await else { panic!("no registry") };
    assert!(faults.len() > 5, "all in one pass: {faults:?}");
    assert_eq!(panels.list().len(), 2);
    // a registry that comes before its query is taken when that is there
    folder.write(&two[..1]);
    let text = fs::read_to_string(folder.path().join("panels.yaml")).unwrap();
    fs::write(folder.path().join("panels.yaml"), text.replace("a.sql", "late.sql")).unwrap();
    assert!(matches!(panels.reread(later(7)).await, Reread::Refused(_)));
    fs::write(folder.path().join("queries/panels/late.sql"), ONE.1).unwrap();
    assert_eq!(panels.reread(later(7)).await, Reread::Taken);
    monitor.round(later(10), &mut keep(&mut sent)).await;
    assert_eq!((panels.list().len(), sent.len(), sent[1].kind.as_str()), (1, 2, "alert.clear"));
    assert_eq!(sent[1].body["fingerprint"], "B/EMPTY_PANEL");
    assert!(!panels.metrics.encode().unwrap().contains("panel_health_status{panel_id=\"B\"}"));
}

#[tokio::test]
async fn an_open_alert_of_before_the_restart_is_cleared_when_the_panel_is_found_healthy() {
    let open = json!({
        "alert_id": "a", "status": "OPEN", "tenant_id": "*", "correlation_key": "PANEL:A/EMPTY_PANEL",
        "first_seen": "2026-01-01T00:00:00.000000Z",
    });
    let folder = Folder::new(&[ONE]);
    let panels = panels(&folder, tables(&[("alerts", open), signal("s", "acme", NOW.0, 0)]));
    let mut monitor = monitor(&panels);
    let mut sent: Vec<Command> = Vec::new();
    for minutes in [0, 5] {
        monitor.round(later(minutes), &mut keep(&mut sent)).await;
    }
    assert_eq!(sent.iter().map(|c| c.kind.as_str()).collect::<Vec<_>>(), ["alert.clear"], "once");
}

#[tokio::test]
async fn every_shipped_panel_can_be_looked_at_and_the_three_that_alert_are_those_of_the_seed() {
    let metrics = Arc::new(Metrics::register(&Registry::new(), &[]).unwrap());
    let panels = Arc::new(Panels::load(Source::Shipped, Arc::new(tables(&[])), metrics, NOW).unwrap());
    let round = monitor(&panels).round(later(5), &mut |_| Ok(())).await;
    assert_eq!((round.panels, round.unknown, round.unhealthy), (30, 0, 0));
    let broken: Vec<String> = panels.list().into_iter().filter_map(|shown| shown.state.error).collect();
    assert_eq!(broken, Vec::<String>::new());
    let alerting = panels.list().into_iter().filter(|shown| shown.panel.invariant.alert_enabled);
    let alerting: Vec<(String, i64)> =
        alerting.map(|s| (s.panel.id.to_string(), s.panel.invariant.alert_after / MINUTE)).collect();
    let of = |id: &str, minutes| (id.to_owned(), minutes);
    assert_eq!(alerting, [of("POL-GOV-ACT-O4", 60), of("POL-GOV-ACT-O5", 60), of("POL-GOV-LES-O1", 48 * 60)]);
    // without runs and signals nothing is asked of lessons; without policies the state is wrong, and still warming up
    let health = |id: &str| panels.get(id).unwrap().health();
    assert_eq!((health("POL-GOV-LES-O1"), health("POL-GOV-ACT-O4")), (Health::Healthy, Health::WarmingUp));
}

#[tokio::test]
async fn lessons_that_stay_away_while_there_is_work_are_alerted_of_though_the_process_is_young() {
    let now = Wall::now();
    let at = |hours: i64| crate::clock::rfc3339(now.0 - hours * 60 * MINUTE);
    let lesson =
        json!({"id": "l", "tenant_id": "acme", "status": "dismissed", "created_at": at(70), "dismissed_at": at(50)});
    let run = json!({"run_id": "r", "tenant_id": "acme", "ended_at": at(1)});
    for (rows, raised) in [(vec![("lessons", lesson.clone()), ("runs", run)], true), (vec![("lessons", lesson)], false)]
    {
        let metrics = Arc::new(Metrics::register(&Registry::new(), &[]).unwrap());
        let panels =
            Panels::load(Source::Shipped, Arc::new(tables(&rows)), metrics, Wall(now.0 - 20 * MINUTE)).unwrap();
        let sender = Sender { principal: "system:serve@1".into(), tenant: TENANT.into() };
        let settings = Settings { interval: Duration::from_secs(300), renew: Duration::ZERO, sender };
        let mut monitor = Monitor::new(Arc::new(panels), settings, Wall(now.0 - 20 * MINUTE));
        let mut sent: Vec<Command> = Vec::new();
        monitor.round(now, &mut keep(&mut sent)).await;
        let about = sent.iter().find(|command| command.body["fingerprint"] == "POL-GOV-LES-O1/EMPTY_PANEL");
        assert_eq!(about.is_some(), raised, "{sent:?}");
        let since = |command: &Command| command.body["description"].as_str().unwrap().contains(&at(50));
        assert!(about.is_none_or(since), "since the last one was dismissed");
    }
}

#[tokio::test]
async fn tables_that_are_not_whole_say_nothing_of_a_panel() {
    let folder = Folder::new(&[("A", ONE.1, "min_rows: 1, warmup: 0, alert_after: 0, alert_enabled: true")]);
    let panels = panels(&folder, tables(&[]).not_whole());
    let round = monitor(&panels).round(later(5), &mut |_| Ok(())).await;
    assert_eq!((round.unknown, round.unhealthy, round.sent), (1, 0, 0));
    assert_eq!(panels.get("A").unwrap().health(), Health::Unknown);
}

#[tokio::test]
async fn the_watch_goes_round_takes_changed_files_and_ends_when_told() {
    let always = "min_rows: 1, warmup: 0, alert_after: 0, alert_enabled: true";
    let folder = Folder::new(&[("A", ONE.1, always)]);
    let metrics = Arc::new(Metrics::register(&Registry::new(), &[]).unwrap());
    let started = Wall::now();
    let panels = Arc::new(Panels::load(folder.source(), Arc::new(tables(&[])), metrics, started).unwrap());
    let sender = Sender { principal: "system:serve@1".into(), tenant: TENANT.into() };
    let settings = Settings { interval: Duration::from_millis(20), renew: Duration::from_millis(1), sender };
    let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let send =
        move |command: &Command| said.send(command.body["fingerprint"].clone()).map_err(|error| error.to_string());
    let monitor = Monitor::new(Arc::clone(&panels), settings, started);
    let watching = tokio::spawn(watch::watch(monitor, Wall::now, send, stopped));
    let wait_for = async {
        for _ in 0..3 {
            assert_eq!(heard.recv().await, Some(json!("A/EMPTY_PANEL")), "raised, and said again round after round");
        }
        folder.write(&[("A", ONE.1, "min_rows: 0"), ("B", ONE.1, always)]);
        while heard.recv().await != Some(json!("B/EMPTY_PANEL")) {}
        stop.send(true).unwrap();
        watching.await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(60), wait_for).await.unwrap();
}

#[tokio::test]
async fn the_shipped_panels_run_on_the_tables_themselves() {
    use crate::serve::tables::{Bounds, Limits, Tables};

    let tables = Tables::new(Bounds::default(), Limits::default(), Wall::now).unwrap();
    assert_eq!(check(&Source::Shipped, &tables).await.unwrap().registry.panels().len(), 30);
}

#[tokio::test]
async fn the_table_has_a_row_for_each_panel_and_tells_a_tenant_no_figures_of_all() {
    let folder = Folder::new(&[ONE, ("B", ONE.1, "min_rows: 0")]);
    let panels = panels(&folder, tables(&[signal("s", "acme", NOW.0, 0)]));
    monitor(&panels).round(later(5), &mut |_| Ok(())).await;
    let batch = panels.batch();
    let rows = routes::objects(&[batch]);
    assert_eq!(
        rows[0],
        json!({
            "panel_id": "A", "question": "q", "topic": "T", "endpoint": "/x", "capability_id": "c", "capability_status": "OBSERVED",
            "health": "HEALTHY", "last_checked_at": "2027-01-15T08:05:00.000000Z", "row_count": 1,
            "last_result_at": "2027-01-15T08:05:00.000000Z", "alert_enabled": true, "alert_type": null,
        })
    );
    assert_eq!((rows.len(), &rows[1]["panel_id"]), (2, &json!("B")));
    let acme = routes::objects(&[panels.batch_for(&Scope::Tenant("acme".into()))]);
    assert_eq!(
        (&acme[0]["health"], &acme[0]["row_count"], &acme[0]["last_result_at"]),
        (&json!("HEALTHY"), &Value::Null, &Value::Null)
    );
}

/// Asks over HTTP as a caller of a tenant.
async fn get(panels: &Arc<Panels>, tenant: &str, path: &str) -> (u16, Value) {
    use crate::serve::access::{Access, Caller};
    use crate::serve::http::Views;

    let health = Arc::new(crate::serve::Health::new(NOW));
    let caller = Caller::new("t", 1, tenant);
    let access = Access::new(false).with("a secret of some length", caller);
    let views = Views::new(health, Arc::clone(&panels.metrics), || NOW)
        .with_api(Arc::default(), Arc::default(), access)
        .with_panels(Arc::clone(panels));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let server = tokio::spawn(crate::serve::http::serve(listener, None, views, stopped));
    let head = "Host: x\r\nConnection: close\r\nAuthorization: Bearer a secret of some length";
    stream.write_all(format!("GET {path} HTTP/1.1\r\n{head}\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    stop.send(true).unwrap();
    server.await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap())
}

#[tokio::test]
async fn over_http_panels_are_listed_by_filters_and_in_pages() {
    let folder = Folder::new(&[ONE, ("B", ONE.1, "min_rows: 0"), ("C", ONE.1, "min_rows: 0")]);
    let panels = panels(&folder, tables(&[]));
    let ids = |body: &Value| -> Vec<String> {
        body["items"].as_array().unwrap().iter().map(|item| item["panel_id"].as_str().unwrap().to_owned()).collect()
    };
    let (status, body) = get(&panels, "*", "/api/v1/panels").await;
    assert_eq!((status, ids(&body), &body["has_more"]), (200, vec!["A".into(), "B".into(), "C".into()], &json!(false)));
    assert_eq!(body["items"][0]["invariant"]["alert_after_seconds"], 600);
    let (_, body) = get(&panels, "*", "/api/v1/panels?alert_enabled=false&limit=1&offset=1").await;
    assert_eq!(
        (ids(&body), &body["total"], &body["filters_applied"]),
        (vec!["C".into()], &json!(2), &json!({"tenant_id": "*", "alert_enabled": false}))
    );
    let (_, body) = get(&panels, "*", "/api/v1/panels?alert_enabled=false&limit=1").await;
    assert_eq!(body["has_more"], true);
    let (_, body) = get(&panels, "*", "/api/v1/panels?topic=t&health=unknown").await;
    assert_eq!(body["total"], 3);
    assert_eq!(get(&panels, "*", "/api/v1/panels?topic=GOVERNANCE").await.1["total"], 0);
    let (status, body) = get(&panels, "*", "/api/v1/panels?tenant_id=acme").await;
    assert_eq!((status, &body["filters_applied"]), (200, &json!({"tenant_id": "acme"})), "as every list takes it");
    assert_eq!(get(&panels, "acme", "/api/v1/panels?tenant_id=zeta").await.0, 403);
    for wrong in ["?limit=0", "?limit=101", "?health=fine", "?colour=red", "?alert_enabled=maybe"] {
        assert_eq!(get(&panels, "*", &format!("/api/v1/panels{wrong}")).await.0, 400, "{wrong}");
    }
}

#[tokio::test]
async fn over_http_a_panel_shows_its_definition_and_its_last_check() {
    let folder = Folder::new(&[ONE]);
    let panels = panels(&folder, tables(&[]));
    monitor(&panels).round(later(5), &mut |_| Ok(())).await;
    let (status, body) = get(&panels, "*", "/api/v1/panels/a").await;
    assert_eq!((status, &body["sql"], &body["health"]), (200, &json!(ONE.1), &json!("PENDING")));
    assert_eq!(body["last_check"]["row_count"], 0);
    assert_eq!(body["last_check"]["wrong"]["alert_type"], "EMPTY_PANEL");
    let (_, body) = get(&panels, "acme", "/api/v1/panels/A").await;
    assert_eq!((&body["last_check"]["row_count"], &body["row_count"]), (&Value::Null, &Value::Null));
    assert_eq!(get(&panels, "*", "/api/v1/panels/Z").await.0, 404);
}

#[tokio::test]
async fn over_http_the_rows_are_those_of_the_caller_in_the_order_of_the_query_and_no_state_blocks_them() {
    let ordered = ("A", "SELECT signal_id, tenant_id FROM signals ORDER BY event_time DESC -- the newest first", ONE.2);
    let folder = Folder::new(&[ordered]);
    let rows: Vec<_> =
        (0..7).map(|n| signal(&format!("s{n}"), if n % 2 == 0 { "acme" } else { "zeta" }, NOW.0, n * MINUTE)).collect();
    let panels = panels(&folder, tables(&rows));
    let ids = |body: &Value| -> String {
        body["items"].as_array().unwrap().iter().map(|item| item["signal_id"].as_str().unwrap()).collect()
    };
    let (status, body) = get(&panels, "*", "/api/v1/panels/A/rows?limit=3&offset=2").await;
    assert_eq!(
        (status, ids(&body).as_str(), &body["total"], &body["has_more"]),
        (200, "s2s3s4", &json!(7), &json!(true))
    );
    let (_, body) = get(&panels, "acme", "/api/v1/panels/A/rows").await;
    assert_eq!((ids(&body).as_str(), &body["total"], &body["has_more"]), ("s0s2s4s6", &json!(4), &json!(false)));
    let (_, body) = get(&panels, "*", "/api/v1/panels/A/rows?tenant_id=zeta").await;
    assert_eq!((ids(&body).as_str(), &body["filters_applied"]), ("s1s3s5", &json!({"tenant_id": "zeta"})));
    assert_eq!(get(&panels, "acme", "/api/v1/panels/A/rows?tenant_id=zeta").await.0, 403);
    // what is not read yet is not shown as if it were all
    let partly = self::panels(&folder, tables(&rows).not_whole());
    assert_eq!(get(&partly, "*", "/api/v1/panels/A/rows").await.0, 503);
    // an unhealthy panel is shown like any other
    let empty = self::panels(&folder, tables(&[]));
    let mut monitor = monitor(&empty);
    for minutes in [5, 10, 30] {
        monitor.round(later(minutes), &mut |_| Ok(())).await;
    }
    assert_eq!(empty.get("A").unwrap().health(), Health::Unhealthy);
    let (status, body) = get(&empty, "*", "/api/v1/panels/A/rows").await;
    assert_eq!((status, &body["items"], &body["total"]), (200, &json!([]), &json!(0)));
}
