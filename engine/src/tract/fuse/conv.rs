//! Convolutions of one or two dimensions in single precision, with what follows them.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::Arc;

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::cnn::{Conv, KernelFormat, PoolSpec};
use tract_onnx::tract_hir::tract_core::ops::nn::DataFormat;

use wisp_kernels::depthwise::Depthwise;
use wisp_kernels::window::Window;
use wisp_kernels::{
    Activation, Conv2d, Epilogue, Geometry, Grid, Images, Level, ResidualOrder, Scratch, Steps,
    WholeConv, Winograd,
};

use super::chain::{Chain, apply_post, by_channel};
use super::line::Line;
use super::quantized::grid_of;
use super::weights::PackedWeights;
use crate::tract::compiled::{Reader, Stored, Writer, stored_struct};
use crate::tract::team::OfThread;

thread_local! {
    /// What kernels need for the time of one call.
    static SCRATCH: RefCell<(Vec<f32>, Scratch)> = RefCell::default();
}

/// A convolution with its weights packed for this processor.
#[derive(Debug, Clone)]
pub(in crate::tract) struct FusedConv {
    kernel: Arc<Kernel>,
    bias: Arc<[f32]>,
    order: ResidualOrder,
    activation: Activation,
    post: Option<(f32, f32)>,
    /// Height is 1 where the convolution has one dimension.
    input: [usize; 4],
    /// In the graph's own rank.
    output: TVec<usize>,
}

#[derive(Debug)]
enum Kernel {
    Depthwise(Depthwise),
    Line(Line),
    Winograd(Winograd),
    General(Conv2d),
    Whole(WholeConv),
}

stored_struct!(FusedConv { kernel, bias, order, activation, post, input, output });

impl Stored for Kernel {
    fn put<'a>(&'a self, to: &mut Writer<'a>) -> Option<()> {
        match self {
            Kernel::Depthwise(kernel) => to.variant(0, kernel),
            Kernel::Line(kernel) => to.variant(1, kernel),
            Kernel::Winograd(kernel) => to.variant(2, kernel),
            Kernel::General(kernel) => to.variant(3, kernel),
            Kernel::Whole(kernel) => to.variant(4, kernel),
        }
    }

    fn take(from: &mut Reader<'_>) -> Option<Self> {
        Some(match u8::take(from)? {
            0 => Kernel::Depthwise(Stored::take(from)?),
            1 => Kernel::Line(Stored::take(from)?),
            2 => Kernel::Winograd(Stored::take(from)?),
            3 => Kernel::General(Stored::take(from)?),
            4 => Kernel::Whole(Stored::take(from)?),
            _ => return None,
        })
    }
}

/// What a kernel is chosen for, apart from its window and weights.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    geometry: Geometry,
    /// What its input stands on, where bytes are worth while.
    grid: Option<Grid>,
    /// May be turned over: a residual would have to be, too.
    may_be_line: bool,
    may_be_winograd: bool,
}

/// Replaces a convolution that our kernels can do.
pub(super) fn fuse(
    model: &TypedModel,
    id: usize,
    packed: &PackedWeights,
) -> TractResult<Option<TypedModelPatch>> {
    let node = model.node(id);
    let Some((window, input)) = geometry(model, node)? else { return Ok(None) };
    let weights = model.outlet_fact(node.inputs[1])?.konst.clone();
    let bias = model.outlet_fact(node.inputs[2])?.konst.clone();
    let (Some(weights), Some(bias), Some(op)) = (weights, bias, node.op_as::<Conv>()) else {
        return Ok(None);
    };
    let channels = op.output_channels();
    let Some(bias) = by_channel(&bias, 0, channels) else { return Ok(None) };
    let chain = Chain::follow(model, id, 1, bias)?;
    let mut weights = Cow::Borrowed(weights.try_as_plain_ram()?.as_slice::<f32>()?);
    if let Some(scale) = &chain.scale {
        let each = weights.len() / channels.max(1);
        for (weights, scale) in weights.to_mut().chunks_mut(each.max(1)).zip(scale) {
            weights.iter_mut().for_each(|weight| *weight *= scale);
        }
    }
    let geometry = Geometry {
        outputs: channels,
        inputs: op.input_channels(),
        groups: op.group,
        kernel: window.kernel,
        strides: window.strides,
        dilations: window.dilations,
        pads: window.pads,
    };
    // Its fractions would spoil sums of whole numbers, which are exact otherwise.
    let may_be_winograd = Winograd::pays(&geometry, [input[2], input[3]])
        && weights.iter().any(|weight| weight.fract() != 0.0);
    let level = Level::best();
    let are_bytes = level.favours_bytes(weights.len() / channels.max(1))
        && (level.has_dots() || !may_be_winograd);
    let wanted = Wanted {
        geometry,
        grid: if are_bytes { grid_of(model, node.inputs[0])? } else { None },
        may_be_line: input[2] == 1 && chain.residual.is_none(),
        may_be_winograd,
    };
    let kernel = packed.get(&wanted, &weights, || pack(wanted, window, &weights));
    let Some(kernel) = kernel else { return Ok(None) };
    let fact = &model.node(chain.last).outputs[0].fact;
    let Some(output) = fact.shape.as_concrete() else { return Ok(None) };
    let fused = FusedConv {
        kernel,
        bias: chain.bias.into(),
        order: chain.order,
        activation: chain.activation,
        post: chain.post,
        input,
        output: output.into(),
    };
    let mut patch = TypedModelPatch::default();
    let mut inputs = tvec!(patch.tap_model(model, node.inputs[0])?);
    if let Some(residual) = chain.residual {
        inputs.push(patch.tap_model(model, residual)?);
    }
    let wired = patch.wire_node(&node.name, fused, &inputs)?;
    patch.shunt_outside(model, chain.last.into(), wired[0])?;
    Ok(Some(patch))
}

fn pack(wanted: Wanted, window: Window, weights: &[f32]) -> Option<Kernel> {
    let Wanted { geometry, grid, may_be_line, may_be_winograd } = wanted;
    let Geometry { inputs, outputs, groups, .. } = geometry;
    if groups == inputs && groups > 1 {
        let depthwise = Depthwise::new(groups, outputs / groups, window, weights.to_vec());
        return depthwise.map(Kernel::Depthwise).ok();
    }
    if let Some(whole) = grid.and_then(|grid| WholeConv::new(geometry, weights, grid)) {
        return Some(Kernel::Whole(whole));
    }
    let is_line = may_be_line && groups == 1;
    if is_line && let Some(line) = Line::new(&window, [inputs, outputs], weights) {
        return Some(Kernel::Line(line));
    }
    if may_be_winograd {
        return Winograd::new(geometry, weights).map(Kernel::Winograd).ok();
    }
    Conv2d::new(geometry, weights).map(Kernel::General).ok()
}

/// The window and the input's shape \[N, C, H, W\], where a convolution is one of ours.
fn geometry(model: &TypedModel, node: &TypedNode) -> TractResult<Option<(Window, [usize; 4])>> {
    let Some(op) = node.op_as::<Conv>() else { return Ok(None) };
    if op.q_params.is_some() || op.kernel_fmt != KernelFormat::OIHW {
        return Ok(None);
    }
    Ok(window(&op.pool_spec, model.outlet_fact(node.inputs[0])?))
}

/// What slides over an input, and the input's shape \[N, C, H, W\], in one or two dimensions of
/// single precision; a height of 1 where there is one dimension.
pub(super) fn window(spec: &PoolSpec, input: &TypedFact) -> Option<(Window, [usize; 4])> {
    if input.datum_type != DatumType::F32 || spec.data_format != DataFormat::NCHW {
        return None;
    }
    let shape = input.shape.as_concrete()?;
    let padding = spec.computed_padding(shape.get(2..)?);
    let (strides, dilations) = (spec.strides(), spec.dilations());
    let kernel = &spec.kernel_shape;
    match (shape, &padding[..]) {
        (&[n, c, w], [x]) => {
            let window = Window {
                kernel: [1, kernel[0]],
                strides: [1, strides[0]],
                dilations: [1, dilations[0]],
                pads: [0, x.pad_before, 0, x.pad_after],
            };
            Some((window, [n, c, 1, w]))
        }
        (&[n, c, h, w], [y, x]) => {
            let window = Window {
                kernel: [kernel[0], kernel[1]],
                strides: [strides[0], strides[1]],
                dilations: [dilations[0], dilations[1]],
                pads: [y.pad_before, x.pad_before, y.pad_after, x.pad_after],
            };
            Some(along_rows(window, [n, c, h, w]))
        }
        _ => None,
    }
}

/// A column of values is a row of them in memory, and kernels are quick along rows.
fn along_rows(window: Window, [n, c, h, w]: [usize; 4]) -> (Window, [usize; 4]) {
    let Window { kernel, strides, dilations, pads: [top, left, bottom, right] } = window;
    if w != 1 || kernel[1] != 1 || left + right != 0 {
        return (window, [n, c, h, w]);
    }
    let window = Window {
        kernel: [1, kernel[0]],
        strides: [1, strides[0]],
        dilations: [1, dilations[0]],
        pads: [0, top, 0, bottom],
    };
    (window, [n, c, 1, h])
}

impl FusedConv {
    /// The steps that its values are rounded to, if they are.
    pub(super) fn steps(&self) -> Option<Steps> {
        steps_after(self.activation, self.order, self.post)
    }
}

/// The steps that an epilogue rounds to, if it does.
pub(super) fn steps_after(
    activation: Activation,
    order: ResidualOrder,
    post: Option<(f32, f32)>,
) -> Option<Steps> {
    match activation {
        Activation::Steps(steps) if order == ResidualOrder::BeforeActivation && post.is_none() => {
            Some(steps)
        }
        _ => None,
    }
}

impl PartialEq for FusedConv {
    fn eq(&self, other: &Self) -> bool {
        // The same weights may be shared by convolutions that differ in all else.
        Arc::ptr_eq(&self.kernel, &other.kernel)
            && self.bias == other.bias
            && (self.order, self.activation, self.post)
                == (other.order, other.activation, other.post)
            && (self.input, &self.output) == (other.input, &other.output)
    }
}

impl Eq for FusedConv {}

impl Op for FusedConv {
    fn name(&self) -> StaticName {
        match &*self.kernel {
            Kernel::Depthwise(_) => "FusedDepthwise".into(),
            Kernel::Line(_) => "FusedLine".into(),
            Kernel::Winograd(_) => "FusedWinograd".into(),
            Kernel::General(_) => "FusedConv".into(),
            Kernel::Whole(_) => "FusedWholeConv".into(),
        }
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("{:?}", self.activation)])
    }

    op_as_typed_op!();
}

impl EvalOp for FusedConv {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = inputs[0].try_as_plain_ram()?.as_slice::<f32>()?;
        let residual = match inputs.get(1) {
            Some(residual) => Some(residual.try_as_plain_ram()?.as_slice::<f32>()?),
            None => None,
        };
        let epilogue = Epilogue {
            bias: Some(&self.bias),
            residual,
            order: self.order,
            activation: self.activation,
        };
        // SAFETY: the kernels write every element.
        let mut output = unsafe { Tensor::uninitialized::<f32>(&self.output)? };
        let mut plain = output.try_as_plain_ram_mut()?;
        let y = plain.as_slice_mut::<f32>()?;
        let [batch, _, height, width] = self.input;
        let level = Level::best();
        let images = Images { batch, image: [height, width], input: x, epilogue };
        SCRATCH.with_borrow_mut(|(rows, scratch)| match &*self.kernel {
            Kernel::Depthwise(kernel) => {
                kernel.run(x, self.input, &epilogue, y, &OfThread).map_err(TractError::new)
            }
            Kernel::Line(kernel) => {
                kernel.run(x, width, y, &epilogue, rows).map_err(TractError::new)
            }
            Kernel::Winograd(kernel) => {
                kernel.run(level, images, y, scratch, &OfThread).map_err(TractError::new)
            }
            Kernel::Whole(kernel) => {
                kernel.run(level, images, y, scratch, &OfThread).map_err(TractError::new)
            }
            Kernel::General(kernel) => {
                kernel.run(level, images, y, scratch, &OfThread).map_err(TractError::new)
            }
        })?;
        apply_post(self.post, y);
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for FusedConv {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact(&self.output)))
    }

    as_op!();
}
