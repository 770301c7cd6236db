//! What a run of a plan takes of memory, as far as that is known before it runs.

use std::collections::HashSet;

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::tract_core::ops::array::{Gather, Slice};
use tract_onnx::tract_hir::tract_core::ops::scan::OptScan;
use tract_onnx::tract_hir::tract_core::ops::source::TypedSource;

/// Of a string, beside its text: where it lies, and what the allocator keeps.
const STRING: usize = 64;

/// Of all that a plan's operators give, packed or not, which is more than what there is at a time,
/// in terms of its inputs' sizes.
#[derive(Debug)]
pub(super) struct Extent {
    bytes: TDim,
    /// Strings that are copies of some in the inputs.
    strings: TDim,
}

impl Extent {
    /// `None` where sizes depend on values, or on which branch is taken or how often a loop goes round,
    /// or strings are made.
    pub(super) fn of(model: &TypedModel) -> Option<Self> {
        let mut extent = Self { bytes: TDim::Val(0), strings: TDim::Val(0) };
        extent.add(model, true)?;
        Some(extent)
    }

    /// Whether all is known without the inputs' sizes.
    pub(super) fn is_fixed(&self) -> bool {
        matches!((&self.bytes, &self.strings), (TDim::Val(_), TDim::Val(_)))
    }

    /// Bytes for inputs of these sizes.
    pub(super) fn bytes(&self, sizes: &SymbolValues, inputs: &[&Arc<Tensor>]) -> Option<usize> {
        let number = |dim: &TDim| usize::try_from(dim.eval_to_i64(sizes).ok()?).ok();
        let (bytes, strings) = (number(&self.bytes)?, number(&self.strings)?);
        if strings == 0 {
            return Some(bytes);
        }
        let texts = inputs.iter().filter(|input| input.datum_type() == DatumType::String);
        let mut longest = 0;
        for input in texts {
            let plain = input.try_as_plain_ram().ok()?;
            let texts = plain.as_slice::<String>().ok()?.iter();
            longest = texts.map(String::len).fold(longest, usize::max);
        }
        bytes.checked_add(strings.checked_mul(longest.checked_add(STRING)?)?)
    }

    fn add(&mut self, model: &TypedModel, is_whole: bool) -> Option<()> {
        let inputs = model.inputs.iter().filter_map(|&input| model.outlet_fact(input).ok());
        let known: HashSet<Symbol> =
            inputs.flat_map(|fact| fact.shape.volume().symbols()).collect();
        for node in model.nodes() {
            if matches!(&*node.op.name(), "If" | "Repeated") {
                return None;
            }
            if let Some(scan) = node.op_as::<OptScan>() {
                self.add(scan.plan.model(), false)?;
            }
            let beside = beside(model, node)?;
            if !beside.symbols().is_subset(&known) {
                return None;
            }
            self.bytes += beside;
            for output in node.outputs.iter().filter(|output| output.fact.konst.is_none()) {
                let bytes = output.fact.mem_size();
                if !bytes.symbols().is_subset(&known) {
                    return None;
                }
                if output.fact.datum_type == DatumType::String {
                    let is_copy = is_whole && copies_inputs(model, node);
                    // A string is as long as it is.
                    self.strings += is_copy.then(|| output.fact.shape.volume())?;
                } else {
                    self.bytes += bytes;
                }
            }
        }
        Some(())
    }
}

/// Whether the strings that a node gives are all from the graph's inputs, if those before it are.
fn copies_inputs(model: &TypedModel, node: &TypedNode) -> bool {
    let copies = node.op_is::<Gather>() || node.op_is::<Slice>();
    let is_constant = |input: &OutletId| {
        model
            .outlet_fact(*input)
            .is_ok_and(|fact| fact.datum_type == DatumType::String && fact.konst.is_some())
    };
    node.op_is::<TypedSource>() || (copies && !node.inputs.iter().any(is_constant))
}

/// Bytes that an operator takes beside what it gives. Ours of Attention lay all out anew, in
/// singles: of halves that come with a past, six times what it takes, and twice what it gives.
fn beside(model: &TypedModel, node: &TypedNode) -> Option<TDim> {
    let mut bytes = TDim::Val(0);
    if matches!(&*node.op.name(), "Attention" | "HiddenRows") {
        for &input in &node.inputs {
            bytes += model.outlet_fact(input).ok()?.mem_size() * 6;
        }
        for output in &node.outputs {
            bytes += output.fact.mem_size() * 2;
        }
    }
    Some(bytes)
}
