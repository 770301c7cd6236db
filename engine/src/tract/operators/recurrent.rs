//! LSTM, GRU and RNN. An LSTM of constant weights is our kernel's; the rest is tract's cells, on a
//! reversed sequence where that is asked for, as tract does not read `direction = reverse`. Nor does it
//! read the activations, the clip or the coupled gates that a node may ask for, and it takes layers whose
//! sizes contradict each other, and answers wrongly without a word: those are refused.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::ops::rec::{common::CommonRec, common::WireBody, gru::GRU, lstm::LSTM, rnn::RNN};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::element_wise::{ElementWiseMiniOp, ElementWiseOp};
use tract_onnx::tract_core::ops::math::tanh;
use tract_onnx::tract_core::ops::nn::{Sigmoid, leaky_relu, sigmoid};
use tract_onnx::tract_hir::internal::*;
use wisp_kernels::elementwise::{Function, apply};

use super::attributes::strings;
use super::kernel::{Built, Form, Kernel, constant_at, typed, typed_with};
use super::layer::{Fitting, Layer, NAMES, Shapes};
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
    recurrent(node, 4, Box::new(LSTM { f, g, h }), None)
}

fn gru(_context: &ParsingContext, node: &NodeProto) -> Built {
    expect_activations(node, &["Sigmoid", "Tanh"])?;
    let linear_before_reset = node.get_attr_opt::<i64>("linear_before_reset")?.unwrap_or(0) != 0;
    let cell = |f: Box<dyn TypedOp>| -> Box<dyn WireBody> {
        Box::new(GRU { f, g: Box::new(tanh()), linear_before_reset })
    };
    let ours = cell(Box::new(ElementWiseOp(Box::new(Logistic), None)));
    match linear_before_reset {
        // tract has one operator for the whole step, with a sigmoid of its own. It fails with inputs
        // of one number.
        true => recurrent(node, 3, cell(Box::new(sigmoid())), Some(ours)),
        false => recurrent(node, 3, ours, None),
    }
}

/// Our sigmoid of FP32. tract's ends at 1 - 4.8e-7: a GRU whose update gate is shut would still let in
/// that share of its candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Logistic;

impl ElementWiseMiniOp for Logistic {
    fn name(&self) -> String {
        "Logistic".to_owned()
    }

    fn eval_in_place(&self, numbers: &mut Tensor, datum: Option<DatumType>) -> TractResult<()> {
        if numbers.datum_type() != DatumType::F32 {
            return Sigmoid {}.eval_in_place(numbers, datum);
        }
        apply(Function::Sigmoid, numbers.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?);
        Ok(())
    }
}

fn rnn(_context: &ParsingContext, node: &NodeProto) -> Built {
    let names = strings(node, "activations")?;
    if !names.is_empty() && names.iter().all(|name| name.eq_ignore_ascii_case("relu")) {
        expect_activations(node, &["Relu"])?;
        let (fore, back) = (Box::new(leaky_relu(0.0)), Box::new(leaky_relu(0.0)));
        return recurrent(node, 1, Box::new(RNN { fore, back }), None);
    }
    expect_activations(node, &["Tanh"])?;
    recurrent(node, 1, Box::new(RNN { fore: Box::new(tanh()), back: Box::new(tanh()) }), None)
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

/// `of_one`: the cell for inputs of one number, where it is another.
fn recurrent(
    node: &NodeProto,
    gates: usize,
    cell: Box<dyn WireBody>,
    of_one: Option<Box<dyn WireBody>>,
) -> Built {
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
    Ok((expand(Recurrent { inner, of_one, layer, is_reversed, rounds_states }), Vec::new()))
}

#[derive(Debug, Clone)]
struct Recurrent {
    inner: CommonRec,
    of_one: Option<Box<dyn WireBody>>,
    layer: Layer,
    is_reversed: bool,
    rounds_states: bool,
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
        let is_of_one = x.shape[2] == 1.to_dim();
        let (mut inner, mut inputs) = self.with_states(prefix, model, &inputs)?;
        if let Some(cell) = self.of_one.as_ref().filter(|_| is_of_one) {
            inner.body = cell.clone();
        }
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
        let constant = |index: usize| constant_at(model, inputs[index], &mut HashMap::new());
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
