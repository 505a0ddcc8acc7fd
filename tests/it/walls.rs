//! Who may import whom (`ARCHITECTURE.md`, *Rooms*): a `crate::` path across a wall is a failing test, not a memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each room may name in `crate::` paths, besides itself. `kafka::core` is the contract between shell and core.
const WALLS: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("config", &["clock", "logging", "telemetry"]),
    ("logging", &["clock", "config"]),
    ("metrics", &["clock"]),
    ("traces", &["clock", "config", "metrics"]),
    ("telemetry", &["clock"]),
    ("stream", &["clock"]),
    ("policy", &["clock"]),
    ("decide", &["clock", "policy", "stream", "telemetry"]),
    ("pipeline", &["clock", "decide", "policy", "stream", "telemetry", "kafka::core"]),
    ("kafka", &["clock", "config", "metrics", "traces"]),
    ("serve", &["clock", "config", "decide", "metrics", "kafka", "policy", "telemetry"]),
    ("edge", &["clock", "kafka", "metrics", "serve", "telemetry"]),
    ("channels", &["clock", "config", "decide", "kafka", "metrics"]),
    ("demo", &["clock", "metrics"]),
];
/// The room where all others meet.
const ABOVE: &str = "cli";

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The room a source file belongs to: the first part of its path under `src`.
fn room(path: &Path, src: &Path) -> String {
    let first = path.strip_prefix(src).unwrap().components().next().unwrap();
    first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// The rooms named by `crate::…` paths in code, `kafka::core` as such. Comments do not count: documentation may point anywhere.
fn named(source: &str) -> BTreeSet<String> {
    let code: Vec<&str> = source.lines().map(|l| l.split("//").next().unwrap_or_default()).collect();
    let code = code.join(" ");
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        for path in first_parts(rest) {
            let name: String = path.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            let contract = name == "kafka" && path[name.len()..].starts_with("::core");
            found.insert(if contract { "kafka::core".to_owned() } else { name });
        }
    }
    found
}

/// The paths that follow `crate::`: one, or those of a group in braces.
fn first_parts(rest: &str) -> Vec<&str> {
    let Some(group) = rest.strip_prefix('{') else { return vec![rest] };
    let (mut depth, mut start, mut parts) = (0_i32, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(group[start..at].trim());
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(group[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts
}

fn trespasses(room: &str, source: &str) -> Vec<String> {
    let Some((_, allowed)) = WALLS.iter().find(|(name, _)| *name == room) else { return Vec::new() };
    let is_allowed = |name: &String| {
        name == room
            || allowed.contains(&name.as_str())
            || (name == "kafka::core" && (room == "kafka" || allowed.contains(&"kafka")))
    };
    let rooms = |name: &String| name == "kafka::core" || name == ABOVE || WALLS.iter().any(|(w, _)| w == name);
    named(source).into_iter().filter(|name| rooms(name) && !is_allowed(name)).collect()
}

#[test]
fn no_room_imports_across_a_wall() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    files(&src, &mut found);
    let mut broken: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in &found {
        // unit tests may borrow: what ships may not
        let source = fs::read_to_string(path).unwrap();
        let shipped = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let trespasses = if path.ends_with("tests.rs") { Vec::new() } else { trespasses(&room(path, &src), shipped) };
        if !trespasses.is_empty() {
            broken.insert(path.strip_prefix(&src).unwrap().display().to_string(), trespasses);
        }
    }
    assert!(broken.is_empty(), "imports across a wall: {broken:#?}");
}

#[test]
fn every_room_of_the_crate_has_its_walls() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let declared: BTreeSet<&str> = lib
        .lines()
        .filter_map(|l| l.trim().strip_prefix("pub mod ")?.strip_suffix(';'))
        .filter(|m| *m != ABOVE)
        .collect();
    assert_eq!(declared, WALLS.iter().map(|(name, _)| *name).collect());
}

#[test]
fn what_decides_asks_no_clock_and_does_no_input_or_output() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for room in ["stream", "policy", "decide", "pipeline"] {
        let mut found = Vec::new();
        files(&src.join(room), &mut found);
        for path in found.iter().filter(|p| !p.ends_with("tests.rs")) {
            let source = fs::read_to_string(path).unwrap();
            let code = source.split("#[cfg(test)]").next().unwrap();
            for forbidden in
                ["Wall::now", "Instant::now", "rdkafka::", "axum::", "std::fs", "std::net", "std::env::", "tokio::net"]
            {
                let named =
                    code.lines().map(|l| l.split("//").next().unwrap_or_default()).any(|l| l.contains(forbidden));
                assert!(!named, "{} names {forbidden}", path.display());
            }
        }
    }
}

#[test]
fn a_path_across_a_wall_is_found_and_a_comment_is_not() {
    assert_eq!(trespasses("stream", "use crate::kafka::core::Input; // crate::policy\n"), ["kafka::core"]);
    assert_eq!(trespasses("pipeline", "use crate::kafka::{core, shell};"), ["kafka"]);
    assert_eq!(trespasses("stream", "use crate::{\n    clock::{Micros, SECOND},\n    policy::Amount,\n};"), ["policy"]);
    assert!(trespasses("pipeline", "use crate::kafka::core::Input;\nuse crate::decide::levels;").is_empty());
    assert!(trespasses("cli", "use crate::kafka::shell;").is_empty(), "the room where all meet");
}
