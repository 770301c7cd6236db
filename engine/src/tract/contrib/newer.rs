//! ONNX's operators that tract lacks, has for inference only or as they were otherwise, with those that it
//! has.

use super::body::{Body, ints};

type Written = Result<(), String>;

/// Each place in a window becomes a channel, so that what is left is a convolution of single pixels.
pub(super) fn deformed_convolution(body: &mut Body<'_>) -> Written {
    let (x, w, offsets) = (body.input(0)?, body.input(1)?, body.input(2)?);
    let mut inputs = vec![x, w, offsets];
    inputs.extend(body.given(4));
    let names = ["dilations", "kernel_shape", "offset_group", "pads", "strides"];
    let attributes = body.attributes(&names);
    let windows = body.op_with(super::DEFORMED, &inputs, attributes);
    let shape = body.integers(&[0, -1, 1, 1]);
    let weights = body.op("Reshape", &[w, &shape]);
    let mut inputs = vec![&*windows, &*weights];
    inputs.extend(body.given(3));
    let attributes = body.attributes(&["group"]);
    let y = body.op_with("Conv", &inputs, attributes);
    body.give(0, &y);
    Ok(())
}

/// Pad of operator sets before 11, whose pads and value are attributes: tract's takes no negative ones, and
/// goes past the end of what it reflects.
pub(super) fn padded(body: &mut Body<'_>) -> Written {
    let x = body.input(0)?;
    let pads = body.integers(body.ints("pads"));
    let value = body.single(body.float("value", 0.0));
    let inputs = [x, &pads, &value];
    let attributes = body.attributes(&["mode"]);
    let y = body.op_with("Pad", &inputs, attributes);
    body.give(0, &y);
    Ok(())
}

pub(super) fn swish(body: &mut Body<'_>) -> Written {
    let y = swish_of(body, 0)?;
    body.give(0, &y);
    Ok(())
}

pub(super) fn gated(body: &mut Body<'_>) -> Written {
    let gate = swish_of(body, 0)?;
    let y = body.op("Mul", &[&gate, body.input(1)?]);
    body.give(0, &y);
    Ok(())
}

/// tract's passes over `alpha`.
fn swish_of(body: &mut Body<'_>, index: usize) -> Result<String, String> {
    let (x, alpha) = (body.input(index)?, body.float("alpha", 1.0));
    if alpha == 1.0 {
        return Ok(body.op("Swish", &[x]));
    }
    let alpha = body.number(alpha, x);
    let scaled = body.op("Mul", &[x, &alpha]);
    let gate = body.op("Sigmoid", &[&scaled]);
    Ok(body.op("Mul", &[x, &gate]))
}

/// BatchNormalization by the batch's own means, which go into those that are kept.
pub(super) fn normalized_batch(body: &mut Body<'_>) -> Written {
    let (x, scale, bias) = (body.input(0)?, body.input(1)?, body.input(2)?);
    let kept = [body.input(3)?, body.input(4)?];
    let places = body.integers(&[0, 0, -1]);
    let rows = body.op("Reshape", &[x, &places]);
    let mean = channel_means(body, &rows);
    let centred = body.op("Sub", &[&rows, &mean]);
    let squares = body.op("Mul", &[&centred, &centred]);
    let variance = channel_means(body, &squares);
    let epsilon = body.float("epsilon", 1e-5);
    let epsilon = body.number(epsilon, x);
    let sum = body.op("Add", &[&variance, &epsilon]);
    let root = body.op("Sqrt", &[&sum]);
    let by_channel = body.integers(&[1, -1, 1]);
    let [scale, bias] = [scale, bias].map(|it| body.op("Reshape", &[it, &by_channel]));
    let unit = body.op("Div", &[&centred, &root]);
    let scaled = body.op("Mul", &[&unit, &scale]);
    let rows = body.op("Add", &[&scaled, &bias]);
    let shape = body.op("Shape", &[x]);
    let y = body.op("Reshape", &[&rows, &shape]);
    body.give(0, &y);
    let momentum = body.float("momentum", 0.9);
    for (index, (kept, new)) in kept.into_iter().zip([mean, variance]).enumerate() {
        if body.is_wanted(index + 1) {
            let list = body.integers(&[-1]);
            let new = body.op("Reshape", &[&new, &list]);
            let new = body.op("CastLike", &[&new, kept]);
            let [old_share, share] = [momentum, 1.0 - momentum].map(|it| body.number(it, kept));
            let [old, new] = [(kept, &old_share), (&*new, &share)]
                .map(|(value, share)| body.op("Mul", &[value, share]));
            let running = body.op("Add", &[&old, &new]);
            body.give(index + 1, &running);
        }
    }
    Ok(())
}

/// Of rows, channels and places: each channel's mean, whatever the operator set says of axes.
fn channel_means(body: &mut Body<'_>, rows: &str) -> String {
    let turned = body.op_with("Transpose", &[rows], vec![ints("perm", &[1, 0, 2])]);
    let all = body.integers(&[0, -1]);
    let channels = body.op("Reshape", &[&turned, &all]);
    let first = body.integers(&[0]);
    let image = body.op("Unsqueeze", &[&channels, &first]);
    body.op("GlobalAveragePool", &[&image])
}
