//! What a manifest says of how its model is run and held in.

use serde::{Deserialize, Serialize};
use wisp_engine::EngineKind;

use crate::tensor::{Contract, Datatype, TensorSpec};

/// What runs a bundle's graphs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineSetting {
    /// Measured when the bundle is examined; else the first engine that loads them.
    #[default]
    Auto,
    Tract,
    Rten,
    OnnxRuntime,
}

impl EngineSetting {
    /// The engine that is named, if one is.
    pub fn named(self) -> Option<EngineKind> {
        match self {
            Self::Auto => None,
            Self::Tract => Some(EngineKind::Tract),
            Self::Rten => Some(EngineKind::Rten),
            Self::OnnxRuntime => Some(EngineKind::OnnxRuntime),
        }
    }

    pub(super) fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// When a deployed version is loaded, and for how long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loading {
    /// At its first request; cold again when nobody asks for it.
    #[default]
    Lazy,
    /// When the server starts, too.
    Eager,
    /// When the server starts, and it stays.
    Pinned,
}

impl Loading {
    pub fn is_lazy(&self) -> bool {
        *self == Self::Lazy
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Lazy => "lazy",
            Self::Eager => "eager",
            Self::Pinned => "pinned",
        }
    }
}

/// A kind of model that has a protocol of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Texts in, a vector each out: see [`Task::check`].
    TextEmbedding,
}

impl Task {
    /// Checks that a model takes and gives what its task is about. `text-embedding`: input `text`
    /// BYTES \[-1\]; outputs `embedding` FP32 \[-1, D\], and `tokens` INT64 \[-1\], how many
    /// tokens each text came to.
    ///
    /// # Errors
    /// A text: what was expected and what came.
    pub fn check(self, contract: &Contract) -> Result<(), String> {
        let Self::TextEmbedding = self;
        let is = |specs: &[TensorSpec], name, datatype, is_shape: fn(&[i64]) -> bool| {
            let is = |spec: &TensorSpec| {
                spec.name == name && spec.datatype == datatype && is_shape(&spec.shape)
            };
            specs.iter().any(is)
        };
        let (inputs, outputs) = (&contract.inputs, &contract.outputs);
        let fits = inputs.len() == 1
            && is(inputs, "text", Datatype::Bytes, |shape| shape == [-1])
            && is(
                outputs,
                "embedding",
                Datatype::Fp32,
                |shape| matches!(shape, [-1, length] if *length > 0),
            )
            && is(outputs, "tokens", Datatype::Int64, |shape| shape == [-1]);
        match fits {
            true => Ok(()),
            false => Err("task text-embedding: expected the input `text` BYTES [-1] alone, and the outputs `embedding` FP32 [-1, its length] and `tokens` INT64 [-1]".to_owned()),
        }
    }
}

/// A value under `[settings]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    Boolean(bool),
    Integer(i64),
    Number(f64),
    Text(String),
}

impl Setting {
    pub(super) fn text(&self) -> String {
        match self {
            Setting::Boolean(value) => value.to_string(),
            Setting::Integer(value) => value.to_string(),
            Setting::Number(value) => value.to_string(),
            Setting::Text(value) => value.clone(),
        }
    }
}

/// What one request of this bundle may use; the server's own limits hold where one is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestLimits {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Of CPU, guest and graphs together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    /// Of the tensors it holds through wasi-nn; as much as of memory where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor_mib: Option<usize>,
    /// Of what one run of a graph takes beside its inputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub graph_mib: Option<usize>,
    /// That one run of a graph computes on, where cores are free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Requests that run at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// Requests that wait at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<usize>,
    /// Of a request's body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_kib: Option<usize>,
}

/// Threads that a manifest or a server's own setting may ask for.
pub(crate) const MAX_THREADS: usize = 1024;

impl ManifestLimits {
    pub(super) fn check(&self) -> Result<(), String> {
        let positive = [
            ("deadline_ms", self.deadline_ms),
            ("cpu_ms", self.cpu_ms),
            ("tensor_mib", self.tensor_mib.map(|mib| mib as u64)),
            ("graph_mib", self.graph_mib.map(|mib| mib as u64)),
            ("threads", self.threads.map(|most| most as u64)),
            ("concurrency", self.concurrency.map(|most| most as u64)),
            ("body_kib", self.body_kib.map(|kib| kib as u64)),
        ];
        if let Some((name, _)) = positive.into_iter().find(|(_, value)| *value == Some(0)) {
            return Err(format!("limits.{name} is 0, expected 1 or more"));
        }
        match self.threads.filter(|&threads| threads > MAX_THREADS) {
            None => Ok(()),
            Some(threads) => {
                Err(format!("limits.threads is {threads}, expected 1 to {MAX_THREADS}"))
            }
        }
    }
}

/// Whether answers are kept, for requests that are the same to the last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResponseCacheSetting {
    /// Of requests and answers together.
    pub max_mib: usize,
}

const MAX_RESPONSE_CACHE_MIB: usize = 4096;

impl ResponseCacheSetting {
    pub(super) fn check(&self) -> Result<(), String> {
        match self.max_mib {
            1..=MAX_RESPONSE_CACHE_MIB => Ok(()),
            most => Err(format!(
                "response_cache.max_mib is {most}, expected 1 to {MAX_RESPONSE_CACHE_MIB}"
            )),
        }
    }
}

/// How computes of several requests may be run at once. Used for the graphs and sizes of which an
/// examination measured that it pays, and for no others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchingSetting {
    /// Rows run at once at most: what requests bring along their graph's first axis.
    pub max_batch_size: usize,
    /// How long a request may wait for others, beyond those that are ready to run.
    #[serde(default)]
    pub max_queue_delay_us: u64,
    /// The sizes to be made; powers of two and `max_batch_size` where it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preferred_batch_size: Vec<usize>,
}

/// Above it a batch is so large that its first request waits for seconds.
const MAX_BATCH_SIZE: usize = 1024;
const MAX_QUEUE_DELAY_US: u64 = 1_000_000;
const MAX_PREFERRED: usize = 16;

impl BatchingSetting {
    /// The sizes that are worth measuring, the least first.
    pub fn sizes(&self) -> Vec<usize> {
        let mut sizes = self.preferred_batch_size.clone();
        if sizes.is_empty() {
            sizes.extend(
                (1..).map(|power| 1 << power).take_while(|&size| size < self.max_batch_size),
            );
            sizes.push(self.max_batch_size);
        }
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let Self { max_batch_size: most, max_queue_delay_us: delay, preferred_batch_size } = self;
        if !(2..=MAX_BATCH_SIZE).contains(most) {
            return Err(format!(
                "batching.max_batch_size is {most}, expected 2 to {MAX_BATCH_SIZE}"
            ));
        }
        if *delay > MAX_QUEUE_DELAY_US {
            return Err(format!(
                "batching.max_queue_delay_us is {delay}, expected at most {MAX_QUEUE_DELAY_US}"
            ));
        }
        if preferred_batch_size.len() > MAX_PREFERRED {
            let came = preferred_batch_size.len();
            return Err(format!(
                "batching.preferred_batch_size has {came} sizes, expected at most {MAX_PREFERRED}"
            ));
        }
        match preferred_batch_size.iter().find(|size| !(2..=*most).contains(*size)) {
            None => Ok(()),
            Some(odd) => Err(format!(
                "batching.preferred_batch_size has {odd}, expected 2 to max_batch_size, {most}"
            )),
        }
    }
}
