//! The live summary in the terminal. Rendering is a pure function of a [`View`]; [`Screen`] only writes.
//!
//! On a terminal the frame is redrawn in place. Anywhere else (a file, a pipe, CI) every new line is printed once, with a line
//! of figures every five seconds, so that a log tells the same story.

use std::fmt::Write as _;
use std::io::{self, Write};

use crate::clock::{Micros, SECOND};

use super::feed::amount;

/// What is shown: filled by [`super::feed::Feed::view`].
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Since the start of the demo.
    pub elapsed: Micros,
    /// Telemetry records per second, lately.
    pub events_per_second: f64,
    /// Runs started and not ended.
    pub runs_live: u64,
    /// Runs started.
    pub runs_started: u64,
    /// Runs completed or failed.
    pub runs_ended: u64,
    /// Alerts open now.
    pub alerts_open: u64,
    /// Median and 99th percentile from event to decision, ms; infinite beyond the last bucket.
    pub decision_ms: Option<(f64, f64)>,
    /// Median and 99th percentile from event to committed decision, ms.
    pub commit_ms: Option<(f64, f64)>,
    /// Counts since the start.
    pub counts: Counts,
    /// Limits that are near or breached now, highest utilisation first.
    pub limits: Vec<LimitRow>,
    /// Everything that happened lately, oldest first.
    pub lines: Vec<Line>,
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "each is the count its name says")]
pub struct Counts {
    pub telemetry: u64,
    pub decoded: u64,
    pub dead_letters: u64,
    pub duplicates: u64,
    pub near: u64,
    pub breach: u64,
    pub resolved: u64,
    pub enforced: u64,
    pub shadow: u64,
    pub alerts_opened: u64,
    pub transactions: u64,
    pub unreadable: u64,
}

/// A limit that is near or breached.
#[derive(Debug, Clone, PartialEq)]
pub struct LimitRow {
    /// Metric name.
    pub metric: String,
    /// Id of the scope.
    pub who: String,
    /// [`Kind::Near`] or [`Kind::Breach`].
    pub kind: Kind,
    /// BLOCK, WARN or AUDIT.
    pub mode: String,
    /// Value at the last signal.
    pub value: f64,
    /// The limit.
    pub limit: f64,
    /// value ÷ limit.
    pub utilization: f64,
}

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is what its name says")]
pub enum Kind {
    Near,
    Breach,
    Resolved,
    Intervention,
    AlertOpen,
    AlertResolved,
    DeadLetter,
}

impl Kind {
    fn label(self) -> &'static str {
        match self {
            Self::Near => "NEAR",
            Self::Breach => "BREACH",
            Self::Resolved => "RESOLVED",
            Self::Intervention => "INTERVENTION",
            Self::AlertOpen => "ALERT",
            Self::AlertResolved => "ALERT ENDED",
            Self::DeadLetter => "DEAD LETTER",
        }
    }

    fn color(self) -> &'static str {
        match self {
            Self::Near => "33",
            Self::Breach => "31;1",
            Self::Intervention => "35;1",
            Self::AlertOpen => "36",
            Self::Resolved | Self::AlertResolved => "32",
            Self::DeadLetter => "90",
        }
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Counts up from 1.
    pub sequence: u64,
    /// When, since the start.
    pub elapsed: Micros,
    /// About what.
    pub kind: Kind,
    /// Id of the run, agent, key or tenant.
    pub who: String,
    /// The rest.
    pub detail: String,
}

/// Where the demo can be looked at.
#[derive(Debug, Clone)]
pub struct Places {
    /// Base URL of the console, without a slash at the end.
    pub http: String,
    /// Address of SQL.
    pub sql: String,
    /// Where spans are taken.
    pub otlp: String,
    /// Bootstrap address of the in-process broker.
    pub brokers: String,
    /// Something to know about them.
    pub note: Option<String>,
}

/// How a frame is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Columns; lines are cut, never wrapped.
    pub width: usize,
    /// Lines of the list of events.
    pub rows: usize,
    /// ANSI colours.
    pub color: bool,
}

impl Default for Style {
    fn default() -> Self {
        Self { width: 110, rows: 12, color: true }
    }
}

/// The whole frame.
pub fn render(view: &View, places: &Places, style: Style) -> String {
    let mut out = Frame { text: String::new(), style };
    let c = &view.counts;
    out.line("1", &format!("runwarden demo · {} · {}", clock(view.elapsed), places.http));
    if let Some(note) = &places.note {
        out.line("90", note);
    }
    out.line(
        "",
        &format!(
            "traffic   {:>6.0} events/s · {} in · {} decoded · {} dead letters · {} duplicates",
            view.events_per_second, c.telemetry, c.decoded, c.dead_letters, c.duplicates
        ),
    );
    out.line(
        "",
        &format!("runs      {:>6} live · {} started · {} ended", view.runs_live, view.runs_started, view.runs_ended),
    );
    out.line(
        "",
        &format!(
            "decided   {:>6} near · {} breach · {} resolved · {} interventions · {} shadow · {} alerts open",
            c.near, c.breach, c.resolved, c.enforced, c.shadow, view.alerts_open
        ),
    );
    out.line(
        "",
        &format!(
            "latency   event → decision {} · event → commit {} · {} transactions",
            latency(view.decision_ms),
            latency(view.commit_ms),
            c.transactions
        ),
    );
    out.line("", "");
    out.line("4", "limits near or breached");
    if view.limits.is_empty() {
        out.line("90", "  none: everyone is within limits");
    }
    for row in &view.limits {
        let text = format!(
            "  {:<8} {:<22} {:<28} {} {:>4.0} %  {} of {} {}",
            row.kind.label(),
            cut(&row.metric, 22),
            cut(&row.who, 28),
            bar(row.utilization),
            row.utilization * 100.0,
            amount(row.value),
            amount(row.limit),
            row.mode
        );
        out.line(row.kind.color(), &text);
    }
    out.line("", "");
    out.line("4", "what happened");
    let skip = view.lines.len().saturating_sub(style.rows);
    for line in view.lines.iter().skip(skip) {
        out.line(line.kind.color(), &format!("  {}", one_line(line)));
    }
    out.text
}

struct Frame {
    text: String,
    style: Style,
}

impl Frame {
    fn line(&mut self, color: &str, text: &str) {
        let text = cut(text, self.style.width);
        if self.style.color && !color.is_empty() {
            self.text.push_str(&format!("\u{1b}[{color}m{text}\u{1b}[0m\n"));
        } else {
            self.text.push_str(&text);
            self.text.push('\n');
        }
    }
}

fn one_line(line: &Line) -> String {
    format!("{:>7} {:<12} {:<28} {}", clock(line.elapsed), line.kind.label(), cut(&line.who, 28), line.detail)
}

fn clock(elapsed: Micros) -> String {
    let tenths = elapsed.max(0) / (SECOND / 10);
    format!("{}:{:02}.{}", tenths / 600, tenths / 10 % 60, tenths % 10)
}

fn latency(quantiles: Option<(f64, f64)>) -> String {
    let ms = |v: f64| if v.is_finite() { format!("≤ {v:.0} ms") } else { "> 10 s".to_owned() };
    quantiles.map_or_else(|| "–".to_owned(), |(p50, p99)| format!("p50 {}, p99 {}", ms(p50), ms(p99)))
}

/// Ten cells, full at the limit.
fn bar(utilization: f64) -> String {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0–10")]
    let full = (utilization * 10.0).clamp(0.0, 10.0) as usize;
    format!("{}{}", "█".repeat(full), "░".repeat(10 - full))
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut out: String = text.chars().take(width.saturating_sub(1)).collect();
    out.push('…');
    out
}

/// The table at the end.
pub fn summary(view: &View) -> String {
    let c = &view.counts;
    let rows: [(&str, String); 11] = [
        ("ran for", clock(view.elapsed)),
        ("telemetry records in", c.telemetry.to_string()),
        ("decoded", c.decoded.to_string()),
        ("dead letters (kept, with origin and reason)", c.dead_letters.to_string()),
        ("runs started / ended", format!("{} / {}", view.runs_started, view.runs_ended)),
        ("NEAR / BREACH / RESOLVED signals", format!("{} / {} / {}", c.near, c.breach, c.resolved)),
        ("interventions enforced / shadow", format!("{} / {}", c.enforced, c.shadow)),
        ("alerts opened", c.alerts_opened.to_string()),
        ("transactions committed", c.transactions.to_string()),
        ("event → decision", latency(view.decision_ms)),
        ("event → commit", latency(view.commit_ms)),
    ];
    let mut out = String::from("\nsummary\n");
    for (name, value) in rows {
        // writing to a string cannot fail
        writeln!(out, "  {name:<46} {value}").unwrap_or_default();
    }
    out
}

/// Where to look while the demo runs.
pub fn guide(places: &Places) -> String {
    let Places { http, sql, otlp, brokers, note } = places;
    let note = note.as_deref().map(|note| format!("{note}\n")).unwrap_or_default();
    format!(
        "\n{note}where to look while it runs
  console       {http}/
  metrics       {http}/metrics
  readiness     {http}/readyz
  SQL           psql 'postgres://runwarden@{sql}/runwarden'
  OTLP          {otlp}   (OTEL_EXPORTER_OTLP_ENDPOINT)
  broker        {brokers}   (in this process, gone when it ends)

how to read the topics, with any Kafka client
  kcat -b {brokers} -C -o beginning -u -t runwarden.signals         NEAR, BREACH and RESOLVED, with evidence
  kcat -b {brokers} -C -o beginning -u -t runwarden.interventions   what executors must do
  kcat -b {brokers} -C -o beginning -u -t runwarden.alerts          correlated alerts: OPEN, UPDATED, RESOLVED
  kcat -b {brokers} -C -o beginning -u -t runwarden.audit           shadow decisions of policies in AUDIT
  kcat -b {brokers} -C -o beginning -u -t runwarden.dead-letter -f '%h %s\\n'   bad records: origin and reason in headers
"
    )
}

/// Writes views to a terminal or a log.
#[derive(Debug)]
pub struct Screen<W> {
    out: W,
    terminal: bool,
    style: Style,
    places: Places,
    printed: u64,
    next_figures: Micros,
}

impl<W: Write> Screen<W> {
    /// A screen on `out`; `terminal` says whether frames are redrawn in place.
    pub fn new(out: W, terminal: bool, style: Style, places: Places) -> Self {
        Self { out, terminal, style, places, printed: 0, next_figures: 5 * SECOND }
    }

    /// Shows a view: about four times a second is pleasant.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn show(&mut self, view: &View) -> io::Result<()> {
        if self.terminal {
            let frame = render(view, &self.places, self.style);
            // home, each line cleared to its end, then whatever is left of a longer frame
            let frame = frame.replace('\n', "\u{1b}[K\n");
            write!(self.out, "\u{1b}[H{frame}\u{1b}[J")?;
            return self.out.flush();
        }
        for line in view.lines.iter().filter(|l| l.sequence > self.printed) {
            writeln!(self.out, "{}", one_line(line))?;
        }
        self.printed = view.lines.last().map_or(self.printed, |l| l.sequence.max(self.printed));
        if view.elapsed >= self.next_figures {
            self.next_figures = view.elapsed - view.elapsed % (5 * SECOND) + 5 * SECOND;
            let c = &view.counts;
            writeln!(
                self.out,
                "{:>7} {:<12} {:.0} events/s, {} in, {} runs live, {} near, {} breach, {} interventions, commit {}",
                clock(view.elapsed),
                "figures",
                view.events_per_second,
                c.telemetry,
                view.runs_live,
                c.near,
                c.breach,
                c.enforced,
                latency(view.commit_ms)
            )?;
        }
        self.out.flush()
    }

    /// Prepares the terminal and says where to look.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn open(&mut self) -> io::Result<()> {
        if self.terminal {
            write!(self.out, "\u{1b}[2J\u{1b}[H\u{1b}[?25l")?;
        } else {
            writeln!(self.out, "{}", guide(&self.places))?;
        }
        self.out.flush()
    }

    /// Ends with the summary and how to read the topics.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn close(&mut self, view: &View) -> io::Result<()> {
        self.show(view)?;
        if self.terminal {
            write!(self.out, "\u{1b}[?25h")?;
            write!(self.out, "{}", guide(&self.places))?;
        }
        write!(self.out, "{}", summary(view))?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests;
