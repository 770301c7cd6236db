//! Attention of packed queries, keys and values, written as ONNX's.

use super::body::{Body, float, int, ints};
use super::quantized::product_of;

type Written = Result<(), String>;

/// What an operator attends to.
struct Attended<'a> {
    q: &'a str,
    k: &'a str,
    v: &'a str,
    mask: Option<&'a str>,
    /// What is added to the scores.
    addends: Option<&'a str>,
    past: Option<[&'a str; 2]>,
}

pub(super) fn attention(body: &mut Body<'_>) -> Written {
    if body.int("do_rotary", 0) != 0 || body.int("past_present_share_buffer", 0) != 0 {
        return Err("rotated heads, or a buffer for past and present".to_owned());
    }
    let mut packed = body.op("MatMul", &[body.input(0)?, body.input(1)?]);
    if let Some(bias) = body.given(2) {
        packed = body.op("Add", &[&packed, bias]);
    }
    attend_to_packed(body, &packed, [3, 4], body.given(5))
}

pub(super) fn quantized(body: &mut Body<'_>) -> Written {
    let scales = [body.input(3)?, body.input(4)?];
    let packed = product_of(body, scales, [6, 7], body.given(2))?;
    attend_to_packed(body, &packed, [5, 8], None)
}

/// `places` are those of the mask and of the past.
fn attend_to_packed(
    body: &mut Body<'_>,
    packed: &str,
    places: [usize; 2],
    addends: Option<&str>,
) -> Written {
    let [mask, past] = places.map(|index| body.given(index));
    let [q, k, v] = parts(body, packed)?;
    let past = past.map(|past| {
        [0, 1].map(|index| {
            let index = body.integer(index);
            body.op_with("Gather", &[past, &index], vec![int("axis", 0)])
        })
    });
    let past = past.as_ref().map(|past| past.each_ref().map(String::as_str));
    let attended = Attended { q: &q, k: &k, v: &v, mask, addends, past };
    let [y, k, v] = attend(body, &attended)?;
    body.give(0, &y);
    if body.is_wanted(1) {
        let [k, v] = [k, v].map(|part| body.unsqueezed(&part, 0));
        let present = body.op_with("Concat", &[&k, &v], vec![int("axis", 0)]);
        body.give(1, &present);
    }
    Ok(())
}

/// Of queries, keys and values that come apart, whose biases come as one.
pub(super) fn of_heads(body: &mut Body<'_>) -> Written {
    if body.is_wanted(3) {
        return Err("the scores as an output".to_owned());
    }
    let mut parts = [body.input(0)?, body.input(1)?, body.input(2)?].map(str::to_owned);
    if let Some(bias) = body.given(3) {
        let mut start = body.integers(&[0]);
        for part in &mut parts {
            let shape = body.op("Shape", &[part]);
            let [from, to] = [2, 3].map(|place| body.integers(&[place]));
            let size = body.op("Slice", &[&shape, &from, &to]);
            let end = body.op("Add", &[&start, &size]);
            let bias = body.op("Slice", &[bias, &start, &end]);
            *part = body.op("Add", &[part, &bias]);
            start = end;
        }
    }
    let [q, k, v] = parts.each_ref().map(String::as_str);
    let past = match (body.given(6), body.given(7)) {
        (Some(k), Some(v)) => Some([k, v]),
        (None, None) => None,
        _ => return Err("past keys without past values, or these without those".to_owned()),
    };
    let (mask, addends) = (body.given(4), body.given(5));
    let outputs = attend(body, &Attended { q, k, v, mask, addends, past })?;
    for (index, output) in outputs.iter().enumerate() {
        body.give(index, output);
    }
    Ok(())
}

/// What comes of it, and all keys and values.
fn attend(body: &mut Body<'_>, attended: &Attended<'_>) -> Result<[String; 3], String> {
    let &Attended { q, k, v, mask, addends, past } = attended;
    let heads = body.int("num_heads", 0);
    if heads <= 0 {
        return Err(format!("num_heads is {heads}"));
    }
    let is_causal = body.int("unidirectional", 0);
    let masked = (mask.is_some() || is_causal != 0).then(|| {
        let keys = past.map(|[keys, _]| keys).unwrap_or_default();
        let filter = float("mask_filter_value", body.float("mask_filter_value", -10_000.0));
        let attributes = vec![filter, int("unidirectional", is_causal)];
        body.op_with(super::MASK, &[q, k, mask.unwrap_or_default(), keys], attributes)
    });
    let mask = match (masked, addends) {
        (masked, None) => masked,
        (masked, Some(addends)) => {
            let sum = masked.map(|mask| body.op("Add", &[&mask, addends]));
            let sum = sum.unwrap_or_else(|| addends.to_owned());
            // Of the least number, which these hide keys by, ONNX's operator would make zeros.
            let least = body.number(f32::MIN.next_up(), &sum);
            Some(body.op("Max", &[&sum, &least]))
        }
    };
    let mut inputs = vec![q, k, v];
    if mask.is_some() || past.is_some() {
        inputs.push(mask.as_deref().unwrap_or_default());
    }
    inputs.extend(past.into_iter().flatten());
    let mut attributes = vec![int("q_num_heads", heads), int("kv_num_heads", heads)];
    let scale = body.given_float("scale").filter(|&scale| scale != 0.0);
    attributes.extend(scale.map(|scale| float("scale", scale)));
    Ok(match (1..3).any(|index| body.is_wanted(index)) {
        true => body.outputs_with("Attention", &inputs, attributes),
        false => [body.op_with("Attention", &inputs, attributes), String::new(), String::new()],
    })
}

/// Queries, keys and values: a third of the last axis each, unless the node says otherwise.
fn parts(body: &mut Body<'_>, packed: &str) -> Result<[String; 3], String> {
    let sizes = body.ints("qkv_hidden_sizes");
    if sizes.is_empty() {
        let shape = body.integers(&[0, 0, 3, -1]);
        let thirds = body.op("Reshape", &[packed, &shape]);
        return Ok([0, 1, 2].map(|index| {
            let index = body.integer(index);
            body.op_with("Gather", &[&thirds, &index], vec![int("axis", 2)])
        }));
    }
    let &[q, k, v] = sizes else { return Err(format!("qkv_hidden_sizes is {sizes:?}")) };
    let ends = [Some(q), q.checked_add(k), q.checked_add(k).and_then(|end| end.checked_add(v))];
    let [Some(q), Some(k), Some(v)] = ends else {
        return Err(format!("qkv_hidden_sizes is {sizes:?}"));
    };
    Ok([(0, q), (q, k), (k, v)].map(|(start, end)| {
        let [start, end, axis] = [start, end, 2].map(|value| body.integers(&[value]));
        body.op("Slice", &[packed, &start, &end, &axis])
    }))
}

impl Body<'_> {
    /// With one more axis. It was an attribute before operator set 13.
    pub(super) fn unsqueezed(&mut self, value: &str, axis: i64) -> String {
        if !self.is_recent() {
            return self.op_with("Unsqueeze", &[value], vec![ints("axes", &[axis])]);
        }
        let axes = self.integers(&[axis]);
        self.op("Unsqueeze", &[value, &axes])
    }
}
