//! Operators that look for expressions in strings: Tokenizer, which is ONNX Runtime's, and
//! RegexFullMatch.

use std::mem;

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::attributes::strings;
use super::expressions::{Expression, MAX_SIZE, Search};
use super::kernel::{
    Built, Form, Kernel, Unknown, built, checked_len, checked_strings, expect_datum, one,
};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("RegexFullMatch", |_, node| {
        let expression = Expression::new(&node.get_attr::<String>("pattern")?, MAX_SIZE)?;
        built(node, FullMatch { expression })
    });
    operators.insert("Tokenizer", tokenizer);
}

#[derive(Debug)]
struct FullMatch {
    expression: Expression,
}

impl Kernel for FullMatch {
    fn name(&self) -> &'static str {
        "RegexFullMatch"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let input = one(inputs)?;
        expect_datum(input, &[DatumType::String])?;
        Ok(tvec![Form::new(DatumType::Bool, input.shape.iter().cloned())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let input = one(inputs)?;
        let mut search = self.expression.search();
        let plain = input.try_as_plain_ram()?;
        let texts = plain.as_slice::<String>()?.iter();
        let matches = texts.map(|text| Ok(search.end(text, 0)? == Some(text.len())));
        let matches = matches.collect::<TractResult<Vec<bool>>>()?;
        Ok(tvec![tract_ndarray::ArrayD::from_shape_vec(input.shape(), matches)?.into_tensor()])
    }
}

/// Parts of each string in a new last axis, padded.
#[derive(Debug)]
struct Tokenizer {
    by: By,
    expressions: Vec<Expression>,
    /// Characters that a token has at least.
    shortest: usize,
    is_marked: bool,
    padding: String,
    most: Unknown,
}

#[derive(Debug)]
enum By {
    Characters,
    /// One after the other, on what the last one left.
    Separators,
    /// What matches the only one.
    Tokens,
}

/// What stands before and after a string's tokens where those are marked.
const MARKS: [&str; 2] = ["\x02", "\x03"];

fn tokenizer(context: &ParsingContext, node: &NodeProto) -> Built {
    let separators = strings(node, "separators")?;
    let expression = node.get_attr_opt::<String>("tokenexp")?.unwrap_or_default();
    let (by, texts): (By, Vec<&str>) = match &*separators {
        [only] if only.is_empty() => (By::Characters, Vec::new()),
        [] if expression == "." => (By::Characters, Vec::new()),
        [] if expression.is_empty() => bail!("neither separators nor tokenexp"),
        [] => (By::Tokens, vec![expression.as_str()]),
        texts => (By::Separators, texts.iter().map(String::as_str).collect()),
    };
    let mut expressions = Vec::new();
    let mut left = MAX_SIZE;
    for text in texts {
        let expression = Expression::new(text, left)?;
        left = left.saturating_sub(expression.size());
        expressions.push(expression);
    }
    let shortest = node.get_attr_opt::<i64>("mincharnum")?.unwrap_or(1);
    let shortest = usize::try_from(shortest).with_context(|| format!("mincharnum {shortest}"))?;
    built(
        node,
        Tokenizer {
            by,
            expressions,
            shortest,
            is_marked: node.get_attr_opt::<i64>("mark")?.unwrap_or(0) != 0,
            padding: node.get_attr_opt::<String>("pad_value")?.unwrap_or_default(),
            most: Unknown::new(context),
        },
    )
}

impl Tokenizer {
    fn is_long_enough(&self, token: &str) -> bool {
        token.chars().take(self.shortest.max(1)).count() >= self.shortest.max(1)
    }

    /// `searches` are for its expressions.
    fn tokens<'a>(&self, searches: &mut [Search<'_>], text: &'a str) -> TractResult<Vec<&'a str>> {
        let mut tokens = Vec::new();
        match self.by {
            By::Characters => {
                let characters = text.char_indices();
                tokens.extend(characters.map(|(at, it)| &text[at..at + it.len_utf8()]));
            }
            By::Separators => {
                tokens.push(text);
                for search in searches {
                    for piece in mem::take(&mut tokens) {
                        self.split(search, piece, &mut tokens)?;
                    }
                }
            }
            By::Tokens => {
                for search in searches {
                    self.matches(search, text, &mut tokens)?;
                }
            }
        }
        Ok(tokens)
    }

    fn split<'a>(
        &self,
        search: &mut Search<'_>,
        text: &'a str,
        pieces: &mut Vec<&'a str>,
    ) -> TractResult<()> {
        let starts = search.starts(text)?;
        let (mut start, mut from) = (0, 0);
        let mut keep = |piece: &'a str| {
            if self.is_long_enough(piece) {
                pieces.push(piece);
            }
        };
        while let Some((at, end)) = search.find(text, &starts, from)? {
            if at == text.len() {
                break;
            }
            keep(&text[start..at]);
            // A separator of nothing takes a character.
            let end = if end == at { next(text, at) } else { end };
            (start, from) = (end, end);
        }
        keep(&text[start..]);
        Ok(())
    }

    fn matches<'a>(
        &self,
        search: &mut Search<'_>,
        text: &'a str,
        tokens: &mut Vec<&'a str>,
    ) -> TractResult<()> {
        let starts = search.starts(text)?;
        let mut from = 0;
        while let Some((at, end)) = search.find(text, &starts, from)? {
            let token = &text[at..end];
            if at == text.len() {
                break;
            }
            from = if self.is_long_enough(token) {
                tokens.push(token);
                end
            } else {
                next(text, at)
            };
        }
        Ok(())
    }
}

/// The place after the character at another.
fn next(text: &str, at: usize) -> usize {
    at + text[at..].chars().next().map_or(1, char::len_utf8)
}

/// What ONNX Runtime makes of no strings: there is no new axis.
fn of_none<D: Clone>(shape: &[D], zero: D) -> TVec<D> {
    let rest = &shape[..shape.len().saturating_sub(1)];
    rest.iter().cloned().chain([zero]).collect()
}

impl Kernel for Tokenizer {
    fn name(&self) -> &'static str {
        "Tokenizer"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let input = one(inputs)?;
        expect_datum(input, &[DatumType::String])?;
        ensure!(matches!(input.shape.len(), 1 | 2), "a shape of rank {}", input.shape.len());
        if input.shape.iter().any(|size| size == &0.to_dim()) {
            return Ok(tvec![Form::new(DatumType::String, of_none(&input.shape, 0.to_dim()))]);
        }
        let shape = input.shape.iter().cloned().chain([self.most.dim(0)]);
        Ok(tvec![Form::new(DatumType::String, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let input = one(inputs)?;
        let plain = input.try_as_plain_ram()?;
        let texts = plain.as_slice::<String>()?;
        if texts.is_empty() {
            let shape = of_none(input.shape(), 0);
            let none = tract_ndarray::ArrayD::from_shape_vec(&*shape, Vec::<String>::new())?;
            return Ok(tvec![none.into_tensor()]);
        }
        let mut searches: Vec<Search<'_>> =
            self.expressions.iter().map(Expression::search).collect();
        let rows = texts.iter().map(|text| self.tokens(&mut searches, text));
        let mut rows: Vec<Vec<&str>> = rows.collect::<TractResult<_>>()?;
        // Where there are no tokens at all, there are no marks either.
        if self.is_marked && rows.iter().any(|tokens| !tokens.is_empty()) {
            for tokens in &mut rows {
                tokens.insert(0, MARKS[0]);
                tokens.push(MARKS[1]);
            }
        }
        let most = rows.iter().map(Vec::len).max().unwrap_or(0);
        let shape: TVec<usize> = input.shape().iter().copied().chain([most]).collect();
        // One string of many tokens makes every other's row as long.
        let cells = checked_strings(&shape)?;
        let tokens: usize = rows.iter().map(Vec::len).sum();
        checked_len(&[cells - tokens, self.padding.len()]).context("padding")?;
        let padded = rows.iter().flat_map(|tokens| {
            let padding = std::iter::repeat_n(self.padding.as_str(), most - tokens.len());
            tokens.iter().copied().chain(padding).map(str::to_owned)
        });
        let padded = tract_ndarray::ArrayD::from_shape_vec(&*shape, padded.collect())?;
        Ok(tvec![padded.into_tensor()])
    }
}
