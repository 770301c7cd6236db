//! LSTM, GRU and RNN. An LSTM of constant weights is our kernel's; the rest is tract's cells, on a
//! reversed sequence where that is asked for. tract reads neither `direction = reverse` nor the
//! activations, the clip or the coupled gates that a node may ask for, and takes layers whose sizes
//! contradict each other, and answers wrongly without a word: all that is refused.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::ops::rec::{common::CommonRec, common::WireBody, gru::GRU, lstm::LSTM, rnn::RNN};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::{math::tanh, nn::leaky_relu, nn::sigmoid};
use tract_onnx::tract_hir::internal::*;

use super::attributes::strings;
use super::kernel::{Built, Form, Kernel, typed, typed_with};
use super::lstm::Sequence;
use crate::tract::contrib::ROUNDS_STATES;

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("LSTM", lstm);
    operators.insert("GRU", gru);
    operators.insert("RNN", rnn);
}

fn lstm(_context: &ParsingContext, node: &NodeProto) -> Built {
    expect_activations(node, &["Sigmoid", "Tanh", "Tanh"])?;
    let coupled = node.get_attr_opt::<i64>("input_forget")?.unwrap_or(0);
    ensure!(coupled == 0, "coupled input and forget gates are not served");
    let (f, g, h) = (Box::new(sigmoid()), Box::new(tanh()), Box::new(tanh()));
    recurrent(node, 4, Box::new(LSTM { f, g, h }))
}

fn gru(_context: &ParsingContext, node: &NodeProto) -> Built {
    expect_activations(node, &["Sigmoid", "Tanh"])?;
    let linear_before_reset = node.get_attr_opt::<i64>("linear_before_reset")?.unwrap_or(0) != 0;
    let (f, g) = (Box::new(sigmoid()), Box::new(tanh()));
    recurrent(node, 3, Box::new(GRU { f, g, linear_before_reset }))
}

fn rnn(_context: &ParsingContext, node: &NodeProto) -> Built {
    let names = strings(node, "activations")?;
    if !names.is_empty() && names.iter().all(|name| name.eq_ignore_ascii_case("relu")) {
        expect_activations(node, &["Relu"])?;
        let (fore, back) = (Box::new(leaky_relu(0.0)), Box::new(leaky_relu(0.0)));
        return recurrent(node, 1, Box::new(RNN { fore, back }));
    }
    expect_activations(node, &["Tanh"])?;
    recurrent(node, 1, Box::new(RNN { fore: Box::new(tanh()), back: Box::new(tanh()) }))
}

/// # Errors
/// The node wants others, or does not name those of each direction.
fn expect_activations(node: &NodeProto, usual: &[&str]) -> TractResult<()> {
    let names = strings(node, "activations")?;
    let (count, expected) = (names.len(), usual.len() * directions(node)?);
    ensure!(count == 0 || count == expected, "{count} activations, expected {expected}");
    let mut pairs = names.iter().zip(usual.iter().cycle());
    let are_usual = pairs.all(|(name, usual)| name.eq_ignore_ascii_case(usual));
    ensure!(are_usual, "activations {names:?} are not served, only {usual:?}");
    Ok(())
}

fn directions(node: &NodeProto) -> TractResult<usize> {
    Ok(match node.get_attr_opt::<&str>("direction")?.unwrap_or("forward") {
        "forward" | "reverse" => 1,
        "bidirectional" => 2,
        other => bail!("unknown direction {other:?}"),
    })
}

fn recurrent(node: &NodeProto, gates: usize, cell: Box<dyn WireBody>) -> Built {
    let clip = node.get_attr_opt::<f32>("clip")?;
    ensure!(clip.is_none_or(|clip| clip == 0.0), "a clip of cells is not served");
    let is_reversed = node.get_attr_opt::<&str>("direction")? == Some("reverse");
    let rounds_states = node.get_attr_opt::<i64>(ROUNDS_STATES)?.unwrap_or(0) != 0;
    let inner = CommonRec::from_node_and_options(node, 3, 0, cell)?;
    let layer = Layer {
        gates,
        directions: directions(node)?,
        hidden: node.get_attr_opt::<i64>("hidden_size")?,
        batch_first: inner.batch_first,
    };
    Ok((expand(Recurrent { inner, layer, is_reversed, rounds_states }), Vec::new()))
}

#[derive(Debug, Clone)]
struct Recurrent {
    inner: CommonRec,
    layer: Layer,
    is_reversed: bool,
    rounds_states: bool,
}

/// What its attributes say of a layer's sizes.
#[derive(Debug, Clone)]
struct Layer {
    gates: usize,
    directions: usize,
    hidden: Option<i64>,
    batch_first: bool,
}

/// Inputs that have sizes in common. Those of each sequence's length are not among them.
const NAMES: [&str; 7] = ["X", "W", "R", "B", "initial_h", "initial_c", "P"];

/// Of those inputs, where they are given.
type Shapes = [Option<TVec<TDim>>; NAMES.len()];

impl Layer {
    /// Whether they are known to fit together.
    ///
    /// # Errors
    /// They are known not to.
    fn fits(&self, shapes: &Shapes) -> TractResult<bool> {
        let [Some(x), Some(w), Some(r), ..] = shapes else { bail!("no sequence or no weights") };
        let ([_, _, came], [_, _, size], [_, _, hidden]) = (&**x, &**w, &**r) else {
            bail!("a sequence of rank {}, weights of {} and {}", x.len(), w.len(), r.len());
        };
        if let (Some(stated), Ok(hidden)) = (self.hidden, hidden.to_i64()) {
            ensure!(
                stated == hidden,
                "R is for {hidden} values of a state, hidden_size is {stated}"
            );
        }
        let directions = self.directions.to_dim();
        let batch = x[usize::from(!self.batch_first)].clone();
        let rows = hidden.clone() * self.gates.to_dim();
        let mut state = tvec![directions.clone(), batch, hidden.clone()];
        if self.batch_first {
            state.swap(0, 1);
        }
        let mut sequence = x.clone();
        sequence[2] = size.clone();
        let expected: [TVec<TDim>; NAMES.len()] = [
            sequence,
            tvec![directions.clone(), rows.clone(), size.clone()],
            tvec![directions.clone(), rows.clone(), hidden.clone()],
            tvec![directions.clone(), rows * 2.to_dim()],
            state.clone(),
            state,
            tvec![directions, hidden.clone() * 3.to_dim()],
        ];
        // One stands for a free size, when a graph is planned for the first time.
        let is_guess = [came, size].contains(&&1.to_dim());
        let mut are_known = true;
        for ((name, shape), expected) in NAMES.iter().zip(shapes).zip(&expected) {
            let Some(shape) = shape else { continue };
            let may_be = |(size, expected): (&TDim, &TDim)| {
                let known = (size.to_usize(), expected.to_usize());
                size == expected || !matches!(known, (Ok(_), Ok(_)))
            };
            let may_fit = shape.len() == expected.len() && shape.iter().zip(expected).all(may_be);
            let is_guess = is_guess && *name == "X";
            ensure!(may_fit || is_guess, "{name} has the shape {shape:?}, expected {expected:?}");
            are_known &= shape == expected;
        }
        Ok(are_known)
    }
}

impl Expansion for Recurrent {
    fn name(&self) -> StaticName {
        self.inner.name()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        self.inner.nboutputs()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        self.inner.rules(solver, inputs, outputs)
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let mut shapes = Shapes::default();
        for (shape, place) in shapes.iter_mut().zip(self.places()) {
            if let Some(place) = place {
                *shape = Some(model.outlet_fact(inputs[place])?.shape.iter().cloned().collect());
            }
        }
        let fits = self.layer.fits(&shapes)?;
        if let Some(outputs) = self.wire_sequence(prefix, model, inputs)? {
            return Ok(outputs);
        }
        ensure!(!self.rounds_states, "states are rounded only for constant weights of FP32");
        let mut inputs = TVec::<OutletId>::from(inputs);
        if !fits {
            let taken = self.places().into_iter().flatten().map(|place| inputs[place]);
            let taken: TVec<OutletId> = taken.collect();
            let given = shapes.each_ref().map(Option::is_some);
            let fitting = typed(Fitting { layer: self.layer.clone(), given });
            inputs[0] = model.wire_node(format!("{prefix}.x_fitting"), fitting, &taken)?[0];
        }
        let (x, r) = (model.outlet_fact(inputs[0])?, model.outlet_fact(inputs[2])?);
        let batch = &x.shape[usize::from(!self.inner.batch_first)];
        // tract panics otherwise.
        ensure!(batch.to_usize().is_ok(), "the batch's size is not known");
        ensure!(r.shape[2].to_usize().is_ok(), "the state's size is not known");
        let (inner, mut inputs) = self.with_states(prefix, model, &inputs)?;
        if !self.is_reversed {
            return inner.wire(prefix, model, &inputs);
        }
        let reverse = typed(Reverse { axis: usize::from(self.inner.batch_first) });
        inputs[0] =
            model.wire_node(format!("{prefix}.x_reversed"), reverse.clone(), &inputs[..1])?[0];
        let mut outputs = inner.wire(prefix, model, &inputs)?;
        if let Some(y) = self.inner.optional_y_output {
            let name = format!("{prefix}.y_reversed");
            outputs[y] = model.wire_node(name, reverse, &[outputs[y]])?[0];
        }
        Ok(outputs)
    }
}

impl Recurrent {
    /// Of the inputs in [`NAMES`].
    fn places(&self) -> [Option<usize>; NAMES.len()] {
        let inner = &self.inner;
        [
            Some(0),
            Some(1),
            Some(2),
            inner.optional_bias_input,
            inner.optional_initial_h_input,
            inner.optional_initial_c_input,
            inner.optional_p_input,
        ]
    }

    /// Ours, where it does.
    fn wire_sequence(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<Option<TVec<OutletId>>> {
        let inner = &self.inner;
        let is_more = inner.optional_sequence_lens_input.or(inner.optional_p_input).is_some();
        if !inner.body.have_extra_c_state() || inner.batch_first || is_more {
            return Ok(None);
        }
        let constant = |index: usize| constant_at(model, inputs[index], MOST_STEPS);
        let (Some(w), Some(r)) = (constant(1), constant(2)) else { return Ok(None) };
        let bias = inner.optional_bias_input.map(constant);
        if bias.as_ref().is_some_and(Option::is_none) {
            return Ok(None);
        }
        let states = [inner.optional_initial_h_input, inner.optional_initial_c_input];
        let bias = bias.flatten();
        let has = states.map(|state| state.is_some());
        let weights = [&*w, &*r];
        let Some(sequence) = Sequence::new(weights, bias.as_deref(), self.is_reversed, has)? else {
            return Ok(None);
        };
        let sequence = if self.rounds_states { sequence.rounding_states() } else { sequence };
        let taken = [Some(0)].into_iter().chain(states).flatten();
        let taken: TVec<OutletId> = taken.map(|index| inputs[index]).collect();
        let made = model.wire_node(prefix, typed_with(sequence, 3), &taken)?;
        let wanted =
            [inner.optional_y_output, inner.optional_y_h_output, inner.optional_y_c_output];
        let mut outputs = tvec![made[0]; inner.nboutputs()?];
        for (place, outlet) in wanted.into_iter().zip(made) {
            if let Some(output) = place.and_then(|place| outputs.get_mut(place)) {
                *output = outlet;
            }
        }
        Ok(Some(outputs))
    }

    /// With zeros for the states that an LSTM is not given. tract has two equal constants for them,
    /// makes one of those, and then takes its loop's states for one, too.
    fn with_states(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<(CommonRec, TVec<OutletId>)> {
        let (mut inner, mut inputs) = (self.inner.clone(), TVec::<OutletId>::from(inputs));
        if !inner.body.have_extra_c_state() {
            return Ok((inner, inputs));
        }
        let batch_first = inner.batch_first;
        let states = [&mut inner.optional_initial_h_input, &mut inner.optional_initial_c_input];
        for (name, state) in ["h", "c"].into_iter().zip(states) {
            if state.is_none() {
                *state = Some(inputs.len());
                let from = [inputs[0], inputs[2]];
                // One for each: two that are equal become one.
                let zeros = typed(ZeroState { batch_first });
                inputs.push(model.wire_node(format!("{prefix}.no_{name}"), zeros, &from)?[0]);
            }
        }
        Ok((inner, inputs))
    }
}

/// Operators from a constant to weights: those that are quantised are made of several.
const MOST_STEPS: usize = 8;

/// What an outlet holds, where that follows from constants in so many steps.
fn constant_at(model: &TypedModel, outlet: OutletId, steps: usize) -> Option<Arc<Tensor>> {
    if let Some(konst) = &model.outlet_fact(outlet).ok()?.konst {
        return Some(konst.clone());
    }
    let node = model.node(outlet.node);
    if node.inputs.is_empty() || steps == 0 {
        return None;
    }
    let inputs = node.inputs.iter().map(|&input| constant_at(model, input, steps - 1));
    let inputs: TVec<TValue> =
        inputs.map(|input| input.map(IntoTValue::into_tvalue)).collect::<Option<_>>()?;
    let outputs = node.op.eval_out_of_plan(inputs).ok()??;
    Some(outputs.get(outlet.slot)?.clone().into_arc_tensor())
}

/// The first input, where it and the rest fit together.
#[derive(Debug)]
struct Fitting {
    layer: Layer,
    given: [bool; NAMES.len()],
}

impl Fitting {
    fn fits(&self, inputs: impl Iterator<Item = TVec<TDim>>) -> TractResult<bool> {
        let mut shapes = Shapes::default();
        let given = shapes.iter_mut().zip(self.given).filter(|(_, is_given)| *is_given);
        for ((shape, _), input) in given.zip(inputs) {
            *shape = Some(input);
        }
        self.layer.fits(&shapes)
    }
}

impl Kernel for Fitting {
    fn name(&self) -> &'static str {
        "Fitting"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        self.fits(inputs.iter().map(|input| input.shape.clone()))?;
        let [x, w, ..] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let mut shape = x.shape.clone();
        shape[2] = w.shape[2].clone();
        Ok(tvec![Form::new(x.datum, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let sizes = |input: &TValue| -> TVec<TDim> {
            input.shape().iter().map(|size| size.to_dim()).collect()
        };
        let fits = self.fits(inputs.iter().map(sizes))?;
        ensure!(fits, "a sequence of other values than the weights are for");
        Ok(tvec![(*inputs[0]).clone()])
    }
}

/// A state of zeros for a sequence and the weights of its recurrence.
#[derive(Debug)]
struct ZeroState {
    batch_first: bool,
}

impl ZeroState {
    fn shape<D: Clone>(&self, sequence: &[D], weights: &[D]) -> TractResult<TVec<D>> {
        let ([a, b, _], [sides, _, size]) = (sequence, weights) else {
            bail!("a sequence of rank {}, weights of {}", sequence.len(), weights.len());
        };
        Ok(match self.batch_first {
            true => tvec![a.clone(), sides.clone(), size.clone()],
            false => tvec![sides.clone(), b.clone(), size.clone()],
        })
    }
}

impl Kernel for ZeroState {
    fn name(&self) -> &'static str {
        "ZeroState"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [x, r] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        Ok(tvec![Form::new(x.datum, self.shape(&x.shape, &r.shape)?)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [x, r] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        Ok(tvec![Tensor::zero_dt(x.datum_type(), &self.shape(x.shape(), r.shape())?)?])
    }
}

/// Turns one axis around.
#[derive(Debug)]
struct Reverse {
    axis: usize,
}

impl Kernel for Reverse {
    fn name(&self) -> &'static str {
        "Reverse"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [input] = inputs else { bail!("expected one input, got {}", inputs.len()) };
        ensure!(input.shape.len() > self.axis, "a shape of rank {}", input.shape.len());
        ensure!(input.datum.is_float(), "expected floats, got {:?}", input.datum);
        Ok(tvec![input.clone()])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        fn reverse<T: Datum>(input: &Tensor, axis: usize) -> TractResult<Tensor> {
            let mut view = input.to_plain_array_view::<T>()?;
            view.invert_axis(tract_ndarray::Axis(axis));
            Ok(view.as_standard_layout().into_owned().into_tensor())
        }
        let [input] = inputs else { bail!("expected one input, got {}", inputs.len()) };
        let reversed = match input.datum_type() {
            DatumType::F16 => reverse::<f16>(input, self.axis)?,
            DatumType::F64 => reverse::<f64>(input, self.axis)?,
            _ => reverse::<f32>(input, self.axis)?,
        };
        Ok(tvec![reversed])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes(x: [i64; 3], w: [i64; 3], r: [i64; 3], h: Option<[i64; 3]>) -> Shapes {
        let shape =
            |sizes: [i64; 3]| -> TVec<TDim> { sizes.iter().map(|size| size.to_dim()).collect() };
        let [x, w, r] = [x, w, r].map(|sizes| Some(shape(sizes)));
        [x, w, r, None, h.map(shape), None, None]
    }

    #[test]
    fn sizes_that_fit_and_that_do_not() {
        let layer = Layer { gates: 3, directions: 2, hidden: Some(4), batch_first: false };
        let (x, w, r, h) = ([5, 2, 7], [2, 12, 7], [2, 12, 4], Some([2, 2, 4]));
        assert!(layer.fits(&shapes(x, w, r, h)).unwrap());
        assert!(layer.fits(&shapes(x, w, r, None)).unwrap());
        for (x, w, r, h) in [
            ([5, 2, 6], w, r, h),
            (x, [1, 12, 7], [1, 12, 4], None),
            (x, [2, 13, 7], r, h),
            (x, w, [2, 12, 5], None),
            (x, [2, 15, 7], [2, 15, 5], None),
            (x, w, r, Some([2, 5, 4])),
        ] {
            assert!(layer.fits(&shapes(x, w, r, h)).is_err(), "{x:?} {w:?} {r:?} {h:?}");
        }
        let first = Layer { batch_first: true, ..layer.clone() };
        assert!(first.fits(&shapes([2, 5, 7], w, r, h)).unwrap());
        // What a size that is not known is planned with says nothing yet.
        assert!(!layer.fits(&shapes([1, 1, 1], w, r, Some([2, 1, 4]))).unwrap());
        let mut free = shapes(x, w, r, h);
        let symbols = SymbolScope::default();
        if let [Some(x), ..] = &mut free {
            x[2] = symbols.sym("n").to_dim();
        }
        assert!(!layer.fits(&free).unwrap());
    }
}
