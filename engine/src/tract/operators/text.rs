//! Operators on strings: StringNormalizer, StringConcat and StringSplit.

use std::collections::HashSet;

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::broadcast::multi_broadcast;
use tract_onnx::tract_hir::internal::*;

use super::attributes::strings;
use super::kernel::{Built, Form, Kernel, Unknown, built, checked_strings, expect_datum, one};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("StringNormalizer", string_normalizer);
    operators.insert("StringConcat", |_, node| built(node, StringConcat));
    operators.insert("StringSplit", string_split);
}

/// Drops stop words, and changes the case of what is left.
#[derive(Debug)]
struct StringNormalizer {
    case: Case,
    is_case_sensitive: bool,
    is_ascii: bool,
    /// In small letters unless case tells them apart.
    stop_words: HashSet<String>,
    left: Unknown,
}

#[derive(Debug)]
enum Case {
    Kept,
    Lower,
    Upper,
}

fn string_normalizer(context: &ParsingContext, node: &NodeProto) -> Built {
    let case = match node.get_attr_opt::<&str>("case_change_action")?.unwrap_or("NONE") {
        "NONE" => Case::Kept,
        "LOWER" => Case::Lower,
        "UPPER" => Case::Upper,
        other => bail!("unknown case_change_action {other:?}"),
    };
    let is_case_sensitive = node.get_attr_opt::<i64>("is_case_sensitive")?.unwrap_or(0) != 0;
    let words = strings(node, "stopwords")?.into_iter();
    // The locale of C, which converters of scikit-learn write, knows the letters of ASCII.
    let locale = node.get_attr_opt::<&str>("locale")?.unwrap_or_default();
    let is_ascii = matches!(locale, "C" | "POSIX");
    let words = words.map(|word| if is_case_sensitive { word } else { lower(&word, is_ascii) });
    let (stop_words, left) = (words.collect(), Unknown::new(context));
    built(node, StringNormalizer { case, is_case_sensitive, is_ascii, stop_words, left })
}

fn lower(word: &str, is_ascii: bool) -> String {
    if is_ascii {
        return word.to_ascii_lowercase();
    }
    word.chars().map(|letter| only(letter, letter.to_lowercase())).collect()
}

fn upper(word: &str, is_ascii: bool) -> String {
    if is_ascii {
        return word.to_ascii_uppercase();
    }
    word.chars().map(|letter| only(letter, letter.to_uppercase())).collect()
}

/// A letter for a letter, as C's library has it: what would become several stays.
fn only(letter: char, mut others: impl Iterator<Item = char>) -> char {
    match (others.next(), others.next()) {
        (Some(other), None) => other,
        _ => letter,
    }
}

impl StringNormalizer {
    fn is_kept(&self, word: &str) -> bool {
        match self.is_case_sensitive {
            true => !self.stop_words.contains(word),
            false => !self.stop_words.contains(&lower(word, self.is_ascii)),
        }
    }

    fn change(&self, word: &str) -> String {
        match self.case {
            Case::Kept => word.to_owned(),
            Case::Lower => lower(word, self.is_ascii),
            Case::Upper => upper(word, self.is_ascii),
        }
    }
}

impl Kernel for StringNormalizer {
    fn name(&self) -> &'static str {
        "StringNormalizer"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let input = one(inputs)?;
        expect_datum(input, &[DatumType::String])?;
        ensure!(matches!(input.shape.len(), 1 | 2), "a shape of rank {}", input.shape.len());
        let mut shape = input.shape.clone();
        if let Some(last) = shape.last_mut().filter(|_| !self.stop_words.is_empty()) {
            *last = self.left.dim(0);
        }
        Ok(tvec![Form::new(DatumType::String, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let input = one(inputs)?;
        let is_row = input.rank() == 1 || input.shape().first() == Some(&1);
        ensure!(is_row, "expected one row, got a shape of {:?}", input.shape());
        let plain = input.try_as_plain_ram()?;
        let words = plain.as_slice::<String>()?.iter().filter(|word| self.is_kept(word));
        let mut words: Vec<String> = words.map(|word| self.change(word)).collect();
        if words.is_empty() && input.len() > 0 {
            words.push(String::new());
        }
        let mut shape: TVec<usize> = input.shape().into();
        if let Some(last) = shape.last_mut() {
            *last = words.len();
        }
        Ok(tvec![tract_ndarray::ArrayD::from_shape_vec(&*shape, words)?.into_tensor()])
    }
}

/// Of all strings that one join makes.
const MAX_BYTES: usize = 1 << 28;

#[derive(Debug)]
struct StringConcat;

impl Kernel for StringConcat {
    fn name(&self) -> &'static str {
        "StringConcat"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let [left, right] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        expect_datum(left, &[DatumType::String])?;
        expect_datum(right, &[DatumType::String])?;
        Ok(tvec![Form::new(DatumType::String, multi_broadcast(&[&left.shape, &right.shape])?)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [left, right] = inputs else { bail!("expected two inputs, got {}", inputs.len()) };
        let shape: TVec<usize> = multi_broadcast(&[left.shape(), right.shape()])?;
        checked_strings(&shape)?;
        let (left, right) =
            (left.to_plain_array_view::<String>()?, right.to_plain_array_view::<String>()?);
        let left = left.broadcast(&*shape).context("shapes do not broadcast")?;
        let right = right.broadcast(&*shape).context("shapes do not broadcast")?;
        let pairs = || left.iter().zip(right.iter());
        let bytes: usize = pairs().map(|(left, right)| left.len() + right.len()).sum();
        ensure!(bytes <= MAX_BYTES, "the strings would have {bytes} bytes in all");
        let joined = pairs().map(|(left, right)| format!("{left}{right}")).collect();
        let joined = tract_ndarray::ArrayD::from_shape_vec(&*shape, joined)?;
        Ok(tvec![joined.into_tensor()])
    }
}

/// Parts of each string in a new last axis, padded with empty ones, and how many they are.
#[derive(Debug)]
struct StringSplit {
    /// Without one, runs of white space part.
    delimiter: Option<String>,
    max_splits: usize,
    most: Unknown,
}

fn string_split(context: &ParsingContext, node: &NodeProto) -> Built {
    let delimiter = node.get_attr_opt::<String>("delimiter")?.filter(|text| !text.is_empty());
    let max_splits = match node.get_attr_opt::<i64>("maxsplit")? {
        Some(max) => usize::try_from(max).with_context(|| format!("maxsplit {max}"))?,
        None => usize::MAX,
    };
    built(node, StringSplit { delimiter, max_splits, most: Unknown::new(context) })
}

impl StringSplit {
    fn split<'a>(&self, text: &'a str) -> Vec<&'a str> {
        match &self.delimiter {
            _ if text.is_empty() => Vec::new(),
            Some(by) => text.splitn(self.max_splits.saturating_add(1), by.as_str()).collect(),
            None => {
                let (mut parts, mut rest) = (Vec::new(), text.trim());
                while let Some(at) = rest.find(char::is_whitespace) {
                    if parts.len() == self.max_splits {
                        break;
                    }
                    parts.push(&rest[..at]);
                    rest = rest[at..].trim_start();
                }
                if !rest.is_empty() {
                    parts.push(rest);
                }
                parts
            }
        }
    }
}

impl Kernel for StringSplit {
    fn name(&self) -> &'static str {
        "StringSplit"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let input = one(inputs)?;
        expect_datum(input, &[DatumType::String])?;
        let parts = input.shape.iter().cloned().chain([self.most.dim(0)]);
        let counts = input.shape.iter().cloned();
        Ok(tvec![Form::new(DatumType::String, parts), Form::new(DatumType::I64, counts)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let input = one(inputs)?;
        let plain = input.try_as_plain_ram()?;
        let split = plain.as_slice::<String>()?.iter().map(|text| self.split(text));
        let split: Vec<Vec<&str>> = split.collect();
        let most = split.iter().map(Vec::len).max().unwrap_or(0);
        let shape: TVec<usize> = input.shape().iter().copied().chain([most]).collect();
        // One string of many parts makes every other's row as long.
        checked_strings(&shape)?;
        let counts = split.iter().map(|parts| parts.len() as i64).collect();
        let rows = split.iter();
        let padded = rows.flat_map(|parts| {
            let padding = std::iter::repeat_n("", most - parts.len());
            parts.iter().copied().chain(padding).map(str::to_owned)
        });
        let padded = tract_ndarray::ArrayD::from_shape_vec(&*shape, padded.collect())?;
        let counts = tract_ndarray::ArrayD::from_shape_vec(input.shape(), counts)?;
        Ok(tvec![padded.into_tensor(), counts.into_tensor()])
    }
}
