//! count, sum, min and max over fixed-width numbers, applied to state columns in place.
//!
//! These carry nearly all metrics, and a pass over the rows is much cheaper than taking state out of an accumulator and back.
//! Each operation gives, bit for bit, what DataFusion's accumulator gives for the same sequence: wrapping addition, and
//! comparison that takes NaN as the newer value. Everything else goes through accumulators.

use std::cmp::Ordering;

use datafusion::arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray};
use datafusion::arrow::datatypes::{ArrowNativeType, DataType, Decimal128Type, Float64Type, Int64Type, UInt64Type};

use super::pool::NO_SLOT;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Native {
    Count,
    Sum(Kind),
    Max(Kind),
    Min(Kind),
}

/// The number a state holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Int,
    Unsigned,
    Float,
    Decimal,
}

impl Native {
    /// The operation of an aggregate, if it is one of these.
    pub(super) fn of(function: &str, args: &[DataType], state: &[DataType]) -> Option<Self> {
        let ([arg], [state]) = (args, state) else { return None };
        if function == "count" {
            return (*state == DataType::Int64).then_some(Self::Count);
        }
        let kind = match (arg, state) {
            (DataType::Int64, DataType::Int64) => Kind::Int,
            (DataType::UInt64, DataType::UInt64) => Kind::Unsigned,
            (DataType::Float64, DataType::Float64) => Kind::Float,
            (DataType::Decimal128(_, a), DataType::Decimal128(_, b)) if a == b => Kind::Decimal,
            _ => return None,
        };
        match function {
            "sum" => Some(Self::Sum(kind)),
            "max" => Some(Self::Max(kind)),
            "min" => Some(Self::Min(kind)),
            _ => None,
        }
    }

    /// Whether the order of rows cannot be told from the result (but for the sign of zero and NaN under max and min).
    pub(super) fn commutes(self) -> bool {
        !matches!(self, Self::Sum(Kind::Float))
    }

    /// New cells for groups: from an old slot, or empty; then the rows.
    pub(super) fn update(self, cells: &mut Cells<'_>, read: &[u32], write: &[u32], rows: &Input<'_>) {
        match self {
            Self::Count => {
                begin::<i64>(cells, read, write, true);
                count(cells, write, rows);
            }
            Self::Sum(kind) => each(kind, cells, read, write, rows, Op::Sum),
            Self::Max(kind) => each(kind, cells, read, write, rows, Op::Max),
            Self::Min(kind) => each(kind, cells, read, write, rows, Op::Min),
        }
    }

    /// The union of the parts of each group, as bytes and validity.
    pub(super) fn merge(self, data: &[u8], valid: &[bool], parts: &Parts<'_>, groups: usize) -> (Vec<u8>, Vec<bool>) {
        match self {
            Self::Count => union::<i64>(data, valid, parts, groups, Op::Sum, true),
            Self::Sum(kind) => by_kind(kind, data, valid, parts, groups, Op::Sum),
            Self::Max(kind) => by_kind(kind, data, valid, parts, groups, Op::Max),
            Self::Min(kind) => by_kind(kind, data, valid, parts, groups, Op::Min),
        }
    }
}

/// One state column.
pub(super) struct Cells<'a> {
    pub(super) data: &'a mut [u8],
    pub(super) valid: &'a mut [bool],
}

/// The rows of an update.
pub(super) struct Input<'a> {
    pub(super) rows: &'a [u32],
    pub(super) locals: &'a [usize],
    pub(super) arg: &'a ArrayRef,
    pub(super) filter: Option<&'a BooleanArray>,
}

/// The slots of several groups, in the order to merge them.
pub(super) struct Parts<'a> {
    pub(super) slots: &'a [u32],
    pub(super) groups: &'a [usize],
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Sum,
    Max,
    Min,
}

trait Cell: Copy + Default {
    const LEAST: Self;
    const MOST: Self;
    fn load(data: &[u8], at: usize) -> Self;
    fn store(self, data: &mut [u8], at: usize);
    fn plus(self, other: Self) -> Self;
    fn order(&self, other: &Self) -> Option<Ordering>;
}

macro_rules! cell {
    ($ty:ty, $plus:expr) => {
        impl Cell for $ty {
            const LEAST: Self = <$ty>::MIN;
            const MOST: Self = <$ty>::MAX;
            #[inline]
            fn load(data: &[u8], at: usize) -> Self {
                let (cells, _) = data.as_chunks::<{ size_of::<$ty>() }>();
                <$ty>::from_ne_bytes(cells[at])
            }
            #[inline]
            fn store(self, data: &mut [u8], at: usize) {
                let (cells, _) = data.as_chunks_mut::<{ size_of::<$ty>() }>();
                cells[at] = self.to_ne_bytes();
            }
            #[inline]
            fn plus(self, other: Self) -> Self {
                $plus(self, other)
            }
            #[inline]
            fn order(&self, other: &Self) -> Option<Ordering> {
                self.partial_cmp(other)
            }
        }
    };
}
cell!(i64, i64::wrapping_add);
cell!(u64, u64::wrapping_add);
cell!(i128, i128::wrapping_add);
cell!(f64, |a, b| a + b);

#[inline]
fn apply<T: Cell>(data: &mut [u8], valid: &mut [bool], at: usize, value: T, op: Op) {
    let known = valid[at];
    let next = match op {
        Op::Sum => {
            let current = if known { T::load(data, at) } else { T::default() };
            current.plus(value)
        }
        Op::Max => {
            let current = if known { T::load(data, at) } else { T::LEAST };
            if matches!(value.order(&current), Some(Ordering::Greater) | None) { value } else { current }
        }
        Op::Min => {
            let current = if known { T::load(data, at) } else { T::MOST };
            if matches!(value.order(&current), Some(Ordering::Less) | None) { value } else { current }
        }
    };
    next.store(data, at);
    valid[at] = true;
}

fn begin<T: Cell>(cells: &mut Cells<'_>, read: &[u32], write: &[u32], known: bool) {
    for (from, to) in read.iter().zip(write) {
        let to = *to as usize;
        if *from == NO_SLOT {
            T::default().store(cells.data, to);
            cells.valid[to] = known;
        } else if *from as usize != to {
            T::load(cells.data, *from as usize).store(cells.data, to);
            cells.valid[to] = cells.valid[*from as usize];
        }
    }
}

impl Input<'_> {
    /// Calls `f` with (local, row) of every row that passes the filter and has a value.
    #[inline]
    fn each(&self, mut f: impl FnMut(usize, usize)) {
        let nulls = self.arg.logical_nulls();
        for (row, local) in self.rows.iter().zip(self.locals) {
            let row = *row as usize;
            if self.filter.is_none_or(|f| f.value(row) && f.is_valid(row))
                && nulls.as_ref().is_none_or(|n| n.is_valid(row))
            {
                f(*local, row);
            }
        }
    }
}

fn count(cells: &mut Cells<'_>, write: &[u32], rows: &Input<'_>) {
    let (data, _) = cells.data.as_chunks_mut::<8>();
    rows.each(|local, _| {
        let cell = &mut data[write[local] as usize];
        *cell = (i64::from_ne_bytes(*cell) + 1).to_ne_bytes();
    });
}

fn each(kind: Kind, cells: &mut Cells<'_>, read: &[u32], write: &[u32], rows: &Input<'_>, op: Op) {
    fn run<T: Cell + ArrowNativeType, A: ArrowPrimitiveType<Native = T>>(
        cells: &mut Cells<'_>,
        read: &[u32],
        write: &[u32],
        rows: &Input<'_>,
        op: Op,
    ) {
        begin::<T>(cells, read, write, false);
        let Some(values) = rows.arg.as_primitive_opt::<A>() else { return };
        let values = values.values();
        rows.each(|local, row| apply::<T>(cells.data, cells.valid, write[local] as usize, values[row], op));
    }
    match kind {
        Kind::Int => run::<i64, Int64Type>(cells, read, write, rows, op),
        Kind::Unsigned => run::<u64, UInt64Type>(cells, read, write, rows, op),
        Kind::Float => run::<f64, Float64Type>(cells, read, write, rows, op),
        Kind::Decimal => run::<i128, Decimal128Type>(cells, read, write, rows, op),
    }
}

fn by_kind(kind: Kind, data: &[u8], valid: &[bool], parts: &Parts<'_>, groups: usize, op: Op) -> (Vec<u8>, Vec<bool>) {
    match kind {
        Kind::Int => union::<i64>(data, valid, parts, groups, op, false),
        Kind::Unsigned => union::<u64>(data, valid, parts, groups, op, false),
        Kind::Float => union::<f64>(data, valid, parts, groups, op, false),
        Kind::Decimal => union::<i128>(data, valid, parts, groups, op, false),
    }
}

fn union<T: Cell>(
    data: &[u8],
    valid: &[bool],
    parts: &Parts<'_>,
    groups: usize,
    op: Op,
    known: bool,
) -> (Vec<u8>, Vec<bool>) {
    let mut out = vec![0u8; groups * size_of::<T>()];
    let mut seen = vec![known; groups];
    for (slot, group) in parts.slots.iter().zip(parts.groups) {
        if valid[*slot as usize] {
            apply::<T>(&mut out, &mut seen, *group, T::load(data, *slot as usize), op);
        }
    }
    (out, seen)
}
