//! A collector of OTLP spans on a free port of this host.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

/// Takes whatever is sent, for as long as the process lives.
#[derive(Clone)]
pub struct Collector {
    endpoint: String,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let collector = Self { endpoint, spans: Arc::default() };
        let taking = collector.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let taking = taking.clone();
                std::thread::spawn(move || taking.serve(stream.unwrap()));
            }
        });
        collector
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Answers requests until the connection ends.
    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream);
        loop {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if reader.read_line(&mut head).unwrap_or(0) == 0 {
                    return;
                }
            }
            let length = head.to_lowercase().split("content-length: ").nth(1).unwrap().lines().next().unwrap().parse();
            let mut body = vec![0; length.unwrap()];
            reader.read_exact(&mut body).unwrap();
            let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
            let spans = request.resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans);
            self.spans.lock().unwrap().extend(spans);
            reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        }
    }

    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }

    /// The spans by trace, each checked to be whole: one root, and everything else hangs on it and lies within it.
    pub fn traces(&self) -> BTreeMap<String, Steps> {
        let mut traces: BTreeMap<String, Vec<Span>> = BTreeMap::new();
        for span in self.spans() {
            traces.entry(hex(&span.trace_id)).or_default().push(span);
        }
        traces.into_iter().map(|(id, spans)| (id, Steps::of(spans))).collect()
    }
}

/// The trace of a step.
pub struct Steps {
    pub root: Span,
    pub children: Vec<Span>,
}

impl Steps {
    fn of(spans: Vec<Span>) -> Self {
        let (roots, children): (Vec<Span>, Vec<Span>) =
            spans.into_iter().partition(|span| span.parent_span_id.is_empty());
        let [root] = <[Span; 1]>::try_from(roots).unwrap_or_else(|roots| panic!("one root: {roots:?}"));
        for child in &children {
            assert_eq!(child.parent_span_id, root.span_id, "{child:?}");
            let within = child.start_time_unix_nano >= root.start_time_unix_nano
                && child.end_time_unix_nano <= root.end_time_unix_nano
                && child.start_time_unix_nano <= child.end_time_unix_nano;
            assert!(within, "{child:?} in {root:?}");
        }
        Self { root, children }
    }

    pub fn names(&self) -> Vec<&str> {
        self.children.iter().map(|child| child.name.as_str()).collect()
    }

    pub fn child(&self, name: &str) -> &Span {
        self.children.iter().find(|child| child.name == name).unwrap_or_else(|| panic!("no {name}: {:?}", self.names()))
    }
}

/// An attribute as text.
pub fn attribute(span: &Span, key: &str) -> Option<String> {
    let value = span.attributes.iter().find(|a| a.key == key)?.value.as_ref()?.value.as_ref()?;
    Some(match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    })
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
