//! Image classification: the bytes of a JPEG, PNG or WebP in, the most likely labels out.
//!
//! The graph `model` takes one FP32 tensor `[N, channels, height, width]` and gives
//! logits `[N, classes]`; `labels.txt` has one class a line. Settings (defaults):
//! `crop` (1), `mean` (0), `std` (255), `invert` (false, true or auto), `top_k` (5): see [`Preprocess`].

mod decode;
mod preprocess;
mod rank;

pub use decode::{MAX_DECODED_BYTES, MAX_PIXELS, Picture, decode};
pub use preprocess::{Invert, Preprocess};
pub use rank::{softmax, top_k};

use wisp_guest::{
    Contract, Datatype, Error, Graph, Model, Request, Response, Tensor, TensorSpec, Value,
    describe_graph, read_text_asset, setting_or,
};

const GRAPH: &str = "model";

struct Classify {
    labels: Vec<String>,
    preprocess: Preprocess,
    graph_input: String,
    top_k: usize,
}

impl Model for Classify {
    fn prepare() -> Result<(Self, Contract), String> {
        let graph = describe_graph(GRAPH)?;
        let labels: Vec<_> = read_text_asset("labels.txt")?.lines().map(String::from).collect();
        let ([input], [output]) = (&graph.inputs[..], &graph.outputs[..]) else {
            return Err(format!(
                "graph `{GRAPH}`: expected one input and one output, got {} and {}",
                graph.inputs.len(),
                graph.outputs.len()
            ));
        };
        if output.shape.last().is_none_or(|&classes| classes != labels.len() as i64) {
            return Err(format!(
                "labels.txt has {} lines, output `{}` has shape {:?}",
                labels.len(),
                output.name,
                output.shape
            ));
        }
        let preprocess = Preprocess::new(&input.shape)?;
        let contract = Contract {
            inputs: vec![TensorSpec::new("image", Datatype::Bytes, [1])],
            outputs: vec![
                TensorSpec::new("label", Datatype::Bytes, [-1]),
                TensorSpec::new("probability", Datatype::Fp32, [-1]),
                TensorSpec::new("index", Datatype::Int32, [-1]),
            ],
        };
        let top_k = setting_or("top_k", 5)?;
        Ok((Self { labels, preprocess, graph_input: input.name.clone(), top_k }, contract))
    }

    fn infer(&self, request: Request) -> Result<Response, Error> {
        let k = request.positive("top_k", self.top_k)?;
        let encoded = request.input("image")?.to_bytes()?;
        let [encoded] = encoded[..] else {
            return Err(Error::InvalidInput(format!(
                "input `image`: expected 1 element, got {}",
                encoded.len()
            )));
        };
        let tensor = self
            .preprocess
            .tensor(encoded)
            .map_err(|reason| Error::InvalidInput(format!("input `image`: {reason}")))?;
        let value = Value::fp32(&self.preprocess.shape(), &tensor);
        let outputs = Graph::load(GRAPH)?.compute([(self.graph_input.as_str(), value)])?;
        let (_, logits) =
            outputs.first().ok_or_else(|| Error::Internal("the graph gave no output".into()))?;
        let probabilities = softmax(&logits.to_fp32()?);
        let best = top_k(&probabilities, k.min(self.labels.len()));
        let shape = [best.len() as u64];
        let pick = |name| request.wants(name);
        let mut response = Response { outputs: Vec::new(), parameters: Vec::new() };
        if pick("label") {
            let labels: Vec<&str> = best.iter().map(|&index| self.labels[index].as_str()).collect();
            response.outputs.push(Tensor::bytes("label", &labels));
        }
        if pick("probability") {
            let values: Vec<f32> = best.iter().map(|&index| probabilities[index]).collect();
            response.outputs.push(Tensor::fp32("probability", &shape, &values));
        }
        if pick("index") {
            let indices: Vec<i32> = best.iter().map(|&index| index as i32).collect();
            response.outputs.push(Tensor::int32("index", &shape, &indices));
        }
        Ok(response)
    }
}

wisp_guest::export!(Classify);
