//! TfIdfVectorizer: how often each of a pool of n-grams stands in a row of tokens.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::attributes::{floats, integers, strings};
use super::kernel::{Built, Form, Kernel, built, expect_datum, one};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("TfIdfVectorizer", tf_idf_vectorizer);
}

/// Columns of an output row.
const MAX_COLUMNS: usize = 1 << 24;

/// Each distance is another walk along the row.
const MAX_SKIP: usize = 1 << 10;

#[derive(Debug)]
struct Vectorizer {
    pool: Pool,
    shortest: usize,
    longest: usize,
    /// Tokens that may be skipped between two of an n-gram.
    max_skip: usize,
    columns: usize,
    mode: Mode,
    /// One for each column; none where all are one.
    weights: Vec<f32>,
}

#[derive(Debug)]
enum Mode {
    Frequency,
    Presence,
    Weighted,
}

/// The n-grams as a tree: a node is the tokens on the way to it.
#[derive(Debug)]
struct Pool {
    tokens: Tokens,
    /// By node and token.
    children: HashMap<(u32, u32), u32>,
    /// The column of the n-gram that ends at a node.
    columns: Vec<Option<usize>>,
}

/// Numbers of the tokens that the pool knows.
#[derive(Debug)]
enum Tokens {
    Strings(HashMap<String, u32>),
    Integers(HashMap<i64, u32>),
}

fn tf_idf_vectorizer(_context: &ParsingContext, node: &NodeProto) -> Built {
    let mode = match node.get_attr::<&str>("mode")? {
        "TF" => Mode::Frequency,
        "IDF" => Mode::Presence,
        "TFIDF" => Mode::Weighted,
        other => bail!("unknown mode {other:?}"),
    };
    let shortest = length(node, "min_gram_length")?;
    let longest = length(node, "max_gram_length")?;
    ensure!(1 <= shortest && shortest <= longest, "n-grams of {shortest} to {longest} tokens");
    let max_skip = length(node, "max_skip_count")?;
    ensure!(max_skip <= MAX_SKIP, "max_skip_count {max_skip} is not served, only {MAX_SKIP}");
    let places = integers(node, "ngram_indexes")?.iter();
    let places = places.map(|&place| {
        let place = usize::try_from(place).ok().filter(|&place| place < MAX_COLUMNS);
        place.context("ngram_indexes out of range")
    });
    let places: Vec<usize> = places.collect::<TractResult<_>>()?;
    let columns = places.iter().max().context("ngram_indexes is empty")? + 1;
    let weights = floats(node, "weights")?.to_vec();
    let (came, grams) = (weights.len(), places.len());
    ensure!(came == 0 || came == grams, "{came} weights for {grams} n-grams");
    ensure!(came == 0 || columns <= came, "{came} weights for {columns} columns");
    let counts = integers(node, "ngram_counts")?.iter().map(|&count| usize::try_from(count));
    let counts: Vec<usize> = counts.collect::<Result<_, _>>().context("ngram_counts")?;
    let (texts, numbers) = (strings(node, "pool_strings")?, integers(node, "pool_int64s")?);
    let (tokens, numbered) = match texts.is_empty() {
        true => {
            let (known, numbered) = number(numbers.iter().copied());
            (Tokens::Integers(known), numbered)
        }
        false => {
            let (known, numbered) = number(texts.into_iter());
            (Tokens::Strings(known), numbered)
        }
    };
    let pool = Pool::new(tokens, &numbered, &counts, &places)?;
    built(node, Vectorizer { pool, shortest, longest, max_skip, columns, mode, weights })
}

fn length(node: &NodeProto, name: &str) -> TractResult<usize> {
    let value = node.get_attr::<i64>(name)?;
    usize::try_from(value).with_context(|| format!("{name} {value}"))
}

fn number<K: std::hash::Hash + Eq>(keys: impl Iterator<Item = K>) -> (HashMap<K, u32>, Vec<u32>) {
    let mut known = HashMap::new();
    let numbered = keys.map(|key| {
        let next = known.len() as u32;
        *known.entry(key).or_insert(next)
    });
    let numbered = numbered.collect();
    (known, numbered)
}

impl Pool {
    /// `counts` is where the n-grams of one token, of two and so on start in `tokens`.
    fn new(known: Tokens, tokens: &[u32], counts: &[usize], places: &[usize]) -> TractResult<Self> {
        let mut pool = Self { tokens: known, children: HashMap::new(), columns: vec![None] };
        let mut places = places.iter();
        for (index, &start) in counts.iter().enumerate() {
            let (size, end) = (index + 1, counts.get(index + 1).copied().unwrap_or(tokens.len()));
            let grams = tokens.get(start..end).context("ngram_counts out of range")?;
            ensure!(grams.len().is_multiple_of(size), "ngram_counts part an n-gram");
            for gram in grams.chunks_exact(size) {
                let place = *places.next().context("more n-grams than ngram_indexes")?;
                pool.insert(gram, place)?;
            }
        }
        ensure!(places.next().is_none(), "more ngram_indexes than n-grams");
        Ok(pool)
    }

    fn insert(&mut self, gram: &[u32], column: usize) -> TractResult<()> {
        let mut node = 0;
        for &token in gram {
            let next = self.columns.len() as u32;
            let child = *self.children.entry((node, token)).or_insert(next);
            if child == next {
                self.columns.push(None);
            }
            node = child;
        }
        let known = self.columns[node as usize].replace(column);
        ensure!(known.is_none(), "an n-gram stands twice in the pool");
        Ok(())
    }

    fn number(&self, input: &Tensor) -> TractResult<Vec<Option<u32>>> {
        Ok(match &self.tokens {
            Tokens::Strings(known) => {
                let input = input.try_as_plain_ram()?;
                input.as_slice::<String>()?.iter().map(|key| known.get(key).copied()).collect()
            }
            Tokens::Integers(known) => {
                let input = input.cast_to::<i64>()?;
                let input = input.try_as_plain_ram()?;
                input.as_slice::<i64>()?.iter().map(|key| known.get(key).copied()).collect()
            }
        })
    }
}

impl Vectorizer {
    fn count(&self, row: &[Option<u32>], counts: &mut [f32]) {
        for start in 0..row.len() {
            // A single token has nothing to skip.
            self.count_from(row, start, 1, 1, counts);
            let furthest = self.max_skip.saturating_add(1).min(row.len() - start - 1);
            for distance in 2..=furthest {
                self.count_from(row, start, distance, 2, counts);
            }
        }
    }

    /// The n-grams of `shortest` tokens or more that start here, so far apart.
    fn count_from(
        &self,
        row: &[Option<u32>],
        start: usize,
        distance: usize,
        shortest: usize,
        counts: &mut [f32],
    ) {
        let (mut node, shortest) = (0, shortest.max(self.shortest));
        let tokens = row[start..].iter().step_by(distance).take(self.longest);
        for (index, token) in tokens.enumerate() {
            let child = token.and_then(|token| self.pool.children.get(&(node, token)));
            let Some(&child) = child else { break };
            node = child;
            if let Some(column) = self.pool.columns[node as usize].filter(|_| index + 1 >= shortest)
            {
                counts[column] += 1.0;
            }
        }
    }

    fn weigh(&self, counts: &mut [f32]) {
        for (column, count) in counts.iter_mut().enumerate() {
            let weight = self.weights.get(column).copied().unwrap_or(1.0);
            match self.mode {
                Mode::Frequency => {}
                Mode::Presence if *count > 0.0 => *count = weight,
                Mode::Presence => {}
                Mode::Weighted => *count *= weight,
            }
        }
    }
}

impl Kernel for Vectorizer {
    fn name(&self) -> &'static str {
        "TfIdfVectorizer"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let input = one(inputs)?;
        match self.pool.tokens {
            Tokens::Strings(_) => expect_datum(input, &[DatumType::String])?,
            Tokens::Integers(_) => expect_datum(input, &[DatumType::I64, DatumType::I32])?,
        }
        ensure!(matches!(input.shape.len(), 1 | 2), "a shape of rank {}", input.shape.len());
        let rest = &input.shape[..input.shape.len() - 1];
        let shape = rest.iter().cloned().chain([self.columns.to_dim()]);
        Ok(tvec![Form::new(DatumType::F32, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let input = one(inputs)?;
        let (&length, rest) = input.shape().split_last().context("got a scalar")?;
        let shape: TVec<usize> = rest.iter().copied().chain([self.columns]).collect();
        super::kernel::checked_len(&shape)?;
        let numbered = self.pool.number(input)?;
        let mut output = Tensor::zero::<f32>(&shape)?;
        let mut plain = output.try_as_plain_ram_mut()?;
        let counts = plain.as_slice_mut::<f32>()?.chunks_exact_mut(self.columns);
        for (index, counts) in counts.enumerate() {
            self.count(&numbered[index * length..][..length], counts);
            self.weigh(counts);
        }
        Ok(tvec![output])
    }
}
