//! Whether two answers are the same, for golden tests and shadows.

use crate::tensor::{Datatype, Tensor};

/// Compares each of `expected` with the output of its name in `got`. A floating-point value may
/// be off by `tolerance`, relative to the larger of it and 1; all else must be equal.
///
/// # Errors
/// A text: the first output that differs, where, what was expected and what came.
pub fn differences(expected: &[Tensor], got: &[Tensor], tolerance: f64) -> Result<f64, String> {
    let mut largest = 0f64;
    for expected in expected {
        let name = &expected.name;
        let got = got.iter().find(|got| got.name == *name);
        let got = got.ok_or_else(|| format!("expected an output `{name}`, got none"))?;
        if (got.datatype, &got.shape) != (expected.datatype, &expected.shape) {
            return Err(format!(
                "output `{name}`: expected {} {:?}, got {} {:?}",
                expected.datatype, expected.shape, got.datatype, got.shape
            ));
        }
        let Some((expected, got)) = floats(expected).zip(floats(got)) else {
            if expected.data == got.data {
                continue;
            }
            return Err(format!("output `{name}`: its {} elements differ", expected.datatype));
        };
        for (index, (expected, got)) in expected.iter().zip(&got).enumerate() {
            if expected == got || (expected.is_nan() && got.is_nan()) {
                continue;
            }
            let difference = (expected - got).abs() / expected.abs().max(1.0);
            if difference.is_nan() || difference > tolerance {
                return Err(format!(
                    "output `{name}`: element {index}: expected {expected}, got {got}, off by more than {tolerance}"
                ));
            }
            largest = largest.max(difference);
        }
    }
    Ok(largest)
}

/// The elements of a floating-point tensor.
fn floats(tensor: &Tensor) -> Option<Vec<f64>> {
    fn read<const N: usize>(data: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        data.as_chunks::<N>().0.iter().map(|bytes| value(*bytes)).collect()
    }
    let data = &tensor.data;
    Some(match tensor.datatype {
        Datatype::Fp64 => read(data, f64::from_le_bytes),
        Datatype::Fp32 => read(data, |bytes| f32::from_le_bytes(bytes).into()),
        Datatype::Fp16 => read(data, |bytes| half::f16::from_le_bytes(bytes).into()),
        Datatype::Bf16 => read(data, |bytes| half::bf16::from_le_bytes(bytes).into()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> Vec<Tensor> {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let shape = vec![values.len() as u64];
        vec![Tensor { name: "x".into(), datatype: Datatype::Fp32, shape, data }]
    }

    #[test]
    fn floats_may_be_off_by_the_tolerance() {
        let compare = |a: &[f32], b: &[f32]| differences(&tensor(a), &tensor(b), 1e-3);
        assert_eq!(compare(&[1.0, 2.0], &[1.0, 2.0]), Ok(0.0));
        assert!(compare(&[1.0], &[1.0005]).is_ok_and(|largest| largest > 4e-4));
        assert!(compare(&[1000.0], &[1000.5]).is_ok());
        assert!(compare(&[1.0], &[1.01]).is_err());
        assert!(compare(&[1.0], &[f32::NAN]).is_err());
        assert!(compare(&[f32::NAN], &[f32::NAN]).is_ok());
        assert!(compare(&[f32::INFINITY], &[f32::INFINITY]).is_ok());
        assert!(compare(&[1.0], &[f32::INFINITY]).is_err());
        assert!(compare(&[1.0], &[1.0, 2.0]).is_err());
        assert!(differences(&tensor(&[1.0]), &[], 1.0).is_err());
        assert!(differences(&[], &tensor(&[1.0]), 0.0).is_ok());
    }
}
