//! Quantising and dequantising by one constant scale. One behind the other they round to steps, which a
//! convolution or a product does as its sums are written: so a graph that is quantised for integers
//! runs in single precision, as fast as one that is not, and with bytes where the processor is faster
//! with those.

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::array::Gather;
use tract_onnx::tract_hir::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_hir::tract_core::ops::cast::Cast;
use tract_onnx::tract_hir::tract_core::ops::cnn::MaxPool;
use tract_onnx::tract_hir::tract_core::ops::math::{Mul, Sub};
use wisp_kernels::elementwise::Function;
use wisp_kernels::quantized::{Quantized, Scale, dequantize, quantize};
use wisp_kernels::{Activation, Grid, Level, Steps};

use super::conv::FusedConv;
use super::product::FusedProduct;
use super::rows::FusedRows;
use crate::tract::compiled::{Reader, Stored, Writer, stored_struct};

/// Weights that are dequantised as a graph is loaded, bytes of what comes out; more are at each run.
pub(in crate::tract) const MAX_WEIGHTS: usize = 64 << 20;

/// The operator that dequantises by scales and zero points that are found at each run.
pub(in crate::tract) const DEQUANTIZE: &str = "DequantizeLinear";

/// The same of one number all over, which need not be the file's own weights: what tract makes, too.
const MAX_UNIFORM: usize = 4 << 20;

/// Whole numbers for floats, or floats for whole numbers.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::tract) struct Quantize {
    is_back: bool,
    datum: Whole,
    scale: f32,
    zero: f32,
}

impl Eq for Quantize {}

/// What floats are quantised to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whole {
    U8,
    I8,
    U16,
    I16,
}

impl Whole {
    const ALL: [Self; 4] = [Self::U8, Self::I8, Self::U16, Self::I16];

    fn of(datum: DatumType) -> Option<Self> {
        Self::ALL.into_iter().find(|whole| whole.datum() == datum)
    }

    fn datum(self) -> DatumType {
        match self {
            Self::U8 => DatumType::U8,
            Self::I8 => DatumType::I8,
            Self::U16 => DatumType::U16,
            Self::I16 => DatumType::I16,
        }
    }

    fn limits(self) -> (f32, f32) {
        match self {
            Self::U8 => (u8::LEAST, u8::MOST),
            Self::I8 => (i8::LEAST, i8::MOST),
            Self::U16 => (u16::LEAST, u16::MOST),
            Self::I16 => (i16::LEAST, i16::MOST),
        }
    }
}

/// The least and the most of a datatype that floats are quantised to.
pub(in crate::tract) fn limits_of(datum: DatumType) -> Option<(f32, f32)> {
    Whole::of(datum).map(Whole::limits)
}

stored_struct!(Quantize { is_back, datum, scale, zero });

impl Stored for Whole {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        to.variant(*self as u8, &())
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        Self::ALL.get(usize::from(u8::take(from)?)).copied()
    }
}

impl Quantize {
    /// From floats to `datum`, or `is_back`. `None`: it is not ours.
    pub(in crate::tract) fn new(
        is_back: bool,
        datum: DatumType,
        scale: f32,
        zero: f32,
    ) -> Option<Self> {
        Some(Self { is_back, datum: Whole::of(datum)?, scale, zero })
    }

    fn steps(&self) -> Steps {
        let (least, most) = self.datum.limits();
        Steps { scale: self.scale, least: least - self.zero, most: most - self.zero }
    }

    fn of_tensor(&self, input: &Tensor) -> TractResult<Tensor> {
        match self.datum {
            Whole::U8 => self.run::<u8>(input),
            Whole::I8 => self.run::<i8>(input),
            Whole::U16 => self.run::<u16>(input),
            Whole::I16 => self.run::<i16>(input),
        }
    }

    fn run<T: Quantized + Datum>(&self, input: &Tensor) -> TractResult<Tensor> {
        let (input, shape) = (input.try_as_plain_ram()?, input.shape());
        let (level, scale) = (Level::best(), Scale { scale: self.scale, zero: self.zero });
        let mut output = match self.is_back {
            // SAFETY: the kernels write every element, or fail.
            true => unsafe { Tensor::uninitialized::<f32>(shape)? },
            false => unsafe { Tensor::uninitialized::<T>(shape)? },
        };
        let mut plain = output.try_as_plain_ram_mut()?;
        match self.is_back {
            true => dequantize(level, input.as_slice::<T>()?, scale, plain.as_slice_mut()?)?,
            false => quantize(level, input.as_slice()?, scale, plain.as_slice_mut::<T>()?)?,
        }
        Ok(output)
    }
}

/// Makes steps of what is quantised only to be dequantised, and dequantises rows of a constant table
/// rather than all of it.
pub(super) fn fuse(model: &mut TypedModel) -> TractResult<()> {
    let mut made = HashMap::new();
    for id in model.eval_order()? {
        let patch = match rows_first(model, id)? {
            Some(patch) => Some(patch),
            None => weights(model, id, &mut made)?,
        };
        if let Some(patch) = patch {
            patch.apply(model)?;
            continue;
        }
        let node = model.node(id);
        let Some(op) = node.op_as::<Quantize>().filter(|op| !op.is_back) else { continue };
        let back = Quantize { is_back: true, ..op.clone() };
        let ends: Vec<usize> = node.outputs[0].successors.iter().map(|inlet| inlet.node).collect();
        let is_output = model.output_outlets()?.iter().any(|outlet| outlet.node == id);
        let is_back = |&end: &usize| model.node(end).op_as::<Quantize>() == Some(&back);
        if is_output || ends.is_empty() || !ends.iter().all(is_back) {
            continue;
        }
        let mut patch = TypedModelPatch::default();
        let tap = patch.tap_model(model, node.inputs[0])?;
        let steps = FusedRows::each(Function::Activation(Activation::Steps(op.steps())));
        let wired = patch.wire_node(&model.node(ends[0]).name, steps, &[tap])?;
        for &end in &ends {
            patch.shunt_outside(model, end.into(), wired[0])?;
        }
        patch.apply(model)?;
    }
    model.compact()
}

/// How many nodes that only move values may stand between a value and what made it.
const MOST_MOVES: usize = 16;

/// What all of a value's numbers stand on, where its graph says so.
pub(super) fn grid_of(model: &TypedModel, mut value: OutletId) -> TractResult<Option<Grid>> {
    for _ in 0..MOST_MOVES {
        let node = model.node(value.node);
        let steps = if let Some(op) = node.op_as::<Quantize>() {
            op.is_back.then(|| op.steps())
        } else if let Some(op) = node.op_as::<FusedRows>() {
            op.steps()
        } else if let Some(op) = node.op_as::<FusedConv>() {
            op.steps()
        } else if let Some(op) = node.op_as::<FusedProduct>() {
            op.steps()
        } else if node.op_is::<AxisOp>() || node.op_is::<MaxPool>() && value.slot == 0 {
            value = node.inputs[0];
            continue;
        } else {
            return Ok(counts_bytes(model, node)?.then_some(Grid::Whole));
        };
        return Ok(steps.map(Grid::Steps));
    }
    Ok(None)
}

/// Whether a node gives bytes from a zero point on that is found at each run.
fn counts_bytes(model: &TypedModel, node: &TypedNode) -> TractResult<bool> {
    let [value, scale, zero] = node.inputs[..] else { return Ok(false) };
    let is_byte = [DatumType::U8, DatumType::I8].contains(&model.outlet_fact(value)?.datum_type);
    if node.op().name() != DEQUANTIZE || !is_byte {
        return Ok(false);
    }
    let one =
        model.outlet_fact(scale)?.konst.as_ref().is_some_and(|scale| **scale == tensor0(1f32));
    Ok(one && model.outlet_fact(zero)?.shape.volume() == 1.to_dim())
}

/// Makes floats of a constant of whole numbers, however the graph writes that, unless only rows of it are
/// wanted. tract leaves those that are large to each run. `made`: by constant, the node that made floats of
/// it.
fn weights(
    model: &TypedModel,
    id: usize,
    made: &mut HashMap<OutletId, usize>,
) -> TractResult<Option<TypedModelPatch>> {
    let node = model.node(id);
    let is_arithmetic = |op: &TypedBinOp| op.0.is::<Sub>() || op.0.is::<Mul>();
    let makes_floats = node.op_as::<Quantize>().is_some_and(|op| op.is_back)
        || node.op_is::<Cast>()
        || node.op_as::<TypedBinOp>().is_some_and(is_arithmetic);
    let Some(output) = node.outputs.first().filter(|_| makes_floats) else { return Ok(None) };
    let mut ends = output.successors.iter();
    if output.fact.datum_type != DatumType::F32
        || ends.any(|inlet| model.node(inlet.node).op_is::<Gather>())
    {
        return Ok(None);
    }
    let inputs = node.inputs.iter().map(|&input| Ok(model.outlet_fact(input)?.konst.clone()));
    let inputs: Option<TVec<Arc<Tensor>>> = inputs.collect::<TractResult<_>>()?;
    let known = inputs.filter(|all| all.iter().all(|it| it.datum_type() != DatumType::TDim));
    let Some(inputs) = known else { return Ok(None) };
    let size = output.fact.shape.volume();
    let mut all = node.inputs.iter().zip(&inputs);
    let Some((&whole, constant)) = all.find(|(_, it)| it.len().to_dim() == size) else {
        return Ok(None);
    };
    let is_uniform = model.outlet_fact(whole)?.uniform.is_some();
    let most = if is_uniform { MAX_UNIFORM } else { MAX_WEIGHTS };
    // A small graph could ask for many: there are floats of each constant but once, and what is made of
    // those takes their place.
    let is_only = if constant.datum_type() == DatumType::F32 {
        model.node(whole.node).outputs[whole.slot].successors.len() == 1
    } else {
        model.node(*made.entry(whole).or_insert(id)).same_as(node)
    };
    if !is_only || constant.len() * size_of::<f32>() > most {
        return Ok(None);
    }
    let inputs = inputs.into_iter().map(IntoTValue::into_tvalue).collect();
    let Some(floats) = node.op.eval_out_of_plan(inputs)? else { return Ok(None) };
    let mut patch = TypedModelPatch::default();
    let wired = patch.add_const(&node.name, floats[0].clone().into_arc_tensor())?;
    patch.shunt_outside(model, id.into(), wired)?;
    Ok(Some(patch))
}

fn rows_first(model: &TypedModel, id: usize) -> TractResult<Option<TypedModelPatch>> {
    let node = model.node(id);
    let Some(gather) = node.op_as::<Gather>() else { return Ok(None) };
    let back = model.node(node.inputs[0].node);
    let Some(op) = back.op_as::<Quantize>().filter(|op| op.is_back) else { return Ok(None) };
    if gather.output_type.is_some() || model.outlet_fact(back.inputs[0])?.konst.is_none() {
        return Ok(None);
    }
    let mut patch = TypedModelPatch::default();
    let table = patch.tap_model(model, back.inputs[0])?;
    let rows = patch.tap_model(model, node.inputs[1])?;
    let rows = patch.wire_node(format!("{}.rows", node.name), gather.clone(), &[table, rows])?;
    let wired = patch.wire_node(&node.name, op.clone(), &rows)?;
    patch.shunt_outside(model, id.into(), wired[0])?;
    Ok(Some(patch))
}

impl Op for Quantize {
    fn name(&self) -> StaticName {
        if self.is_back { "Dequantize".into() } else { "Quantize".into() }
    }

    op_as_typed_op!();
}

impl EvalOp for Quantize {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        Ok(tvec!(self.of_tensor(&inputs[0])?.into_tvalue()))
    }
}

impl TypedOp for Quantize {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let datum = if self.is_back { DatumType::F32 } else { self.datum.datum() };
        Ok(tvec!(datum.fact(inputs[0].shape.clone())))
    }

    as_op!();
}
