//! What DeformConv is written with (`contrib`), beside a convolution of single pixels.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::attributes::integers;
use super::kernel::Built;
use crate::tract::contrib::DEFORMED;
use crate::tract::fuse::DeformedWindows;

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert(DEFORMED, deformed);
}

/// In a window, as `sound.rs` has it of those that attributes say.
const MAX_PLACES: usize = 1 << 24;

/// The windows, but for their size where only the weights say it.
#[derive(Debug, Clone)]
struct Deformed {
    kernel: Option<[usize; 2]>,
    windows: DeformedWindows,
}

fn deformed(_context: &ParsingContext, node: &NodeProto) -> Built {
    let kernel = sizes(node, "kernel_shape", 1)?;
    let groups = node.get_attr_opt::<i64>("offset_group")?.unwrap_or(1);
    let windows = DeformedWindows {
        kernel: kernel.unwrap_or([1, 1]),
        strides: sizes(node, "strides", 1)?.unwrap_or([1, 1]),
        dilations: sizes(node, "dilations", 1)?.unwrap_or([1, 1]),
        pads: sizes(node, "pads", 0)?.unwrap_or_default(),
        groups: usize::try_from(groups)
            .ok()
            .filter(|&groups| groups > 0)
            .with_context(|| format!("offset_group {groups}, expected 1 or more"))?,
    };
    Ok((expand(Deformed { kernel, windows }), Vec::new()))
}

/// `None` where the node does not say.
fn sizes<const N: usize>(
    node: &NodeProto,
    name: &str,
    least: i64,
) -> TractResult<Option<[usize; N]>> {
    let given = integers(node, name)?;
    if given.is_empty() {
        return Ok(None);
    }
    let sizes =
        <[i64; N]>::try_from(given).ok().filter(|sizes| sizes.iter().all(|&size| size >= least));
    let sizes =
        sizes.with_context(|| format!("{name} {given:?}, expected {N} of {least} or more"))?;
    Ok(Some(sizes.map(|size| size as usize)))
}

impl Deformed {
    /// # Errors
    /// Weights of another rank or kernel.
    fn of_weights(&self, weights: &[TDim]) -> TractResult<DeformedWindows> {
        let [_, _, rows, columns] = weights else {
            bail!("weights of rank {}, expected 4", weights.len());
        };
        let kernel = [rows.to_usize()?, columns.to_usize()?];
        let wanted = self.kernel.unwrap_or(kernel);
        ensure!(kernel == wanted, "weights of {kernel:?}, expected {wanted:?} as kernel_shape");
        let places = kernel[0].checked_mul(kernel[1]);
        let is_sound = places.is_some_and(|places| (1..=MAX_PLACES).contains(&places));
        ensure!(is_sound, "windows of {kernel:?}, expected 1 to {MAX_PLACES} places");
        Ok(DeformedWindows { kernel, ..self.windows.clone() })
    }
}

impl Expansion for Deformed {
    fn name(&self) -> StaticName {
        "DeformConv".into()
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
        solver.equals(&outputs[0].datum_type, DatumType::F32)?;
        for input in inputs {
            solver.given(&input.datum_type, |_, datum| {
                ensure!(datum == DatumType::F32, "expected FP32, got {datum:?}");
                Ok(())
            })?;
        }
        let (images, weights, offsets) = (&inputs[0].shape, &inputs[1].shape, &inputs[2].shape);
        solver.given_3(images, weights, offsets, move |solver, images, weights, offsets| {
            let windows = self.of_weights(&weights)?;
            solver.equals(&outputs[0].shape, windows.shape(&images[..], &offsets[..])?)
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let windows = self.of_weights(model.outlet_fact(inputs[1])?.shape.dims())?;
        let mut taken: TVec<OutletId> = inputs.into();
        taken.remove(1);
        model.wire_node(prefix, windows, &taken)
    }
}
