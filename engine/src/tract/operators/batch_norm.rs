//! BatchNormalization as tract has it, for inputs that have channels: of others it reads a size that
//! is not there.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::kernel::Built;

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("BatchNormalization", batch_normalization);
}

fn batch_normalization(context: &ParsingContext, node: &NodeProto) -> Built {
    let theirs = tract_onnx::onnx().op_register.0.get(&*node.op_type).copied();
    let (inner, names) = theirs.context("the engine lacks it")?(context, node)?;
    let Some(inner) = inner.as_op().downcast_ref::<Box<dyn Expansion>>() else {
        return Ok((inner, names));
    };
    Ok((expand(WithChannels(inner.clone())), names))
}

#[derive(Debug, Clone)]
struct WithChannels(Box<dyn Expansion>);

impl Expansion for WithChannels {
    fn name(&self) -> StaticName {
        self.0.as_ref().name()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        // tract's rules come once this one has let them.
        solver.given(&inputs[0].rank, move |solver, rank| {
            ensure!(rank >= 2, "BatchNormalization of rank {rank}, expected 2 or more");
            self.0.as_ref().rules(solver, inputs, outputs)
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        self.0.as_ref().wire(prefix, model, inputs)
    }
}
