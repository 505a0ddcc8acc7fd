//! YAML text as a tree that knows its places.
//!
//! Scalars keep their text, so numbers are exact. Size, depth and the number of nodes are bounded, aliases included: an
//! alias counts as the nodes it stands for. A document with a syntax error is one fault; the next document is read.

use std::collections::BTreeMap;

use serde_saphyr::granit_parser::{Event, Options, Parser, ScalarStyle, ScanError, Span};

use super::fault::Fault;
use super::model::Place;

/// Largest text of one file.
pub(super) const MAX_BYTES: usize = 4 << 20;
/// Deepest nesting.
const MAX_DEPTH: usize = 32;
/// Most nodes of one file, aliases expanded.
const MAX_NODES: usize = 200_000;

/// A value and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub at: Place,
    pub value: Value,
}

/// What a node holds. Plain scalars are resolved as in the YAML 1.2 core schema; a number keeps its text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a map.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub key: String,
    pub at: Place,
    pub node: Node,
}

impl Node {
    /// What it is, for "expected a list, found …".
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    /// The same value as JSON. Whole numbers of 64 bits stay whole, others become the nearest float.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(b) => Json::Bool(*b),
            Value::Text(t) => Json::String(t.clone()),
            Value::Number(n) => {
                let plain = n.strip_prefix('+').unwrap_or(n);
                if let Ok(i) = plain.parse::<i64>() {
                    Json::from(i)
                } else {
                    plain.parse::<f64>().map_or(Json::Null, Json::from)
                }
            }
            Value::List(items) => Json::Array(items.iter().map(Self::to_json).collect()),
            Value::Map(entries) => Json::Object(entries.iter().map(|e| (e.key.clone(), e.node.to_json())).collect()),
        }
    }

    fn weight(&self) -> usize {
        1 + match &self.value {
            Value::List(items) => items.iter().map(Self::weight).sum(),
            Value::Map(entries) => entries.iter().map(|e| 1 + e.node.weight()).sum(),
            _ => 0,
        }
    }

    fn depth(&self) -> usize {
        1 + match &self.value {
            Value::List(items) => items.iter().map(Self::depth).max().unwrap_or(0),
            Value::Map(entries) => entries.iter().map(|e| e.node.depth()).max().unwrap_or(0),
            _ => 0,
        }
    }
}

/// Reads every document of `text`. Empty documents give nothing. Never panics; faults are pushed for each document that
/// cannot be read.
pub(crate) fn documents(file: &str, text: &str, faults: &mut Vec<Fault>) -> Vec<Node> {
    if text.len() > MAX_BYTES {
        let message = format!("the file has {} bytes, at most {MAX_BYTES} are read", text.len());
        faults.push(Fault::new(file, Place { line: 1, column: 1 }, "", message, Some("split it".to_owned())));
        return Vec::new();
    }
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.flow_nesting_limit = MAX_DEPTH;
    options.block_nesting_limit = MAX_DEPTH;
    let mut builder =
        Builder { parser: Parser::new_from_str_with_options(text, options), nodes: 0, anchors: BTreeMap::new() };
    let mut documents = Vec::new();
    loop {
        match builder.next_document() {
            Ok(Some(node)) => {
                if node.value != Value::Null {
                    documents.push(node);
                }
            }
            Ok(None) => return documents,
            Err(Broken { at, message, help, fatal }) => {
                faults.push(Fault::new(file, at, "", message, help.map(str::to_owned)));
                if fatal || !matches!(builder.parser.proceed_next_document(), Ok(true)) {
                    return documents;
                }
            }
        }
    }
}

/// Why a document ends early.
struct Broken {
    at: Place,
    message: String,
    help: Option<&'static str>,
    /// Nothing of the file is read any more.
    fatal: bool,
}

impl From<ScanError> for Broken {
    fn from(error: ScanError) -> Self {
        let marker = error.marker();
        let at = Place { line: marker.line() as u64, column: marker.col() as u64 + 1 };
        Self { at, message: error.info(), help: None, fatal: false }
    }
}

struct Builder<'t> {
    parser: Parser<'t, serde_saphyr::granit_parser::StrInput<'t>>,
    nodes: usize,
    anchors: BTreeMap<usize, Node>,
}

fn place(span: &Span) -> Place {
    Place { line: span.start.line() as u64, column: span.start.col() as u64 + 1 }
}

fn truncated(at: Place) -> Broken {
    Broken { at, message: "the document ends too early".to_owned(), help: None, fatal: true }
}

impl<'t> Builder<'t> {
    fn next_document(&mut self) -> Result<Option<Node>, Broken> {
        while let Some(next) = self.parser.next_event() {
            match next? {
                (Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd, _) => {}
                (Event::StreamEnd, _) => return Ok(None),
                (event, span) => {
                    self.anchors.clear();
                    return self.node(event, &span, 1).map(Some);
                }
            }
        }
        Ok(None)
    }

    fn count(&mut self, at: Place, more: usize) -> Result<(), Broken> {
        self.nodes = self.nodes.saturating_add(more);
        if self.nodes > MAX_NODES {
            let message = format!("the file holds more than {MAX_NODES} values, aliases expanded");
            return Err(Broken { at, message, help: Some("split it, and write shared values out"), fatal: true });
        }
        Ok(())
    }

    fn next(&mut self, at: Place) -> Result<(Event<'t>, Span), Broken> {
        match self.parser.next_event() {
            Some(next) => Ok(next?),
            None => Err(truncated(at)),
        }
    }

    /// Builds the node that begins with `event`. Recursion is bounded by `MAX_DEPTH`.
    fn node(&mut self, event: Event<'t>, span: &Span, depth: usize) -> Result<Node, Broken> {
        let at = place(span);
        if depth > MAX_DEPTH {
            let message = format!("nested deeper than {MAX_DEPTH} levels");
            return Err(Broken { at, message, help: None, fatal: false });
        }
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, _) => {
                self.count(at, 1)?;
                let value = if style == ScalarStyle::Plain { plain(&text) } else { Value::Text(text.into_owned()) };
                (Node { at, value }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => {
                self.count(at, 1)?;
                let mut items = Vec::new();
                loop {
                    match self.next(at)? {
                        (Event::SequenceEnd, _) => break,
                        (event, span) => items.push(self.node(event, &span, depth + 1)?),
                    }
                }
                (Node { at, value: Value::List(items) }, anchor)
            }
            Event::MappingStart(_, anchor, _) => {
                self.count(at, 1)?;
                let mut entries = Vec::new();
                loop {
                    let (event, span) = match self.next(at)? {
                        (Event::MappingEnd, _) => break,
                        other => other,
                    };
                    let key_at = place(&span);
                    let Event::Scalar(key, ..) = event else {
                        let help = Some("write a plain word before the colon");
                        return Err(Broken {
                            at: key_at,
                            message: "a key must be a text".to_owned(),
                            help,
                            fatal: false,
                        });
                    };
                    self.count(key_at, 1)?;
                    let (event, span) = self.next(key_at)?;
                    let node = self.node(event, &span, depth + 1)?;
                    entries.push(Entry { key: key.into_owned(), at: key_at, node });
                }
                (Node { at, value: Value::Map(entries) }, anchor)
            }
            Event::Alias(id) => {
                // an alias inside its own anchor is not known yet and ends here as well
                let Some(node) = self.anchors.get(&id).cloned() else {
                    let message = "the alias stands inside the value it names".to_owned();
                    return Err(Broken { at, message, help: None, fatal: false });
                };
                self.count(at, node.weight())?;
                if depth + node.depth() > MAX_DEPTH + 1 {
                    let message = format!("nested deeper than {MAX_DEPTH} levels");
                    return Err(Broken { at, message, help: None, fatal: false });
                }
                (node, 0)
            }
            _ => return Err(truncated(at)),
        };
        if anchor != 0 {
            // the copy kept for aliases counts too, or nested anchors would hold the file many times over
            self.count(at, node.weight())?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }
}

/// Resolves a plain scalar.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ if is_number(text) => Value::Number(text.to_owned()),
        _ => Value::Text(text.to_owned()),
    }
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`, the decimal numbers of the core schema.
fn is_number(text: &str) -> bool {
    let body = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match body.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))),
        None => (body, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    digits(whole)
        && digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && exponent.is_none_or(|e| !e.is_empty() && digits(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<Node>, Vec<Fault>) {
        let mut faults = Vec::new();
        let nodes = documents("f.yaml", text, &mut faults);
        (nodes, faults)
    }

    #[test]
    fn scalars_keep_their_text_and_their_place() {
        let (nodes, faults) = read("a: 0.80\nb: '1'\nc: [~, yes, true]\nt: 2026-01-01T00:00:00Z\n");
        assert_eq!(faults, []);
        let Value::Map(entries) = &nodes[0].value else { panic!("a map") };
        assert_eq!(entries[0].node.value, Value::Number("0.80".into()));
        assert_eq!(entries[1].node.value, Value::Text("1".into()), "quoted is text");
        assert_eq!(entries[3].node.value, Value::Text("2026-01-01T00:00:00Z".into()));
        assert_eq!((entries[1].at.line, entries[1].at.column), (2, 1));
        assert_eq!((entries[1].node.at.line, entries[1].node.at.column), (2, 4));
        let Value::List(items) = &entries[2].node.value else { panic!("a list") };
        assert_eq!(items[0].value, Value::Null);
        assert_eq!(items[1].value, Value::Text("yes".into()), "YAML 1.2: yes is a word");
        assert_eq!(items[2].value, Value::Bool(true));
    }

    #[test]
    fn a_broken_document_does_not_hide_the_next() {
        let (nodes, faults) = read("a: [1, 2\n---\nb: 1\n---\nc: }\n---\nd: 2\n");
        assert_eq!(nodes.len(), 2);
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].line <= 2 && faults[1].line == 5, "{faults:?}");
    }

    #[test]
    fn aliases_are_expanded_and_alias_bombs_refused() {
        let (nodes, faults) = read("a: &x [1, 2]\nb: *x\n");
        assert_eq!(faults, []);
        let Value::Map(entries) = &nodes[0].value else { panic!("a map") };
        assert_eq!(entries[0].node.value, entries[1].node.value);

        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for n in 1..12 {
            let refs = vec![format!("*a{}", n - 1); 10].join(", ");
            bomb.push_str(&format!("a{n}: &a{n} [{refs}]\n"));
        }
        let (nodes, faults) = read(&bomb);
        assert!(nodes.is_empty());
        assert!(faults[0].message.contains("200000"), "{faults:?}");
    }

    #[test]
    fn copies_kept_for_nested_anchors_count() {
        let opening: String = (0..20).map(|n| format!("&a{n} [")).collect();
        let text = format!("{opening}{}{}", "x,".repeat(20_000), "]".repeat(20));
        let (nodes, faults) = read(&text);
        assert!(nodes.is_empty() && faults[0].message.contains("200000"), "{faults:?}");
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let (nodes, faults) = read(&"[".repeat(10_000));
        assert!(nodes.is_empty() && faults.len() == 1, "{faults:?}");
        let deep: String = (0..100).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
        let (nodes, faults) = read(&deep);
        assert!(nodes.is_empty() && !faults.is_empty());
        let (nodes, faults) = read(&" ".repeat(MAX_BYTES + 1));
        assert!(nodes.is_empty() && faults.len() == 1);
    }

    #[test]
    fn an_alias_within_itself_is_a_fault() {
        let (_, faults) = read("a: &x [*x]\n");
        assert_eq!(faults.len(), 1);
    }
}
