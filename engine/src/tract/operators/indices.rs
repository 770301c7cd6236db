//! Operators of numbers that point into tensors: GatherND and ScatterND, where tract takes those
//! that count from the end for wrong; Cast, which makes sizes of all whole numbers and cuts those off at
//! 32 bits; GridSample, but for what tract takes from beyond a picture's border.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_hir::infer::InferenceRulesOp;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::array::GatherNd;

use super::kernel::{Built, Form, Kernel, integers_of, typed};
use super::theirs;

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("Cast", cast_node);
    operators.insert("GatherND", gather_nd);
    operators.insert("GridSample", grid_sample);
    operators.insert("ScatterND", scatter_nd);
}

fn grid_sample(context: &ParsingContext, node: &NodeProto) -> Built {
    let is = |name: &str, values: &[&str]| -> TractResult<bool> {
        Ok(node.get_attr_opt::<&str>(name)?.is_some_and(|value| values.contains(&value)))
    };
    let is_wrong = is("mode", &["cubic", "bicubic"])? && is("padding_mode", &["border"])?;
    ensure!(!is_wrong, "cubic samples beyond a border are not served");
    theirs::built(context, node)
}

fn cast_node(context: &ParsingContext, node: &NodeProto) -> Built {
    match node.get_attr::<DatumType>("to")? {
        DatumType::I64 => Ok((expand(ToWhole), Vec::new())),
        _ => theirs::built(context, node),
    }
}

/// Whole numbers of 64 bits; sizes stay sizes.
#[derive(Debug, Clone)]
struct ToWhole;

impl ToWhole {
    fn datum(from: DatumType) -> DatumType {
        if from == DatumType::TDim { from } else { DatumType::I64 }
    }
}

impl Expansion for ToWhole {
    fn name(&self) -> StaticName {
        "Cast".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        solver.equals(&outputs[0].rank, &inputs[0].rank)?;
        solver.equals(&outputs[0].shape, &inputs[0].shape)?;
        solver.given(&inputs[0].datum_type, |solver, from| {
            solver.equals(&outputs[0].datum_type, Self::datum(from))
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let from = model.outlet_fact(inputs[0])?.datum_type;
        model.wire_node(prefix, cast(Self::datum(from)), inputs)
    }
}

fn gather_nd(_context: &ParsingContext, node: &NodeProto) -> Built {
    let batch_axes = node.get_attr_opt::<i64>("batch_dims")?.unwrap_or(0);
    let batch_axes = usize::try_from(batch_axes).context("batch_dims")?;
    let inner = Inner::Gather(GatherNd::new(batch_axes));
    Ok((expand(Counted { inner, batch_axes }), Vec::new()))
}

fn scatter_nd(context: &ParsingContext, node: &NodeProto) -> Built {
    let inner = Inner::Scatter(theirs::expansion(context, node)?);
    Ok((expand(Counted { inner, batch_axes: 0 }), Vec::new()))
}

/// tract's operator on indices that count from the start.
#[derive(Debug, Clone)]
struct Counted {
    inner: Inner,
    batch_axes: usize,
}

#[derive(Debug, Clone)]
enum Inner {
    Gather(GatherNd),
    Scatter(Box<dyn Expansion>),
}

impl Expansion for Counted {
    fn name(&self) -> StaticName {
        match &self.inner {
            Inner::Gather(_) => "GatherND".into(),
            Inner::Scatter(_) => "ScatterND".into(),
        }
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        // tract counts to the last axis, also where there is none.
        check_input_arity(inputs, if matches!(self.inner, Inner::Gather(_)) { 2 } else { 3 })?;
        solver.given_2(&inputs[0].rank, &inputs[1].rank, move |solver, data, indices| {
            ensure!(data > 0 && indices > 0, "ranks {data} and {indices}, expected 1 or more");
            match &self.inner {
                Inner::Gather(inner) => inner.rules(solver, inputs, outputs),
                Inner::Scatter(inner) => inner.as_ref().rules(solver, inputs, outputs),
            }
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let mut inputs: TVec<OutletId> = inputs.into();
        let known = model.outlet_fact(inputs[1])?.konst.clone();
        let known = known.map(|indices| integers_of(&indices)).transpose()?;
        // tract cuts what it knows off at 32 bits.
        let is_plain = |index: &i64| i32::try_from(*index).is_ok_and(|index| index >= 0);
        if known.is_none_or(|indices| !indices.iter().all(is_plain)) {
            let count = typed(FromStart { batch_axes: self.batch_axes });
            let name = format!("{prefix}.counted");
            inputs[1] = model.wire_node(name, count, &[inputs[0], inputs[1]])?[0];
        }
        match &self.inner {
            Inner::Gather(inner) => model.wire_node(prefix, inner.clone(), &inputs),
            Inner::Scatter(inner) => inner.as_ref().wire(prefix, model, &inputs),
        }
    }
}

/// Indices into a tensor, each row of them of one element or slice, counted from the start.
#[derive(Debug)]
struct FromStart {
    batch_axes: usize,
}

impl Kernel for FromStart {
    fn name(&self) -> &'static str {
        "FromStart"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [_, indices] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        Ok(tvec![Form::new(DatumType::I64, indices.shape.iter().cloned())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [data, indices] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let length = indices.shape().last().copied().context("expected rows of indices")?;
        let sizes = data.shape().get(self.batch_axes..).and_then(|sizes| sizes.get(..length));
        let sizes = sizes.context("more indices than axes")?;
        let mut counted = integers_of(indices)?;
        for row in counted.chunks_exact_mut(length.max(1)) {
            for (index, &size) in row.iter_mut().zip(sizes) {
                let from_start = if *index < 0 { *index + size as i64 } else { *index };
                let is_there = (0..size as i64).contains(&from_start);
                ensure!(is_there, "index {index} of an axis of {size}");
                *index = from_start;
            }
        }
        let counted = tract_ndarray::ArrayD::from_shape_vec(indices.shape(), counted)?;
        Ok(tvec![counted.into_tensor()])
    }
}
