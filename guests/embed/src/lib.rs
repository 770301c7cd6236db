//! Sentence embeddings: texts in, a vector each out, and how many tokens each was.
//!
//! The graph `model` is an uncased BERT with its pooling: INT64 inputs `input_ids`,
//! `attention_mask` and, if it wants them, `token_type_ids`, all `[batch, sequence]`; one FP32
//! output `[batch, D]`. `vocab.txt` has one token a line. Setting (default): `max_tokens` (256),
//! what a text is cut to, `[CLS]` and `[SEP]` included; at most the positions that the graph
//! has.
//!
//! With the request parameter `token_ids` each element of `text` is not UTF-8 but token ids,
//! u32 little-endian, without `[CLS]` and `[SEP]`.

mod wordpiece;

pub use wordpiece::WordPiece;

use wisp_guest::{
    Contract, Datatype, Error, Graph, Model, Request, Response, Tensor, TensorSpec, Value,
    describe_graph, read_text_asset, setting_or,
};

const GRAPH: &str = "model";
const IDS: &str = "input_ids";
const MASK: &str = "attention_mask";
const TYPES: &str = "token_type_ids";

/// The shortest sequence that the graph is run on.
const SHORTEST: usize = 16;

struct Embed {
    tokenizer: WordPiece,
    max_tokens: usize,
    /// D, of a vector.
    dimensions: usize,
    has_types: bool,
}

impl Model for Embed {
    fn prepare() -> Result<(Self, Contract), String> {
        let graph = describe_graph(GRAPH)?;
        check_inputs(&graph.inputs)?;
        let dimensions = dimensions(&graph.outputs)?;
        let tokenizer = WordPiece::new(read_text_asset("vocab.txt")?)?;
        let max_tokens = setting_or("max_tokens", 256)?;
        if max_tokens < 3 {
            return Err(format!("setting `max_tokens` is {max_tokens}, expected at least 3"));
        }
        let contract = Contract {
            inputs: vec![TensorSpec::new("text", Datatype::Bytes, [-1])],
            outputs: vec![
                TensorSpec::new("embedding", Datatype::Fp32, [-1, dimensions as i64]),
                TensorSpec::new("tokens", Datatype::Int64, [-1]),
            ],
        };
        let has_types = graph.inputs.iter().any(|input| input.name == TYPES);
        Ok((Self { tokenizer, max_tokens, dimensions, has_types }, contract))
    }

    fn infer(&self, request: Request) -> Result<Response, Error> {
        let are_ids = request.boolean("token_ids", false)?;
        let texts = request.input("text")?.to_bytes()?;
        // All before the first is computed: what is refused costs no more than reading it.
        let sequences = (0..).zip(&texts).map(|(index, text): (usize, _)| {
            let ids = if are_ids { self.read_ids(text) } else { self.read_text(text) };
            ids.map_err(|reason| {
                Error::InvalidInput(format!("input `text`: element {index} {reason}"))
            })
        });
        let sequences = sequences.collect::<Result<Vec<_>, _>>()?;

        let count = sequences.len() as u64;
        let mut response = Response { outputs: Vec::new(), parameters: Vec::new() };
        if request.wants("embedding") {
            let graph = Graph::load(GRAPH)?;
            let mut vectors = Vec::with_capacity(sequences.len() * self.dimensions);
            for ids in &sequences {
                vectors.extend(self.embed(&graph, ids)?);
            }
            let shape = [count, self.dimensions as u64];
            response.outputs.push(Tensor::fp32("embedding", &shape, &vectors));
        }
        if request.wants("tokens") {
            let tokens: Vec<i64> = sequences.iter().map(|ids| ids.len() as i64).collect();
            response.outputs.push(Tensor::int64("tokens", &[count], &tokens));
        }
        Ok(response)
    }
}

impl Embed {
    fn read_text(&self, text: &[u8]) -> Result<Vec<i64>, String> {
        let text = str::from_utf8(text).map_err(|error| format!("is not UTF-8: {error}"))?;
        Ok(self.framed(self.tokenizer.ids(text, self.room())))
    }

    fn read_ids(&self, packed: &[u8]) -> Result<Vec<i64>, String> {
        let (ids, rest) = packed.as_chunks::<4>();
        if !rest.is_empty() {
            let length = packed.len();
            return Err(format!("is {length} bytes, expected token ids of 4 bytes each"));
        }
        let size = self.tokenizer.size();
        let ids: Vec<u32> = ids.iter().map(|&id| u32::from_le_bytes(id)).collect();
        if let Some(id) = ids.iter().find(|&&id| id >= size) {
            return Err(format!("has token id {id}, expected ids below {size}"));
        }
        Ok(self.framed(ids))
    }

    /// The ids that fit between `[CLS]` and `[SEP]`, between them.
    fn framed(&self, ids: Vec<u32>) -> Vec<i64> {
        let ids = ids.into_iter().take(self.room());
        let (begin, end) = (self.tokenizer.begin, self.tokenizer.end);
        [begin].into_iter().chain(ids).chain([end]).map(i64::from).collect()
    }

    fn room(&self) -> usize {
        self.max_tokens - 2
    }

    /// Runs one text alone: texts of different lengths in a batch would be padded to the longest.
    fn embed(&self, graph: &Graph, ids: &[i64]) -> Result<Vec<f32>, Error> {
        let length = padded(ids.len(), self.max_tokens);
        let shape = [1, length as u32];
        let input = |fill: &dyn Fn(usize) -> i64| {
            let values: Vec<i64> = (0..length).map(fill).collect();
            Value::int64(&shape, &values)
        };
        // What the mask hides may be any id: 0 is in every vocabulary.
        let mut inputs = vec![
            (IDS, input(&|at| ids.get(at).copied().unwrap_or(0))),
            (MASK, input(&|at| i64::from(at < ids.len()))),
        ];
        if self.has_types {
            inputs.push((TYPES, input(&|_| 0)));
        }
        let outputs = graph.compute(inputs)?;
        let [(name, vector)] = &outputs[..] else {
            return Err(Error::Internal(format!("the graph gave {} outputs", outputs.len())));
        };
        let vector = vector.to_fp32()?;
        if vector.len() != self.dimensions {
            let length = vector.len();
            return Err(Error::Internal(format!("graph output `{name}` has {length} values")));
        }
        Ok(vector)
    }
}

/// The length that a sequence is padded to. The engine plans a graph anew for each shape, and
/// remembers a few: hence powers of two, which are few, and waste less than half.
fn padded(length: usize, max_tokens: usize) -> usize {
    length.next_power_of_two().max(SHORTEST).min(max_tokens)
}

fn check_inputs(inputs: &[TensorSpec]) -> Result<(), String> {
    let known = |input: &&TensorSpec| [IDS, MASK, TYPES].contains(&input.name.as_str());
    if let Some(input) = inputs.iter().find(|input| !known(input)) {
        return Err(format!(
            "graph `{GRAPH}` has an input `{}`, expected `{IDS}`, `{MASK}` and `{TYPES}`",
            input.name
        ));
    }
    for name in [IDS, MASK] {
        if inputs.iter().all(|input| input.name != name) {
            return Err(format!("graph `{GRAPH}` has no input `{name}`"));
        }
    }
    for input in inputs {
        if input.datatype != Datatype::Int64 || input.shape.len() != 2 {
            return Err(format!(
                "graph `{GRAPH}`: input `{}` is {} {:?}, expected INT64 [batch, sequence]",
                input.name,
                input.datatype.name(),
                input.shape
            ));
        }
    }
    Ok(())
}

fn dimensions(outputs: &[TensorSpec]) -> Result<usize, String> {
    match outputs {
        [TensorSpec { datatype: Datatype::Fp32, shape, .. }]
            if shape.len() == 2 && shape[1] > 0 =>
        {
            Ok(shape[1] as usize)
        }
        [output] => Err(format!(
            "graph `{GRAPH}`: output `{}` is {} {:?}, expected a pooled FP32 [batch, D]",
            output.name,
            output.datatype.name(),
            output.shape
        )),
        _ => Err(format!("graph `{GRAPH}`: expected one output, got {}", outputs.len())),
    }
}

wisp_guest::export!(Embed);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_padded_to_few() {
        let lengths = [2, 16, 17, 100, 129, 256].map(|length| padded(length, 256));
        assert_eq!(lengths, [16, 16, 32, 128, 256, 256]);
        // Never past what the graph has positions for.
        assert_eq!([padded(70, 100), padded(5, 10)], [100, 10]);
    }

    #[test]
    fn a_graph_that_is_not_pooled_is_refused() {
        let output = |shape: &[i64]| TensorSpec::new("y", Datatype::Fp32, shape.iter().copied());
        assert_eq!(dimensions(&[output(&[-1, 384])]), Ok(384));
        assert_eq!(
            dimensions(&[output(&[-1, -1, 384])]).unwrap_err(),
            "graph `model`: output `y` is FP32 [-1, -1, 384], expected a pooled FP32 [batch, D]"
        );
    }

    #[test]
    fn a_graph_of_another_kind_is_refused() {
        let input = |name: &str| TensorSpec::new(name, Datatype::Int64, [-1, -1]);
        assert_eq!(check_inputs(&[IDS, MASK].map(input)), Ok(()));
        assert_eq!(check_inputs(&[IDS, TYPES, MASK].map(input)), Ok(()));
        assert_eq!(
            check_inputs(&[IDS].map(input)).unwrap_err(),
            "graph `model` has no input `attention_mask`"
        );
        assert_eq!(
            check_inputs(&[IDS, MASK, "pixels"].map(input)).unwrap_err(),
            "graph `model` has an input `pixels`, expected `input_ids`, `attention_mask` and `token_type_ids`"
        );
    }
}
