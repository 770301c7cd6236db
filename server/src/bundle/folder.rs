//! A bundle as its developer has it: a folder with `wisp.toml`, or a bare ONNX file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::manifest::{FileKind, Manifest, check_file};
use super::{Bundle, Content, TENSOR_GUEST};

const MANIFEST: &str = "wisp.toml";

/// The generic guest's file in a bundle that is packed without a component of its own.
const PACKED_GUEST: &str = "guest.wasm";

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
    /// "1" where the manifest names none.
    pub version: String,
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
        let manifest = read_manifest(path).unwrap_or_default();
        let version = manifest.version.unwrap_or_else(|| "1".to_owned());
        Self { name: manifest.name.unwrap_or(stem), version, path: path.to_owned() }
    }
}

fn is_bundle(path: &Path, is_folder: bool) -> bool {
    match is_folder {
        true => path.join(MANIFEST).is_file(),
        false => is_graph(path),
    }
}

fn is_graph(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "onnx") && !path.is_dir()
}

/// A checked manifest and where its files lie.
pub struct SourceFiles {
    pub manifest: Manifest,
    path: PathBuf,
}

impl SourceFiles {
    /// Reads the manifest at `path`, or makes one for a bare ONNX file.
    ///
    /// # Errors
    /// It cannot be read, has unknown keys or points outside.
    pub fn open(path: &Path) -> Result<Self, BundleError> {
        if is_graph(path) {
            let file = path.file_name().map(|name| name.to_string_lossy().into_owned());
            let graphs = BTreeMap::from([("model".to_owned(), file.unwrap_or_default())]);
            let manifest = Manifest { graphs, ..Manifest::default() };
            return Ok(Self { manifest, path: path.to_owned() });
        }
        let manifest = read_manifest(path)?;
        let checked = manifest.check();
        checked.map_err(|reason| BundleError::Manifest { path: path.join(MANIFEST), reason })?;
        Ok(Self { manifest, path: path.to_owned() })
    }

    /// The bundle, read into memory.
    ///
    /// # Errors
    /// A file is missing, unreadable, or lies outside.
    pub fn bundle(&self) -> Result<Bundle, BundleError> {
        Bundle::assemble(&self.manifest, |file| {
            let (path, mut open) = self.file(file)?;
            let mut bytes = Vec::new();
            let read = open.read_to_end(&mut bytes);
            read.map_err(|error| BundleError::File { path, error })?;
            Ok(Content::new(bytes.into()))
        })
    }

    /// One of its files, open.
    ///
    /// # Errors
    /// It is missing, no regular file, or lies outside.
    pub fn file(&self, file: &str) -> Result<(PathBuf, File), BundleError> {
        let path = match is_graph(&self.path) {
            true => self.path.clone(),
            false => inside(&self.path, file).map_err(|reason| BundleError::Manifest {
                path: self.path.join(MANIFEST),
                reason,
            })?,
        };
        match open(&path) {
            Ok(file) => Ok((path, file)),
            Err(error) => Err(BundleError::File { path, error }),
        }
    }

    /// The manifest as a whole artifact has it: named, and with a component. The bytes are those
    /// of the generic guest where the bundle has none of its own.
    pub fn complete(&self) -> (Manifest, Option<(FileKind, String, Bytes)>) {
        let mut manifest = self.manifest.clone();
        manifest.name.get_or_insert_with(|| Source::at(&self.path).name);
        if manifest.component.is_some() {
            return (manifest, None);
        }
        manifest.component = Some(PACKED_GUEST.to_owned());
        manifest.passthrough = true;
        let guest = Bytes::from_static(TENSOR_GUEST);
        (manifest, Some((FileKind::Component, PACKED_GUEST.to_owned(), guest)))
    }
}

fn read_manifest(folder: &Path) -> Result<Manifest, BundleError> {
    let path = folder.join(MANIFEST);
    let text = fs::read_to_string(&path)
        .map_err(|error| BundleError::File { path: path.clone(), error })?;
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(0, |span| text[..span.start].lines().count().max(1));
        BundleError::Manifest {
            path: path.clone(),
            reason: format!("line {line}: {}", error.message().trim_end().replace('\n', " ")),
        }
    })
}

/// The path of a bundle's file, which must lie inside its folder.
fn inside(folder: &Path, file: &str) -> Result<PathBuf, String> {
    check_file(file)?;
    let path = folder.join(file);
    // A link may lead out; what is not there is told when it is read.
    match (fs::canonicalize(folder), fs::canonicalize(&path)) {
        (Ok(folder), Ok(real)) if !real.starts_with(&folder) => {
            Err(format!("`{file}`: expected a path inside the bundle's folder"))
        }
        _ => Ok(path),
    }
}

fn open(path: &Path) -> io::Result<File> {
    // A pipe or a device would never end.
    if fs::metadata(path)?.is_file() {
        return File::open(path);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "expected a regular file"))
}
