//! Numbers rounded to what narrow ones hold, where a graph of those that became one of wider ones casts to
//! them.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::element_wise::ElementWiseMiniOp;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::element_wise::ElementWiseOp;

use super::kernel::Built;
use crate::narrow::{Narrow, Rounding, Towards};
use crate::tract::widen::{KIND, ROUNDED};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert(ROUNDED, rounded);
}

fn rounded(_context: &ParsingContext, node: &NodeProto) -> Built {
    let rounding = rounding(node)?.context("no kind of narrow numbers")?;
    Ok((expand(ElementWiseOp(Box::new(Rounded(rounding)))), Vec::new()))
}

/// How a node rounds what it gives, if it does.
pub(super) fn rounding(node: &NodeProto) -> TractResult<Option<Rounding>> {
    let Some(to) = node.get_attr_opt::<i64>(KIND)?.and_then(Narrow::of) else { return Ok(None) };
    let saturates = node.get_attr_opt::<i64>("saturate")?.unwrap_or(1) != 0;
    let towards = node.get_attr_opt::<&str>("round_mode")?.unwrap_or("up");
    let towards = Towards::of(towards).with_context(|| format!("round_mode {towards}"))?;
    Ok(Some(Rounding { to, saturates, towards }))
}

/// Floats as those that a narrow datatype holds of them; whole numbers of few bits as INT8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::tract) struct Rounded(pub(in crate::tract) Rounding);

impl ElementWiseMiniOp for Rounded {
    fn name(&self) -> String {
        "Rounded".to_owned()
    }

    fn operating_datum_type(&self, datum: DatumType) -> DatumType {
        match self.0.to.is_whole() {
            false => DatumType::F32,
            true if datum.is_float() => DatumType::F64,
            true => DatumType::I64,
        }
    }

    fn output_type(&self, _: DatumType) -> Option<DatumType> {
        self.0.to.is_whole().then_some(DatumType::I8)
    }

    fn eval_in_place(&self, numbers: &mut Tensor, _: Option<DatumType>) -> TractResult<()> {
        self.0.round(numbers.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?);
        Ok(())
    }

    fn eval_out_of_place(&self, numbers: &Tensor, _: Option<DatumType>) -> TractResult<Tensor> {
        let mut output = Tensor::zero::<i8>(numbers.shape())?;
        let mut plain = output.try_as_plain_ram_mut()?;
        let (to, narrow) = (plain.as_slice_mut::<i8>()?.iter_mut(), self.0.to);
        let numbers_plain = numbers.try_as_plain_ram()?;
        match numbers.datum_type() {
            DatumType::F64 => {
                let numbers = numbers_plain.as_slice::<f64>()?;
                to.zip(numbers).for_each(|(to, &number)| *to = narrow.wrapped_nearest(number));
            }
            _ => {
                let numbers = numbers_plain.as_slice::<i64>()?;
                to.zip(numbers).for_each(|(to, &number)| *to = narrow.wrapped(number));
            }
        }
        Ok(output)
    }
}
