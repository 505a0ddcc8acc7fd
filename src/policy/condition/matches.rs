//! `matches`: a regular expression, compiled once, bounded in size and, as the engine is linear, in time.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray, BooleanArray};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use regex::{Regex, RegexBuilder};

/// Largest compiled expression, in bytes, and largest cache of its states.
const MAX_SIZE: usize = 1 << 20;
/// Deepest nesting.
const MAX_NEST: u32 = 64;

/// A function of one text: whether the expression matches anywhere in it.
#[derive(Debug)]
pub struct Matches {
    regex: Regex,
    signature: Signature,
}

impl Matches {
    /// Compiles an expression; the error says what is wrong with it.
    pub fn new(pattern: &str) -> std::result::Result<Self, String> {
        let regex = RegexBuilder::new(pattern)
            .size_limit(MAX_SIZE)
            .dfa_size_limit(MAX_SIZE)
            .nest_limit(MAX_NEST)
            .build()
            .map_err(|error| match error {
                regex::Error::CompiledTooBig(_) => "it is too large once compiled".to_owned(),
                other => other.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned(),
            })?;
        Ok(Self { regex, signature: Signature::exact(vec![DataType::Utf8], Volatility::Immutable) })
    }
}

impl PartialEq for Matches {
    fn eq(&self, other: &Self) -> bool {
        self.regex.as_str() == other.regex.as_str()
    }
}

impl Eq for Matches {}

impl Hash for Matches {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.regex.as_str().hash(state);
    }
}

impl ScalarUDFImpl for Matches {
    fn name(&self) -> &'static str {
        "matches"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let mut texts = ColumnarValue::values_to_arrays(&args.args)?;
        let texts = texts.pop().unwrap_or_else(|| datafusion::arrow::array::new_null_array(&DataType::Utf8, 0));
        let found: BooleanArray =
            texts.as_string::<i32>().iter().map(|text| text.map(|t| self.regex.is_match(t))).collect();
        debug_assert_eq!(found.len(), texts.len());
        Ok(ColumnarValue::Array(Arc::new(found)))
    }
}
