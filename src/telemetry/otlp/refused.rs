//! Metrics and logs, which are not taken: how many there are, so that who sent them can be told.

use serde_json::value::RawValue;

use super::proto::messages;
use super::{Encoding, Unreadable, json};

/// What a request holds that is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Items {
    /// Data points.
    Metrics,
    /// Log records.
    Logs,
}

/// How many there are in a request.
///
/// # Errors
/// It is not one.
pub fn items(bytes: &[u8], encoding: Encoding, what: Items) -> Result<u64, Unreadable> {
    let mut count = 0;
    match encoding {
        Encoding::Proto => messages(bytes, 1, |resource| {
            messages(resource, 2, |scope| {
                messages(scope, 2, |item| match what {
                    Items::Logs => {
                        count += 1;
                        Ok(())
                    }
                    // gauge, sum, histogram, exponential histogram, summary
                    Items::Metrics => [5, 7, 9, 10, 11].into_iter().try_for_each(|kind| {
                        messages(item, kind, |data| {
                            messages(data, 1, |_| {
                                count += 1;
                                Ok(())
                            })
                        })
                    }),
                })
            })
        })?,
        Encoding::Json => {
            let [resources, scopes, items] = match what {
                Items::Metrics => ["resourceMetrics", "scopeMetrics", "metrics"],
                Items::Logs => ["resourceLogs", "scopeLogs", "logRecords"],
            };
            json::each(member(json::request(bytes)?, resources), |resource| {
                json::each(member(resource, scopes), |scope| {
                    json::each(member(scope, items), |item| {
                        if what == Items::Logs {
                            count += 1;
                            return Ok(());
                        }
                        ["gauge", "sum", "histogram", "exponentialHistogram", "summary"].into_iter().try_for_each(
                            |kind| {
                                let points = member(item, kind).and_then(|data| member(data, "dataPoints"));
                                json::each(points, |_| {
                                    count += 1;
                                    Ok(())
                                })
                            },
                        )
                    })
                })
            })?;
        }
    }
    Ok(count)
}

/// A member of an object.
fn member<'a>(raw: &'a RawValue, name: &str) -> Option<&'a RawValue> {
    let members = super::super::parse::object(raw.get())?;
    members.into_iter().find(|(known, _)| known == name).map(|(_, value)| value)
}
