//! Aggregate state as columns indexed by slot.
//!
//! A state whose fields all have a fixed width lives in plain mutable columns: reading and writing a slot is a copy, nothing
//! is ever compacted, a freed slot is reused. Any other state is one row-format value per slot, which also gives its size.

use datafusion::arrow::array::{Array, ArrayData, ArrayRef, AsArray, BooleanArray, make_array};
use datafusion::arrow::buffer::{BooleanBuffer, Buffer, MutableBuffer, NullBuffer};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::row::{RowConverter, RowParser, SortField};

use super::Error;
use super::compact::{Codec, put_varint, varint};
use super::native::{self, Native, Parts};

/// One fixed-width column.
pub(super) struct Fixed {
    ty: DataType,
    width: usize,
    data: Vec<u8>,
    valid: Vec<bool>,
}

impl Fixed {
    fn width_of(ty: &DataType) -> Option<usize> {
        match ty {
            DataType::Boolean => Some(1),
            DataType::Dictionary(..) | DataType::FixedSizeBinary(_) | DataType::FixedSizeList(..) | DataType::Null => {
                None
            }
            other => other.primitive_width().filter(|w| matches!(w, 1 | 2 | 4 | 8 | 16 | 32)),
        }
    }

    fn resize(&mut self, slots: usize) {
        self.data.resize(slots * self.width, 0);
        self.valid.resize(slots, false);
    }

    fn gather(&self, slots: &[u32]) -> Result<ArrayRef, Error> {
        let nulls = if slots.iter().all(|s| self.valid[*s as usize]) {
            None
        } else {
            Some(NullBuffer::from_iter(slots.iter().map(|s| self.valid[*s as usize])))
        };
        if self.ty == DataType::Boolean {
            let values = BooleanBuffer::from_iter(slots.iter().map(|s| self.data[*s as usize] != 0));
            return Ok(std::sync::Arc::new(BooleanArray::new(values, nulls)));
        }
        let mut out = MutableBuffer::from_len_zeroed(slots.len() * self.width);
        match self.width {
            4 => copy_out::<4>(&self.data, slots, out.as_slice_mut()),
            8 => copy_out::<8>(&self.data, slots, out.as_slice_mut()),
            16 => copy_out::<16>(&self.data, slots, out.as_slice_mut()),
            w => {
                for (to, slot) in out.as_slice_mut().chunks_exact_mut(w).zip(slots) {
                    let from = *slot as usize * w;
                    to.copy_from_slice(&self.data[from..from + w]);
                }
            }
        }
        let data =
            ArrayData::builder(self.ty.clone()).len(slots.len()).add_buffer(Buffer::from(out)).nulls(nulls).build()?;
        Ok(make_array(data))
    }

    pub(super) fn cells(&mut self) -> native::Cells<'_> {
        native::Cells { data: &mut self.data, valid: &mut self.valid }
    }

    /// The union of parts per group, as an array of the column's type.
    pub(super) fn merged(&self, op: Native, parts: &Parts<'_>, groups: usize) -> Result<ArrayRef, Error> {
        let (data, valid) = op.merge(&self.data, &self.valid, parts, groups);
        let nulls = if valid.iter().all(|v| *v) { None } else { Some(NullBuffer::from(valid)) };
        let mut out = MutableBuffer::with_capacity(data.len());
        out.extend_from_slice(&data);
        let data =
            ArrayData::builder(self.ty.clone()).len(groups).add_buffer(Buffer::from(out)).nulls(nulls).build()?;
        Ok(make_array(data))
    }

    /// Writes the union of parts per group.
    pub(super) fn merge_into(&mut self, op: Native, parts: &Parts<'_>, write: &[u32]) {
        let (data, valid) = op.merge(&self.data, &self.valid, parts, write.len());
        let w = self.width;
        for ((slot, from), known) in write.iter().zip(data.chunks_exact(w)).zip(valid) {
            let to = *slot as usize * w;
            self.data[to..to + w].copy_from_slice(from);
            self.valid[*slot as usize] = known;
        }
    }

    fn scatter(&mut self, slots: &[u32], array: &ArrayRef) -> Result<(), Error> {
        if *array.data_type() != self.ty || array.len() != slots.len() {
            return Err(Error::State(format!("a state of type {} was expected, not {}", self.ty, array.data_type())));
        }
        match array.nulls() {
            None => slots.iter().for_each(|s| self.valid[*s as usize] = true),
            Some(nulls) => slots.iter().enumerate().for_each(|(i, s)| self.valid[*s as usize] = nulls.is_valid(i)),
        }
        if let Some(bools) = array.as_boolean_opt() {
            for (i, slot) in slots.iter().enumerate() {
                self.data[*slot as usize] = u8::from(bools.value(i));
            }
            return Ok(());
        }
        let data = array.to_data();
        let w = self.width;
        let source = &data.buffers()[0].as_slice()[data.offset() * w..(data.offset() + data.len()) * w];
        match w {
            4 => copy_in::<4>(&mut self.data, slots, source),
            8 => copy_in::<8>(&mut self.data, slots, source),
            16 => copy_in::<16>(&mut self.data, slots, source),
            w => {
                for (from, slot) in source.chunks_exact(w).zip(slots) {
                    let to = *slot as usize * w;
                    self.data[to..to + w].copy_from_slice(from);
                }
            }
        }
        Ok(())
    }
}

fn copy_out<const W: usize>(data: &[u8], slots: &[u32], out: &mut [u8]) {
    let (data, _) = data.as_chunks::<W>();
    let (out, _) = out.as_chunks_mut::<W>();
    for (to, slot) in out.iter_mut().zip(slots) {
        *to = data[*slot as usize];
    }
}

fn copy_in<const W: usize>(data: &mut [u8], slots: &[u32], source: &[u8]) {
    let (data, _) = data.as_chunks_mut::<W>();
    let (source, _) = source.as_chunks::<W>();
    for (from, slot) in source.iter().zip(slots) {
        data[*slot as usize] = *from;
    }
}

/// One row-format value per slot.
pub(super) struct Cells {
    cells: Vec<Box<[u8]>>,
    bytes: usize,
    capped: Vec<bool>,
    /// How many slots are capped.
    capped_now: usize,
}

/// The state of one aggregate for all slots.
pub(super) struct States {
    codecs: Vec<Codec>,
    converter: RowConverter,
    parser: RowParser,
    kind: Kind,
}

enum Kind {
    Fixed(Vec<Fixed>),
    Cells(Cells),
}

impl States {
    pub(super) fn new(types: Vec<DataType>) -> Result<Self, Error> {
        let converter = RowConverter::new(types.iter().map(|t| SortField::new(t.clone())).collect())?;
        let parser = converter.parser();
        let widths: Option<Vec<usize>> = types.iter().map(Fixed::width_of).collect();
        let kind = match widths {
            Some(widths) => Kind::Fixed(
                types
                    .iter()
                    .zip(widths)
                    .map(|(ty, width)| Fixed { ty: ty.clone(), width, data: Vec::new(), valid: Vec::new() })
                    .collect(),
            ),
            None => Kind::Cells(Cells { cells: Vec::new(), bytes: 0, capped: Vec::new(), capped_now: 0 }),
        };
        let codecs = types.iter().map(Codec::new).collect::<Result<_, _>>()?;
        Ok(Self { codecs, converter, parser, kind })
    }

    /// Whether the state may grow with its input.
    pub(super) fn grows(&self) -> bool {
        matches!(self.kind, Kind::Cells(_))
    }

    pub(super) fn resize(&mut self, slots: usize) {
        match &mut self.kind {
            Kind::Fixed(columns) => columns.iter_mut().for_each(|c| c.resize(slots)),
            Kind::Cells(cells) => {
                cells.cells.resize_with(slots, Box::default);
                cells.capped.resize(slots, false);
            }
        }
    }

    pub(super) fn clear(&mut self, slot: u32) {
        if let Kind::Cells(cells) = &mut self.kind {
            cells.bytes -= cells.cells[slot as usize].len();
            cells.cells[slot as usize] = Box::default();
            set_capped(cells, slot, false);
        }
    }

    pub(super) fn gather(&self, slots: &[u32]) -> Result<Vec<ArrayRef>, Error> {
        match &self.kind {
            Kind::Fixed(columns) => columns.iter().map(|c| c.gather(slots)).collect(),
            Kind::Cells(cells) => {
                Ok(self.converter.convert_rows(slots.iter().map(|s| self.parser.parse(&cells.cells[*s as usize])))?)
            }
        }
    }

    pub(super) fn scatter(&mut self, slots: &[u32], arrays: &[ArrayRef]) -> Result<(), Error> {
        match &mut self.kind {
            Kind::Fixed(columns) => columns.iter_mut().zip(arrays).try_for_each(|(c, a)| c.scatter(slots, a)),
            Kind::Cells(cells) => {
                let rows = self.converter.convert_columns(arrays)?;
                for (row, slot) in rows.iter().zip(slots) {
                    let cell = &mut cells.cells[*slot as usize];
                    cells.bytes -= cell.len();
                    *cell = row.as_ref().into();
                    cells.bytes += cell.len();
                }
                Ok(())
            }
        }
    }

    /// Sizes of states as they would be stored; empty for states that cannot grow.
    pub(super) fn sizes(&self, arrays: &[ArrayRef]) -> Result<Vec<usize>, Error> {
        if !self.grows() {
            return Ok(Vec::new());
        }
        Ok(self.converter.convert_columns(arrays)?.iter().map(|r| r.as_ref().len()).collect())
    }

    /// Appends the states of some slots to one buffer per slot.
    pub(super) fn encode(&self, slots: &[u32], out: &mut [Vec<u8>]) -> Result<(), Error> {
        match &self.kind {
            Kind::Cells(cells) => {
                for (slot, out) in slots.iter().zip(out) {
                    let cell = &cells.cells[*slot as usize];
                    put_varint(out, cell.len() as u64);
                    out.extend_from_slice(cell);
                }
                Ok(())
            }
            Kind::Fixed(columns) => {
                columns.iter().zip(&self.codecs).try_for_each(|(c, codec)| codec.put(&c.gather(slots)?, out))
            }
        }
    }

    /// Takes a state written by [`States::encode`] off the front; `None` when the bytes are not one. May panic on malformed
    /// bytes: the caller catches.
    pub(super) fn decode(&self, bytes: &mut &[u8]) -> Option<Vec<ArrayRef>> {
        if let Kind::Fixed(_) = self.kind {
            return self.codecs.iter().map(|c| c.get(bytes)).collect();
        }
        let n = usize::try_from(varint(bytes)?).ok()?;
        let (cell, rest) = bytes.split_at_checked(n)?;
        *bytes = rest;
        self.converter.convert_rows([self.parser.parse(cell)]).ok()
    }

    /// The only column of a state of one fixed-width field.
    pub(super) fn single(&self) -> Option<&Fixed> {
        match &self.kind {
            Kind::Fixed(columns) => columns.first().filter(|_| columns.len() == 1),
            Kind::Cells(_) => None,
        }
    }

    /// See [`States::single`].
    pub(super) fn single_mut(&mut self) -> Option<&mut Fixed> {
        match &mut self.kind {
            Kind::Fixed(columns) if columns.len() == 1 => columns.first_mut(),
            _ => None,
        }
    }

    pub(super) fn any_capped(&self) -> bool {
        matches!(&self.kind, Kind::Cells(c) if c.capped_now > 0)
    }

    pub(super) fn is_capped(&self, slot: u32) -> bool {
        matches!(&self.kind, Kind::Cells(c) if c.capped[slot as usize])
    }

    pub(super) fn set_capped(&mut self, slot: u32, capped: bool) {
        if let Kind::Cells(cells) = &mut self.kind {
            set_capped(cells, slot, capped);
        }
    }

    pub(super) fn size(&self) -> usize {
        match &self.kind {
            Kind::Fixed(columns) => columns.iter().map(|c| c.data.capacity() + c.valid.capacity()).sum(),
            Kind::Cells(cells) => cells.bytes + cells.cells.capacity() * 17,
        }
    }
}

fn set_capped(cells: &mut Cells, slot: u32, capped: bool) {
    let flag = &mut cells.capped[slot as usize];
    match (*flag, capped) {
        (false, true) => cells.capped_now += 1,
        (true, false) => cells.capped_now -= 1,
        _ => {}
    }
    *flag = capped;
}
