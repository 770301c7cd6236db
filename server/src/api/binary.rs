//! The binary tensor data extension, and raw bodies: `{json}{tensor bytes}…`, or nothing but
//! one tensor's bytes.

use super::infer::{AnswerForm, Parsed};
use super::json;
use crate::error::Error;
use crate::infer::InferRequest;
use crate::tensor::{Contract, Datatype, Tensor, TensorSpec, push_bytes_element};

/// Reads the header that says where the JSON ends.
///
/// # Errors
/// It is not a number, or more than the body has.
pub(super) fn json_length(header: &[u8], body_length: usize) -> Result<usize, Error> {
    let number =
        str::from_utf8(header).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let length =
        number.and_then(|text| text.parse().ok()).filter(|&length: &usize| length <= body_length);
    length.ok_or_else(|| {
        let came = String::from_utf8_lossy(header);
        Error::InvalidInput(format!("header Inference-Header-Content-Length: expected 0 to {body_length}, the body's length, got `{came}`"))
    })
}

/// Parses JSON of `json_length` bytes and the tensors behind it.
pub(super) fn parse(body: &[u8], json_length: usize) -> Result<Parsed, Error> {
    let (json, tensors) = body.split_at(json_length);
    json::parse(json, tensors)
}

/// Takes the whole body as the data of the model's one input. Its shape follows from its
/// length where the contract leaves one size free; a BYTES input is one element.
///
/// # Errors
/// The model has several inputs or leaves more than one size free, or the length does not fit.
pub(super) fn parse_raw(
    body: Vec<u8>,
    contract: &Contract,
    binary_by_default: bool,
) -> Result<Parsed, Error> {
    let [spec] = &contract.inputs[..] else {
        return Err(Error::InvalidInput(format!(
            "a raw body needs a model of one input, this has {}: send JSON with content type application/json, or binary tensors with Inference-Header-Content-Length",
            contract.inputs.len()
        )));
    };
    let input = raw_input(spec, body)
        .map_err(|reason| Error::InvalidInput(format!("input `{}`: {reason}", spec.name)))?;
    Ok(Parsed {
        request: InferRequest { inputs: vec![input], ..InferRequest::default() },
        id: None,
        form: AnswerForm { binary_by_default, own: Vec::new() },
    })
}

fn raw_input(spec: &TensorSpec, body: Vec<u8>) -> Result<Tensor, String> {
    let free = spec.shape.iter().filter(|&&size| size < 0).count();
    let fixed = spec
        .shape
        .iter()
        .filter(|&&size| size >= 0)
        .try_fold(1u64, |count, &size| count.checked_mul(size as u64));
    let (elements, data) = match spec.datatype.size() {
        None => {
            let mut data = Vec::with_capacity(body.len() + 4);
            push_bytes_element(&mut data, &body)?;
            (1, data)
        }
        Some(size) if body.len().is_multiple_of(size) => ((body.len() / size) as u64, body),
        Some(size) => {
            return Err(format!(
                "{} takes {size} bytes an element, got {} bytes",
                spec.datatype,
                body.len()
            ));
        }
    };
    let expected =
        || format!("expected {} {:?}, got {} bytes", spec.datatype, spec.shape, data.len());
    let fixed = fixed.filter(|&fixed| fixed > 0).ok_or_else(expected)?;
    let missing = match free {
        0 if fixed == elements => 1,
        1 if elements > 0 && elements.is_multiple_of(fixed) => elements / fixed,
        // One BYTES element has the same shape however many sizes are free.
        _ if spec.datatype == Datatype::Bytes && fixed == 1 => 1,
        _ => return Err(expected()),
    };
    let shape =
        spec.shape.iter().map(|&size| if size < 0 { missing } else { size as u64 }).collect();
    Ok(Tensor { name: spec.name.clone(), datatype: spec.datatype, shape, data })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(datatype: Datatype, shape: &[i64], length: usize) -> Result<Vec<u64>, String> {
        let spec = TensorSpec { name: "x".into(), datatype, shape: shape.into() };
        raw_input(&spec, vec![0; length]).map(|tensor| tensor.shape)
    }

    #[test]
    fn a_raw_body_takes_the_one_shape_that_fits() {
        assert_eq!(raw(Datatype::Fp32, &[2, 3], 24), Ok(vec![2, 3]));
        assert_eq!(raw(Datatype::Fp32, &[-1, 3], 24), Ok(vec![2, 3]));
        assert_eq!(raw(Datatype::Bytes, &[1], 7), Ok(vec![1]));
        assert_eq!(raw(Datatype::Bytes, &[-1], 0), Ok(vec![1]));
        assert_eq!(raw(Datatype::Bytes, &[-1, -1], 9), Ok(vec![1, 1]));
        assert_eq!(raw(Datatype::Fp32, &[], 4), Ok(vec![]));
    }

    #[test]
    fn a_raw_body_that_fits_no_shape_is_refused() {
        for (datatype, shape, length) in [
            (Datatype::Fp32, &[2i64, 3][..], 20),
            (Datatype::Fp32, &[2, 3], 23),
            (Datatype::Fp32, &[-1, 3], 16),
            (Datatype::Fp32, &[-1, -1], 16),
            (Datatype::Fp32, &[-1, 0], 0),
            (Datatype::Fp32, &[-1, 3], 0),
            (Datatype::Bytes, &[2], 5),
            (Datatype::Fp32, &[i64::MAX, i64::MAX], 8),
        ] {
            assert!(raw(datatype, shape, length).is_err(), "{datatype} {shape:?} {length}");
        }
    }

    #[test]
    fn the_json_must_end_inside_the_body() {
        assert!(matches!(json_length(b"0", 10), Ok(0)));
        assert!(matches!(json_length(b"10", 10), Ok(10)));
        for header in [&b"11"[..], b"-1", b"+1", b"", b"1e1", b"99999999999999999999", b"\xff"] {
            assert!(json_length(header, 10).is_err(), "{header:?}");
        }
    }
}
