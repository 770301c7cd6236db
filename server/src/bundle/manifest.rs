//! The manifest: `wisp.toml` in a source folder, the same as JSON in an artifact's config.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use super::settings::{
    BatchingSetting, EngineSetting, Loading, ManifestLimits, ResponseCacheSetting, Setting, Task,
};
use crate::tensor::{Contract, Datatype, TensorSpec};
use serde::{Deserialize, Serialize};

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
    /// Whether answers are kept for the next to ask the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_cache: Option<ResponseCacheSetting>,
    /// What `prepare` must return, where it is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contract: Option<ContractForm>,
    /// Golden tests: inputs and the answers to them, run before the bundle is taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tests: Vec<GoldenTest>,
}

fn is_false(value: &bool) -> bool {
    !value
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
        self.limits.check()?;
        self.response_cache.as_ref().map_or(Ok(()), ResponseCacheSetting::check)?;
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
