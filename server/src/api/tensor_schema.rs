//! JSON Schemas of a model's tensors, as exact as JSON Schema can be: sizes and ranges, but not
//! that a tensor has as many elements as its free sizes say.

use serde_json::{Number, Value, json};

use crate::tensor::{Datatype, TensorSpec};

/// What a client sends for an input, as JSON.
pub(super) fn input(spec: &TensorSpec) -> Value {
    let flat = flat_data(spec);
    let data = match spec.shape.len() {
        0 | 1 => flat,
        _ => json!({"anyOf": [flat, nested_data(&spec.shape, spec.datatype)]}),
    };
    tensor(spec, data)
}

/// An output, or its largest values where they were asked for.
pub(super) fn output(spec: &TensorSpec) -> Value {
    let own = tensor(spec, flat_data(spec));
    if spec.datatype == Datatype::Bytes {
        return own;
    }
    let rank = spec.shape.len().clamp(1, 2);
    let classes = json!({
        "type": "object",
        "description": "With `classification`.",
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"const": spec.name},
            "datatype": {"const": "BYTES"},
            "shape": list(vec![free_size(); rank], "How many classes, of each row where there are rows."),
            "data": {"type": "array", "items": {"type": "string"}},
        },
    });
    any_of(vec![own, classes])
}

/// What a client may ask of an output, whose `parameters` any output has.
pub(super) fn requested_output(spec: &TensorSpec, mut parameters: Value) -> Value {
    if spec.datatype == Datatype::Bytes {
        parameters["properties"]["classification"] =
            json!({"const": 0, "description": "BYTES have no classes."});
    }
    if !fits_json(spec.datatype) {
        parameters["description"] = "JSON cannot carry it: `binary_data` is needed.".into();
    }
    json!({
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"const": spec.name}, "parameters": parameters},
    })
}

fn tensor(spec: &TensorSpec, data: Value) -> Value {
    let size = |&size: &i64| if size < 0 { free_size() } else { json!({"const": size}) };
    let shape =
        list(spec.shape.iter().map(size).collect(), "Written without fraction or exponent.");
    json!({
        "type": "object",
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"const": spec.name},
            "datatype": {"const": spec.datatype.name()},
            "shape": shape,
            "data": data,
        },
    })
}

fn free_size() -> Value {
    json!({"type": "integer", "minimum": 0})
}

/// Exactly these items, in this order.
pub(super) fn list(items: Vec<Value>, description: &str) -> Value {
    let count = items.len();
    let mut list = json!({
        "type": "array",
        "description": description,
        "minItems": count,
        "maxItems": count,
    });
    // Where there are none, the keyword may not stand.
    if count > 0 {
        list["prefixItems"] = items.into();
    }
    list
}

/// One of these; nothing, where there are none.
pub(super) fn any_of(mut schemas: Vec<Value>) -> Value {
    match schemas.len() {
        1 => schemas.swap_remove(0),
        0 => false.into(),
        _ => json!({"anyOf": schemas}),
    }
}

fn flat_data(spec: &TensorSpec) -> Value {
    if !fits_json(spec.datatype) {
        return json!({"not": {}, "description": "JSON cannot carry it: it goes as a binary tensor."});
    }
    let mut data = json!({
        "type": "array",
        "description": "The elements, row-major: as many as the shape says.",
        "items": element(spec.datatype),
    });
    let is_fixed = spec.shape.iter().all(|&size| size >= 0);
    if let Some(elements) = elements(spec).filter(|_| is_fixed) {
        data["minItems"] = elements.into();
        data["maxItems"] = elements.into();
    }
    data
}

/// Lists in lists, as the shape has them.
fn nested_data(shape: &[i64], datatype: Datatype) -> Value {
    let [size, rest @ ..] = shape else { return element(datatype) };
    let mut data = json!({"type": "array", "items": nested_data(rest, datatype)});
    if *size >= 0 {
        data["minItems"] = (*size).into();
        data["maxItems"] = (*size).into();
    }
    data
}

/// Whether JSON carries elements of that type.
pub(super) fn fits_json(datatype: Datatype) -> bool {
    !matches!(datatype, Datatype::Fp16 | Datatype::Bf16)
}

fn element(datatype: Datatype) -> Value {
    match datatype {
        Datatype::Bool => json!({"type": "boolean"}),
        Datatype::Uint8 => integer(u8::MIN, u8::MAX),
        Datatype::Uint16 => integer(u16::MIN, u16::MAX),
        Datatype::Uint32 => integer(u32::MIN, u32::MAX),
        Datatype::Uint64 => integer(u64::MIN, u64::MAX),
        Datatype::Int8 => integer(i8::MIN, i8::MAX),
        Datatype::Int16 => integer(i16::MIN, i16::MAX),
        Datatype::Int32 => integer(i32::MIN, i32::MAX),
        Datatype::Int64 => integer(i64::MIN, i64::MAX),
        Datatype::Fp32 => {
            // Half an ulp beyond the largest: what is beyond rounds to infinity.
            let bound = f64::from(f32::MAX) + 2f64.powi(103);
            json!({"type": "number", "minimum": -bound, "maximum": bound})
        }
        Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp64 => {
            json!({"type": "number", "minimum": f64::MIN, "maximum": f64::MAX})
        }
        Datatype::Bytes => json!({"type": "string"}),
    }
}

fn integer(minimum: impl Into<Number>, maximum: impl Into<Number>) -> Value {
    let (minimum, maximum): (Number, Number) = (minimum.into(), maximum.into());
    json!({"type": "integer", "minimum": minimum, "maximum": maximum})
}

/// The product of the fixed sizes.
pub(super) fn elements(spec: &TensorSpec) -> Option<u64> {
    let mut fixed = spec.shape.iter().filter_map(|&size| u64::try_from(size).ok());
    fixed.try_fold(1u64, |count, size| count.checked_mul(size))
}
