//! `simple_string`: the sums and the differences of integers that are written as text.

use wisp_guest::{Contract, Datatype, Error, Request, Tensor, TensorSpec};

const SHAPE: [u64; 2] = [1, 16];

pub(crate) fn contract() -> Contract {
    let spec = |name: &str| TensorSpec::new(name, Datatype::Bytes, SHAPE.map(u64::cast_signed));
    Contract {
        inputs: ["INPUT0", "INPUT1"].map(spec).into(),
        outputs: ["OUTPUT0", "OUTPUT1"].map(spec).into(),
    }
}

/// # Errors
/// An element is no integer.
pub(crate) fn infer(request: &Request) -> Result<Vec<Tensor>, Error> {
    let (left, right) = (integers(request, "INPUT0")?, integers(request, "INPUT1")?);
    let texts = |operation: fn(i64, i64) -> i64| -> Vec<String> {
        left.iter().zip(&right).map(|(&left, &right)| operation(left, right).to_string()).collect()
    };
    let sums = || texts(|left, right| left + right);
    let differences = || texts(|left, right| left - right);
    let mut outputs = Vec::new();
    if request.wants("OUTPUT0") {
        outputs.push(Tensor { shape: SHAPE.into(), ..Tensor::bytes("OUTPUT0", &sums()) });
    }
    if request.wants("OUTPUT1") {
        outputs.push(Tensor { shape: SHAPE.into(), ..Tensor::bytes("OUTPUT1", &differences()) });
    }
    Ok(outputs)
}

/// Of 32 bits, as the reference server's; wider here, so that no sum overflows.
fn integers(request: &Request, input: &str) -> Result<Vec<i64>, Error> {
    let integer = |(index, element): (usize, &[u8])| {
        let text = String::from_utf8_lossy(element);
        text.parse::<i32>().map(i64::from).map_err(|_| {
            Error::InvalidInput(format!(
                "input `{input}`: element {index}: expected an integer of 32 bits, got {text:?}"
            ))
        })
    };
    request.input(input)?.to_bytes()?.into_iter().enumerate().map(integer).collect()
}
