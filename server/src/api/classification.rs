//! The protocol's classification extension: an output's largest values with their indices and
//! labels, in place of the values.

use std::cmp::Ordering;
use std::fmt::Display;

use half::{bf16, f16};

use super::infer::AnswerForm;
use crate::error::Error;
use crate::infer::InferResponse;
use crate::repository::Revision;
use crate::tensor::{Datatype, Parameter, Tensor, push_bytes_element};

/// Puts classes in place of the outputs that are asked for so.
///
/// # Errors
/// Such an output has no numbers.
pub(super) fn classify(
    response: &mut InferResponse,
    form: &AnswerForm,
    revision: &Revision,
) -> Result<(), Error> {
    for output in &mut response.outputs {
        let classes = form.classes(&output.name);
        if classes == 0 {
            continue;
        }
        let labels = revision.labels.get(&output.name).map_or(&[][..], Vec::as_slice);
        let classes = usize::try_from(classes).unwrap_or(usize::MAX);
        *output = top(output, classes, labels)
            .map_err(|reason| Error::InvalidInput(format!("output `{}`: {reason}", output.name)))?;
    }
    Ok(())
}

/// Each is a text of its own: more than this is no classification any more.
const MOST_CLASSES: u64 = 100_000;

/// Reads the parameter `classification`; 0 asks for none.
///
/// # Errors
/// A text: what was expected and what came.
pub(super) fn count(value: &Parameter) -> Result<u64, String> {
    value.as_count().ok_or_else(|| {
        format!("parameter `classification`: expected an integer of 0 or more, got {value}")
    })
}

/// The `classes` largest values as `value:index` or `value:index:label`, the largest first, of
/// equals the first. `[k]` of a tensor of one dimension or none; else `[batch, k]`, the first
/// dimension the batch.
fn top(tensor: &Tensor, classes: usize, labels: &[String]) -> Result<Tensor, String> {
    let batch = match &tensor.shape[..] {
        [] | [_] => None,
        [batch, ..] => Some(*batch),
    };
    let size = tensor.datatype.size().ok_or("BYTES cannot be classified: it has no numbers")?;
    let elements = tensor.data.len() / size;
    let row = elements.checked_div(batch.unwrap_or(1) as usize).unwrap_or(0);
    let classes = classes.min(row);
    let all = classes as u64 * batch.unwrap_or(1);
    if all > MOST_CLASSES {
        return Err(format!("expected at most {MOST_CLASSES} classes, {all} are asked for"));
    }
    let mut rows = Rows { data: &tensor.data, row, classes, labels, written: Vec::new() };
    match tensor.datatype {
        Datatype::Bool => rows.write(|[byte]| byte),
        Datatype::Uint8 => rows.write(u8::from_le_bytes),
        Datatype::Uint16 => rows.write(u16::from_le_bytes),
        Datatype::Uint32 => rows.write(u32::from_le_bytes),
        Datatype::Uint64 => rows.write(u64::from_le_bytes),
        Datatype::Int8 => rows.write(i8::from_le_bytes),
        Datatype::Int16 => rows.write(i16::from_le_bytes),
        Datatype::Int32 => rows.write(i32::from_le_bytes),
        Datatype::Int64 => rows.write(i64::from_le_bytes),
        Datatype::Fp16 => rows.write(f16::from_le_bytes),
        Datatype::Bf16 => rows.write(bf16::from_le_bytes),
        Datatype::Fp32 => rows.write(f32::from_le_bytes),
        Datatype::Fp64 => rows.write(f64::from_le_bytes),
        Datatype::Bytes => Ok(()),
    }?;
    let (name, data) = (tensor.name.clone(), rows.written);
    let shape = batch.into_iter().chain([classes as u64]).collect();
    Ok(Tensor { name, datatype: Datatype::Bytes, shape, data })
}

struct Rows<'a> {
    data: &'a [u8],
    row: usize,
    classes: usize,
    labels: &'a [String],
    written: Vec<u8>,
}

impl Rows<'_> {
    fn write<T: PartialOrd + Display, const N: usize>(
        &mut self,
        read: impl Fn([u8; N]) -> T,
    ) -> Result<(), String> {
        let values: Vec<T> = self.data.as_chunks().0.iter().map(|bytes| read(*bytes)).collect();
        for row in values.chunks(self.row.max(1)) {
            let mut order: Vec<usize> = (0..row.len()).collect();
            let rank = |&one: &usize, &other: &usize| {
                largest_first(&row[one], &row[other]).then(one.cmp(&other))
            };
            // All of a long row need not be in order for its first few.
            if (1..row.len()).contains(&self.classes) {
                order.select_nth_unstable_by(self.classes - 1, rank);
            }
            order[..self.classes].sort_unstable_by(rank);
            for &index in &order[..self.classes] {
                let value = &row[index];
                let element = match self.labels.get(index) {
                    Some(label) => format!("{value}:{index}:{label}"),
                    None => format!("{value}:{index}"),
                };
                push_bytes_element(&mut self.written, element.as_bytes())?;
            }
        }
        Ok(())
    }
}

/// NaN comes last: it is no class.
fn largest_first<T: PartialOrd>(one: &T, other: &T) -> Ordering {
    let is_nan = |value: &T| value.partial_cmp(value).is_none();
    other.partial_cmp(one).unwrap_or_else(|| is_nan(one).cmp(&is_nan(other)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::bytes_elements;

    fn classes(
        shape: &[u64],
        values: &[f32],
        classes: usize,
        labels: &[&str],
    ) -> (Vec<u64>, String) {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let name = "y".to_owned();
        let tensor = Tensor { name, datatype: Datatype::Fp32, shape: shape.into(), data };
        let labels: Vec<_> = labels.iter().map(|&label| label.to_owned()).collect();
        let top = top(&tensor, classes, &labels).expect("numbers");
        top.check_length().expect("its shape");
        let elements = bytes_elements(&top.data).map(|element| element.expect("whole"));
        let texts: Vec<_> =
            elements.map(|element| str::from_utf8(element).expect("text")).collect();
        (top.shape, texts.join(" "))
    }

    #[test]
    fn the_largest_values_come_first() {
        let values = [0.25, 0.5, f32::NAN, 0.5, -1.0, f32::INFINITY];
        assert_eq!(classes(&[6], &values, 3, &["a", "b"]), (vec![3], "inf:5 0.5:1:b 0.5:3".into()));
        assert_eq!(classes(&[2, 3], &values, 1, &["a"]), (vec![2, 1], "0.5:1 inf:2".into()));
        let all = "0.5:1 0.25:0:a NaN:2 inf:2 0.5:0:a -1:1".to_owned();
        assert_eq!(classes(&[2, 3, 1], &values, 99, &["a"]), (vec![2, 3], all));
        assert_eq!(classes(&[], &[7.5], 2, &[]), (vec![1], "7.5:0".into()));
        assert_eq!(classes(&[0, 3], &[], 2, &[]), (vec![0, 0], String::new()));
    }
}
