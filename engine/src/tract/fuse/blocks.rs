//! Rows of a table whose numbers have a few bits each, with a scale for each block of them: embeddings
//! that ONNX Runtime quantised. The table stays as it is, as a run reads few of its rows.

use std::ops::Mul;

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;

use crate::narrow::packed_at;
use crate::tract::compiled::stored_struct;

/// That come of one table: a table of no bytes may have any sizes.
const MOST_NUMBERS: usize = 1 << 28;

/// Of a table, the places wanted of it, its scales, and zero points where it has them. Bytes hold a
/// number or several, the low ones first, along the last axis; INT8 a number of four bits each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::tract) struct GatheredBlocks {
    pub(in crate::tract) bits: usize,
    pub(in crate::tract) block: usize,
    pub(in crate::tract) gather_axis: i64,
    pub(in crate::tract) block_axis: i64,
}

stored_struct!(GatheredBlocks { bits, block, gather_axis, block_axis });

/// What is taken along which axes.
struct Axes {
    gather: usize,
    blocks: usize,
    /// Numbers in an element of the table.
    packed: usize,
}

impl GatheredBlocks {
    /// What comes out of a table of these sizes.
    ///
    /// # Errors
    /// Types, axes or bits that do not fit.
    pub(in crate::tract) fn shape<D: Clone + Mul<usize, Output = D>>(
        &self,
        table: (DatumType, &[D]),
        places: &[D],
    ) -> TractResult<TVec<D>> {
        let (datum, table) = table;
        let axes = self.axes(datum, table.len())?;
        let mut sizes: TVec<D> = table.into();
        if axes.packed > 1
            && let Some(last) = sizes.last_mut()
        {
            *last = last.clone() * axes.packed;
        }
        let rest = sizes[axes.gather + 1..].iter();
        Ok(sizes[..axes.gather].iter().chain(places).chain(rest).cloned().collect())
    }

    fn axes(&self, datum: DatumType, rank: usize) -> TractResult<Axes> {
        let counted = |axis: i64| {
            let from_start = if axis < 0 { axis.checked_add(rank as i64) } else { Some(axis) };
            let axis = from_start.and_then(|axis| usize::try_from(axis).ok());
            axis.filter(|&axis| axis < rank)
        };
        let both = counted(self.gather_axis).zip(counted(self.block_axis));
        let (gather, blocks) = both.with_context(|| {
            format!("axes {} and {} of a table of rank {rank}", self.gather_axis, self.block_axis)
        })?;
        ensure!(rank > 1, "a table of rank {rank}, expected 2 or more");
        ensure!(
            self.block.is_power_of_two() && self.block >= 16,
            "blocks of {}, expected a power of two from 16 on",
            self.block
        );
        let packed = match (datum, self.bits) {
            (DatumType::U8, 2 | 4 | 8) => 8 / self.bits,
            (DatumType::I8, 4) => 1,
            (DatumType::U8, bits) => bail!("numbers of {bits} bits, expected 2, 4 or 8"),
            (DatumType::I8, bits) => bail!("numbers of {bits} bits, expected 4"),
            _ => bail!("a table of {datum:?}, expected UINT8, INT4 or UINT4"),
        };
        let is_last = gather == 0 && blocks + 1 == rank;
        ensure!(
            datum != DatumType::U8 || is_last,
            "a table of UINT8 and rank {rank} with places along axis {gather} and blocks along \
             {blocks}, expected the first axis and the last"
        );
        Ok(Axes { gather, blocks, packed })
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Tensor> {
        let [table, places, scales, zeros @ ..] = inputs else {
            bail!("got {} inputs, expected three or four", inputs.len())
        };
        let axes = self.axes(table.datum_type(), table.rank())?;
        let shape = self.shape((table.datum_type(), table.shape()), places.shape())?;
        let scales = scales.cast_to::<f32>()?;
        let blocks = Blocks::new((self, &axes), table, &scales, zeros.first())?;
        let (length, places) = (table.shape()[axes.gather], places.cast_to::<i64>()?);
        let outer = product(&blocks.sizes[..axes.gather])?;
        let width = product(&blocks.sizes[axes.gather + 1..])?;
        let places = places.try_as_plain_ram()?.as_slice::<i64>()?;
        ensure!(product(&shape)? <= MOST_NUMBERS, "a shape of {shape:?} is too large");
        let mut output = Tensor::zero::<f32>(&shape)?;
        if output.len() == 0 {
            return Ok(output);
        }
        let mut plain = output.try_as_plain_ram_mut()?;
        let mut rows = plain.as_slice_mut::<f32>()?.chunks_exact_mut(width);
        for outer in 0..outer {
            for &place in places {
                let Some(row) = rows.next() else { break };
                let place = if place < 0 { place.saturating_add(length as i64) } else { place };
                // Of those that are not there ONNX Runtime gives zeros.
                if let Some(place) = usize::try_from(place).ok().filter(|&place| place < length) {
                    blocks.read((outer * length + place) * width, row);
                }
            }
        }
        Ok(output)
    }
}

/// # Errors
/// It is more than can be counted, where one of the sizes is zero.
fn product(sizes: &[usize]) -> TractResult<usize> {
    let all = sizes.iter().try_fold(1usize, |all, &size| all.checked_mul(size));
    all.with_context(|| format!("a shape of {sizes:?} is too large"))
}

/// A table's numbers and what they are scaled by.
struct Blocks<'a> {
    sizes: TVec<usize>,
    numbers: Packed<'a>,
    scales: &'a [f32],
    zeros: Option<Packed<'a>>,
    block: usize,
    /// Numbers along the axis of the blocks, and blocks.
    length: usize,
    blocks: usize,
    /// Numbers from one along that axis to the next.
    inner: usize,
}

/// Numbers of so many bits in bytes.
struct Packed<'a> {
    bytes: &'a [u8],
    bits: usize,
    is_signed: bool,
}

impl Packed<'_> {
    fn at(&self, index: usize) -> f32 {
        if self.is_signed {
            return self.bytes[index].cast_signed().into();
        }
        packed_at(self.bytes, self.bits, index).into()
    }
}

impl<'a> Blocks<'a> {
    /// # Errors
    /// Scales or zero points of other shapes or types than the table's.
    fn new(
        (op, axes): (&GatheredBlocks, &Axes),
        table: &'a Tensor,
        scales: &'a Tensor,
        zeros: Option<&'a TValue>,
    ) -> TractResult<Self> {
        let mut sizes: TVec<usize> = table.shape().into();
        if let Some(last) = sizes.last_mut() {
            *last *= axes.packed;
        }
        let length = sizes[axes.blocks];
        let blocks = length.div_ceil(op.block);
        let mut wanted = sizes.clone();
        wanted[axes.blocks] = blocks;
        ensure!(*wanted == *scales.shape(), "scales of {:?}, expected {wanted:?}", scales.shape());
        let is_signed = table.datum_type() == DatumType::I8;
        let packed = |tensor: &'a Tensor| -> TractResult<Packed<'a>> {
            Ok(Packed { bytes: tensor.try_as_plain_ram()?.as_bytes(), bits: op.bits, is_signed })
        };
        // Each row's start in a byte of their own.
        wanted[axes.blocks] = blocks.div_ceil(axes.packed);
        if let Some(zeros) = zeros {
            let (came, datum) = (zeros.shape(), zeros.datum_type());
            ensure!(*wanted == *came, "zero points of {came:?}, expected {wanted:?}");
            ensure!(datum == table.datum_type(), "zero points of {datum:?}, not the table's type");
        }
        let zeros = zeros.map(|zeros| packed(zeros)).transpose()?;
        let inner = product(&sizes[axes.blocks + 1..])?;
        let (numbers, scales) = (packed(table)?, scales.try_as_plain_ram()?.as_slice()?);
        Ok(Self { sizes, numbers, scales, zeros, block: op.block, length, blocks, inner })
    }

    /// The numbers from the one at `start` on.
    fn read(&self, start: usize, row: &mut [f32]) {
        let mut done = 0;
        while done < row.len() {
            let at = start + done;
            let (outer, rest) = (at / self.inner / self.length, at % self.inner);
            let along = at / self.inner % self.length;
            let block = (outer * self.blocks + along / self.block) * self.inner + rest;
            // Those that follow are of the same block, or each of the next.
            let same = match self.inner {
                1 => (self.block - along % self.block).min(self.length - along),
                _ => 1,
            };
            let (scale, zero) = (self.scales[block], self.zero(block));
            let end = row.len().min(done + same);
            for (index, value) in row[done..end].iter_mut().enumerate() {
                *value = (self.numbers.at(at + index) - zero) * scale;
            }
            done = end;
        }
    }

    /// The middle, where there are no zero points.
    fn zero(&self, block: usize) -> f32 {
        match &self.zeros {
            Some(zeros) if zeros.is_signed => zeros.at(block),
            Some(zeros) => {
                let of_byte = 8 / zeros.bits;
                let row = self.blocks.div_ceil(of_byte) * of_byte;
                zeros.at(block / self.blocks * row + block % self.blocks)
            }
            None if self.numbers.is_signed => 0.0,
            None => f32::from(1u8 << (self.numbers.bits - 1)),
        }
    }
}

impl Op for GatheredBlocks {
    fn name(&self) -> StaticName {
        "GatheredBlocks".into()
    }

    op_as_typed_op!();
}

impl EvalOp for GatheredBlocks {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let output = self.run(&inputs)?;
        let output = match inputs[2].datum_type() {
            DatumType::F32 => output,
            datum => output.cast_to_dt(datum)?.into_owned(),
        };
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for GatheredBlocks {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let [table, places, scales, ..] = inputs else {
            bail!("got {} inputs, expected three or four", inputs.len())
        };
        let (datum, scale) = (table.datum_type, scales.datum_type);
        ensure!(
            matches!(scale, DatumType::F32 | DatumType::F16),
            "scales of {scale:?}, expected FP32 or FP16"
        );
        let shape = self.shape((datum, table.shape.dims()), places.shape.dims())?;
        Ok(tvec!(scale.fact(&shape[..])))
    }

    as_op!();
}
