//! Sums along a last axis that may turn out to be of no elements, where tract divides by their number;
//! and extremes of doubles, of which it gives the last finite one there.

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::nn::{Reduce, Reducer};

use crate::tract::compiled::stored_struct;

/// tract's, but for what is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::tract) struct Reduction {
    reduce: Reduce,
}

stored_struct!(Reduction { reduce });

/// Puts it for tract's. After decluttering, which knows tract's only.
pub(super) fn fuse(model: &TypedModel, id: usize) -> TractResult<Option<TypedModelPatch>> {
    let node = model.node(id);
    let Some(reduce) = node.op_as::<Reduce>() else { return Ok(None) };
    let fact = model.outlet_fact(node.inputs[0])?;
    let may_be_none =
        reduce.axes.iter().any(|&axis| fact.shape[axis].as_i64().is_none_or(|size| size == 0));
    let is_wrong = match reduce.reducer {
        Reducer::Sum => {
            let is_last = matches!(reduce.axes[..], [axis] if axis + 1 == fact.rank());
            is_last && fact.datum_type.is_float()
        }
        Reducer::Max | Reducer::Min => fact.datum_type == DatumType::F64,
        _ => false,
    };
    if !may_be_none || !is_wrong {
        return Ok(None);
    }
    let reduction = Reduction { reduce: reduce.clone() };
    TypedModelPatch::replace_single_op(model, node, &node.inputs, reduction).map(Some)
}

impl Op for Reduction {
    fn name(&self) -> StaticName {
        self.reduce.name()
    }

    op_as_typed_op!();
}

impl EvalOp for Reduction {
    op_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = &inputs[0];
        if input.len() > 0 {
            return self.reduce.eval(context, inputs);
        }
        let of_none = match self.reduce.reducer {
            Reducer::Max => f64::NEG_INFINITY,
            Reducer::Min => f64::INFINITY,
            _ => 0.0,
        };
        let mut shape: TVec<usize> = input.shape().into();
        self.reduce.axes.iter().for_each(|&axis| shape[axis] = 1);
        let of_none = tensor0(of_none).cast_to_dt(input.datum_type())?.into_owned();
        Ok(tvec!(of_none.broadcast_scalar_to_shape(&shape)?.into_tvalue()))
    }
}

impl TypedOp for Reduction {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.reduce.output_facts(inputs)
    }

    as_op!();
}
