//! BatchNormalization as tract has it, for inputs that have channels: of others it reads a size that
//! is not there.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::kernel::Built;
use super::theirs;

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("BatchNormalization", batch_normalization);
}

fn batch_normalization(context: &ParsingContext, node: &NodeProto) -> Built {
    Ok((expand(WithChannels(theirs::expansion(context, node)?)), Vec::new()))
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
