//! The manifest: `wisp.toml` in a source folder, the same as JSON in an artifact's config.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use wisp_engine::EngineKind;

use crate::tensor::{Contract, Datatype, TensorSpec};

/// What a bundle is made of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The model's public name; the folder's where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The model's version; the next free number at deployment where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What kind of model it is, for clients that ask by kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// The guest's file; without one the bundle's graph `model` is served as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub component: Option<String>,
    /// What runs the graphs.
    #[serde(default, skip_serializing_if = "EngineSetting::is_auto")]
    pub engine: EngineSetting,
    /// Whether a client's tensors reach the graph as they are, so that what the graph refuses is
    /// the client's mistake. So it is where there is no component.
    #[serde(default, skip_serializing_if = "is_false")]
    pub passthrough: bool,
    /// ONNX files by the names the guest loads them under.
    #[serde(default)]
    pub graphs: BTreeMap<String, String>,
    /// Files the guest may read while it prepares.
    #[serde(default)]
    pub assets: Vec<String>,
    /// For outputs whose values stand for classes: the asset with a class's name a line.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Values the guest may read while it prepares.
    #[serde(default)]
    pub settings: BTreeMap<String, Setting>,
    #[serde(default)]
    pub limits: ManifestLimits,
    /// When a deployed version is loaded, and for how long.
    #[serde(default, skip_serializing_if = "Loading::is_lazy")]
    pub loading: Loading,
    /// Whether several requests' computes of a graph may be one run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batching: Option<BatchingSetting>,
    /// What `prepare` must return, where it is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contract: Option<ContractForm>,
    /// Golden tests: inputs and the answers to them, run before the bundle is taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tests: Vec<GoldenTest>,
}

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

    fn is_auto(&self) -> bool {
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

fn is_false(value: &bool) -> bool {
    !value
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

    fn check(&self) -> Result<(), String> {
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

/// One input and the answer to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenTest {
    /// A request of the protocol where it ends in `.json`, else the model's one input as it is.
    pub input: String,
    /// An answer of the protocol, as `wisp infer` prints it. Outputs that it leaves out are not
    /// compared.
    pub expect: String,
    /// How far a floating-point value may be from what is expected, relative to the larger of
    /// that and 1.
    #[serde(default = "default_tolerance")]
    pub tolerance: f64,
}

/// Each is mapped on its own while a bundle is loaded.
const MAX_FILES: usize = 1000;

fn default_tolerance() -> f64 {
    1e-3
}

/// A contract in written form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContractForm {
    pub inputs: Vec<SpecForm>,
    pub outputs: Vec<SpecForm>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecForm {
    pub name: String,
    pub datatype: String,
    pub shape: Vec<i64>,
}

impl From<&Contract> for ContractForm {
    fn from(contract: &Contract) -> Self {
        let forms = |specs: &[TensorSpec]| specs.iter().map(SpecForm::from).collect();
        Self { inputs: forms(&contract.inputs), outputs: forms(&contract.outputs) }
    }
}

impl From<&TensorSpec> for SpecForm {
    fn from(spec: &TensorSpec) -> Self {
        Self {
            name: spec.name.clone(),
            datatype: spec.datatype.name().to_owned(),
            shape: spec.shape.clone(),
        }
    }
}

impl ContractForm {
    /// The contract it writes down.
    ///
    /// # Errors
    /// A text: the datatype that the protocol does not have.
    pub fn read(self) -> Result<Contract, String> {
        let read = |specs: Vec<SpecForm>| {
            let specs = specs.into_iter().map(|SpecForm { name, datatype, shape }| {
                let datatype = Datatype::parse(&datatype)
                    .ok_or_else(|| format!("`{name}` has the unknown datatype `{datatype}`"))?;
                Ok(TensorSpec { name, datatype, shape })
            });
            specs.collect::<Result<_, String>>()
        };
        Ok(Contract { inputs: read(self.inputs)?, outputs: read(self.outputs)? })
    }
}

impl Manifest {
    /// All files that it names.
    pub fn files(&self) -> Vec<(FileKind, &str)> {
        let component = self.component.iter().map(|file| (FileKind::Component, file));
        let graphs = self.graphs.values().map(|file| (FileKind::Graph, file));
        let assets = self.assets.iter().map(|file| (FileKind::Asset, file));
        let tests = self.tests.iter().flat_map(|test| [&test.input, &test.expect]);
        let tests = tests.map(|file| (FileKind::Test, file));
        let files = component.chain(graphs).chain(assets).chain(tests);
        files.map(|(kind, file)| (kind, file.as_str())).collect()
    }

    /// Checks what serde cannot.
    ///
    /// # Errors
    /// A text: the key, what was expected and what came.
    pub fn check(&self) -> Result<(), String> {
        if self.component.is_none() && !self.graphs.contains_key("model") {
            return Err(
                "expected a `component`, or a graph named `model` to serve as it is".to_owned()
            );
        }
        self.name.as_deref().map_or(Ok(()), check_name)?;
        self.version.as_deref().map_or(Ok(()), check_version)?;
        let files = self.files();
        if files.len() > MAX_FILES {
            return Err(format!("it names {} files, expected at most {MAX_FILES}", files.len()));
        }
        files.into_iter().try_for_each(|(_, file)| check_file(file))?;
        if self.limits.deadline_ms == Some(0) {
            return Err("limits.deadline_ms is 0, expected 1 or more".to_owned());
        }
        self.batching.as_ref().map_or(Ok(()), BatchingSetting::check)?;
        if let Some((output, file)) =
            self.labels.iter().find(|(_, file)| !self.assets.contains(file))
        {
            return Err(format!("labels.{output} is `{file}`, expected one of the `assets`"));
        }
        let odd = self.tests.iter().find(|test| test.tolerance.is_nan() || test.tolerance < 0.0);
        odd.map_or(Ok(()), |test| {
            Err(format!("tests: expected a tolerance of 0 or more, got {}", test.tolerance))
        })
    }
}

/// What a file is to its bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileKind {
    Component,
    Graph,
    Asset,
    Test,
}

/// Of names and versions.
const MAX_NAME_BYTES: usize = 200;

/// Names stand in URLs and in logs; `stats` is taken by the protocol.
///
/// # Errors
/// A text: which name, and what it may have.
pub fn check_name(name: &str) -> Result<(), String> {
    if name == "stats" {
        return Err("the name `stats` is the protocol's own".to_owned());
    }
    check_plain("name", name)
}

/// Versions stand where names do.
///
/// # Errors
/// As for names.
pub fn check_version(version: &str) -> Result<(), String> {
    check_plain("version", version)
}

fn check_plain(what: &str, name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.len() > MAX_NAME_BYTES {
        return Err(format!(
            "the {what} has {} bytes, expected at most {MAX_NAME_BYTES}",
            name.len()
        ));
    }
    match !matches!(name, "" | "." | "..") && name.chars().all(is_plain) {
        true => Ok(()),
        false => {
            Err(format!("the {what} {name:?} may have letters, digits, `-`, `_` and `.` only"))
        }
    }
}

/// A bundle's file lies inside it, on whatever machine it is unpacked.
///
/// # Errors
/// A text: the file, and what was expected.
pub fn check_file(file: &str) -> Result<(), String> {
    let is_plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    let path = Path::new(file);
    // `unpack` writes the manifest there.
    let is_manifest = path.strip_prefix(".").unwrap_or(path) == Path::new("wisp.toml");
    if is_manifest {
        return Err("a bundle's files cannot be named `wisp.toml`, as its manifest is".to_owned());
    }
    let inside = path.components().all(is_plain)
        && path.file_name().is_some()
        && !file.chars().any(|c| c.is_control() || c == '\\');
    match inside {
        true => Ok(()),
        false => {
            Err(format!("`{}`: expected a path inside the bundle's folder", file.escape_debug()))
        }
    }
}
