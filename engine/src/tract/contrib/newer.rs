//! ONNX's operators that tract lacks, with those that it has.

use super::body::Body;

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
