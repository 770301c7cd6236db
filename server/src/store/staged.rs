//! A bundle on its way: its blobs in a folder of their own, every digest checked, until it is
//! stored, packed or thrown away. The folder goes when this does.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::blobs::Blobs;
use super::storage;
use crate::bundle::{Artifact, Bundle, Content, FileKind, Head, MAX_DOCUMENT_BYTES, SourceFiles};
use crate::digest::Digest;
use crate::error::Error;
use crate::sandbox::ComponentInfo;
use crate::signature::{self, Signature, SignatureDocuments};

/// Of one bundle; wisp and cosign both keep all signatures in one.
const MAX_SIGNATURE_MANIFESTS: usize = 4;

/// A folder that takes a bundle in.
pub struct Staging {
    folder: TempDir,
    pub blobs: Blobs,
    /// Largest bundle, bytes.
    pub(super) limit: u64,
}

/// A bundle with all its blobs, checked.
pub struct Staged {
    folder: TempDir,
    pub blobs: Blobs,
    pub artifact: Artifact,
    /// Of the manifests of its signature artifacts.
    pub(super) signatures: Vec<Digest>,
}

impl Staging {
    /// Makes a folder in `parent`.
    ///
    /// # Errors
    /// The disk.
    pub fn new(parent: &Path, limit: u64) -> Result<Self, Error> {
        let folder = tempfile::Builder::new().prefix("stage-").tempdir_in(parent);
        let folder = folder.map_err(|error| storage(parent, &error))?;
        let blobs = Blobs::at(folder.path())?;
        Ok(Self { folder, blobs, limit })
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Takes in what lies at `path`: an OCI layout as a folder or a tar (`.wisp`), or a bundle's
    /// source, which is packed.
    ///
    /// # Errors
    /// It is none of them, or damaged.
    pub fn open(self, path: &Path) -> Result<Staged, Error> {
        let metadata = fs::metadata(path)
            .map_err(|error| Error::BundleRefused(format!("{}: {error}", path.display())))?;
        if metadata.is_dir() && path.join("oci-layout").is_file() {
            return self.read_folder(path);
        }
        if metadata.is_dir() || path.extension().is_some_and(|extension| extension == "onnx") {
            return self.pack(path);
        }
        let file = File::open(path)
            .map_err(|error| Error::BundleRefused(format!("{}: {error}", path.display())))?;
        self.read_tar(file)
    }

    /// Packs a bundle's source: a folder with `wisp.toml`, or a bare ONNX file.
    ///
    /// # Errors
    /// The manifest or a file is wrong.
    pub fn pack(self, path: &Path) -> Result<Staged, Error> {
        let source = SourceFiles::open(path).map_err(|error| refused(&error))?;
        let (manifest, generic) = source.complete();
        let mut files = Vec::new();
        if let Some((kind, name, bytes)) = generic {
            let (digest, size) = self.blobs.put(&name, &mut &bytes[..], self.limit)?;
            files.push((kind, name, digest, size));
        }
        for (kind, name) in source.manifest.files() {
            let (_, mut file) = source.file(name).map_err(|error| refused(&error))?;
            let (digest, size) =
                self.blobs.put(&format!("the file `{name}`"), &mut file, self.limit)?;
            files.push((kind, name.to_owned(), digest, size));
        }
        let component = files.iter().find(|(kind, ..)| *kind == FileKind::Component);
        let (_, _, digest, _) =
            component.ok_or_else(|| Error::Internal("a bundle without a component".into()))?;
        let component = ComponentInfo::of(&self.blobs.map(digest)?)
            .map_err(|error| Error::BundleRefused(format!("guest: {error}")))?;
        let (_, documents) = Artifact::write(manifest, &files, component).map_err(refused_text)?;
        self.blobs.put("the config", &mut &documents.config[..], MAX_DOCUMENT_BYTES)?;
        let (digest, _) =
            self.blobs.put("the manifest", &mut &documents.manifest[..], MAX_DOCUMENT_BYTES)?;
        self.finish(&digest, Vec::new())
    }

    /// Checks that the bundle of this manifest is whole.
    ///
    /// # Errors
    /// A blob is missing or of another size, or the manifest is wrong.
    pub fn finish(self, manifest: &Digest, signatures: Vec<Digest>) -> Result<Staged, Error> {
        let document = |digest: &Digest, what: &str| match self.blobs.size(digest) {
            Some(0..=MAX_DOCUMENT_BYTES) => self.blobs.map(digest),
            Some(size) => Err(Error::BundleRefused(format!(
                "{what} has {size} bytes, expected at most {MAX_DOCUMENT_BYTES}"
            ))),
            None => Err(Error::BundleRefused(format!("{what} ({digest}) is missing"))),
        };
        let head = Head::read(&document(manifest, "the manifest")?, self.limit);
        let head = head.map_err(refused_text)?;
        let config = document(&head.config.digest, "the config")?;
        let layers =
            head.layers.iter().map(|layer| (format!("the layer `{}`", layer.title), &layer.blob));
        for (what, blob) in layers.chain([("the config".to_owned(), &head.config)]) {
            match self.blobs.size(&blob.digest) {
                Some(size) if size == blob.size => {}
                Some(size) => {
                    return Err(Error::BundleRefused(format!(
                        "{what}: expected {} bytes, got {size}",
                        blob.size
                    )));
                }
                None => {
                    return Err(Error::BundleRefused(format!(
                        "{what} ({}) is missing",
                        blob.digest
                    )));
                }
            }
        }
        self.check_signatures(&signatures)?;
        let artifact = Artifact::read(head, &config).map_err(refused_text)?;
        let Self { folder, blobs, limit: _ } = self;
        Ok(Staged { folder, blobs, artifact, signatures })
    }

    /// Bounds what verifying will take: signatures are read before anybody is trusted.
    fn check_signatures(&self, manifests: &[Digest]) -> Result<(), Error> {
        if manifests.len() > MAX_SIGNATURE_MANIFESTS {
            return Err(Error::BundleRefused(format!(
                "it has {} signature artifacts, expected at most {MAX_SIGNATURE_MANIFESTS}",
                manifests.len()
            )));
        }
        let small = |digest: &Digest| match self.blobs.size(digest) {
            Some(0..=signature::MAX_BYTES) => Ok(()),
            Some(size) => Err(Error::BundleRefused(format!(
                "a blob of a signature has {size} bytes, expected at most {}",
                signature::MAX_BYTES
            ))),
            None => Err(Error::BundleRefused(format!("the signature's blob {digest} is missing"))),
        };
        for manifest in manifests {
            small(manifest)?;
            let blobs = Signature::blobs(&self.blobs.map(manifest)?).map_err(refused_text)?;
            blobs.iter().try_for_each(small)?;
        }
        Ok(())
    }
}

impl Staged {
    pub fn digest(&self) -> &Digest {
        &self.artifact.head.digest
    }

    /// The folder its blobs lie in, an OCI layout's root.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The bundle's contents, mapped.
    ///
    /// # Errors
    /// The disk.
    pub fn bundle(&self) -> Result<Bundle, Error> {
        bundle_of(&self.artifact, &self.blobs)
    }

    /// All signatures that came with it; whether any is worth something is not known here.
    ///
    /// # Errors
    /// A signature artifact is damaged.
    pub fn signatures(&self) -> Result<Vec<Signature>, Error> {
        let mut signatures = Vec::new();
        for digest in &self.signatures {
            let manifest = self.blobs.map(digest)?;
            let read = Signature::read(&manifest, |payload| self.blobs.map(payload).ok());
            signatures.extend(read.map_err(refused_text)?);
        }
        Ok(signatures)
    }

    /// Puts a signature beside the bundle and those it has. The same one twice is one.
    ///
    /// # Errors
    /// The disk, or the signatures that it has are damaged.
    pub fn add_signature(&mut self, signature: Signature) -> Result<(), Error> {
        let mut signatures = self.signatures()?;
        if !signatures.contains(&signature) {
            signatures.push(signature);
        }
        let documents = SignatureDocuments::of(&signatures);
        for document in
            documents.blobs.iter().map(|blob| &blob[..]).chain([&documents.manifest[..]])
        {
            self.blobs.put("a signature", &mut &*document, MAX_DOCUMENT_BYTES)?;
        }
        self.signatures = vec![Digest::of(&documents.manifest)];
        Ok(())
    }

    /// Writes the bundle's files, and its manifest as `wisp.toml`, into the new folder `target`.
    ///
    /// # Errors
    /// The folder is there already, or the disk.
    pub fn unpack(&self, target: &Path) -> Result<Vec<PathBuf>, Error> {
        fs::create_dir(target).map_err(|error| storage(target, &error))?;
        let mut written = Vec::new();
        for layer in &self.artifact.head.layers {
            let path = target.join(&layer.title);
            let copy = || {
                fs::create_dir_all(path.parent().unwrap_or(target))?;
                let mut from = File::open(self.blobs.path(&layer.blob.digest))?;
                let mut to = File::create_new(&path)?;
                io::copy(&mut from, &mut to)
            };
            copy().map_err(|error| storage(&path, &error))?;
            written.push(path);
        }
        let path = target.join("wisp.toml");
        let manifest = toml::to_string_pretty(&self.artifact.manifest)
            .map_err(|error| Error::Internal(format!("the manifest cannot be written: {error}")))?;
        let write =
            File::create_new(&path).and_then(|mut file| file.write_all(manifest.as_bytes()));
        write.map_err(|error| storage(&path, &error))?;
        written.push(path);
        Ok(written)
    }
}

/// The contents of a bundle whose blobs lie in `blobs`, each digested before it is used: what the
/// disk has made of them is not served.
///
/// # Errors
/// A blob is missing.
pub fn bundle_of(artifact: &Artifact, blobs: &Blobs) -> Result<Bundle, Error> {
    Bundle::assemble(&artifact.manifest, |file| {
        let layer = artifact.layer(file);
        let layer = layer.ok_or_else(|| Error::Internal(format!("no layer `{file}`")))?;
        let digest = layer.blob.digest.clone();
        Ok(Content::stored(blobs.map(&digest)?, digest))
    })
}

fn refused(error: &impl ToString) -> Error {
    Error::BundleRefused(error.to_string())
}

pub(super) fn refused_text(reason: String) -> Error {
    Error::BundleRefused(reason)
}
