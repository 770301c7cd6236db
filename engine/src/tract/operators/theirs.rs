//! tract's own operators, for those of ours that stand before them.

use std::fmt::Debug;
use std::sync::LazyLock;

use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::kernel::Built;

/// Some two hundred, which take a while to be made.
static THEIRS: LazyLock<Onnx> = LazyLock::new(tract_onnx::onnx);

/// tract's operator of a node.
pub(super) fn built(context: &ParsingContext, node: &NodeProto) -> Built {
    let theirs = THEIRS.op_register.0.get(&*node.op_type);
    theirs.with_context(|| format!("the engine lacks {}", node.op_type))?(context, node)
}

/// The same, where it is one that is wired of others.
pub(super) fn expansion(
    context: &ParsingContext,
    node: &NodeProto,
) -> TractResult<Box<dyn Expansion>> {
    let (operator, captured) = built(context, node)?;
    ensure!(captured.is_empty(), "{} takes values that are not its inputs", node.op_type);
    wired(&*operator)
}

/// # Errors
/// It is not wired of others.
pub(super) fn wired(operator: &dyn InferenceOp) -> TractResult<Box<dyn Expansion>> {
    let inner = operator.as_op().downcast_ref::<Box<dyn Expansion>>().cloned();
    inner.with_context(|| format!("the engine's {} is not what it was", operator.name()))
}

/// tract's operator for what it says of types and shapes, and `wiring` to compute it.
pub(super) fn rewired(context: &ParsingContext, node: &NodeProto, wiring: impl Wiring) -> Built {
    let inner = expansion(context, node)?;
    Ok((wired_by(inner, wiring), Vec::new()))
}

/// The same of an operator that is no node's.
pub(super) fn wired_by(inner: Box<dyn Expansion>, wiring: impl Wiring) -> Box<dyn InferenceOp> {
    expand(Rewired { inner, wiring })
}

/// What an operator is computed by instead of tract's `inner`, or with it.
pub(super) trait Wiring: Debug + Clone + Send + Sync + 'static {
    /// # Errors
    /// Types or shapes that it does not take.
    fn wire(
        &self,
        inner: &dyn Expansion,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>>;

    /// Whether tract computes it of constants before it is wired.
    fn runs_out_of_plan(&self) -> bool {
        true
    }
}

#[derive(Debug, Clone)]
struct Rewired<W> {
    inner: Box<dyn Expansion>,
    wiring: W,
}

impl<W: Wiring> Expansion for Rewired<W> {
    fn name(&self) -> StaticName {
        self.inner.as_ref().name()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        self.inner.as_ref().nboutputs()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        self.inner.as_ref().rules(solver, inputs, outputs)
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        self.wiring.wire(self.inner.as_ref(), prefix, model, inputs)
    }

    fn runs_out_of_plan(&self) -> bool {
        self.wiring.runs_out_of_plan()
    }
}
