//! FP32 rounded to what halves hold, where a graph of halves that became one of FP32 casts to them.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::element_wise::ElementWiseMiniOp;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::element_wise::ElementWiseOp;

use super::kernel::Built;
use crate::tract::halves::{Half, KIND, ROUNDED};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert(ROUNDED, rounded);
}

fn rounded(_context: &ParsingContext, node: &NodeProto) -> Built {
    let half = Half::of(node.get_attr::<i64>(KIND)?).context("no kind of halves")?;
    Ok((expand(ElementWiseOp(Box::new(Rounded(half)))), Vec::new()))
}

/// What a half of that kind holds of each number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::tract) struct Rounded(pub(in crate::tract) Half);

impl ElementWiseMiniOp for Rounded {
    fn name(&self) -> String {
        "Rounded".to_owned()
    }

    fn operating_datum_type(&self, _: DatumType) -> DatumType {
        DatumType::F32
    }

    fn eval_in_place(&self, numbers: &mut Tensor, _: Option<DatumType>) -> TractResult<()> {
        self.0.round(numbers.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?);
        Ok(())
    }
}
