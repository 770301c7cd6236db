//! GatherBlockQuantized, of tables in UINT8 and in INT4 and UINT4, which `widen` has made INT8. tract's
//! takes matrices of four bits only, and rounds the scales of blocks of 32 to FP16.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::kernel::Built;
use crate::tract::fuse::GatheredBlocks;

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("GatherBlockQuantized", gather);
}

fn gather(_context: &ParsingContext, node: &NodeProto) -> Built {
    let int = |name: &str, otherwise: i64| -> TractResult<i64> {
        Ok(node.get_attr_opt::<i64>(name)?.unwrap_or(otherwise))
    };
    let size = |name: &str, otherwise: i64| -> TractResult<usize> {
        let size = int(name, otherwise)?;
        usize::try_from(size).with_context(|| format!("{name} {size}"))
    };
    let left_out = node.input.iter().position(String::is_empty);
    ensure!(left_out.is_none(), "input {} is not given", left_out.unwrap_or_default());
    let gather = GatheredBlocks {
        bits: size("bits", 4)?,
        block: size("block_size", 128)?,
        gather_axis: int("gather_axis", 0)?,
        block_axis: int("quantize_axis", 1)?,
    };
    Ok((expand(GatherBlocks(gather)), Vec::new()))
}

#[derive(Debug, Clone)]
struct GatherBlocks(GatheredBlocks);

impl Expansion for GatherBlocks {
    fn name(&self) -> StaticName {
        "GatherBlockQuantized".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        let is_known = matches!(inputs.len(), 3 | 4);
        ensure!(is_known, "got {} inputs, expected three or four", inputs.len());
        check_output_arity(outputs, 1)?;
        solver.equals(&inputs[2].datum_type, &outputs[0].datum_type)?;
        let (table, places) = (&inputs[0], &inputs[1]);
        solver.given_3(
            &table.datum_type,
            &table.shape,
            &places.shape,
            move |solver, datum, table, places| {
                let shape = self.0.shape((datum, &table[..]), &places[..])?;
                solver.equals(&outputs[0].shape, shape)
            },
        )
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.0.clone(), inputs)
    }
}
