//! Numbers from weights of a few bits, which products are written with.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::kernel::{Built, Form, Kernel, built, checked_len, expect_datum};
use crate::narrow::packed_at;
use crate::tract::contrib::{DECODED, UNPACKED};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert(DECODED, decoded);
    operators.insert(UNPACKED, unpacked);
}

/// Numbers from weights of a few bits, several in a byte, the low ones first. Each block of a row
/// has a scale, and a zero point, or the middle for one.
#[derive(Debug)]
struct Unpacked {
    rows: usize,
    columns: usize,
    bits: usize,
    block: usize,
}

fn unpacked(_context: &ParsingContext, node: &NodeProto) -> Built {
    let size = |name: &str, otherwise: Option<i64>| -> TractResult<usize> {
        let size = node.get_attr_opt::<i64>(name)?.or(otherwise);
        let size = size.and_then(|size| usize::try_from(size).ok()).filter(|&size| size > 0);
        size.with_context(|| format!("no {name}"))
    };
    let (rows, columns) = (size("N", None)?, size("K", None)?);
    let (bits, block) = (size("bits", Some(4))?, size("block_size", None)?);
    ensure!(matches!(bits, 2 | 4 | 8), "weights of {bits} bits");
    ensure!(block.is_power_of_two() && block >= 16, "blocks of {block}");
    checked_len(&[rows, columns.div_ceil(block), block])?;
    built(node, Unpacked { rows, columns, bits, block })
}

impl Kernel for Unpacked {
    fn name(&self) -> &'static str {
        "Unpacked"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [weights, scales, ..] = inputs else { bail!("got {} inputs", inputs.len()) };
        expect_datum(weights, &[DatumType::U8])?;
        expect_datum(scales, &[DatumType::F32, DatumType::F16])?;
        Ok(tvec![Form::new(scales.datum, [self.rows.to_dim(), self.columns.to_dim()])])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [weights, scales, zeros @ ..] = inputs else { bail!("got {} inputs", inputs.len()) };
        let &Self { rows, columns, bits, block } = self;
        let blocks = columns.div_ceil(block);
        let row_bytes = blocks * block * bits / 8;
        let datum = scales.datum_type();
        let (scales, weights) = (scales.cast_to::<f32>()?, weights.try_as_plain_ram()?);
        let (scales, weights) = (scales.try_as_plain_ram()?, weights.as_slice::<u8>()?);
        let scales = scales.as_slice::<f32>()?;
        ensure!(weights.len() == rows * row_bytes, "{} bytes of weights", weights.len());
        ensure!(scales.len() == rows * blocks, "{} scales for {rows} × {blocks}", scales.len());
        let middle = f32::from(1u8 << (bits - 1));
        let zeros: Vec<f32> = match zeros.first() {
            None => vec![middle; rows * blocks],
            Some(zeros) if zeros.datum_type() == DatumType::U8 => {
                let of_row = (blocks * bits).div_ceil(8);
                ensure!(zeros.len() == rows * of_row, "{} bytes of zero points", zeros.len());
                let plain = zeros.try_as_plain_ram()?;
                let rows = plain.as_slice::<u8>()?.chunks_exact(of_row);
                let zeros = |row| (0..blocks).map(move |index| packed_at(row, bits, index).into());
                rows.flat_map(zeros).collect()
            }
            Some(zeros) => zeros.cast_to::<f32>()?.try_as_plain_ram()?.as_slice::<f32>()?.to_vec(),
        };
        ensure!(zeros.len() == rows * blocks, "{} zero points", zeros.len());
        let numbers = tract_ndarray::Array2::from_shape_fn((rows, columns), |(row, column)| {
            let value = packed_at(&weights[row * row_bytes..][..row_bytes], bits, column);
            let block = row * blocks + column / block;
            (f32::from(value) - zeros[block]) * scales[block]
        });
        Ok(tvec![numbers.into_tensor().cast_to_dt(datum)?.into_owned()])
    }
}

/// Numbers by their codes of four bits, two in a byte, the high ones first. Each block of all that are
/// there has a scale, also over the ends of rows.
#[derive(Debug)]
struct Decoded {
    rows: usize,
    columns: usize,
    block: usize,
    codes: &'static [f32; 16],
}

/// What bitsandbytes quantises to, by code: floats of four bits, as ONNX Runtime has them.
const FLOATS: [f32; 16] = [
    0.0,
    1.0 / 192.0,
    2.0 / 3.0,
    1.0,
    1.0 / 3.0,
    0.5,
    1.0 / 6.0,
    0.25,
    -0.0,
    -1.0 / 192.0,
    -2.0 / 3.0,
    -1.0,
    -1.0 / 3.0,
    -0.5,
    -1.0 / 6.0,
    -0.25,
];

/// The other kind: NormalFloats, of which each stands for as many numbers of a normal distribution
/// (Dettmers et al., QLoRA, appendix E).
const NORMALS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

fn decoded(_context: &ParsingContext, node: &NodeProto) -> Built {
    let size = |name: &str| -> TractResult<usize> {
        let size = node.get_attr::<i64>(name)?;
        let size = usize::try_from(size).with_context(|| format!("{name} {size}"))?;
        ensure!(size > 0, "{name} 0, expected 1 or more");
        Ok(size)
    };
    let (rows, columns, block) = (size("N")?, size("K")?, size("block_size")?);
    ensure!(matches!(block, 16 | 32 | 64 | 128 | 256), "blocks of {block}, expected 16 to 256");
    let codes = match node.get_attr::<i64>("quant_type")? {
        0 => &FLOATS,
        1 => &NORMALS,
        other => bail!("quant_type {other}, expected 0 (FP4) or 1 (NF4)"),
    };
    checked_len(&[rows, columns])?;
    built(node, Decoded { rows, columns, block, codes })
}

impl Kernel for Decoded {
    fn name(&self) -> &'static str {
        "Decoded"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [weights, scales] = inputs else { bail!("got {} inputs", inputs.len()) };
        expect_datum(weights, &[DatumType::U8])?;
        expect_datum(scales, &[DatumType::F32])?;
        Ok(tvec![Form::new(scales.datum, [self.rows.to_dim(), self.columns.to_dim()])])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [weights, scales] = inputs else { bail!("got {} inputs", inputs.len()) };
        let &Self { rows, columns, block, codes } = self;
        let (weights, scales) = (weights.try_as_plain_ram()?, scales.try_as_plain_ram()?);
        let (weights, scales) = (weights.as_slice::<u8>()?, scales.as_slice::<f32>()?);
        let size = checked_len(&[rows, columns])?;
        let wanted = (size.div_ceil(2), size.div_ceil(block));
        // More are not read.
        ensure!(weights.len() >= wanted.0, "{} bytes, expected {}", weights.len(), wanted.0);
        ensure!(scales.len() >= wanted.1, "{} scales, expected {}", scales.len(), wanted.1);
        let codes = weights
            .iter()
            .flat_map(|pair| [pair >> 4, pair & 15])
            .map(|code| codes[usize::from(code)]);
        let numbers =
            codes.take(size).enumerate().map(|(index, number)| number * scales[index / block]);
        let numbers = tract_ndarray::Array2::from_shape_vec((rows, columns), numbers.collect())?;
        Ok(tvec![numbers.into_tensor()])
    }
}
