use super::*;

const ONE: &str = "
panels:
  - id: A-1
    question: What is there?
    topic: GOVERNANCE/ACTIVE
    query: panels/a_1.sql
    endpoint: /api/v1/a?x=1
    capability: {id: policies.a, status: observed}
    columns: [a, b]
    invariant:
      min_value: {column: b, value: 0.5}
      freshness: {column: t, within: 2h}
      while: SELECT true
      alert_after: 48h
      alert_enabled: true
";

fn faults(text: &str) -> Vec<String> {
    Registry::parse("panels.yaml", text).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn a_panel_is_read_with_its_invariant_and_the_defaults() {
    let registry = Registry::parse("panels.yaml", &format!("defaults: {{warmup: 5m}}\n{ONE}")).unwrap();
    let panel = registry.get("a-1").unwrap();
    assert_eq!((panel.query.as_str(), panel.capability.status.as_str()), ("panels/a_1.sql", "OBSERVED"));
    let invariant = &panel.invariant;
    assert_eq!((invariant.warmup, invariant.alert_after), (300 * SECOND, 48 * 3_600 * SECOND));
    assert_eq!(invariant.min_value, Some(MinValue { column: "b".into(), value: 0.5 }));
    assert_eq!(invariant.freshness, Some(Freshness { column: "t".into(), within: 7_200 * SECOND }));
    assert!(invariant.alert_enabled && invariant.only_while.as_deref() == Some("SELECT true"));
    assert_eq!((panel.place.line, panel.place.column), (4, 5));
}

#[test]
fn every_fault_is_told_in_one_pass_with_its_place() {
    let text = ONE
        .replace("question:", "qestion:")
        .replace("observed", "obsrved")
        .replace("panels/a_1.sql", "../secret.sql")
        .replace("48h", "48")
        .replace("/api/v1/a", "api/v1/a");
    assert_eq!(
        faults(&text),
        [
            "panels.yaml:3:5: panels[0].question: is required",
            "panels.yaml:4:5: panels[0].qestion: unknown key (did you mean `question`?)",
            "panels.yaml:6:12: panels[0].query: `../secret.sql` is no query of a panel (a .sql file of the folder panels in the \
             directory of queries, such as panels/mine.sql)",
            "panels.yaml:7:15: panels[0].endpoint: `api/v1/a?x=1` does not begin with /",
            "panels.yaml:8:42: panels[0].capability.status: `obsrved` is not known (did you mean OBSERVED?)",
            "panels.yaml:14:20: panels[0].invariant.alert_after: must be a time of at most 366d, such as \"60m\"",
        ]
    );
}

#[test]
fn an_id_that_is_there_twice_or_could_be_no_label_is_refused() {
    let twice = format!("{ONE}{}", ONE.replace("\npanels:\n", "").replace("A-1", "a-1"));
    assert_eq!(faults(&twice), ["panels.yaml:16:5: panels[1].id: the id a-1 is there already, in line 3"]);
    let said = faults(&ONE.replace("A-1", "\"A/1 {x}\""));
    assert!(said.len() == 1 && said[0].contains("3:9: panels[0].id"), "{said:?}");
}

#[test]
fn alerts_about_a_panel_of_which_nothing_is_asked_are_a_fault() {
    let idle = ONE
        .replace("min_value: {column: b, value: 0.5}", "min_rows: 0")
        .replace("freshness: {column: t, within: 2h}", "");
    let said = faults(&idle);
    assert!(said.len() == 1 && said[0].contains("alert_enabled: alerts are on"), "{said:?}");
}

#[test]
fn size_is_bounded_and_an_empty_file_is_no_registry() {
    assert!(faults("")[0].contains("there is no panel"));
    assert!(faults("panels: []")[0].contains("there is no panel"));
    let many: String = (0..=MAX_PANELS).map(|n| format!("  - {{id: p{n}}}\n")).collect();
    let said = faults(&format!("panels:\n{many}"));
    assert!(said[0].contains("201 entries, at most 200 are read"), "{said:?}");
    let wrong: String = (0..MAX_PANELS).map(|n| format!("  - {{id: p{n}}}\n")).collect();
    assert_eq!(faults(&format!("panels:\n{wrong}")).len(), MAX_FAULTS + 1);
}
