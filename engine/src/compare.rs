//! Whether two answers are the same: for golden tests, shadows and engines.

use crate::tensor::{Datatype, Tensor, Value};

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
        let [expected, got] = [expected, got].map(value_of);
        let difference = difference(&expected, &got, tolerance);
        largest = largest.max(difference.map_err(|reason| format!("output `{name}`: {reason}"))?);
    }
    Ok(largest)
}

/// As [`differences`], of one value.
///
/// # Errors
/// A text: where it differs, what was expected and what came.
pub fn difference(expected: &Value<'_>, got: &Value<'_>, tolerance: f64) -> Result<f64, String> {
    compare(expected, got, tolerance, |_| 1.0)
}

/// As [`difference`], but relative to the largest value that is expected: probabilities of a
/// thousand classes are all far below 1, and an engine that gives none of them is wrong.
///
/// # Errors
/// As there.
pub fn agreement(expected: &Value<'_>, got: &Value<'_>, tolerance: f64) -> Result<f64, String> {
    compare(expected, got, tolerance, |expected| {
        let finite = expected.iter().filter(|value| value.is_finite());
        finite.fold(LEAST, |largest, value| largest.max(value.abs()))
    })
}

/// What is below it all over is rounding.
const LEAST: f64 = 1e-6;

/// `scale` says of all values to what a difference is relative at least.
fn compare(
    expected: &Value<'_>,
    got: &Value<'_>,
    tolerance: f64,
    scale: impl Fn(&[f64]) -> f64,
) -> Result<f64, String> {
    if (got.datatype, &got.shape) != (expected.datatype, &expected.shape) {
        return Err(format!(
            "expected {} {:?}, got {} {:?}",
            expected.datatype, expected.shape, got.datatype, got.shape
        ));
    }
    let Some((expected, got)) = floats(expected).zip(floats(got)) else {
        return match expected.data == got.data {
            true => Ok(0.0),
            false => Err(format!("its {} elements differ", expected.datatype)),
        };
    };
    let (mut largest, scale) = (0f64, scale(&expected));
    for (index, (expected, got)) in expected.iter().zip(&got).enumerate() {
        if expected == got || (expected.is_nan() && got.is_nan()) {
            continue;
        }
        let difference = (expected - got).abs() / expected.abs().max(scale);
        if difference.is_nan() || difference > tolerance {
            return Err(format!(
                "element {index}: expected {expected}, got {got}, off by more than {tolerance}"
            ));
        }
        largest = largest.max(difference);
    }
    Ok(largest)
}

fn value_of(tensor: &Tensor) -> Value<'_> {
    Value {
        datatype: tensor.datatype,
        shape: tensor.shape.iter().map(|&size| size as usize).collect(),
        data: std::borrow::Cow::Borrowed(&tensor.data),
    }
}

/// The elements of a floating-point tensor.
fn floats(value: &Value<'_>) -> Option<Vec<f64>> {
    fn read<const N: usize>(data: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        data.as_chunks::<N>().0.iter().map(|bytes| value(*bytes)).collect()
    }
    let data = &value.data;
    Some(match value.datatype {
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

    #[test]
    fn small_values_must_agree_too() {
        let agree = |a: &[f32], b: &[f32]| {
            let [a, b] = [tensor(a), tensor(b)];
            agreement(&value_of(&a[0]), &value_of(&b[0]), 1e-3).is_ok()
        };
        assert!(!agree(&[1e-3, 2e-3], &[0.0, 0.0]));
        assert!(agree(&[1e-3, 2e-3], &[1e-3, 2.001e-3]));
        assert!(agree(&[1e-6, 2.0], &[0.0, 2.0]));
        assert!(agree(&[0.0], &[1e-10]));
        assert!(agree(&[f32::INFINITY, 1.0], &[f32::INFINITY, 1.0]));
        assert!(!agree(&[f32::INFINITY], &[1.0]));
    }
}
