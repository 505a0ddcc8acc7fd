//! Numbers and values in few bytes, for checkpoints.
//!
//! Most of a checkpoint is small counts, sums and the pending rows of sessions; fixed-width encodings would be mostly zeros.

use datafusion::arrow::array::{Array, ArrayData, ArrayRef, AsArray, BooleanArray, make_array};
use datafusion::arrow::buffer::{Buffer, MutableBuffer, NullBuffer};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::row::{RowConverter, RowParser, SortField};

use super::Error;

/// Appends an unsigned number, seven bits a byte.
pub(super) fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push((v & 0x7f) as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// Takes a number off the front.
pub(super) fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A signed number as an unsigned one that is small when it is near zero.
pub(super) fn zigzag(v: i64) -> u64 {
    ((v << 1) ^ (v >> 63)).cast_unsigned()
}

/// Undoes [`zigzag`].
pub(super) fn unzigzag(v: u64) -> i64 {
    (v >> 1).cast_signed() ^ -((v & 1).cast_signed())
}

/// How values of a type are written.
pub(super) enum Form {
    /// A bit each.
    Bool,
    /// Integers, decimals, times: zigzag, without leading zero bytes.
    Whole(usize),
    /// Floats: without trailing zero bytes of the fraction.
    Float(usize),
    /// Anything else: row format with a length.
    Other(Box<(RowConverter, RowParser)>),
}

/// Writes and reads values of one type.
pub(super) struct Codec {
    ty: DataType,
    form: Form,
}

impl Codec {
    pub(super) fn new(ty: &DataType) -> Result<Self, Error> {
        let form = match (ty, ty.primitive_width()) {
            (DataType::Boolean, _) => Form::Bool,
            (DataType::Float16 | DataType::Float32 | DataType::Float64, Some(w)) => Form::Float(w),
            (DataType::Dictionary(..), _) => Self::other(ty)?,
            (_, Some(w)) if w <= 16 && !matches!(ty, DataType::Interval(_)) => Form::Whole(w),
            _ => Self::other(ty)?,
        };
        Ok(Self { ty: ty.clone(), form })
    }

    /// Names the form, so that values of a type no longer known can be skipped: see [`skip`].
    pub(super) fn form(&self) -> u8 {
        match self.form {
            Form::Bool => 0,
            Form::Whole(_) | Form::Float(_) => 1,
            Form::Other(_) => 2,
        }
    }

    fn other(ty: &DataType) -> Result<Form, Error> {
        let converter = RowConverter::new(vec![SortField::new(ty.clone())])?;
        let parser = converter.parser();
        Ok(Form::Other(Box::new((converter, parser))))
    }

    /// Appends every value of `array` to the buffer of its row.
    pub(super) fn put(&self, array: &ArrayRef, out: &mut [Vec<u8>]) -> Result<(), Error> {
        match &self.form {
            Form::Bool => {
                let bools = array.as_boolean_opt().ok_or_else(|| Error::State("a boolean state".into()))?;
                for (row, out) in out.iter_mut().enumerate() {
                    out.push(if bools.is_null(row) { 0 } else { 1 + u8::from(bools.value(row)) });
                }
            }
            Form::Whole(w) | Form::Float(w) => {
                let data = array.to_data();
                let bytes = data.buffers().first().map_or(&[][..], |b| b.as_slice());
                let bytes = bytes.get(data.offset() * w..).unwrap_or_default();
                for ((row, out), cell) in out.iter_mut().enumerate().zip(bytes.chunks_exact(*w)) {
                    if array.is_null(row) {
                        out.push(0);
                        continue;
                    }
                    let mut wide = [0u8; 16];
                    if matches!(self.form, Form::Float(_)) {
                        // most significant first, so that the zeros of a short fraction come last
                        for (to, from) in wide.iter_mut().zip(cell.iter().rev()) {
                            *to = *from;
                        }
                    } else {
                        let sign = if cell[w - 1] & 0x80 != 0 && !self.ty.is_unsigned_integer() { 0xff } else { 0 };
                        wide.fill(sign);
                        wide[..*w].copy_from_slice(cell);
                        let v = i128::from_le_bytes(wide);
                        wide = ((v << 1) ^ (v >> 127)).to_le_bytes();
                    }
                    let n = wide.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1);
                    out.push(n as u8 + 1);
                    out.extend_from_slice(&wide[..n]);
                }
            }
            Form::Other(rows) => {
                let rows = rows.0.convert_columns(std::slice::from_ref(array))?;
                for (row, out) in rows.iter().zip(out) {
                    put_varint(out, row.as_ref().len() as u64);
                    out.extend_from_slice(row.as_ref());
                }
            }
        }
        Ok(())
    }

    /// Takes one value off the front, as an array of one row. `None` when the bytes are not a value. In the row format
    /// malformed bytes may panic: the caller catches.
    pub(super) fn get(&self, bytes: &mut &[u8]) -> Option<ArrayRef> {
        match &self.form {
            Form::Bool => {
                let (tag, rest) = bytes.split_first()?;
                *bytes = rest;
                let value = match tag {
                    0 => None,
                    1 => Some(false),
                    2 => Some(true),
                    _ => return None,
                };
                Some(std::sync::Arc::new(BooleanArray::from(vec![value])))
            }
            Form::Whole(w) | Form::Float(w) => {
                let (tag, rest) = bytes.split_first()?;
                let n = usize::from(*tag).saturating_sub(1);
                if n > 16 {
                    return None;
                }
                let (value, rest) = rest.split_at_checked(n)?;
                *bytes = rest;
                let mut wide = [0u8; 16];
                wide[..n].copy_from_slice(value);
                let mut cell = MutableBuffer::with_capacity(*w);
                if matches!(self.form, Form::Float(_)) {
                    wide[..*w].reverse();
                    cell.extend_from_slice(&wide[..*w]);
                } else {
                    let v = u128::from_le_bytes(wide);
                    let v = (v >> 1).cast_signed() ^ -((v & 1).cast_signed());
                    cell.extend_from_slice(&v.to_le_bytes()[..*w]);
                }
                let nulls = (*tag == 0).then(|| NullBuffer::new_null(1));
                let data = ArrayData::builder(self.ty.clone())
                    .len(1)
                    .add_buffer(Buffer::from(cell))
                    .nulls(nulls)
                    .build()
                    .ok()?;
                Some(make_array(data))
            }
            Form::Other(rows) => {
                let n = usize::try_from(varint(bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(n)?;
                *bytes = rest;
                rows.0.convert_rows([rows.1.parse(value)]).ok()?.pop()
            }
        }
    }
}

/// Drops one value of a form off the front.
pub(super) fn skip(form: u8, bytes: &mut &[u8]) -> Option<()> {
    let n = match form {
        0 => 1,
        1 => usize::from(*bytes.first()?).max(1),
        _ => usize::try_from(varint(bytes)?).ok()?,
    };
    *bytes = bytes.get(n..)?;
    Some(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{Decimal128Array, Float64Array, Int64Array, StringArray, UInt64Array};

    use super::*;

    #[test]
    fn every_value_comes_back_and_small_ones_take_little_room() {
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(vec![Some(0), None, Some(-1), Some(i64::MAX), Some(i64::MIN), Some(300)])),
            Arc::new(UInt64Array::from(vec![Some(u64::MAX), None, Some(1)])),
            Arc::new(Float64Array::from(vec![Some(0.5), None, Some(-0.0), Some(f64::NAN), Some(0.1), Some(f64::MIN)])),
            Arc::new(
                Decimal128Array::from(vec![Some(i128::from(i64::MAX) * 9), None, Some(-7)])
                    .with_precision_and_scale(28, 9)
                    .unwrap(),
            ),
            Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)])),
            Arc::new(StringArray::from(vec![Some("text"), None, Some("")])),
        ];
        for array in arrays {
            let codec = Codec::new(array.data_type()).unwrap();
            let mut out = vec![Vec::new(); array.len()];
            codec.put(&array, &mut out).unwrap();
            for (row, bytes) in out.iter().enumerate() {
                let mut rest = bytes.as_slice();
                assert_eq!(codec.get(&mut rest).unwrap().to_data(), array.slice(row, 1).to_data(), "{array:?} {row}");
                assert!(rest.is_empty());
                rest = bytes.as_slice();
                skip(codec.form(), &mut rest).unwrap();
                assert!(rest.is_empty());
                assert!(codec.get(&mut &bytes[..bytes.len() - 1]).is_none() || bytes.len() == 1);
            }
        }
        let mut out = vec![Vec::new()];
        let small: ArrayRef = Arc::new(Int64Array::from(vec![42]));
        Codec::new(&DataType::Int64).unwrap().put(&small, &mut out).unwrap();
        assert_eq!(out[0].len(), 2);
    }
}
