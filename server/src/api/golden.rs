//! Golden tests: an input through the same doors as a client's, its answer compared.

use std::sync::Arc;

use super::infer::Parsed;
use super::{binary, json};
use crate::bundle::Golden;
use crate::compare::differences;
use crate::infer::Inference;
use crate::repository::Revision;

/// Runs one golden test, and returns the largest difference of any floating-point value.
///
/// # Errors
/// A text: which file is wrong, or what was expected and what came.
pub async fn check_golden(
    inference: &Inference,
    model: &str,
    revision: &Arc<Revision>,
    golden: &Golden,
) -> Result<f64, String> {
    let input = golden.input.bytes()?;
    let parsed = match golden.is_json {
        true => json::parse(input, &[]),
        false => binary::parse_raw(input.to_vec(), &revision.contract, false),
    };
    let Parsed { mut request, .. } = parsed.map_err(|error| format!("its input: {error}"))?;
    let expected = json::parse_answer(golden.expect.bytes()?);
    let expected = expected.map_err(|reason| format!("its expected answer: {reason}"))?;
    if expected.is_empty() {
        return Err("its expected answer has no outputs to compare".to_owned());
    }
    request.outputs = expected.iter().map(|output| output.name.clone()).collect();
    let response = inference.infer(model, revision, request).await;
    let response = response.map_err(|error| error.to_string())?;
    differences(&expected, &response.outputs, golden.tolerance)
}
