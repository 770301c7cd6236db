//! Operators that are several of ONNX's in one.

use tract_onnx::pb::tensor_proto::DataType;

use super::body::{Body, float, int, ints};
use crate::tract::operators::TRANSPOSED;

type Written = Result<(), String>;

/// A product of matrices of which either may be transposed.
pub(super) fn product(body: &mut Body<'_>) -> Written {
    let is_set = |name: &str| body.int(name, 0) != 0;
    if is_set("transBatchA") || is_set("transBatchB") {
        return Err("transposed batches".to_owned());
    }
    let mut factors = [body.input(0)?, body.input(1)?].map(str::to_owned);
    for (factor, name) in factors.iter_mut().zip(["transA", "transB"]) {
        if body.int(name, 0) != 0 {
            *factor = body.op(TRANSPOSED, &[factor]);
        }
    }
    let product = body.op("MatMul", &factors.each_ref().map(String::as_str));
    let alpha = body.float("alpha", 1.0);
    if alpha == 1.0 {
        body.give(0, &product);
        return Ok(());
    }
    let alpha = body.number(alpha, &product);
    let scaled = body.op("Mul", &[&product, &alpha]);
    body.give(0, &scaled);
    Ok(())
}

pub(super) fn gemm(body: &mut Body<'_>) -> Written {
    let mut inputs = vec![body.input(0)?, body.input(1)?];
    inputs.extend(body.given(2));
    let attributes = body.attributes(&["alpha", "beta", "transA", "transB"]);
    let y = body.op_with("Gemm", &inputs, attributes);
    let given = ["activation_alpha", "activation_beta"].map(|name| body.given_float(name));
    let parameters: Vec<f32> = given.into_iter().map_while(|parameter| parameter).collect();
    let y = activated(body, &y, &parameters)?;
    body.give(0, &y);
    Ok(())
}

/// A convolution, to which a tensor may be added before its activation.
pub(super) fn convolution(body: &mut Body<'_>) -> Written {
    let mut inputs = vec![body.input(0)?, body.input(1)?];
    inputs.extend(body.given(2));
    let names = ["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"];
    let mut y = body.op_with("Conv", &inputs, body.attributes(&names));
    if let Some(z) = body.given(3) {
        y = body.op("Add", &[&y, z]);
    }
    let y = activated(body, &y, body.floats("activation_params"))?;
    body.give(0, &y);
    Ok(())
}

fn activated(body: &mut Body<'_>, x: &str, parameters: &[f32]) -> Result<String, String> {
    let kind = body.text("activation");
    Ok(match (kind, parameters) {
        ("", _) => x.to_owned(),
        ("Relu" | "Sigmoid" | "Tanh", _) => body.op(kind, &[x]),
        ("LeakyRelu", &[alpha, ..]) => body.op_with(kind, &[x], vec![float("alpha", alpha)]),
        ("HardSigmoid", &[alpha, beta, ..]) => {
            let attributes = vec![float("alpha", alpha), float("beta", beta)];
            body.op_with(kind, &[x], attributes)
        }
        ("Clip", &[low, high, ..]) => {
            let [low, high] = [low, high].map(|bound| body.number(bound, x));
            let at_least = body.op("Max", &[x, &low]);
            body.op("Min", &[&at_least, &high])
        }
        _ => return Err(format!("the activation {kind:?} of parameters {parameters:?}")),
    })
}

/// The sum of a word's, a place's and a segment's embedding, normalised.
pub(super) fn embedding(body: &mut Body<'_>) -> Written {
    let ids = body.input(0)?;
    let words = body.op("Gather", &[body.input(2)?, ids]);
    let places = match body.given(8) {
        Some(places) => body.op("Gather", &[body.input(3)?, places]),
        None => {
            let shape = body.op("Shape", &[ids]);
            let [start, middle, end] = [0, 1, 2].map(|at| body.integers(&[at]));
            let length = body.op("Slice", &[&shape, &middle, &end]);
            body.op("Slice", &[body.input(3)?, &start, &length, &start])
        }
    };
    let mut sum = body.op("Add", &[&words, &places]);
    if let Some(segments) = body.given(1) {
        let segments = body.op("Gather", &[body.input(4)?, segments]);
        sum = body.op("Add", &[&sum, &segments]);
    }
    let attributes = vec![int("axis", -1), float("epsilon", body.float("epsilon", 1e-12))];
    let inputs = [&sum, body.input(5)?, body.input(6)?];
    let y = body.op_with("LayerNormalization", &inputs, attributes);
    body.give(0, &y);
    body.give(2, &sum);
    if body.is_wanted(1) {
        let lengths = lengths(body)?;
        body.give(1, &lengths);
    }
    Ok(())
}

/// How many ones a row's mask has; zeros without one.
fn lengths(body: &mut Body<'_>) -> Result<String, String> {
    let shown = match body.given(7) {
        Some(mask) => {
            let one = body.integer(1);
            let one = body.op("CastLike", &[&one, mask]);
            body.op("Equal", &[mask, &one])
        }
        None => {
            let ids = body.input(0)?;
            body.op("Sub", &[ids, ids])
        }
    };
    let shown = body.op_with("Cast", &[&shown], vec![int("to", DataType::Int32 as i64)]);
    let mut attributes = vec![int("keepdims", 0)];
    let axes = body.integers(&[1]);
    let mut inputs = vec![shown.as_str()];
    match body.is_recent() {
        true => inputs.push(&axes),
        false => attributes.push(ints("axes", &[1])),
    }
    Ok(body.op_with("ReduceSum", &inputs, attributes))
}

/// The sum of two tensors and a bias, whose input is at `bias`, normalised.
pub(super) fn skip(body: &mut Body<'_>, normalization: &str, bias: usize) -> Written {
    if body.is_wanted(1) || body.is_wanted(2) {
        return Err("means and deviations as outputs".to_owned());
    }
    let mut sum = body.op("Add", &[body.input(0)?, body.input(1)?]);
    if let Some(bias) = body.given(bias) {
        sum = body.op("Add", &[&sum, bias]);
    }
    let mut inputs = vec![sum.as_str()];
    inputs.extend((2..bias).filter_map(|index| body.given(index)));
    let epsilon = float("epsilon", body.float("epsilon", 1e-12));
    let y = body.op_with(normalization, &inputs, vec![int("axis", -1), epsilon]);
    body.give(0, &y);
    body.give(3, &sum);
    Ok(())
}

/// Whose values come in the order in which they are first met, each value with its place among those.
pub(super) fn unique(body: &mut Body<'_>) -> Written {
    let x = body.input(0)?;
    let [values, _, places, counts] = body.outputs_with("Unique", &[x], vec![int("sorted", 0)]);
    for (index, value) in [values, places, counts].iter().enumerate() {
        body.give(index, value);
    }
    Ok(())
}
