//! Answers of panels that are shared for a moment: dashboards ask many times for the same, and a sidecar has other work.
//!
//! An answer stands for [`SHARED`] from when it was asked for; who asks the same meanwhile gets it, or waits for it with whoever asked
//! first. So a panel is planned and run once a second at most for a scope and a page, however many look at it. A question that fails is
//! told to those that wait and forgotten.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::sync::OnceCell;

use super::ask::{Ask, count, over};
use super::routes::objects;
use crate::clock::{Micros, SECOND, Wall};
use crate::serve::tables::{QueryError, Scope};

/// How old an answer may be, µs.
const SHARED: Micros = SECOND;
/// Answers that are kept. More are asked for, but not shared.
const KEPT: usize = 128;

/// What is asked for: whose rows of which query, and which of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) scope: Scope,
    pub(super) sql: String,
    pub(super) limit: usize,
    pub(super) offset: usize,
}

/// Some rows of a panel.
#[derive(Debug, PartialEq)]
pub(super) struct Page {
    /// As objects.
    pub(super) items: Vec<Value>,
    /// How many rows there are in all.
    pub(super) total: usize,
}

type Answer = Result<Arc<Page>, QueryError>;

struct Kept {
    asked: Micros,
    answer: Arc<OnceCell<Answer>>,
}

/// The answers of a process.
#[derive(Default)]
pub(super) struct Answers(Mutex<HashMap<Question, Kept>>);

impl Answers {
    /// The answer to a question, a shared one where there is one at `now`.
    pub(super) async fn get(&self, tables: &dyn Ask, question: Question, now: Wall) -> Answer {
        let cell = self.cell(&question, now.0);
        // whoever is first runs it; if that one goes away, the next of those that wait does
        let answer = cell.get_or_init(|| page(tables, &question)).await.clone();
        if answer.is_err() {
            let mut kept = self.kept();
            if kept.get(&question).is_some_and(|kept| Arc::ptr_eq(&kept.answer, &cell)) {
                kept.remove(&question);
            }
        }
        answer
    }

    fn cell(&self, question: &Question, now: Micros) -> Arc<OnceCell<Answer>> {
        let stands = |kept: &Kept| (kept.asked..kept.asked.saturating_add(SHARED)).contains(&now);
        let mut kept = self.kept();
        if let Some(kept) = kept.get(question).filter(|kept| stands(kept)) {
            return Arc::clone(&kept.answer);
        }
        let answer = Arc::new(OnceCell::new());
        // nobody waits for a time to forget them
        kept.retain(|_, kept| stands(kept));
        if kept.len() < KEPT {
            kept.insert(question.clone(), Kept { asked: now, answer: Arc::clone(&answer) });
        }
        answer
    }

    /// A map of answers is whole whatever panicked elsewhere.
    fn kept(&self) -> std::sync::MutexGuard<'_, HashMap<Question, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn page(tables: &dyn Ask, question: &Question) -> Answer {
    let Question { scope, sql, limit, offset } = question;
    let paged = format!("{} LIMIT {limit} OFFSET {offset}", over("*", sql));
    let items = objects(&tables.query(scope, &paged, Vec::new()).await?);
    // the last page says how many there are
    let total = if items.len() < *limit && (*offset == 0 || !items.is_empty()) {
        offset.saturating_add(items.len())
    } else {
        usize::try_from(count(tables, scope, sql).await?).unwrap_or_default()
    };
    Ok(Arc::new(Page { items, total }))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use datafusion::arrow::array::{Int64Array, RecordBatch};
    use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
    use datafusion::scalar::ScalarValue;

    use super::*;

    /// Gives as many rows as a limit asks for and there are; counts what it is asked.
    #[derive(Default)]
    struct Counted {
        rows: usize,
        asked: AtomicUsize,
        broken: bool,
        gate: Option<tokio::sync::Semaphore>,
    }

    #[async_trait]
    impl Ask for Counted {
        async fn query(&self, _: &Scope, sql: &str, _: Vec<ScalarValue>) -> Result<Vec<RecordBatch>, QueryError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            if let Some(gate) = &self.gate {
                gate.acquire().await.unwrap().forget();
            }
            if self.broken {
                return Err(QueryError::Busy);
            }
            let values: Vec<i64> = match sql.split_once(" LIMIT ") {
                None => vec![self.rows as i64],
                Some((_, page)) => {
                    let (limit, offset) = page.split_once(" OFFSET ").unwrap();
                    let (limit, offset): (usize, usize) = (limit.parse().unwrap(), offset.parse().unwrap());
                    (0..self.rows as i64).skip(offset).take(limit).collect()
                }
            };
            let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
            Ok(vec![RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(values))]).unwrap()])
        }

        fn is_whole(&self) -> bool {
            true
        }

        async fn plan(&self, _: &Scope, _: &str) -> Result<SchemaRef, QueryError> {
            Err(QueryError::Busy)
        }
    }

    fn question(tenant: &str, limit: usize, offset: usize) -> Question {
        Question { scope: Scope::of(tenant), sql: "SELECT n FROM t".into(), limit, offset }
    }

    #[tokio::test]
    async fn one_answer_stands_for_a_second_for_a_scope_and_a_page_and_no_other() {
        let (tables, answers) = (Counted { rows: 7, ..Counted::default() }, Answers::default());
        let mut at = 5 * SECOND;
        let mut asked = async |question: Question, later: Micros| {
            at += later;
            let before = tables.asked.load(Ordering::SeqCst);
            let page = answers.get(&tables, question, Wall(at)).await.unwrap();
            (page.items.len(), page.total, tables.asked.load(Ordering::SeqCst) - before)
        };
        assert_eq!(asked(question("a", 10, 0), 0).await, (7, 7, 1));
        assert_eq!(asked(question("a", 10, 0), SECOND - 1).await, (7, 7, 0));
        assert_eq!(asked(question("b", 10, 0), 0).await, (7, 7, 1), "another tenant's rows are others");
        assert_eq!(asked(question("*", 10, 0), 0).await, (7, 7, 1));
        assert_eq!(asked(question("a", 10, 3), 0).await, (4, 7, 1), "another page");
        assert_eq!(asked(question("a", 10, 0), 1).await, (7, 7, 1), "a second is over");
        assert_eq!(asked(question("a", 10, 0), -2 * SECOND).await, (7, 7, 1), "a clock that was put back");
    }

    #[tokio::test]
    async fn a_page_that_is_full_or_beyond_the_end_has_its_rows_counted() {
        let (tables, answers) = (Counted { rows: 7, ..Counted::default() }, Answers::default());
        for (limit, offset, rows, questions) in [(7, 0, 7, 2), (3, 3, 3, 2), (3, 6, 1, 1), (3, 7, 0, 2), (8, 0, 7, 1)] {
            let before = tables.asked.load(Ordering::SeqCst);
            let page = answers.get(&tables, question("a", limit, offset), Wall(0)).await.unwrap();
            let asked = tables.asked.load(Ordering::SeqCst) - before;
            assert_eq!((page.items.len(), page.total, asked), (rows, 7, questions), "LIMIT {limit} OFFSET {offset}");
        }
        let none = Counted::default();
        let page = answers.get(&none, question("none", 5, 0), Wall(0)).await.unwrap();
        assert_eq!((page.items.len(), page.total), (0, 0));
    }

    #[tokio::test]
    async fn those_who_ask_at_once_wait_for_one_and_one_that_goes_away_is_followed_by_the_next() {
        let gate = Some(tokio::sync::Semaphore::new(0));
        let (tables, answers) = (Counted { rows: 1, gate, ..Counted::default() }, Answers::default());
        let ask = || answers.get(&tables, question("a", 5, 0), Wall(0));
        {
            let first = ask();
            tokio::pin!(first);
            assert!(futures::poll!(&mut first).is_pending(), "it waits for its rows");
        }
        let all = futures::future::join_all((0..20).map(|_| ask()));
        tokio::pin!(all);
        assert!(futures::poll!(&mut all).is_pending());
        assert_eq!(tables.asked.load(Ordering::SeqCst), 2, "the one that went away, and its follower");
        tables.gate.as_ref().unwrap().add_permits(1);
        assert!(all.await.iter().all(|answer| answer.as_ref().unwrap().total == 1));
        assert_eq!(tables.asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_failure_is_told_and_not_kept() {
        let (tables, answers) = (Counted { broken: true, ..Counted::default() }, Answers::default());
        for asked in 1..=3 {
            let answer = answers.get(&tables, question("a", 5, 0), Wall(0)).await;
            assert_eq!(answer.unwrap_err(), QueryError::Busy);
            assert_eq!(tables.asked.load(Ordering::SeqCst), asked);
        }
        let mended = Counted { rows: 2, ..Counted::default() };
        assert_eq!(answers.get(&mended, question("a", 5, 0), Wall(0)).await.unwrap().total, 2);
    }

    #[tokio::test]
    async fn as_many_answers_are_kept_as_may_be_and_the_rest_is_answered_all_the_same() {
        let (tables, answers) = (Counted { rows: 1, ..Counted::default() }, Answers::default());
        for offset in 0..2 * KEPT {
            let page = answers.get(&tables, question("a", 1, offset), Wall(0)).await.unwrap();
            assert_eq!(page.total, 1);
        }
        assert_eq!(answers.kept().len(), KEPT);
        answers.get(&tables, question("a", 1, 5_000), Wall(SECOND)).await.unwrap();
        assert_eq!(answers.kept().len(), 1, "those that are old make room");
    }
}
