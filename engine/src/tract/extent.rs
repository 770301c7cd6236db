//! What a run of a plan takes of memory, as far as that is known before it runs.

use std::collections::HashSet;

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::tract_core::ops::scan::OptScan;

/// Bytes of all that its operators give, packed or not, which is more than what there is at a time,
/// in terms of its inputs' sizes. `None` where they depend on values, or on which branch is taken.
pub(super) fn of(model: &TypedModel) -> Option<TDim> {
    let inputs = model.inputs.iter().filter_map(|&input| model.outlet_fact(input).ok());
    let known: HashSet<Symbol> = inputs.flat_map(|fact| fact.shape.volume().symbols()).collect();
    let mut all = TDim::Val(0);
    for node in model.nodes() {
        if node.op.name() == "If" {
            return None;
        }
        if let Some(scan) = node.op_as::<OptScan>() {
            all += of(scan.plan.model())?;
        }
        for output in node.outputs.iter().filter(|output| output.fact.konst.is_none()) {
            let bytes = output.fact.mem_size();
            // A string is as long as it is.
            if output.fact.datum_type == DatumType::String || !bytes.symbols().is_subset(&known) {
                return None;
            }
            all += bytes;
        }
    }
    Some(all)
}
