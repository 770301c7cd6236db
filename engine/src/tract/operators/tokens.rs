//! Operators that look for expressions in strings: Tokenizer, which is ONNX Runtime's, and
//! RegexFullMatch. Expressions are RE2's, whose longest match counts.

use std::mem;

use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind};
use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::attributes::strings;
use super::kernel::{Built, Form, Kernel, Unknown, built, checked_strings, expect_datum, one};
use crate::tract::bodies::ask;

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("RegexFullMatch", |_, node| {
        let expression = Expression::new(&node.get_attr::<String>("pattern")?)?;
        built(node, FullMatch { expression })
    });
    operators.insert("Tokenizer", tokenizer);
}

/// The longest expression, bytes.
const MAX_EXPRESSION: usize = 1 << 12;

/// What is remembered of an expression's states during a search, bytes.
const MAX_STATES: usize = 1 << 21;

#[derive(Debug)]
struct Expression {
    dfa: DFA,
}

impl Expression {
    fn new(text: &str) -> TractResult<Self> {
        ensure!(text.len() <= MAX_EXPRESSION, "an expression of {} bytes", text.len());
        // All matches are gone through, so the last one found is the longest.
        let config = DFA::config().match_kind(MatchKind::All).cache_capacity(MAX_STATES);
        let dfa = DFA::builder()
            .configure(config)
            .syntax(syntax::Config::new().nest_limit(100))
            .build(&as_here(text))
            .with_context(|| format!("the expression {text:?}"))?;
        Ok(Self { dfa })
    }

    /// The end of the longest match that starts at a place.
    fn end(&self, cache: &mut Cache, text: &str, start: usize) -> TractResult<Option<usize>> {
        let input = Input::new(text).range(start..).anchored(Anchored::Yes);
        let found = self.dfa.try_search_fwd(cache, &input).context("a search that gave up")?;
        Ok(found.map(|found| found.offset()))
    }

    /// The first match at or after a place, and of those the longest.
    fn find(
        &self,
        cache: &mut Cache,
        text: &str,
        from: usize,
    ) -> TractResult<Option<(usize, usize)>> {
        let starts = text[from..].char_indices().map(|(at, _)| from + at);
        for (count, start) in starts.chain([text.len()]).enumerate() {
            if count % 4096 == 4095 {
                ask()?;
            }
            if let Some(end) = self.end(cache, text, start)? {
                return Ok(Some((start, end)));
            }
        }
        Ok(None)
    }
}

/// An expression of RE2's as it is written here: its classes of letters, digits and spaces are
/// ASCII's, and within brackets fewer characters mean something.
fn as_here(expression: &str) -> String {
    let mut written = String::new();
    let mut characters = expression.chars().peekable();
    let mut is_in_brackets = false;
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('w') => written.push_str("[0-9A-Za-z_]"),
                Some('W') => written.push_str("[^0-9A-Za-z_]"),
                Some('d') => written.push_str("[0-9]"),
                Some('D') => written.push_str("[^0-9]"),
                Some('s') => written.push_str("[\\t\\n\\x0C\\r ]"),
                Some('S') => written.push_str("[^\\t\\n\\x0C\\r ]"),
                Some(edge @ ('b' | 'B')) if !is_in_brackets => {
                    written.push_str(&format!("(?-u:\\{edge})"));
                }
                Some(other) => written.extend(['\\', other]),
                None => written.push('\\'),
            },
            '[' if !is_in_brackets => {
                is_in_brackets = true;
                written.push('[');
                if characters.next_if_eq(&'^').is_some() {
                    written.push('^');
                }
                // The first one does not close them.
                if characters.next_if_eq(&']').is_some() {
                    written.push_str("\\]");
                }
            }
            '[' if characters.peek() == Some(&':') => {
                // A named class, with its own brackets.
                written.push('[');
                for inner in characters.by_ref() {
                    written.push(inner);
                    if inner == ']' {
                        break;
                    }
                }
            }
            ']' => {
                is_in_brackets = false;
                written.push(']');
            }
            '[' | '&' | '~' if is_in_brackets => written.extend(['\\', character]),
            _ => written.push(character),
        }
    }
    written
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
        let mut cache = self.expression.dfa.create_cache();
        let plain = input.try_as_plain_ram()?;
        let texts = plain.as_slice::<String>()?.iter();
        let matches =
            texts.map(|text| Ok(self.expression.end(&mut cache, text, 0)? == Some(text.len())));
        let matches = matches.collect::<TractResult<Vec<bool>>>()?;
        Ok(tvec![tract_ndarray::ArrayD::from_shape_vec(input.shape(), matches)?.into_tensor()])
    }
}

/// Parts of each string in a new last axis, padded.
#[derive(Debug)]
struct Tokenizer {
    by: By,
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
    Separators(Vec<Expression>),
    Tokens(Box<Expression>),
}

/// What stands before and after a string's tokens where those are marked.
const MARKS: [&str; 2] = ["\x02", "\x03"];

fn tokenizer(context: &ParsingContext, node: &NodeProto) -> Built {
    let separators = strings(node, "separators")?;
    let expression = node.get_attr_opt::<String>("tokenexp")?.unwrap_or_default();
    let by = match &*separators {
        [only] if only.is_empty() => By::Characters,
        [] if expression == "." => By::Characters,
        [] if expression.is_empty() => bail!("neither separators nor tokenexp"),
        [] => By::Tokens(Box::new(Expression::new(&expression)?)),
        _ => {
            let separators = separators.iter().map(|text| Expression::new(text));
            By::Separators(separators.collect::<TractResult<_>>()?)
        }
    };
    let shortest = node.get_attr_opt::<i64>("mincharnum")?.unwrap_or(1);
    let shortest = usize::try_from(shortest).with_context(|| format!("mincharnum {shortest}"))?;
    built(
        node,
        Tokenizer {
            by,
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

    fn tokens<'a>(&self, text: &'a str) -> TractResult<Vec<&'a str>> {
        match &self.by {
            By::Characters => Ok(text
                .char_indices()
                .map(|(at, character)| &text[at..at + character.len_utf8()])
                .collect()),
            By::Separators(separators) => {
                let mut pieces = vec![text];
                for separator in separators {
                    for piece in mem::take(&mut pieces) {
                        self.split(separator, piece, &mut pieces)?;
                    }
                }
                Ok(pieces)
            }
            By::Tokens(expression) => self.matches(expression, text),
        }
    }

    fn split<'a>(
        &self,
        separator: &Expression,
        text: &'a str,
        pieces: &mut Vec<&'a str>,
    ) -> TractResult<()> {
        let mut cache = separator.dfa.create_cache();
        let (mut start, mut from) = (0, 0);
        let mut keep = |piece: &'a str| {
            if self.is_long_enough(piece) {
                pieces.push(piece);
            }
        };
        while let Some((at, end)) = separator.find(&mut cache, text, from)? {
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

    fn matches<'a>(&self, expression: &Expression, text: &'a str) -> TractResult<Vec<&'a str>> {
        let mut cache = expression.dfa.create_cache();
        let (mut tokens, mut from) = (Vec::new(), 0);
        while let Some((at, end)) = expression.find(&mut cache, text, from)? {
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
        Ok(tokens)
    }
}

/// The place after the character at another.
fn next(text: &str, at: usize) -> usize {
    at + text[at..].chars().next().map_or(1, char::len_utf8)
}

impl Kernel for Tokenizer {
    fn name(&self) -> &'static str {
        "Tokenizer"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let input = one(inputs)?;
        expect_datum(input, &[DatumType::String])?;
        ensure!(matches!(input.shape.len(), 1 | 2), "a shape of rank {}", input.shape.len());
        let shape = input.shape.iter().cloned().chain([self.most.dim(0)]);
        Ok(tvec![Form::new(DatumType::String, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let input = one(inputs)?;
        let plain = input.try_as_plain_ram()?;
        let texts = plain.as_slice::<String>()?;
        let rows = texts.iter().map(|text| self.tokens(text));
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
        checked_strings(&shape)?;
        let padded = rows.iter().flat_map(|tokens| {
            let padding = std::iter::repeat_n(self.padding.as_str(), most - tokens.len());
            tokens.iter().copied().chain(padding).map(str::to_owned)
        });
        let padded = tract_ndarray::ArrayD::from_shape_vec(&*shape, padded.collect())?;
        Ok(tvec![padded.into_tensor()])
    }
}
