//! Weights that are not what they say.

use tract_onnx::pb::TensorProto;

use crate::build::{FLOAT, file, node, raw, singles};
use crate::hostile::Named;

pub fn cases() -> Vec<Named> {
    let four = singles("", &[4], &[1.0, 2.0, 3.0, 4.0]).raw_data;
    let mut weights: Vec<(String, TensorProto)> = Vec::new();
    let giants: [&[i64]; 11] = [
        &[3],
        &[5],
        &[-1],
        &[-4],
        &[1 << 40],
        &[1 << 40, 1 << 40],
        &[1 << 62, 4],
        &[i64::MAX, 2],
        &[i64::MIN],
        &[0, 1 << 62],
        &[1 << 32, 1 << 32, 0],
    ];
    for dims in giants {
        weights.push((format!("raw {dims:?}"), raw("w", FLOAT, dims, &four)));
        weights.push((format!("none {dims:?}"), raw("w", FLOAT, dims, &[])));
        let apart = TensorProto { float_data: vec![1.0; 4], ..raw("w", FLOAT, dims, &[]) };
        weights.push((format!("apart {dims:?}"), apart));
    }
    let both = TensorProto { float_data: vec![1.0; 7], ..raw("w", FLOAT, &[4], &four) };
    weights.push(("raw and apart".into(), both));
    weights.push(("seventeen bytes".into(), raw("w", FLOAT, &[4], &[0; 17])));
    for data_type in -1..29 {
        weights.push((format!("type {data_type}"), raw("w", data_type, &[4], &four)));
        weights.push((format!("type {data_type}, none"), raw("w", data_type, &[4], &[])));
        // Of four bits and two, counts that leave a part of the last byte.
        for (elements, bytes) in [(3, 1), (3, 3), (5, 1), (5, 4)] {
            let name = format!("{elements} of type {data_type} in {bytes}");
            weights.push((name.clone(), raw("w", data_type, &[elements], &four[..bytes])));
            let listed = TensorProto {
                int32_data: vec![0x5a; bytes],
                ..raw("w", data_type, &[elements], &[])
            };
            weights.push((format!("{name}, listed"), listed));
        }
    }
    let named = weights.into_iter().map(|(name, weights)| {
        let add = vec![node("Add", &["x", "w"], &["y"], &[])];
        (format!("weights: {name}"), file(&[4], &[weights], add))
    });
    named.collect()
}
