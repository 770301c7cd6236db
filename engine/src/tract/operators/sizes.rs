//! Operators as tract has them, that make sizes of numbers: tract cuts those off at 32 bits, as if they were
//! others. Here they are refused, as no axis is that long.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::kernel::{Built, integers_of};
use super::theirs::{self, Wiring, rewired};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("Concat", |context, node| rewired(context, node, Joined));
    for name in ["Expand", "Reshape", "Tile"] {
        operators.insert(name, |context, node| checked(theirs::built(context, node)?, node, 1));
    }
    operators.insert("Resize", resize);
}

fn resize(context: &ParsingContext, node: &NodeProto) -> Built {
    let theirs = theirs::built(context, node)?;
    // Inputs that are left out have no place among those that are there.
    let is_given = |name: &&String| !name.is_empty();
    let before = node.input.iter().take(3).filter(is_given).count();
    match node.input.get(3).filter(is_given) {
        Some(_) => checked(theirs, node, before),
        None => Ok(theirs),
    }
}

/// # Errors
/// A number that tract would cut off.
pub(super) fn check(operator: &str, sizes: &Tensor) -> TractResult<()> {
    if sizes.datum_type().is_integer() {
        for size in integers_of(sizes)? {
            ensure!(i32::try_from(size).is_ok(), "{operator}: a size of {size} is out of range");
        }
    }
    Ok(())
}

/// The same operator, one of whose inputs says sizes.
pub(super) fn checked(
    built: (Box<dyn InferenceOp>, Vec<String>),
    node: &NodeProto,
    sizes: usize,
) -> Built {
    let inner = theirs::wired(&*built.0)?;
    Ok((expand(OfSizes { inner, operator: node.op_type.clone(), sizes }), built.1))
}

#[derive(Debug, Clone)]
struct OfSizes {
    inner: Box<dyn Expansion>,
    operator: String,
    /// Which of the inputs they are.
    sizes: usize,
}

impl OfSizes {
    fn check(&self, model: &TypedModel, inputs: &[OutletId]) -> TractResult<()> {
        let sizes = inputs.get(self.sizes).context("no sizes")?;
        let known = model.outlet_fact(*sizes)?.konst.as_deref();
        known.map_or(Ok(()), |sizes| check(&self.operator, sizes))
    }
}

impl Expansion for OfSizes {
    fn name(&self) -> StaticName {
        self.inner.as_ref().name()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        let sizes = inputs.get(self.sizes).context("no sizes")?;
        // Before tract's rules, which make sizes of them.
        solver.given(&sizes.value, move |_, sizes| check(&self.operator, &sizes))?;
        self.inner.as_ref().rules(solver, inputs, outputs)
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        self.check(model, inputs)?;
        self.inner.as_ref().wire(prefix, model, inputs)
    }

    fn wire_with_inference_model_and_node(
        &self,
        prefix: &str,
        source: &InferenceModel,
        node: &InferenceNode,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        self.check(model, inputs)?;
        let inner = self.inner.as_ref();
        inner.wire_with_inference_model_and_node(prefix, source, node, model, inputs)
    }
}

/// What stands beside sizes becomes sizes, too.
#[derive(Debug, Clone)]
struct Joined;

impl Wiring for Joined {
    fn wire(
        &self,
        inner: &dyn Expansion,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let facts = inputs.iter().map(|&input| model.outlet_fact(input).cloned());
        let facts = facts.collect::<TractResult<TVec<TypedFact>>>()?;
        let mut inputs: TVec<OutletId> = inputs.into();
        if facts.iter().any(|fact| fact.datum_type == DatumType::TDim) {
            for (index, fact) in facts.iter().enumerate() {
                if let Some(known) = fact.konst.as_ref().filter(|_| fact.datum_type.is_integer()) {
                    let name = format!("{prefix}.of_32_bits_{index}");
                    inputs[index] = model.add_const(name, of_32_bits(known)?)?;
                }
            }
        }
        inner.wire(prefix, model, &inputs)
    }
}

/// The same, also where one stands for no end of a Slice.
///
/// # Errors
/// Others that are larger.
fn of_32_bits(known: &Tensor) -> TractResult<Tensor> {
    let mut numbers = known.cast_to::<i64>()?.into_owned();
    for number in numbers.try_as_plain_ram_mut()?.as_slice_mut::<i64>()? {
        *number = match *number {
            i64::MAX => i32::MAX.into(),
            number if number <= -i64::MAX => i32::MIN.into(),
            number => number,
        };
    }
    check("Concat", &numbers)?;
    Ok(numbers)
}
