//! QuantizeLinear and DequantizeLinear: by one constant scale, of constants, and with scales that are
//! computed, in blocks or odd. With several constant scales along an axis they are tract's.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use wisp_kernels::Level;
use wisp_kernels::quantized::{Quantized, Scale, dequantize};

use super::kernel::{Built, Form, Kernel, built, checked_axis, expect_datum, only, typed};
use super::rounded::rounding;
use super::theirs::{Wiring, rewired};
use crate::narrow::Rounding;
use crate::tract::fuse::{After, DEQUANTIZE, MAX_WEIGHTS, Quantize, limits_of};

/// Floats that are kept of whole numbers by one scale at once, bytes: as many as tract keeps of others.
const MAX_FOLDED: usize = 4 << 20;

/// Whole numbers of which any floats are kept.
const FEW: usize = 1 << 10;

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("QuantizeLinear", quantize_linear);
    operators.insert("DequantizeLinear", quantize_linear);
}

#[derive(Debug, Clone)]
struct Scaled {
    is_quantizing: bool,
    axis: i64,
    /// Elements along the axis that share a scale; all where it is zero.
    block: usize,
    /// What comes out, where a zero point does not say it.
    datum: Option<DatumType>,
    /// How what comes out is rounded, where it stands for narrow numbers.
    narrow: Option<Rounding>,
}

fn quantize_linear(context: &ParsingContext, node: &NodeProto) -> Built {
    let axis = node.get_attr_opt::<i64>("axis")?.unwrap_or(1);
    let block = node.get_attr_opt::<i64>("block_size")?.unwrap_or(0);
    let block = usize::try_from(block).with_context(|| format!("block_size {block}"))?;
    let asked = node.get_attr_opt::<i64>("output_dtype")?.unwrap_or(0) != 0;
    let datum = if asked { Some(node.get_attr::<DatumType>("output_dtype")?) } else { None };
    let is_quantizing = node.op_type == "QuantizeLinear";
    let narrow = rounding(node)?.filter(|_| is_quantizing);
    let scaled = Scaled { is_quantizing, axis, block, datum, narrow };
    if block > 0 || datum.is_some() || narrow.is_some() {
        return built(node, scaled);
    }
    rewired(context, node, scaled)
}

/// Ours: the quick one by one constant scale, else tract's where that does.
impl Wiring for Scaled {
    fn wire(
        &self,
        inner: &dyn Expansion,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let mut inputs: TVec<OutletId> = inputs.into();
        if self.is_made_otherwise(model, &inputs)? {
            let name = format!("{prefix}.kept");
            inputs[0] = model.wire_node(name, After, &inputs[..1])?[0];
        }
        let inputs = &inputs[..];
        let quick = self.quick(model, inputs)?;
        // Of what is large, rows may be all that is wanted.
        let most = if quick.is_some() { MAX_FOLDED } else { MAX_WEIGHTS };
        if let Some(values) = self.weights(model, inputs, most)? {
            return Ok(tvec![model.add_const(prefix, values)?]);
        }
        if let Some(quick) = quick {
            return model.wire_node(prefix, quick, &inputs[..1]);
        }
        let is_theirs = {
            let facts = inputs.iter().map(|&input| model.outlet_fact(input));
            let facts: TVec<&TypedFact> = facts.collect::<TractResult<_>>()?;
            let narrow = if self.is_quantizing { facts.get(2) } else { facts.first() };
            let narrow = narrow.is_none_or(|fact| fact.datum_type.size_of() == 1);
            let are_constants = facts[1..].iter().all(|fact| fact.konst.is_some());
            let are_several = facts[1].konst.as_ref().is_some_and(|scale| scale.len() > 1);
            let are_of_columns = facts[1].rank() > 1;
            let is_taken = narrow || facts[0].datum_type == DatumType::I32;
            are_constants && are_several && !are_of_columns && is_taken
        };
        if is_theirs {
            return inner.wire(prefix, model, inputs);
        }
        model.wire_node(prefix, typed(self.clone()), inputs)
    }

    /// tract would dequantise one constant by as many scales as there are, while it looks for shapes.
    fn runs_out_of_plan(&self) -> bool {
        self.is_quantizing
    }
}

impl Scaled {
    /// Whether the model has other floats of a constant already: all that come after those are made at
    /// each run, for a small file not to have them kept.
    fn is_made_otherwise(&self, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<bool> {
        let constant = model.outlet_fact(inputs[0])?.konst.as_ref();
        if self.is_quantizing || constant.is_none_or(|constant| constant.len() <= FEW) {
            return Ok(false);
        }
        // Equal constants are one node. tract forgets this once the model is typed.
        let key = format!("wisp.dequantized {:?}", inputs[0]);
        let how = rctensor0(format!("{self:?} {:?}", &inputs[1..]));
        let first = model.properties.entry(key).or_insert_with(|| how.clone());
        Ok(*first != how)
    }

    /// What constants stand for, unless that is too much to keep, bytes.
    fn weights(
        &self,
        model: &TypedModel,
        inputs: &[OutletId],
        most: usize,
    ) -> TractResult<Option<Tensor>> {
        let constants = inputs.iter().map(|&input| Ok(model.outlet_fact(input)?.konst.clone()));
        let constants: Option<TVec<Arc<Tensor>>> = constants.collect::<TractResult<_>>()?;
        let Some(constants) = constants.filter(|_| !self.is_quantizing) else { return Ok(None) };
        if constants[0].len() * size_of::<f32>() > most {
            return Ok(None);
        }
        let inputs: TVec<TValue> = constants.into_iter().map(IntoTValue::into_tvalue).collect();
        Ok(Some(self.run(&inputs)?.remove(0)))
    }

    fn quick(&self, model: &TypedModel, inputs: &[OutletId]) -> TractResult<Option<Quantize>> {
        let facts = inputs.iter().map(|&input| model.outlet_fact(input));
        let facts: TVec<&TypedFact> = facts.collect::<TractResult<_>>()?;
        let constants = facts[1..].iter().map(|fact| fact.konst.clone());
        let Some(constants) = constants.collect::<Option<TVec<_>>>() else { return Ok(None) };
        let [scale, zero @ ..] = &constants[..] else { return Ok(None) };
        let zero = zero.first();
        let is_single = scale.len() == 1 && zero.is_none_or(|zero| zero.len() == 1);
        let datum = match self.is_quantizing {
            true => zero.map_or(DatumType::U8, |zero| zero.datum_type()),
            false => facts[0].datum_type,
        };
        let is_float = !self.is_quantizing || facts[0].datum_type == DatumType::F32;
        if !is_single || !is_float || scale.datum_type() != DatumType::F32 {
            return Ok(None);
        }
        let zero = zero.map_or(Ok(0.0), |zero| only::<f32>(zero))?;
        let scale = only::<f32>(scale)?;
        // Bounds change places with a negative one.
        match scale > 0.0 && scale.is_finite() {
            true => Ok(Quantize::new(!self.is_quantizing, datum, scale, zero)),
            false => Ok(None),
        }
    }

    fn datum(&self, scale: DatumType, zero: Option<DatumType>) -> DatumType {
        match self.is_quantizing {
            true => zero.or(self.datum).unwrap_or(DatumType::U8),
            false => self.datum.unwrap_or(scale),
        }
    }

    /// For each element, its scale's place.
    fn places(&self, shape: &[usize], scale: &Tensor) -> TractResult<Places> {
        if self.block == 0 && scale.len() == 1 {
            return Ok(Places { axis: 1, inner: 1, block: 1, of_blocks: 0, is_single: true });
        }
        let axis = checked_axis(self.axis, shape.len())?;
        let inner = shape[axis + 1..].iter().product();
        let size = shape[axis];
        if self.block == 0 && scale.len() != size && scale.rank() > 1 {
            return of_columns(shape, scale);
        }
        if self.block == 0 {
            ensure!(scale.len() == size, "{} scales for {size} elements", scale.len());
            return Ok(Places { axis: size, inner, block: 1, of_blocks: 0, is_single: false });
        }
        let mut wanted: TVec<usize> = shape.into();
        wanted[axis] = size.div_ceil(self.block);
        ensure!(*wanted == *scale.shape(), "scales of another shape than {wanted:?}");
        let (block, of_blocks) = (self.block, wanted[axis]);
        Ok(Places { axis: size, inner, block, of_blocks, is_single: false })
    }
}

/// Of QLinearMatMul's scales, one for each column of each matrix: each column is a block.
fn of_columns(shape: &[usize], scale: &Tensor) -> TractResult<Places> {
    let mut wanted: TVec<usize> = shape.into();
    let axis = checked_axis(-2, shape.len())?;
    wanted[axis] = 1;
    ensure!(*wanted == *scale.shape(), "scales of another shape than {wanted:?}");
    let (axis, inner) = (shape[axis], shape[axis + 1]);
    Ok(Places { axis, inner, block: axis, of_blocks: 1, is_single: false })
}

struct Places {
    axis: usize,
    inner: usize,
    block: usize,
    /// Blocks along the axis; zero where all other axes share scales.
    of_blocks: usize,
    is_single: bool,
}

impl Places {
    fn of(&self, element: usize) -> usize {
        if self.is_single {
            return 0;
        }
        let (row, inner) = (element / self.inner, element % self.inner);
        let along = row % self.axis;
        match self.of_blocks {
            0 => along,
            blocks => (row / self.axis * blocks + along / self.block) * self.inner + inner,
        }
    }
}

const INTEGERS: [DatumType; 4] = [DatumType::U8, DatumType::I8, DatumType::U16, DatumType::I16];

impl Kernel for Scaled {
    fn name(&self) -> &'static str {
        if self.is_quantizing { "QuantizeLinear" } else { DEQUANTIZE }
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [input, scale, zero @ ..] = inputs else { bail!("expected two inputs or three") };
        let datum = self.datum(scale.datum, zero.first().map(|zero| zero.datum));
        let form = Form::new(datum, input.shape.iter().cloned());
        ensure!(scale.datum.is_float(), "scales of {:?}", scale.datum);
        match self.is_quantizing {
            true => {
                ensure!(input.datum.is_number(), "expected numbers, got {:?}", input.datum);
                let is_float = self.narrow.is_some_and(|narrow| !narrow.to.is_whole());
                expect_datum(&form, if is_float { &[DatumType::F32] } else { &INTEGERS })?;
            }
            false => {
                // Of narrower floats, which are FP32.
                let others = [DatumType::I32, DatumType::F32];
                expect_datum(input, &[&INTEGERS[..], &others].concat())?;
                ensure!(datum.is_float(), "expected an output of floats, got {datum:?}");
            }
        }
        Ok(tvec![form])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [input, scale, zero @ ..] = inputs else { bail!("expected two inputs or three") };
        let datum = self.datum(scale.datum_type(), zero.first().map(|zero| zero.datum_type()));
        let places = self.places(input.shape(), scale)?;
        let zeros = match zero.first() {
            Some(zero) => zero.cast_to::<f32>()?.into_owned(),
            None => Tensor::zero::<f32>(scale.shape())?,
        };
        ensure!(zeros.len() == scale.len(), "{} zero points", zeros.len());
        let (scale, zeros_plain) = (scale.cast_to::<f32>()?, zeros.try_as_plain_ram()?);
        let scale = scale.try_as_plain_ram()?;
        let (scale, zeros) = (scale.as_slice::<f32>()?, zeros_plain.as_slice::<f32>()?);
        if places.is_single && datum == DatumType::F32 && !self.is_quantizing {
            let scale = Scale { scale: scale[0], zero: zeros[0] };
            match input.datum_type() {
                DatumType::U8 => return dequantized::<u8>(input, scale),
                DatumType::I8 => return dequantized::<i8>(input, scale),
                _ => {}
            }
        }
        let mut values = input.cast_to::<f32>()?.into_owned();
        let mut plain = values.try_as_plain_ram_mut()?;
        let limits = self.narrow.map_or_else(|| limits_of(datum), |narrow| narrow.to.limits());
        let numbers = plain.as_slice_mut::<f32>()?;
        for (element, value) in numbers.iter_mut().enumerate() {
            let place = places.of(element);
            *value = match limits.filter(|_| self.is_quantizing) {
                None if self.is_quantizing => *value / scale[place] + zeros[place],
                Some((least, most)) => {
                    let rounded = (*value / scale[place]).round_ties_even() + zeros[place];
                    // What is no number is the lowest.
                    rounded.max(least).min(most)
                }
                None => (*value - zeros[place]) * scale[place],
            };
        }
        if let Some(narrow) = self.narrow {
            narrow.round(numbers);
        }
        Ok(tvec![values.cast_to_dt(datum)?.into_owned()])
    }
}

/// By a scale that was not known before the run.
fn dequantized<T: Quantized + Datum>(input: &Tensor, scale: Scale) -> TractResult<TVec<Tensor>> {
    let mut output = Tensor::zero::<f32>(input.shape())?;
    let mut plain = output.try_as_plain_ram_mut()?;
    let input = input.try_as_plain_ram()?;
    dequantize(Level::best(), input.as_slice::<T>()?, scale, plain.as_slice_mut()?)?;
    Ok(tvec![output])
}
