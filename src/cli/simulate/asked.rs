//! What a set of policies would have done, asked over HTTP: the candidate and what is in force, over what the telemetry topic holds.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};

use super::{Recorded, Summary, compare, over};
use crate::cli::load::Tuning;
use crate::cli::{Failure, governing};
use crate::clock::rfc3339;
use crate::kafka::ShellConfig;
use crate::kafka::history::History;
use crate::pipeline::terms::{self, Texts};
use crate::serve::reads::simulate::{Asked, MOST_RECORDS, Simulator, Unsimulated};

/// Most entries of a list of the answer.
const SHOWN: usize = 100;

/// What simulates for a running process.
pub(in crate::cli) fn simulator(shell: ShellConfig, tuning: Tuning) -> Simulator {
    Simulator::new(Arc::new(move |asked, given_up| simulate(&shell, &tuning, asked, given_up)))
}

fn failed(failure: Failure) -> Unsimulated {
    match failure {
        Failure::Invalid(why) | Failure::Reach(why) => Unsimulated::Failed(why),
    }
}

fn simulate(shell: &ShellConfig, tuning: &Tuning, asked: &Asked, given_up: &AtomicBool) -> Result<Value, Unsimulated> {
    let in_force = governing::in_force_now(shell, tuning).map_err(failed)?;
    let in_force = in_force.ok_or_else(|| Unsimulated::Failed("no policies are in force yet".into()))?;
    let carried = &in_force.settings.terms;
    let mut texts = Texts::of(carried).map_err(Unsimulated::Failed)?;
    texts.policies = asked.policies.iter().map(|(name, text)| (name.clone(), text.clone())).collect();
    let build = || terms::build(&texts, tuning.clone().deciding(&carried.settings));
    let candidate = build().map_err(Unsimulated::Refused)?.settings;
    let history = History::find(&shell.client, &shell.topics.telemetry, Some(asked.since.0));
    let history = history.map_err(|e| Unsimulated::Failed(e.to_string()))?;
    if history.span() > MOST_RECORDS {
        return Err(Unsimulated::TooMuch(history.span()));
    }
    let recorded = Recorded::Topic(history, asked.tenant.clone());
    let candidate = over(candidate, &recorded, "the candidate", asked.now, given_up).map_err(failed)?;
    // the same queries and settings, under what is in force
    let mut settings = build().map_err(Unsimulated::Refused)?.settings;
    settings.snapshot = Arc::clone(&in_force.snapshot);
    let against = over(settings, &recorded, "what is in force", asked.now, given_up).map_err(failed)?;
    let (summary, other) = (Summary::of(&candidate), Summary::of(&against));
    let mut answer = json!({
        "since": rfc3339(asked.since.0), "until": rfc3339(asked.now.0), "tenant_id": asked.tenant,
        "snapshot_in_force": **in_force.snapshot.id(),
        "policies": summary, "in_force": other, "diff": compare::diff(&candidate, &summary, &against, &other),
    });
    let shortened = shorten(&mut answer);
    answer["shortened"] = shortened.into();
    Ok(answer)
}

/// Cuts long lists; whether there was one. Their numbers are in the summaries.
fn shorten(value: &mut Value) -> bool {
    match value {
        Value::Array(items) => {
            let long = items.len() > SHOWN;
            items.truncate(SHOWN);
            items.iter_mut().fold(long, |any, item| shorten(item) | any)
        }
        Value::Object(fields) => fields.values_mut().fold(false, |any, field| shorten(field) | any),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut_wherever_they_are_and_it_is_said() {
        let mut value = json!({"a": [1, 2], "b": {"c": (0..200).collect::<Vec<_>>()}});
        assert!(shorten(&mut value));
        assert_eq!((value["a"].as_array().unwrap().len(), value["b"]["c"].as_array().unwrap().len()), (2, SHOWN));
        assert!(!shorten(&mut value));
    }
}
