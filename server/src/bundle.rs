//! A bundle on disk: a folder with `wisp.toml`, a component, graphs and assets; or a bare ONNX
//! file, which stands for a bundle of that one graph and the generic guest. Reads files and
//! checks the manifest; runs nothing.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::sandbox::BundleView;

/// The generic guest: tensors in, tensors out (guests/tensor).
const TENSOR_GUEST: &[u8] = include_bytes!(env!("WISP_TENSOR_GUEST"));

const MANIFEST: &str = "wisp.toml";

/// `wisp.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The model's public name; the folder's where it is not given.
    pub name: Option<String>,
    /// The model's version; "1" where it is not given.
    pub version: Option<String>,
    /// The guest; without one the bundle's graph `model` is served as it is.
    pub component: Option<PathBuf>,
    /// ONNX files by the names the guest loads them under.
    #[serde(default)]
    pub graphs: BTreeMap<String, PathBuf>,
    /// Files the guest may read while it prepares.
    #[serde(default)]
    pub assets: Vec<PathBuf>,
    /// Values the guest may read while it prepares.
    #[serde(default)]
    pub settings: BTreeMap<String, Setting>,
    #[serde(default)]
    pub limits: ManifestLimits,
}

/// A value under `[settings]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    Boolean(bool),
    Integer(i64),
    Number(f64),
    Text(String),
}

impl Setting {
    fn text(&self) -> String {
        match self {
            Setting::Boolean(value) => value.to_string(),
            Setting::Integer(value) => value.to_string(),
            Setting::Number(value) => value.to_string(),
            Setting::Text(value) => value.clone(),
        }
    }
}

/// What one request of this bundle may use; the server's own limits hold where one is absent.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestLimits {
    pub memory_mib: Option<usize>,
    pub deadline_ms: Option<u64>,
}

/// Everything a revision is made of, read into memory.
#[derive(Debug)]
pub struct Bundle {
    pub version: String,
    pub component: Cow<'static, [u8]>,
    /// Whether the graph is served as it is, by the generic guest.
    pub is_bare: bool,
    pub graphs: BTreeMap<String, Vec<u8>>,
    pub files: BundleFiles,
    pub limits: ManifestLimits,
}

/// What the guest can read while it prepares.
#[derive(Debug, Clone, Default)]
pub struct BundleFiles {
    pub assets: BTreeMap<String, Vec<u8>>,
    pub settings: BTreeMap<String, Setting>,
}

/// Why a bundle cannot be read; for the operator.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("{}: {reason}", path.display())]
    Manifest { path: PathBuf, reason: String },
    #[error("{}: expected a folder with a {MANIFEST}, a folder of such folders, or an .onnx file", .0.display())]
    NotABundle(PathBuf),
}

/// Where a bundle lies, and the name it is known by before it is read.
#[derive(Debug, Clone)]
pub struct Source {
    pub name: String,
    pub path: PathBuf,
}

impl Source {
    /// The bundles at `path`: itself, or those in its folders and its .onnx files, in name order.
    ///
    /// # Errors
    /// There is nothing to serve at `path`.
    pub fn find(path: &Path) -> Result<Vec<Self>, BundleError> {
        let file = |error| BundleError::File { path: path.to_owned(), error };
        let is_folder = fs::metadata(path).map_err(file)?.is_dir();
        if is_bundle(path, is_folder) {
            return Ok(vec![Self::at(path)]);
        }
        let mut found = Vec::new();
        if is_folder {
            for entry in fs::read_dir(path).map_err(file)? {
                let path = entry.map_err(file)?.path();
                if is_bundle(&path, path.is_dir()) {
                    found.push(Self::at(&path));
                }
            }
        }
        if found.is_empty() {
            return Err(BundleError::NotABundle(path.to_owned()));
        }
        found.sort_by(|a, b| (&a.name, &a.path).cmp(&(&b.name, &b.path)));
        Ok(found)
    }

    /// The bundle at `path`, named by its manifest where that says so, else by its file name.
    pub fn at(path: &Path) -> Self {
        // `.` and `..` have no name of their own.
        let absolute = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let stem = if path.is_dir() { absolute.file_name() } else { path.file_stem() };
        let stem = stem.map_or_else(|| "model".into(), |stem| stem.to_string_lossy().into_owned());
        let named = read_manifest(path).ok().and_then(|manifest| manifest.name);
        Self { name: named.unwrap_or(stem), path: path.to_owned() }
    }
}

fn is_bundle(path: &Path, is_folder: bool) -> bool {
    match is_folder {
        true => path.join(MANIFEST).is_file(),
        false => path.extension().is_some_and(|extension| extension == "onnx"),
    }
}

impl Bundle {
    /// Reads all files of the bundle at `path`.
    ///
    /// # Errors
    /// A file is missing or unreadable, the manifest has unknown keys or points outside.
    pub fn read(path: &Path) -> Result<Self, BundleError> {
        if path.extension().is_some_and(|extension| extension == "onnx") && !path.is_dir() {
            let graphs = BTreeMap::from([("model".to_owned(), read(path)?)]);
            return Ok(Self {
                version: "1".to_owned(),
                component: TENSOR_GUEST.into(),
                is_bare: true,
                graphs,
                files: BundleFiles::default(),
                limits: ManifestLimits::default(),
            });
        }
        let manifest = read_manifest(path)?;
        let refuse = |reason: String| BundleError::Manifest { path: path.join(MANIFEST), reason };
        let file = |relative: &PathBuf| {
            inside(path, relative).map_err(&refuse).and_then(|path| read(&path))
        };
        let component = manifest.component.as_ref().map(&file).transpose()?;
        if component.is_none() && !manifest.graphs.contains_key("model") {
            return Err(refuse(
                "expected a `component`, or a graph named `model` to serve as it is".to_owned(),
            ));
        }
        let graphs = manifest.graphs.iter().map(|(name, path)| Ok((name.clone(), file(path)?)));
        let assets = manifest
            .assets
            .iter()
            .map(|path| Ok((path.to_string_lossy().into_owned(), file(path)?)));
        Ok(Self {
            version: manifest.version.clone().unwrap_or_else(|| "1".to_owned()),
            is_bare: component.is_none(),
            component: component.map_or(TENSOR_GUEST.into(), Cow::Owned),
            graphs: graphs.collect::<Result<_, BundleError>>()?,
            files: BundleFiles {
                assets: assets.collect::<Result<_, BundleError>>()?,
                settings: manifest.settings,
            },
            limits: manifest.limits,
        })
    }
}

fn read_manifest(folder: &Path) -> Result<Manifest, BundleError> {
    let path = folder.join(MANIFEST);
    let text = fs::read_to_string(&path)
        .map_err(|error| BundleError::File { path: path.clone(), error })?;
    let manifest: Manifest = toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(0, |span| text[..span.start].lines().count().max(1));
        BundleError::Manifest {
            path: path.clone(),
            reason: format!("line {line}: {}", error.message().trim_end().replace('\n', " ")),
        }
    })?;
    Ok(manifest)
}

/// The path of a bundle's file, which must lie inside its folder.
fn inside(folder: &Path, relative: &Path) -> Result<PathBuf, String> {
    let is_plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    let outside =
        || format!("`{}`: expected a path inside the bundle's folder", relative.display());
    if !relative.components().all(is_plain) {
        return Err(outside());
    }
    let path = folder.join(relative);
    // A link may lead out; what is not there is told when it is read.
    match (fs::canonicalize(folder), fs::canonicalize(&path)) {
        (Ok(folder), Ok(real)) if !real.starts_with(&folder) => Err(outside()),
        _ => Ok(path),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, BundleError> {
    // A pipe or a device would never end.
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "expected a regular file");
        return Err(BundleError::File { path: path.to_owned(), error });
    }
    fs::read(path).map_err(|error| BundleError::File { path: path.to_owned(), error })
}

impl BundleView for BundleFiles {
    fn read_asset(&self, name: &str) -> Result<Vec<u8>, String> {
        self.assets
            .get(name)
            .cloned()
            .ok_or_else(|| format!("the manifest lists no asset `{name}`"))
    }

    fn setting(&self, name: &str) -> Option<String> {
        self.settings.get(name).map(Setting::text)
    }
}
