//! Rows of a constant table by their numbers: embeddings, also those that are written as a product
//! with ones and zeros (`one_hot.rs`). The table stays where it lies, which may be a file, as a run
//! reads few of its rows.

use bytes::Bytes;

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::array::Gather;

use crate::tract::compiled::{Reader, Stored, Writer};

/// A table \[rows, width\] of single precision, and its shape in the graph: \[rows, …\].
#[derive(Debug, Clone)]
pub(in crate::tract) struct FusedTable {
    /// The elements.
    table: Bytes,
    shape: TVec<usize>,
    /// Whether its last row stands for all numbers that have none; else there are none such.
    has_rest: bool,
}

/// A constant as bytes.
struct Owner(Arc<Tensor>);

/// Replaces what takes rows of a constant table.
pub(super) fn fuse(model: &TypedModel, id: usize) -> TractResult<Option<TypedModelPatch>> {
    let Some(fused) = fused(model, id)? else { return Ok(None) };
    let mut patch = TypedModelPatch::default();
    let tap = patch.tap_model(model, model.node(id).inputs[1])?;
    let wired = patch.wire_node(&model.node(id).name, fused, &[tap])?;
    patch.shunt_outside(model, id.into(), wired[0])?;
    Ok(Some(patch))
}

fn fused(model: &TypedModel, id: usize) -> TractResult<Option<FusedTable>> {
    let node = model.node(id);
    let is_ours = node.op_as::<Gather>().is_some_and(|op| op.axis == 0 && op.output_type.is_none());
    if !is_ours || model.outlet_fact(node.inputs[1])?.datum_type != DatumType::I64 {
        return Ok(None);
    }
    let Some(konst) = model.outlet_fact(node.inputs[0])?.konst.clone() else { return Ok(None) };
    let is_table = konst.datum_type() == DatumType::F32 && konst.rank() > 1 && konst.len() > 0;
    if !is_table || konst.as_plain_ram().is_none() {
        return Ok(None);
    }
    Ok(Some(FusedTable::new(konst, false)))
}

impl Stored for FusedTable {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        self.shape.put(to)?;
        self.has_rest.put(to)?;
        to.large(&self.table)
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        let (shape, has_rest) = (TVec::<usize>::take(from)?, bool::take(from)?);
        let table = from.large()?;
        let size = shape.iter().try_fold(size_of::<f32>(), |size, &next| size.checked_mul(next));
        let fits = size == Some(table.len()) && shape.len() > 1 && !table.is_empty();
        (fits && table.as_ptr().cast::<f32>().is_aligned()).then_some(Self {
            table,
            shape,
            has_rest,
        })
    }
}

impl FusedTable {
    /// Of a table in single precision, in memory, of rank 2 or more and with rows that are not empty.
    pub(super) fn new(table: Arc<Tensor>, has_rest: bool) -> Self {
        let shape = table.shape().into();
        Self { table: Bytes::from_owner(Owner(table)), shape, has_rest }
    }

    fn row(&self, index: i64) -> TractResult<&[u8]> {
        let rows = self.shape[0];
        if self.has_rest {
            let at = usize::try_from(index).map_or(rows - 1, |index| index.min(rows - 1));
            let row = self.table.len() / rows;
            return Ok(&self.table[at * row..][..row]);
        }
        let at = if index < 0 { index.checked_add_unsigned(rows as u64) } else { Some(index) };
        let at = at.and_then(|at| usize::try_from(at).ok()).filter(|&at| at < rows);
        let at = at.with_context(|| format!("there is no row {index} in a table of {rows}"))?;
        let row = self.table.len() / rows;
        Ok(&self.table[at * row..][..row])
    }
}

impl PartialEq for FusedTable {
    fn eq(&self, other: &Self) -> bool {
        // Equal tables elsewhere are not worth reading.
        self.table.as_ptr() == other.table.as_ptr()
            && (&self.shape, self.has_rest) == (&other.shape, other.has_rest)
    }
}

impl Eq for FusedTable {}

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        self.0.as_plain_ram_storage().map(|storage| storage.as_bytes()).unwrap_or_default()
    }
}

impl Op for FusedTable {
    fn name(&self) -> StaticName {
        "FusedTable".into()
    }

    op_as_typed_op!();
}

impl EvalOp for FusedTable {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let plain = inputs[0].try_as_plain_ram()?;
        let shape = [inputs[0].shape(), &self.shape[1..]].concat();
        // SAFETY: each row is written below, or nobody reads it.
        let mut output = unsafe { Tensor::uninitialized::<f32>(&shape)? };
        let storage = output.as_plain_ram_storage_mut().context("a tensor in memory")?;
        let row = self.table.len() / self.shape[0];
        let rows = storage.as_bytes_mut().chunks_exact_mut(row.max(1));
        for (to, &index) in rows.zip(plain.as_slice::<i64>()?) {
            to.copy_from_slice(self.row(index)?);
        }
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for FusedTable {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let rest = self.shape[1..].iter().map(|size| size.to_dim());
        let shape: TVec<TDim> = inputs[0].shape.iter().cloned().chain(rest).collect();
        Ok(tvec!(f32::fact(&shape[..])))
    }

    as_op!();
}
