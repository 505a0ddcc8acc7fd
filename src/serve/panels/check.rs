//! Panels held against the tables: does each query plan, and does its result have what the registry says? Faults name the line.

use std::collections::BTreeSet;

use datafusion::arrow::datatypes::{DataType, Schema};

use super::ask::{Ask, answer};
use super::files::Loaded;
use super::registry::Panel;
use crate::policy::{Fault, Place, nearest};
use crate::serve::tables::{QueryError, Scope};

/// Everything that is wrong with the panels as far as planning tells, in one pass.
pub(super) async fn faults(tables: &dyn Ask, loaded: &Loaded) -> Vec<Fault> {
    let (mut faults, mut planned) = (Vec::new(), BTreeSet::new());
    for panel in loaded.registry.panels() {
        let sql = loaded.sql(panel);
        match tables.plan(&Scope::All, sql).await {
            Ok(schema) => columns(loaded, panel, &schema, &mut faults),
            // a file that several panels use is wrong once
            Err(error) if planned.insert(&panel.query) => faults.push(fault(&loaded.name(panel), sql, &error)),
            Err(_) => {}
        }
        conditions(tables, loaded, panel, &mut faults).await;
    }
    faults
}

/// What comes to light only when the panels are run, as the monitor does it. For tables without rows, where nothing depends on data.
pub(super) async fn failures(tables: &dyn Ask, loaded: &Loaded) -> Vec<Fault> {
    let mut faults = Vec::new();
    for panel in loaded.registry.panels() {
        if let Err(error) = answer(tables, panel, loaded.sql(panel)).await {
            faults.push(Fault::new(
                &loaded.file,
                panel.place,
                &panel.id,
                format!("{} fails: {error}", panel.query),
                None,
            ));
        }
    }
    faults
}

/// The columns that must be there, and of which type.
fn columns(loaded: &Loaded, panel: &Panel, schema: &Schema, faults: &mut Vec<Fault>) {
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let mut wrong = |key: &str, message: String, help: Option<String>| {
        faults.push(Fault::new(&loaded.file, panel.place, &format!("{}.{key}", panel.id), message, help));
    };
    let file = &panel.query;
    let missing = |column: &str| {
        let help = match nearest(column, names.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("it gives {}", names.join(" ")),
        };
        (format!("{file} gives no column `{column}`"), Some(help))
    };
    for column in panel.columns.iter().filter(|column| !names.contains(&column.as_str())) {
        let (message, help) = missing(column);
        wrong("columns", message, help);
    }
    let invariant = &panel.invariant;
    let typed = [
        ("invariant.min_value", invariant.min_value.as_ref().map(|min| &min.column), "a number"),
        ("invariant.freshness", invariant.freshness.as_ref().map(|fresh| &fresh.column), "a time"),
    ];
    for (key, column, what) in typed {
        let Some(column) = column else { continue };
        let Ok(field) = schema.field_with_name(column) else {
            let (message, help) = missing(column);
            wrong(key, message, help);
            continue;
        };
        let kind = field.data_type();
        let fits = if what == "a number" { kind.is_numeric() } else { matches!(kind, DataType::Timestamp(..)) };
        if !fits {
            wrong(key, format!("the column `{column}` of {file} is {kind}, not {what}"), None);
        }
    }
}

/// `while` and `empty_since`: one column, of the right type.
async fn conditions(tables: &dyn Ask, loaded: &Loaded, panel: &Panel, faults: &mut Vec<Fault>) {
    let invariant = &panel.invariant;
    let asked = [("while", &invariant.only_while, "one boolean"), ("empty_since", &invariant.empty_since, "one time")];
    for (key, sql, what) in asked {
        let Some(sql) = sql else { continue };
        let said = match tables.plan(&Scope::All, sql).await {
            Ok(schema) => match schema.fields().iter().map(|field| field.data_type()).collect::<Vec<_>>()[..] {
                [DataType::Boolean] if key == "while" => continue,
                [DataType::Timestamp(..)] if key == "empty_since" => continue,
                _ => format!("must be a SELECT of {what}"),
            },
            Err(error) => error.to_string(),
        };
        let path = format!("{}.invariant.{key}", panel.id);
        faults.push(Fault::new(&loaded.file, panel.place, &path, said, None));
    }
}

/// A fault of a query, at its place as far as the message tells: the parser says line and column, the planner a name.
fn fault(file: &str, sql: &str, error: &QueryError) -> Fault {
    let message = error.to_string();
    let at = parsed(&message).or_else(|| named(sql, &message)).unwrap_or(Place { line: 1, column: 1 });
    let first = message.lines().next().unwrap_or_default();
    Fault::new(file, at, "", first.chars().take(1_000).collect(), None)
}

/// `… at Line: 3, Column: 5`
fn parsed(message: &str) -> Option<Place> {
    let number = |label: &str| -> Option<u64> {
        let rest = message.split_once(label)?.1;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    Some(Place { line: number("Line: ")?, column: number("Column: ")? })
}

/// Where the first name of the message stands in the SQL, comments left out.
fn named(sql: &str, message: &str) -> Option<Place> {
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.');
    let rest = ["No field named ", "table '", "Invalid function '"].iter().find_map(|said| message.split_once(said))?.1;
    let name = rest.trim_start_matches(['"', '\'', '`']).split(|c| !is_name(c)).next()?;
    let name = name.trim_end_matches('.').rsplit('.').next().filter(|name| !name.is_empty())?;
    for (line, text) in (1..).zip(sql.lines()) {
        let code = text.split("--").next().unwrap_or_default();
        for (at, _) in code.match_indices(name) {
            let word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            let (before, after) = code.split_at(at);
            if !word(before.chars().next_back()) && !word(after.chars().nth(name.chars().count())) {
                return Some(Place { line, column: before.chars().count() as u64 + 1 });
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::panels::files::Source;
    use crate::serve::panels::testing::{self, Folder};

    async fn said(folder: &Folder) -> Vec<String> {
        let loaded = folder.source().load().unwrap();
        let root = format!("{}/", folder.path().display());
        faults(&testing::tables(&[]), &loaded).await.iter().map(|f| f.to_string().replace(&root, "")).collect()
    }

    #[tokio::test]
    async fn the_shipped_panels_hold_against_the_tables() {
        let loaded = Source::Shipped.load().unwrap();
        assert_eq!(faults(&testing::tables(&[]), &loaded).await, []);
        assert_eq!(failures(&testing::tables(&[]), &loaded).await, []);
    }

    #[tokio::test]
    async fn what_plans_and_cannot_be_run_is_found_by_running_it_on_empty_tables() {
        let sql = "SELECT signal_id FROM signals";
        let folder = Folder::new(&[
            ("A", sql, "min_rows: 1, while: SELECT EXISTS (SELECT 1 FROM runs)"),
            ("B", sql, "min_rows: 1, while: SELECT count(*) > 0 FROM runs"),
        ]);
        let loaded = folder.source().load().unwrap();
        assert_eq!(faults(&testing::tables(&[]), &loaded).await, []);
        let failures = failures(&testing::tables(&[]), &loaded).await;
        assert_eq!(failures.len(), 1, "{failures:?}");
        assert!(failures[0].to_string().contains(":2:5: A: panels/a.sql fails: "), "{failures:?}");
    }

    #[tokio::test]
    async fn an_unknown_table_and_an_unknown_column_are_found_with_their_line() {
        let folder = Folder::new(&[
            ("A", "-- no such column: kindd\nSELECT signal_id,\n       kindd\nFROM signals", "min_rows: 0"),
            ("B", "SELECT 1 AS signal_id\nFROM sgnals", "min_rows: 0"),
            ("C", "SELECT signal_id\nFORM signals", "min_rows: 0"),
        ]);
        let said = said(&folder).await;
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].starts_with("queries/panels/a.sql:3:8: ") && said[0].contains("kindd"), "{said:?}");
        assert!(said[1].starts_with("queries/panels/b.sql:2:6: ") && said[1].contains("sgnals"), "{said:?}");
        assert!(said[2].starts_with("queries/panels/c.sql:2:"), "{said:?}");
    }

    #[tokio::test]
    async fn what_the_registry_relies_on_must_be_in_the_result_with_its_type() {
        let sql = "SELECT signal_id, kind, decided_at, value AS valu FROM signals";
        let folder = Folder::new(&[
            ("A", sql, "min_value: {column: value, value: 1}, freshness: {column: kind, within: 1h}"),
            (
                "B",
                sql,
                "min_value: {column: kind, value: 1}, while: SELECT 1, empty_since: SELECT max(decided_at) FROM signal",
            ),
        ]);
        let said = said(&folder).await;
        assert_eq!(said.len(), 5, "{said:?}");
        assert_eq!(
            said[0],
            "panels.yaml:2:5: A.invariant.min_value: panels/a.sql gives no column `value` (did you mean `valu`?)"
        );
        assert!(
            said[1].contains("A.invariant.freshness: the column `kind` of panels/a.sql is Utf8, not a time"),
            "{said:?}"
        );
        assert!(said[2].contains("B.invariant.min_value: the column `kind`"), "{said:?}");
        assert!(said[3].ends_with("B.invariant.while: must be a SELECT of one boolean"), "{said:?}");
        assert!(said[4].contains("B.invariant.empty_since: ") && said[4].contains("signal"), "{said:?}");
    }
}
