//! A bundle's contents: read from a folder with `wisp.toml`, a component, graphs and assets; from
//! a bare ONNX file, which stands for a bundle of that one graph and the generic guest; or from
//! the blobs of an artifact. Reads files and checks the manifest; runs nothing.

mod artifact;
mod content;
mod folder;
mod manifest;
mod settings;

pub use artifact::{ARTIFACT_TYPE, Artifact, Blob, Documents, Head, Layer, MAX_DOCUMENT_BYTES};
pub use content::Content;
pub use folder::{BundleError, Source, SourceFiles};
pub use manifest::{ContractForm, FileKind, Manifest, SpecForm, check_name, check_version};
pub(crate) use settings::MAX_THREADS;
pub use settings::{
    BatchingSetting, EngineSetting, Loading, ManifestLimits, ResponseCacheSetting, Setting, Task,
};

use std::collections::BTreeMap;

use bytes::Bytes;

use wisp_engine::EngineKind;

use crate::sandbox::BundleView;

/// The generic guest: tensors in, tensors out (guests/tensor).
const TENSOR_GUEST: &[u8] = include_bytes!(env!("WISP_TENSOR_GUEST"));

/// Everything a revision is made of.
#[derive(Debug)]
pub struct Bundle {
    /// `None`: the manifest names none.
    pub version: Option<String>,
    pub component: Content,
    /// Whether the client's tensors reach the graph as they are.
    pub passthrough: bool,
    pub graphs: BTreeMap<String, Content>,
    pub engine: EngineSetting,
    /// By graph, where `auto` has been decided.
    pub engines: BTreeMap<String, EngineKind>,
    pub batching: Option<BatchingSetting>,
    /// By graph, the sizes of batches that were measured to pay.
    pub batch_sizes: BTreeMap<String, Vec<usize>>,
    pub response_cache: Option<ResponseCacheSetting>,
    pub files: BundleFiles,
    pub limits: ManifestLimits,
    pub contract: Option<ContractForm>,
    pub task: Option<Task>,
    /// By output, the asset with its classes' names.
    pub labels: BTreeMap<String, String>,
    pub tests: Vec<Golden>,
}

/// What the guest can read while it prepares.
#[derive(Debug, Clone, Default)]
pub struct BundleFiles {
    pub assets: BTreeMap<String, Content>,
    pub settings: BTreeMap<String, Setting>,
}

/// A golden test with its files.
#[derive(Debug)]
pub struct Golden {
    pub name: String,
    pub input: Content,
    pub is_json: bool,
    pub expect: Content,
    pub tolerance: f64,
}

impl Bundle {
    /// Puts a bundle together of a checked manifest and its files, which `read` finds by name.
    ///
    /// # Errors
    /// The first of `read`.
    pub fn assemble<E>(
        manifest: &Manifest,
        mut read: impl FnMut(&str) -> Result<Content, E>,
    ) -> Result<Self, E> {
        let component = manifest.component.as_deref().map(&mut read).transpose()?;
        let mut named = |files: &mut dyn Iterator<Item = (&String, &String)>| {
            files
                .map(|(name, file)| Ok((name.clone(), read(file)?)))
                .collect::<Result<BTreeMap<String, Content>, E>>()
        };
        let graphs = named(&mut manifest.graphs.iter())?;
        let assets = named(&mut manifest.assets.iter().map(|file| (file, file)))?;
        let tests = manifest.tests.iter().map(|test| {
            Ok(Golden {
                name: test.input.clone(),
                input: read(&test.input)?,
                is_json: test.input.ends_with(".json"),
                expect: read(&test.expect)?,
                tolerance: test.tolerance,
            })
        });
        let tests = tests.collect::<Result<_, E>>()?;
        Ok(Self {
            version: manifest.version.clone(),
            passthrough: component.is_none() || manifest.passthrough,
            component: component.unwrap_or_else(|| Content::new(Bytes::from_static(TENSOR_GUEST))),
            graphs,
            engine: manifest.engine,
            engines: BTreeMap::new(),
            batching: manifest.batching.clone(),
            batch_sizes: BTreeMap::new(),
            response_cache: manifest.response_cache,
            files: BundleFiles { assets, settings: manifest.settings.clone() },
            limits: manifest.limits,
            contract: manifest.contract.clone(),
            task: manifest.task,
            labels: manifest.labels.clone(),
            tests,
        })
    }

    /// All of its files.
    pub fn contents(&self) -> impl Iterator<Item = &Content> {
        let tests = self.tests.iter().flat_map(|test| [&test.input, &test.expect]);
        let named = self.graphs.values().chain(self.files.assets.values());
        std::iter::once(&self.component).chain(named).chain(tests)
    }
}

impl BundleView for BundleFiles {
    fn read_asset(&self, name: &str) -> Result<Vec<u8>, String> {
        self.assets
            .get(name)
            .ok_or_else(|| format!("the manifest lists no asset `{name}`"))?
            .bytes()
            .map(|bytes| bytes.to_vec())
    }

    fn setting(&self, name: &str) -> Option<String> {
        self.settings.get(name).map(Setting::text)
    }
}
