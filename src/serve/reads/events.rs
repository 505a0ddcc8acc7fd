//! `/api/v1/events`: what runwarden says, as it says it, for consoles: server-sent events named after the record.
//!
//! Who reads too slowly misses events and is told how many: it reads the lists again.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::get;
use futures::Stream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::{self, error::RecvError};

use super::{Answer, Asked, again, asking};
use crate::serve::access::Caller;
use crate::serve::http::{Views, problem};
use crate::serve::tables::Scope;
use crate::serve::tables::schema::Source;

/// Events that a listener may be behind.
const BEHIND: usize = 1_024;
/// Largest record that is sent on: larger ones are named, to be asked for.
const LARGEST: usize = 64 << 10;
/// Between two signs of life on a stream.
const ALIVE: Duration = Duration::from_secs(15);
/// The names of events.
const NAMES: [&str; 5] = ["alert", "intervention", "signal", "lesson", "policy_level"];

/// A record that was committed.
#[derive(Debug, Clone)]
pub struct Happened {
    /// One of `alert intervention signal lesson policy_level`.
    pub name: &'static str,
    /// Whose.
    pub tenant_id: String,
    /// The record.
    pub record: Arc<str>,
}

/// Everybody who listens.
#[derive(Debug, Clone)]
pub struct News(broadcast::Sender<Happened>);

impl Default for News {
    fn default() -> Self {
        Self(broadcast::Sender::new(BEHIND))
    }
}

impl News {
    /// The event of a topic; `None`: there is none of it.
    pub fn name(source: Source) -> Option<&'static str> {
        match source {
            Source::Alerts => Some("alert"),
            Source::Interventions => Some("intervention"),
            Source::Signals => Some("signal"),
            Source::Lessons => Some("lesson"),
            Source::PolicyLevel => Some("policy_level"),
            _ => None,
        }
    }

    /// Whether anybody listens.
    pub fn is_heard(&self) -> bool {
        self.0.receiver_count() > 0
    }

    /// Tells it to whoever listens.
    pub fn tell(&self, name: &'static str, payload: &[u8]) {
        let Ok(record) = std::str::from_utf8(payload) else { return };
        #[derive(serde::Deserialize)]
        struct Whose {
            tenant_id: String,
        }
        let Ok(Whose { tenant_id }) = serde_json::from_str(record) else { return };
        // a line break would end the event's data
        let record =
            if record.len() > LARGEST { "{\"larger\":true}".to_owned() } else { record.replace(['\n', '\r'], " ") };
        // an error means that nobody listens
        drop(self.0.send(Happened { name, tenant_id, record: Arc::from(record) }));
    }
}

pub(super) fn routes() -> Router<Views> {
    Router::new().route("/api/v1/events", get(listen))
}

async fn listen(State(views): State<Views>, caller: Caller, asked: Asked) -> Answer {
    let asking = asking(&views, &caller, asked, &["tenant_id", "kind"]).await?;
    let wanted: Vec<&'static str> = match asking.given.get("kind") {
        None => NAMES.to_vec(),
        Some(text) => {
            let name = |text: &str| NAMES.into_iter().find(|name| name.eq_ignore_ascii_case(text.trim()));
            let names: Option<Vec<_>> = text.split(',').map(name).collect();
            let known = NAMES.join(" ");
            names.ok_or_else(|| {
                problem(StatusCode::BAD_REQUEST, &format!("kind is some of {known}, with commas between"))
            })?
        }
    };
    let Ok(place) = Arc::clone(&views.streams).try_acquire_owned() else {
        return Err(again(StatusCode::SERVICE_UNAVAILABLE, "too many listen already: ask, or listen elsewhere", "30"));
    };
    let news = views.news.0.subscribe();
    let stream = events(news, asking.scope, wanted, place);
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(ALIVE)).into_response())
}

fn events(
    news: broadcast::Receiver<Happened>,
    scope: Scope,
    wanted: Vec<&'static str>,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> + use<> {
    // says that it listens: what is read after this misses nothing
    let first = Event::default().event("listening").data("{}");
    futures::stream::unfold(
        (news, scope, wanted, place, Some(first)),
        async |(mut news, scope, wanted, place, first)| {
            if let Some(first) = first {
                return Some((Ok(first), (news, scope, wanted, place, None)));
            }
            loop {
                let event = match news.recv().await {
                    Ok(happened) => {
                        let sees = match &scope {
                            Scope::All => true,
                            Scope::Tenant(own) => **own == *happened.tenant_id,
                        };
                        if !(sees && wanted.contains(&happened.name)) {
                            continue;
                        }
                        Event::default().event(happened.name).data(&*happened.record)
                    }
                    // whoever was too slow reads the lists again
                    Err(RecvError::Lagged(missed)) => {
                        Event::default().event("missed").data(format!("{{\"events\":{missed}}}"))
                    }
                    Err(RecvError::Closed) => return None,
                };
                return Some((Ok(event), (news, scope, wanted, place, None)));
            }
        },
    )
}
