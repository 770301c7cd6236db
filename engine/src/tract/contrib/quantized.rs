//! Operators on quantised tensors. Sums of products are of whole numbers, in floats; what they give is
//! rounded where ONNX Runtime rounds it. Of the others, what they take is dequantised and what they give
//! quantised, as ONNX Runtime does.

use tract_onnx::pb::tensor_proto::DataType;

use super::body::{Body, float, int, ints};

type Written = Result<(), String>;

const FLOAT: i64 = DataType::Float as i64;

impl Body<'_> {
    /// The input at `index`, whose scale and zero point come next.
    fn dequantized(&mut self, index: usize) -> Result<String, String> {
        self.dequantized_along(index, None)
    }

    /// With scales along an axis.
    fn dequantized_along(&mut self, index: usize, axis: Option<i64>) -> Result<String, String> {
        let mut inputs = vec![self.input(index)?, self.input(index + 1)?];
        inputs.extend(self.given(index + 2));
        let axis = axis.map(|axis| int("axis", axis)).into_iter().collect();
        Ok(self.op_with("DequantizeLinear", &inputs, axis))
    }

    /// Gives a value quantised by the scale and zero point at `index`, of the type of the input at
    /// `like` where there is no zero point.
    fn give_quantized(&mut self, value: &str, index: usize, like: usize) -> Written {
        self.give_quantized_by(value, self.input(index)?, index + 1, like)
    }

    fn give_quantized_by(&mut self, value: &str, scale: &str, zero: usize, like: usize) -> Written {
        let zero = zero_point(self, zero, like)?;
        let quantized = self.op("QuantizeLinear", &[value, scale, &zero]);
        self.give(0, &quantized);
        Ok(())
    }
}

pub(super) fn of_two(body: &mut Body<'_>, kind: &str) -> Written {
    let zeros = [zero_point(body, 2, 0)?, zero_point(body, 5, 3)?, zero_point(body, 7, 0)?];
    let (a, a_scale) = (body.input(0)?, body.input(1)?);
    let (b, b_scale) = (body.input(3)?, body.input(4)?);
    let [a_zero, b_zero, zero] = &zeros;
    let inputs = [a, a_scale, a_zero, b, b_scale, b_zero, body.input(6)?, zero];
    let y = body.op(kind, &inputs);
    body.give(0, &y);
    Ok(())
}

pub(super) fn sigmoid(body: &mut Body<'_>) -> Written {
    let x = body.dequantized(0)?;
    let y = body.op("Sigmoid", &[&x]);
    body.give_quantized(&y, 3, 0)
}

pub(super) fn leaky_relu(body: &mut Body<'_>) -> Written {
    let x = body.dequantized(0)?;
    let alpha = float("alpha", body.float("alpha", 0.01));
    let y = body.op_with("LeakyRelu", &[&x], vec![alpha]);
    body.give_quantized(&y, 3, 0)
}

/// The attribute `opset` says which Softmax is meant: before 13, an axis and all after it are one. The
/// answer's scale is that of a whole number.
pub(super) fn softmax(body: &mut Body<'_>) -> Written {
    let (axis, version) = (body.int("axis", -1), body.int("opset", 13));
    let x = body.dequantized(0)?;
    let y = if axis == -1 || version >= 13 && body.is_recent() {
        body.op_with("Softmax", &[&x], vec![int("axis", axis)])
    } else if version < 13 {
        let shape = body.op("Shape", &[&x]);
        let flat = body.op_with("Flatten", &[&x], vec![int("axis", axis)]);
        let shares = body.op_with("Softmax", &[&flat], vec![int("axis", -1)]);
        body.op("Reshape", &[&shares, &shape])
    } else {
        return Err(format!("the Softmax of operator set {version} in a graph of an older one"));
    };
    let steps = body.op("Reciprocal", &[body.input(3)?]);
    let steps = body.op("Floor", &[&steps]);
    let scale = body.op("Reciprocal", &[&steps]);
    body.give_quantized_by(&y, &scale, 4, 0)
}

impl Body<'_> {
    /// Of what a window goes over: of images where the node does not say it. Those of another rank
    /// cannot be planned.
    fn rank(&self) -> usize {
        match self.ints("kernel_shape").len() {
            0 => 4,
            sides => sides + 2,
        }
    }

    /// An operator on images of so many axes whose channels come last, where `is_last` says so.
    fn of_images(
        &mut self,
        x: &str,
        (rank, is_last): (usize, bool),
        operator: impl FnOnce(&mut Self, &str) -> String,
    ) -> String {
        if !is_last {
            return operator(self, x);
        }
        let rank = rank as i64;
        let first: Vec<i64> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
        let last: Vec<i64> = [0].into_iter().chain(2..rank).chain([1]).collect();
        let x = self.op_with("Transpose", &[x], vec![ints("perm", &first)]);
        let y = operator(self, &x);
        self.op_with("Transpose", &[&y], vec![ints("perm", &last)])
    }
}

const WINDOW: [&str; 7] =
    ["auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides"];

pub(super) fn average_pool(body: &mut Body<'_>) -> Written {
    let attributes = body.attributes(&WINDOW);
    let channels = (body.rank(), body.int("channels_last", 0) != 0);
    let x = body.dequantized(0)?;
    let pool = |body: &mut Body<'_>, x: &str| body.op_with("AveragePool", &[x], attributes);
    let y = body.of_images(&x, channels, pool);
    let zero = zero_point(body, 4, 0)?;
    let y = body.op(super::MEANS, &[&y, body.input(3)?, &zero]);
    body.give(0, &y);
    Ok(())
}

pub(super) fn max_pool(body: &mut Body<'_>) -> Written {
    let attributes = body.attributes(&WINDOW);
    let channels = (body.rank(), true);
    let pool = |body: &mut Body<'_>, x: &str| body.op_with("MaxPool", &[x], attributes);
    let y = body.of_images(body.input(0)?, channels, pool);
    body.give(0, &y);
    Ok(())
}

const CONVOLUTION: [&str; 6] =
    ["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"];

impl Body<'_> {
    /// The whole numbers of an input, from its zero point on, as floats; there may be several along an
    /// axis.
    fn whole(&mut self, value: &str, zeros: Option<&str>, axis: Option<i64>) -> String {
        let mut one = self.single(1.0);
        if let (Some(zeros), Some(_)) = (zeros, axis) {
            // As many as there are.
            let zeros = self.op_with("Cast", &[zeros], vec![int("to", FLOAT)]);
            let nothing = self.op("Sub", &[&zeros, &zeros]);
            one = self.op("Add", &[&nothing, &one]);
        }
        let mut inputs = vec![value, &one];
        inputs.extend(zeros);
        let axis = axis.map(|axis| int("axis", axis)).into_iter().collect();
        self.op_with("DequantizeLinear", &inputs, axis)
    }

    /// A scale that must be one number.
    fn scalar(&mut self, scale: &str) -> String {
        let none = self.integers(&[]);
        self.op("Reshape", &[scale, &none])
    }

    /// Gives sums of products of whole numbers by the scales of what was multiplied and the one at
    /// `index`, whose zero point comes next.
    fn give_sums(&mut self, sums: &str, scales: [&str; 2], index: usize, axis: i64) -> Written {
        let factor = self.op("Mul", &scales);
        let factor = self.op("Div", &[&factor, self.input(index)?]);
        let zero = zero_point(self, index + 1, 0)?;
        let axis = vec![int("axis", axis)];
        let y = self.op_with(super::SUMS, &[sums, &factor, &zero], axis);
        self.give(0, &y);
        Ok(())
    }
}

/// As ONNX's, but for where the channels may be.
pub(super) fn convolution(body: &mut Body<'_>) -> Written {
    let attributes = body.attributes(&CONVOLUTION);
    let (rank, is_last) = (body.rank(), body.int("channels_last", 0) != 0);
    let (x_scale, w_scale) = (body.input(1)?, body.input(4)?);
    let x = body.whole(body.input(0)?, body.given(2), None);
    let w = body.whole(body.input(3)?, body.given(5), Some(0));
    let bias = body.given(8);
    let bias = bias.map(|bias| body.op("CastLike", &[bias, x_scale]));
    let sums = body.of_images(&x, (rank, is_last), |body, x| {
        let mut inputs = vec![x, &w];
        inputs.extend(bias.as_deref());
        body.op_with("Conv", &inputs, attributes)
    });
    let axis = if is_last { -1 } else { 1 };
    body.give_sums(&sums, [x_scale, w_scale], 6, axis)
}

/// Of tensors with one scale each, the second with one for each column, too.
pub(super) fn quantized_product(body: &mut Body<'_>) -> Written {
    let (a_scale, b_scale) = (body.input(1)?, body.input(4)?);
    let a = body.whole(body.input(0)?, body.given(2), None);
    let b = body.whole(body.input(3)?, body.given(5), Some(-1));
    let sums = body.op("MatMul", &[&a, &b]);
    let a_scale = body.scalar(a_scale);
    body.give_sums(&sums, [&a_scale, b_scale], 6, -1)
}

/// Whose sums are wanted as floats.
pub(super) fn convolution_of_integers(body: &mut Body<'_>) -> Written {
    let attributes = body.attributes(&CONVOLUTION);
    let x = body.whole(body.input(0)?, body.given(2), None);
    let w = body.whole(body.input(1)?, body.given(3), Some(0));
    let y = body.op_with("Conv", &[&x, &w], attributes);
    body.give(0, &y);
    Ok(())
}

/// Whose sums are wanted as floats.
pub(super) fn product_of_integers(body: &mut Body<'_>) -> Written {
    let (a, b) = ((body.input(0)?, body.given(2)), (body.input(1)?, body.given(3)));
    let y = sums_of(body, a, b);
    body.give(0, &y);
    Ok(())
}

/// The product of whole numbers, from their zero points on, as floats; the second may have one for each
/// column.
fn sums_of(
    body: &mut Body<'_>,
    (a, a_zero): (&str, Option<&str>),
    (b, b_zeros): (&str, Option<&str>),
) -> String {
    let a = body.whole(a, a_zero, None);
    let mut b = body.op_with("Cast", &[b], vec![int("to", FLOAT)]);
    if let Some(zeros) = b_zeros {
        let zeros = body.op_with("Cast", &[zeros], vec![int("to", FLOAT)]);
        b = body.op("Sub", &[&b, &zeros]);
    }
    body.op("MatMul", &[&a, &b])
}

pub(super) fn global_average_pool(body: &mut Body<'_>) -> Written {
    let channels = (body.rank(), body.int("channels_last", 0) != 0);
    let x = body.dequantized(0)?;
    let pool = |body: &mut Body<'_>, x: &str| body.op("GlobalAveragePool", &[x]);
    let y = body.of_images(&x, channels, pool);
    body.give_quantized(&y, 3, 0)
}

/// Its scale and zero point come first.
pub(super) fn concat(body: &mut Body<'_>) -> Written {
    if body.inputs() % 3 != 2 {
        return Err(format!("{} inputs, expected two and three for each tensor", body.inputs()));
    }
    let tensors = (2..body.inputs()).step_by(3).map(|index| body.dequantized(index));
    let tensors: Vec<String> = tensors.collect::<Result<_, _>>()?;
    let tensors: Vec<&str> = tensors.iter().map(String::as_str).collect();
    let y = body.op_with("Concat", &tensors, vec![int("axis", body.int("axis", 0))]);
    body.give_quantized(&y, 0, 2)
}

pub(super) fn choice(body: &mut Body<'_>) -> Written {
    let (x, y) = (body.dequantized(1)?, body.dequantized(4)?);
    let z = body.op("Where", &[body.input(0)?, &x, &y]);
    body.give_quantized(&z, 7, 1)
}

/// The bias has the scale of the product. Without a scale of its own, the answer stays as it is.
pub(super) fn gemm(body: &mut Body<'_>) -> Written {
    let (a_scale, b_scale) = (body.input(1)?, body.input(4)?);
    let of_columns = if body.int("transB", 0) != 0 { 0 } else { 1 };
    let a = body.whole(body.input(0)?, body.given(2), None);
    let b = body.whole(body.input(3)?, body.given(5), Some(of_columns));
    let attributes = body.attributes(&["transA", "transB"]);
    let mut sums = body.op_with("Gemm", &[&a, &b], attributes);
    if let Some(bias) = body.given(6) {
        let bias = body.op("CastLike", &[bias, a_scale]);
        sums = body.op("Add", &[&sums, &bias]);
    }
    let a_scale = body.scalar(a_scale);
    let alpha = body.number(body.float("alpha", 1.0), &a_scale);
    let a_scale = body.op("Mul", &[&alpha, &a_scale]);
    match body.given(7) {
        Some(_) => body.give_sums(&sums, [&a_scale, b_scale], 7, -1),
        None => {
            let factor = body.op("Mul", &[&a_scale, b_scale]);
            let y = body.op("Mul", &[&sums, &factor]);
            body.give(0, &y);
            Ok(())
        }
    }
}

/// An integer zero of the type of the input at `like`, where none is given.
fn zero_point(body: &mut Body<'_>, index: usize, like: usize) -> Result<String, String> {
    Ok(match body.given(index) {
        Some(zero) => zero.to_owned(),
        None => {
            let zero = body.integer(0);
            body.op("CastLike", &[&zero, body.input(like)?])
        }
    })
}

/// The product of the integers in the first two inputs by both scales, and a bias; `zeros` are the
/// places of their zero points.
pub(super) fn product_of(
    body: &mut Body<'_>,
    scales: [&str; 2],
    zeros: [usize; 2],
    bias: Option<&str>,
) -> Result<String, String> {
    let (a, b) = ((body.input(0)?, body.given(zeros[0])), (body.input(1)?, body.given(zeros[1])));
    let sums = sums_of(body, a, b);
    Ok(scaled(body, &sums, scales, bias))
}

fn scaled(body: &mut Body<'_>, sums: &str, scales: [&str; 2], bias: Option<&str>) -> String {
    let scale = body.op("Mul", &scales);
    let y = body.op("Mul", &[sums, &scale]);
    match bias {
        Some(bias) => body.op("Add", &[&y, bias]),
        None => y,
    }
}

pub(super) fn dynamic_product(body: &mut Body<'_>) -> Written {
    let (b, b_scale) = (body.input(1)?, body.input(2)?);
    let [a, a_scale, a_zero] =
        body.outputs_with("DynamicQuantizeLinear", &[body.input(0)?], Vec::new());
    let sums = sums_of(body, (&a, Some(&a_zero)), (b, body.given(3)));
    let y = scaled(body, &sums, [&a_scale, b_scale], body.given(4));
    body.give(0, &y);
    Ok(())
}

pub(super) fn product(body: &mut Body<'_>) -> Written {
    let scales = [body.input(2)?, body.input(3)?];
    let y = product_of(body, scales, [4, 5], body.given(6))?;
    body.give(0, &y);
    Ok(())
}

/// Of weights of a few bits each, which are made numbers once, as the graph is loaded.
pub(super) fn product_of_bits(body: &mut Body<'_>) -> Written {
    if body.given(4).is_some() {
        return Err("weights in another order (g_idx)".to_owned());
    }
    let mut inputs = vec![body.input(1)?, body.input(2)?];
    inputs.extend(body.given(3));
    let attributes = body.attributes(&["K", "N", "bits", "block_size"]);
    let weights = body.op_with(super::UNPACKED, &inputs, attributes);
    let weights = body.op_with("Transpose", &[&weights], vec![ints("perm", &[1, 0])]);
    let mut y = body.op("MatMul", &[body.input(0)?, &weights]);
    if let Some(bias) = body.given(5) {
        y = body.op("Add", &[&y, bias]);
    }
    body.give(0, &y);
    Ok(())
}

/// Of weights that are codes of four bits, as bitsandbytes has them.
pub(super) fn product_of_codes(body: &mut Body<'_>) -> Written {
    if body.int("transB", 1) == 0 {
        return Err("weights the other way round (transB)".to_owned());
    }
    let attributes = body.attributes(&["K", "N", "block_size", "quant_type"]);
    let weights = body.op_with(super::DECODED, &[body.input(1)?, body.input(2)?], attributes);
    let weights = body.op_with("Transpose", &[&weights], vec![ints("perm", &[1, 0])]);
    let y = body.op("MatMul", &[body.input(0)?, &weights]);
    body.give(0, &y);
    Ok(())
}

/// An LSTM of quantised weights, which lie the other way round than ONNX's. What it takes is quantised
/// once, and its state before each product, which is the LSTM's own to do.
pub(super) fn lstm(body: &mut Body<'_>) -> Written {
    if body.given(4).or(body.given(7)).is_some() {
        return Err("lengths of sequences, or peepholes".to_owned());
    }
    let (w, r) = (lstm_weights(body, 1, 8)?, lstm_weights(body, 2, 10)?);
    let quantized: [String; 3] =
        body.outputs_with("DynamicQuantizeLinear", &[body.input(0)?], Vec::new());
    let x = body.op("DequantizeLinear", &quantized.each_ref().map(String::as_str));
    let mut inputs = vec![&*x, &w, &r];
    inputs.extend((3..8).map(|index| body.given(index).unwrap_or_default()));
    let mut attributes = body.attributes(&[
        "activation_alpha",
        "activation_beta",
        "activations",
        "clip",
        "direction",
        "hidden_size",
        "input_forget",
    ]);
    attributes.push(int(super::ROUNDS_STATES, 1));
    let outputs: [String; 3] = body.outputs_with("LSTM", &inputs, attributes);
    for (index, output) in outputs.iter().enumerate() {
        body.give(index, output);
    }
    Ok(())
}

/// The weights at `index`, whose scales and zero points at `scale` are one number, or one for each
/// row, for each direction.
fn lstm_weights(body: &mut Body<'_>, index: usize, scale: usize) -> Result<String, String> {
    let scales = body.input(scale)?;
    let mut numbers = body.op("CastLike", &[body.input(index)?, scales]);
    let shape = body.integers(&[0, 1, -1]);
    if let Some(zeros) = body.given(scale + 1) {
        let zeros = body.op("CastLike", &[zeros, scales]);
        let zeros = body.op("Reshape", &[&zeros, &shape]);
        numbers = body.op("Sub", &[&numbers, &zeros]);
    }
    let scales = body.op("Reshape", &[scales, &shape]);
    let numbers = body.op("Mul", &[&numbers, &scales]);
    Ok(body.op_with("Transpose", &[&numbers], vec![ints("perm", &[0, 2, 1])]))
}
