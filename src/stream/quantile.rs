//! `quantile(x, q)`: a quantile that does not depend on the order of its input.
//!
//! A sketch of log-spaced buckets with integer counts. Bucket i holds (γ^(i−1), γ^i] with γ = (1+α)/(1−α), α = 1 %, so
//! the midpoint is within 1 % of every value in it. Counts are added, never approximated: any cut, order or merge of the
//! same rows gives the same sketch. The answer is the value of rank ⌈q·n⌉ (rank 1 for q = 0).

use std::collections::BTreeMap;
use std::mem::size_of;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BinaryBuilder, BooleanArray, Float64Array};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Float64Type};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility};
use datafusion::physical_expr::expressions::Literal;

use super::compact::{put_varint, unzigzag, varint, zigzag};

/// Half width of a bucket relative to its middle.
const ALPHA: f64 = 0.01;
/// Magnitudes below this count as zero.
const TINY: f64 = 1e-9;

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Quantile {
    signature: Signature,
}

impl Quantile {
    /// The function as registered.
    pub fn new() -> Self {
        Self { signature: Signature::exact(vec![DataType::Float64, DataType::Float64], Volatility::Immutable) }
    }
}

impl Default for Quantile {
    fn default() -> Self {
        Self::new()
    }
}

impl AggregateUDFImpl for Quantile {
    fn name(&self) -> &str {
        "quantile"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(One { q: rank_of(&args)?, sketch: Sketch::default() }))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format!("{}[sketch]", args.name), DataType::Binary, true))])
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        !args.is_distinct
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Many { q: rank_of(&args)?, sketches: Vec::new() }))
    }
}

fn rank_of(args: &AccumulatorArgs) -> Result<f64> {
    let q = args.exprs.get(1).and_then(|e| e.downcast_ref::<Literal>()).map(Literal::value);
    match q {
        Some(ScalarValue::Float64(Some(q))) if (0.0..=1.0).contains(q) => Ok(*q),
        _ => Err(DataFusionError::Plan("quantile(x, q): q must be a literal between 0 and 1".into())),
    }
}

/// Counts by bucket. Order of keys is order of values.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Sketch {
    buckets: BTreeMap<i32, u64>,
}

impl Sketch {
    fn add(&mut self, value: f64) {
        if value.is_nan() {
            return;
        }
        *self.buckets.entry(bucket(value)).or_insert(0) += 1;
    }

    fn merge(&mut self, bytes: &[u8]) -> Result<()> {
        let mut bytes = bytes;
        let mut key = 0i64;
        while !bytes.is_empty() {
            let delta = varint(&mut bytes).ok_or_else(broken)?;
            let count = varint(&mut bytes).ok_or_else(broken)?;
            key = key.wrapping_add(unzigzag(delta));
            let key = i32::try_from(key).map_err(|_| broken())?;
            let slot = self.buckets.entry(key).or_insert(0);
            *slot = slot.saturating_add(count);
        }
        Ok(())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        let mut last = 0i64;
        for (key, count) in &self.buckets {
            put_varint(out, zigzag(i64::from(*key) - last));
            put_varint(out, *count);
            last = i64::from(*key);
        }
    }

    fn quantile(&self, q: f64) -> Option<f64> {
        let total: u64 = self.buckets.values().fold(0, |a, b| a.saturating_add(*b));
        if total == 0 {
            return None;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "0 <= q <= 1"
        )]
        let rank = ((q * total as f64).ceil() as u64).clamp(1, total);
        let mut seen = 0u64;
        for (key, count) in &self.buckets {
            seen = seen.saturating_add(*count);
            if seen >= rank {
                return Some(middle(*key));
            }
        }
        None
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.buckets.len() * 24
    }
}

fn ln_gamma() -> f64 {
    ((1.0 + ALPHA) / (1.0 - ALPHA)).ln()
}

/// Buckets of positive values are above 0, of negative values below, 0 is zero.
fn bucket(value: f64) -> i32 {
    let size = value.abs();
    if size < TINY {
        return 0;
    }
    let size = size.min(f64::MAX);
    #[expect(clippy::cast_possible_truncation, reason = "at most ln(f64::MAX / TINY) / ln(gamma), about 37,000")]
    let index = ((size / TINY).ln() / ln_gamma()).ceil() as i32 + 1;
    if value < 0.0 { -index } else { index }
}

fn middle(key: i32) -> f64 {
    if key == 0 {
        return 0.0;
    }
    let gamma = (1.0 + ALPHA) / (1.0 - ALPHA);
    let size = TINY * (f64::from(key.abs() - 1) * ln_gamma()).exp() * 2.0 / (gamma + 1.0);
    if key < 0 { -size } else { size }
}

fn broken() -> DataFusionError {
    DataFusionError::Execution("the state of quantile() is not a sketch".into())
}

#[derive(Debug)]
struct One {
    q: f64,
    sketch: Sketch,
}

impl Accumulator for One {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for value in values[0].as_primitive::<Float64Type>().iter().flatten() {
            self.sketch.add(value);
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Float64(self.sketch.quantile(self.q)))
    }

    fn size(&self) -> usize {
        self.sketch.size()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let mut bytes = Vec::new();
        self.sketch.encode(&mut bytes);
        Ok(vec![ScalarValue::Binary(Some(bytes))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        for bytes in states[0].as_binary::<i32>().iter().flatten() {
            self.sketch.merge(bytes)?;
        }
        Ok(())
    }
}

struct Many {
    q: f64,
    sketches: Vec<Sketch>,
}

impl Many {
    fn take(&mut self, emit_to: EmitTo) -> Vec<Sketch> {
        emit_to.take_needed(&mut self.sketches)
    }
}

impl GroupsAccumulator for Many {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.sketches.resize(total_num_groups, Sketch::default());
        let values = values[0].as_primitive::<Float64Type>();
        for (row, group) in group_indices.iter().enumerate() {
            let kept = opt_filter.is_none_or(|f| f.is_valid(row) && f.value(row));
            if kept && values.is_valid(row) {
                self.sketches[*group].add(values.value(row));
            }
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let q = self.q;
        Ok(Arc::new(self.take(emit_to).iter().map(|s| s.quantile(q)).collect::<Float64Array>()))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let mut out = BinaryBuilder::new();
        let mut bytes = Vec::new();
        for sketch in self.take(emit_to) {
            sketch.encode(&mut bytes);
            out.append_value(&bytes);
        }
        Ok(vec![Arc::new(out.finish())])
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        self.sketches.resize(total_num_groups, Sketch::default());
        let states = values[0].as_binary::<i32>();
        for (row, group) in group_indices.iter().enumerate() {
            if states.is_valid(row) {
                self.sketches[*group].merge(states.value(row))?;
            }
        }
        Ok(())
    }

    fn convert_to_state(&self, values: &[ArrayRef], opt_filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let groups: Vec<usize> = (0..values[0].len()).collect();
        let mut each = Self { q: self.q, sketches: Vec::new() };
        each.update_batch(values, &groups, opt_filter, groups.len())?;
        each.state(EmitTo::All)
    }

    fn size(&self) -> usize {
        self.sketches.iter().map(Sketch::size).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sketch(values: &[f64]) -> Sketch {
        let mut sketch = Sketch::default();
        for v in values {
            sketch.add(*v);
        }
        sketch
    }

    #[test]
    fn every_quantile_is_within_one_percent_of_the_exact_rank() {
        let values: Vec<f64> = (1..=1000).map(|i| f64::from(i) * 1.37 - 300.0).collect();
        let s = sketch(&values);
        for q in [0.0, 0.01, 0.5, 0.95, 0.99, 1.0] {
            let rank = ((q * 1000.0_f64).ceil() as usize).max(1);
            let exact = values[rank - 1];
            let got = s.quantile(q).unwrap();
            assert!((got - exact).abs() <= exact.abs() * 0.0101 + 1e-9, "q={q}: {got} for {exact}");
        }
    }

    #[test]
    fn merging_any_cut_gives_the_same_sketch() {
        let values: Vec<f64> = (0..500).map(|i| f64::from(i % 97) * 12.5).collect();
        let whole = sketch(&values);
        for cut in [1, 7, 250, 499] {
            let mut merged = Sketch::default();
            let mut bytes = Vec::new();
            for part in values.chunks(cut) {
                sketch(part).encode(&mut bytes);
                merged.merge(&bytes).unwrap();
            }
            assert_eq!(merged, whole);
        }
    }

    #[test]
    fn truncated_state_is_an_error() {
        let mut bytes = Vec::new();
        sketch(&[1.0, 1e6]).encode(&mut bytes);
        assert!(Sketch::default().merge(&bytes[..bytes.len() - 1]).is_err());
        assert!(Sketch::default().merge(&[0xff; 12]).is_err());
    }

    #[test]
    fn the_p95_of_one_value_is_that_value_within_one_percent() {
        let got = sketch(&[1234.0]).quantile(0.95).unwrap();
        assert!((got - 1234.0).abs() <= 12.34, "{got}");
        assert_eq!(Sketch::default().quantile(0.95), None);
        assert_eq!(sketch(&[0.0, 0.0]).quantile(0.5), Some(0.0));
    }
}
