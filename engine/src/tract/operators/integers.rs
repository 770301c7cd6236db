//! Quantised tensors as ONNX Runtime computes with them, rounded where it does: sums of products
//! requantised, sums and products of two tensors, means, and scales found as a graph runs.

use tract_onnx::model::OnnxOpRegister;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::broadcast::multi_broadcast;
use wisp_kernels::Level;
use wisp_kernels::quantized::{
    Quantized, Scale, add, add_one, extremes, multiply, quantize, quantize_with_zero, requantize,
    scale_of,
};

use super::kernel::{Built, Form, Kernel, built, checked_axis, expect_datum, one, only};
use crate::tract::contrib::{MEANS, PRODUCT, SUM, SUMS};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("DynamicQuantizeLinear", |_, node| built(node, Dynamic));
    operators.insert(SUMS, |_, node| -> Built {
        let axis = node.get_attr_opt::<i64>("axis")?.unwrap_or(1);
        built(node, Requantized { axis })
    });
    operators.insert(MEANS, |_, node| built(node, Means));
    operators.insert(SUM, |_, node| built(node, OfTwo { is_sum: true }));
    operators.insert(PRODUCT, |_, node| built(node, OfTwo { is_sum: false }));
}

const BYTES: [DatumType; 2] = [DatumType::U8, DatumType::I8];

/// Calls a function of `u8` or `i8`.
macro_rules! of_bytes {
    ($datum:expr, $function:ident($($argument:expr),*)) => {
        match $datum {
            DatumType::U8 => $function::<u8>($($argument),*),
            DatumType::I8 => $function::<i8>($($argument),*),
            other => bail!("expected bytes, got {other:?}"),
        }
    };
}

fn given(scale: &Tensor, zero: &Tensor) -> TractResult<Scale> {
    Ok(Scale { scale: only(scale)?, zero: only(zero)? })
}

/// Sums of products of whole numbers, a factor for all or for each place along the axis, and a zero
/// point, of whose type the answer is. Factors of more than one axis are for each column of each matrix.
#[derive(Debug)]
struct Requantized {
    axis: i64,
}

impl Kernel for Requantized {
    fn name(&self) -> &'static str {
        "Requantized"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [sums, factors, zero] = inputs else { bail!("expected three inputs") };
        for form in [sums, factors] {
            expect_datum(form, &[DatumType::F32])?;
        }
        expect_datum(zero, &BYTES)?;
        Ok(tvec![Form::new(zero.datum, sums.shape.iter().cloned())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [sums, factors, zero] = inputs else { bail!("expected three inputs") };
        let shape = sums.shape();
        if self.axis == -1 && factors.len() > 1 && factors.rank() > 1 {
            let zero_point = only::<f32>(zero)?;
            let quantized = of_bytes!(zero.datum_type(), of_matrices(sums, factors, zero_point));
            return Ok(tvec![quantized?]);
        }
        let factors = factors.try_as_plain_ram()?.as_slice::<f32>()?;
        let row = match factors.len() {
            1 => sums.len(),
            several => {
                let axis = checked_axis(self.axis, shape.len())?;
                ensure!(several == shape[axis], "{several} factors for {}", shape[axis]);
                shape[axis + 1..].iter().product()
            }
        };
        let sums = sums.try_as_plain_ram()?.as_slice::<f32>()?;
        let quantized =
            of_bytes!(zero.datum_type(), requantized((sums, shape), row, factors, only(zero)?));
        Ok(tvec![quantized?])
    }
}

fn requantized<T: Quantized + Datum>(
    (sums, shape): (&[f32], &[usize]),
    row: usize,
    factors: &[f32],
    zero: f32,
) -> TractResult<Tensor> {
    let mut output = Tensor::zero_dt(T::datum_type(), shape)?;
    let mut plain = output.try_as_plain_ram_mut()?;
    let quantized = plain.as_slice_mut::<T>()?;
    match row {
        _ if sums.is_empty() => {}
        1 => requantize_lines(sums, factors, zero, quantized)?,
        _ => {
            let rows = sums.chunks(row).zip(quantized.chunks_mut(row));
            for ((sums, quantized), factor) in rows.zip(factors.iter().cycle()) {
                requantize(Level::best(), sums, *factor, zero, quantized)?;
            }
        }
    }
    Ok(output)
}

/// With factors \[…, 1, columns\]; the sums may be those of a vector's product, which has no rows.
fn of_matrices<T: Quantized + Datum>(
    sums: &Tensor,
    factors: &Tensor,
    zero: f32,
) -> TractResult<Tensor> {
    let (shape, mut lines) = (sums.shape(), factors.shape().to_vec());
    ensure!(lines.remove(lines.len() - 2) == 1, "factors of {:?}", factors.shape());
    let (columns, around) = shape.split_last().context("factors of columns for one sum")?;
    let (rows, around) = match around.split_last() {
        Some((&rows, around)) if factors.rank() <= shape.len() => (rows, around),
        _ => (1, around),
    };
    if sums.len() == 0 {
        return Tensor::zero_dt(T::datum_type(), shape);
    }
    let all = [around, &[*columns][..]].concat();
    let factors = factors.clone().into_shape(&lines)?.broadcast_to_shape(&all)?;
    let factors = factors.try_as_plain_ram()?.as_slice::<f32>()?;
    let mut output = Tensor::zero_dt(T::datum_type(), shape)?;
    let mut plain = output.try_as_plain_ram_mut()?;
    let (sums, quantized) = (sums.try_as_plain_ram()?, plain.as_slice_mut::<T>()?);
    let matrices =
        sums.as_slice::<f32>()?.chunks(rows * columns).zip(quantized.chunks_mut(rows * columns));
    for ((sums, quantized), factors) in matrices.zip(factors.chunks(*columns)) {
        requantize_lines(sums, factors, zero, quantized)?;
    }
    Ok(output)
}

/// With a factor for each place in a line.
fn requantize_lines<T: Quantized>(
    sums: &[f32],
    factors: &[f32],
    zero: f32,
    quantized: &mut [T],
) -> TractResult<()> {
    let mut scaled = vec![0.0; factors.len()];
    for (sums, quantized) in sums.chunks(factors.len()).zip(quantized.chunks_mut(factors.len())) {
        for ((scaled, sum), factor) in scaled.iter_mut().zip(sums).zip(factors) {
            *scaled = sum * factor;
        }
        requantize(Level::best(), &scaled, 1.0, zero, quantized)?;
    }
    Ok(())
}

/// Floats, a scale, and a zero point, which ONNX Runtime adds before it rounds a mean.
#[derive(Debug)]
struct Means;

impl Kernel for Means {
    fn name(&self) -> &'static str {
        "QuantizedMeans"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [means, _, zero] = inputs else { bail!("expected three inputs") };
        expect_datum(means, &[DatumType::F32])?;
        expect_datum(zero, &BYTES)?;
        Ok(tvec![Form::new(zero.datum, means.shape.iter().cloned())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [means, scale, zero] = inputs else { bail!("expected three inputs") };
        let scale = given(scale, zero)?;
        Ok(tvec![of_bytes!(zero.datum_type(), means_of(means, scale))?])
    }
}

fn means_of<T: Quantized + Datum>(means: &Tensor, scale: Scale) -> TractResult<Tensor> {
    let mut output = Tensor::zero_dt(T::datum_type(), means.shape())?;
    let means = means.try_as_plain_ram()?.as_slice::<f32>()?;
    let mut plain = output.try_as_plain_ram_mut()?;
    quantize_with_zero(Level::best(), means, scale, plain.as_slice_mut::<T>()?)?;
    Ok(output)
}

/// Two tensors, each with its scale and zero point, and those of the answer. Shapes are brought
/// together as everywhere in ONNX.
#[derive(Debug)]
struct OfTwo {
    is_sum: bool,
}

impl Kernel for OfTwo {
    fn name(&self) -> &'static str {
        if self.is_sum { "QuantizedSum" } else { "QuantizedProduct" }
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [a, _, _, b, _, _, _, zero] = inputs else { bail!("expected eight inputs") };
        for form in [a, b, zero] {
            expect_datum(form, &BYTES)?;
            ensure!(form.datum == a.datum, "{:?} and {:?}", a.datum, form.datum);
        }
        let shape = multi_broadcast(&[&a.shape, &b.shape])?;
        Ok(tvec![Form::new(a.datum, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [a, a_scale, a_zero, b, b_scale, b_zero, scale, zero] = inputs else {
            bail!("expected eight inputs")
        };
        let of_a = given(a_scale, a_zero)?;
        let (of_b, of_y) = (given(b_scale, b_zero)?, given(scale, zero)?);
        let two = Two { is_sum: self.is_sum, a, b, scales: [of_a, of_b, of_y] };
        Ok(tvec![of_bytes!(a.datum_type(), of_two(&two))?])
    }
}

struct Two<'a> {
    is_sum: bool,
    a: &'a Tensor,
    b: &'a Tensor,
    /// Theirs and the answer's.
    scales: [Scale; 3],
}

fn of_two<T: Quantized + Datum>(two: &Two<'_>) -> TractResult<Tensor> {
    let &Two { is_sum, a, b, scales: [of_a, of_b, of_y] } = two;
    let shape = multi_broadcast(&[a.shape(), b.shape()])?;
    let mut output = Tensor::zero_dt(T::datum_type(), &shape)?;
    let mut plain = output.try_as_plain_ram_mut()?;
    let y = plain.as_slice_mut::<T>()?;
    let level = Level::best();
    let broadcast = |tensor: &'_ Tensor| -> TractResult<Vec<T>> {
        let whole = tensor.broadcast_to_shape(&shape)?;
        Ok(whole.try_as_plain_ram()?.as_slice::<T>()?.to_vec())
    };
    // One number is added as what it comes to.
    if is_sum && (a.len() == 1 || b.len() == 1) {
        let (all, of_all, one, of_one) =
            if b.len() == 1 { (a, of_a, b, of_b) } else { (b, of_b, a, of_a) };
        let one = one.try_as_plain_ram()?.as_slice::<T>()?[0];
        let all = all.try_as_plain_ram()?;
        add_one(level, (all.as_slice()?, of_all), (one, of_one), of_y, y)?;
        return Ok(output);
    }
    let function = if is_sum { add } else { multiply };
    match a.shape() == b.shape() {
        true => {
            let (a, b) = (a.try_as_plain_ram()?, b.try_as_plain_ram()?);
            function(level, (a.as_slice()?, of_a), (b.as_slice()?, of_b), of_y, y)?;
        }
        false => {
            let (a, b) = (broadcast(a)?, broadcast(b)?);
            function(level, (&a, of_a), (&b, of_b), of_y, y)?;
        }
    }
    Ok(output)
}

/// Bytes, the scale and the zero point by which they hold the range of what came, and zero.
#[derive(Debug)]
struct Dynamic;

impl Kernel for Dynamic {
    fn name(&self) -> &'static str {
        "DynamicQuantizeLinear"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let input = one(inputs)?;
        expect_datum(input, &[DatumType::F32])?;
        let whole = Form::new(DatumType::U8, input.shape.iter().cloned());
        Ok(tvec![whole, Form::new(DatumType::F32, []), Form::new(DatumType::U8, [])])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let input = one(inputs)?;
        let mut output = Tensor::zero::<u8>(input.shape())?;
        let values = input.try_as_plain_ram()?.as_slice::<f32>()?;
        let (least, most) = extremes(Level::best(), values);
        let scale = scale_of(least, most);
        let mut plain = output.try_as_plain_ram_mut()?;
        quantize(Level::best(), values, scale, plain.as_slice_mut::<u8>()?)?;
        Ok(tvec![output, tensor0(scale.scale), tensor0(scale.zero as u8)])
    }
}
