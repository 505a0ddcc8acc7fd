//! Hundreds of small mistakes in the shipped policy files, each made on purpose: a file with a mistake is refused with the
//! place and a reason, and an edit that changes nothing is read as the same. None is accepted silently, none panics.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Policy, parse};

/// Every file under `config/policies` and `config/demo/policies`: name and text.
fn shipped_policy_files() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut files = Vec::new();
    for folder in ["policies", "policies/guardian", "demo/policies"] {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = path.strip_prefix(&root).unwrap().display().to_string();
                files.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// What must come of an edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// A fault on this line, from 1.
    At(usize),
    /// A fault somewhere; what is wrong shows later than it was made.
    Somewhere,
    /// The same policies.
    Same,
}

struct Mutation {
    what: String,
    text: String,
    expected: Expected,
}

/// A line of a file that holds `key: value`.
struct Entry {
    /// From 0.
    line: usize,
    /// `- ` and spaces before the key.
    before: String,
    key: String,
    value: String,
}

fn entries(text: &str) -> Vec<Entry> {
    let mut found = Vec::new();
    for (line, content) in text.lines().enumerate() {
        let trimmed = content.trim_start_matches([' ', '-']);
        let before = content[..content.len() - trimmed.len()].to_owned();
        if trimmed.starts_with(['#', '{', '[']) || content.starts_with("---") {
            continue;
        }
        if let Some((key, value)) = trimmed.split_once(':') {
            let value = value.split(" #").next().unwrap().trim().to_owned();
            found.push(Entry { line, before, key: key.to_owned(), value });
        }
    }
    found
}

fn with_line(text: &str, line: usize, content: &str) -> String {
    let lines = text.lines().enumerate().map(|(n, old)| if n == line { content } else { old });
    lines.map(|l| format!("{l}\n")).collect()
}

/// The edits of one file.
fn mutations(name: &str, text: &str) -> Vec<Mutation> {
    let mut all = Vec::new();
    let mut add = |what: String, text: String, expected| all.push(Mutation { what, text, expected });
    for Entry { line, before, key, value } in entries(text) {
        let edited = |content: &str| with_line(text, line, content);
        let here = Expected::At(line + 1);
        let about = |what: &str| format!("{name}:{}: {what} `{key}`", line + 1);
        let rest = if value.is_empty() { String::new() } else { format!(" {value}") };
        // renamed: the first letter doubled, the last left out
        let doubled = format!("{}{key}", &key[..1]);
        add(about("doubled letter of"), edited(&format!("{before}{doubled}:{rest}")), here);
        add(about("cut"), edited(&format!("{before}{}:{rest}", &key[..key.len() - 1])), here);
        if value.is_empty() {
            add(about("a number for the list under"), edited(&format!("{before}{key}: 7")), Expected::Somewhere);
            continue;
        }
        // mistyped
        add(about("a map for"), edited(&format!("{before}{key}: {{a: [1]}}")), here);
        let other = if value.starts_with(['[', '{']) { "seven" } else { "[[1]]" };
        add(about("another type for"), edited(&format!("{before}{key}: {other}")), here);
        // duplicated
        let indent = " ".repeat(before.len());
        let twice = format!("{before}{key}:{rest}\n{indent}{key}:{rest}");
        add(about("twice"), edited(&twice), Expected::At(line + 2));
        // broken
        add(
            about("an open quote in"),
            edited(&format!("{before}{key}: \"{}", value.replace('"', ""))),
            Expected::Somewhere,
        );
        add(about("an open bracket in"), edited(&format!("{before}{key}: [{value}")), Expected::Somewhere);
        add(about("an unknown alias for"), edited(&format!("{before}{key}: *nobody")), Expected::Somewhere);
        add(about("no colon after"), edited(&format!("{before}{key}{rest}")), Expected::Somewhere);
        // out of range, per key
        let numbers: &[&str] = match key.as_str() {
            "max" => &[
                "0",
                "-1",
                "1e30",
                "0.0000000001",
                "1e-400",
                "99999999999999999999999999999999999999999",
                ".inf",
                "0x10",
            ],
            "near" => &["0", "1.01", "-0.5", ".nan", "80%"],
            "min_authority" => &["0", "6", "-1", "4.5", "99999999999999999999"],
            "precedence" => &["1e3", "99999999999", "high"],
            "cooldown_seconds" | "auto_rollback_after_minutes" | "near_forecast_minutes" => {
                &["-1", "1.5", "3000000000"]
            }
            "generation" => &["-1", "x"],
            _ => &[],
        };
        for number in numbers {
            add(about(&format!("{number} for")), edited(&format!("{before}{key}: {number}")), here);
        }
        // names that are not there
        if key != "limit_type" && value.chars().all(|c| c.is_ascii_uppercase() || c == '_') {
            add(about("lower case for"), edited(&format!("{before}{key}: {}", value.to_lowercase())), here);
            add(about("a misspelt name for"), edited(&format!("{before}{key}: {value}X")), here);
        }
        // required
        if ["id", "name", "limit_type", "metric", "max"].contains(&key.as_str()) && !before.contains('-') {
            add(about("null for"), edited(&format!("{before}{key}: ~")), Expected::Somewhere);
            add(about("without"), edited(&format!("{before}# nothing")), Expected::Somewhere);
        }
        // the same
        add(about("a remark after"), edited(&format!("{before}{key}:{rest}   # a remark")), Expected::Same);
        add(about("quotes around"), edited(&format!("{before}\"{key}\":{rest}")), Expected::Same);
        add(about("more space in"), edited(&format!("{before}{key}:   {value}  ")), Expected::Same);
        add(about("an empty line before"), edited(&format!("\n# a remark\n{before}{key}:{rest}")), Expected::Same);
    }
    let lines = text.lines().count();
    let last = Expected::At(lines + 1);
    let end = |more: &str| format!("{text}{more}\n");
    // the last document of a file takes a top-level key, unless the file is a guardian's
    add(format!("{name}: an unknown key at the end"), end("colour: red"), last);
    add(format!("{name}: a list at the end"), end("- a"), Expected::Somewhere);
    add(format!("{name}: a control character"), end("colour: \"\\u0000\""), last);
    add(format!("{name}: a document that is a text"), end("---\njust words"), Expected::Somewhere);
    add(format!("{name}: a document that is a list"), end("---\n[1, 2]"), Expected::Somewhere);
    add(format!("{name}: a key that is a list"), end("? [a]\n: b"), Expected::Somewhere);
    let deep = format!("---\nid: {}1{}", "[".repeat(200), "]".repeat(200));
    add(format!("{name}: nested deeply"), end(&deep), Expected::Somewhere);
    let mut deep = String::from("---\n");
    (0..60).for_each(|n| deep.push_str(&format!("{}a:\n", " ".repeat(n))));
    add(format!("{name}: indented deeply"), end(&deep), Expected::Somewhere);
    let mut bomb = String::from("---\na0: &a0 [x, x, x, x, x, x, x, x]\n");
    (1..12).for_each(|n| {
        let refs = vec![format!("*a{}", n - 1); 10].join(", ");
        bomb.push_str(&format!("a{n}: &a{n} [{refs}]\n"));
    });
    add(format!("{name}: an alias bomb"), end(&bomb), Expected::Somewhere);
    add(format!("{name}: an alias within itself"), end("---\na: &x [*x]"), Expected::Somewhere);
    add(format!("{name}: a tab for indentation"), end("---\na:\n\tb: 1"), Expected::Somewhere);
    add(format!("{name}: a remark at the end"), end("# the end"), Expected::Same);
    add(format!("{name}: remarks at the beginning"), format!("# one\n\n# two\n{text}"), Expected::Same);
    add(format!("{name}: line ends of another system"), text.replace('\n', "\r\n"), Expected::Same);
    add(format!("{name}: an empty document at the end"), end("---\n# nothing"), Expected::Same);
    all
}

fn read(text: &str) -> Result<Vec<Policy>, Vec<super::Fault>> {
    parse("mutated.yaml", text).map(|policies| policies.iter().map(Policy::content).collect())
}

#[test]
fn a_mistake_is_refused_where_it_is_and_a_remark_changes_nothing() {
    let files: Vec<(String, String)> =
        shipped_policy_files().into_iter().filter(|(name, _)| !name.ends_with("set.yaml")).collect();
    let (mut refused, mut same, mut wrong) = (0, 0, Vec::new());
    for (name, text) in &files {
        let whole = read(text).unwrap_or_else(|faults| panic!("{name}: {faults:#?}"));
        for Mutation { what, text, expected } in mutations(name, text) {
            match (read(&text), expected) {
                (Ok(policies), Expected::Same) if policies == whole => same += 1,
                (Err(faults), Expected::At(line)) if faults.iter().any(|f| f.line == line as u64) => refused += 1,
                (Err(faults), Expected::Somewhere) if !faults.is_empty() => {
                    assert!(
                        faults.iter().all(|f| f.line > 0 && f.column > 0 && !f.message.is_empty()),
                        "{what}: {faults:?}"
                    );
                    refused += 1;
                }
                (Ok(_), expected) => wrong.push(format!("{what}: accepted, expected {expected:?}")),
                (Err(faults), expected) => {
                    wrong.push(format!("{what}: expected {expected:?}, found {}", faults.first().unwrap()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), refused + same + wrong.len());
    println!("{} files: {refused} mistakes refused, {same} edits read as the same", files.len());
    assert!(refused >= 200 && same >= 100, "{refused} {same}");
}

#[test]
fn bytes_left_out_anywhere_are_survived() {
    for (name, text) in shipped_policy_files() {
        let whole = read(&text).ok();
        for cut in (0..text.len()).filter(|n| n % 7 == 0 && text.is_char_boundary(*n)) {
            match read(&text[..cut]) {
                Err(faults) => assert!(faults.iter().all(|f| f.line > 0 && f.column > 0), "{name} cut at {cut}"),
                // what is left is whole policies, or a shorter word where any word may stand
                Ok(policies) => assert!(policies.len() <= whole.as_ref().map_or(0, Vec::len), "{name} cut at {cut}"),
            }
        }
    }
}

/// That no folder with policies is overlooked.
#[test]
fn the_shipped_files_are_those_of_every_folder() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut folders: Vec<PathBuf> = vec![root];
    let mut count = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.components().any(|c| c.as_os_str() == "policies") {
                count += 1;
            }
        }
    }
    assert_eq!(shipped_policy_files().len(), count);
}
