//! OCI image layouts, <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>: as
//! a tar, which is what a `.wisp` file is, or as a folder. Whoever sends one is not believed.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use oci_client::manifest::{
    ImageIndexEntry, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OciImageIndex,
};
use serde_json::{Value, json};
use tar::{Archive, Builder, EntryType, Header};

use super::blobs::Blobs;
use super::staged::{Staged, Staging, refused_text};
use super::storage;
use crate::bundle::{ARTIFACT_TYPE, MAX_DOCUMENT_BYTES};
use crate::digest::Digest;
use crate::error::{Error, one_line};
use crate::signature::{self, Signature};

const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Of an archive's entries beside the blobs of the bundle itself: documents and signatures.
const OVERHEAD_BYTES: u64 = 64 << 20;
const MAX_ENTRIES: usize = 5000;

const LAYOUT_VERSION: &str = "1.0.0";

impl Staging {
    /// Takes in an OCI layout as a tar, in whatever order its entries come.
    ///
    /// # Errors
    /// It is cut, damaged, too large, or holds anything but one bundle.
    pub fn read_tar(self, archive: impl Read) -> Result<Staged, Error> {
        let mut layout = LayoutReader::new(&self);
        let broken = |error: io::Error| {
            // tar repeats what it could not read.
            let text: String = one_line(&error.to_string()).chars().take(200).collect();
            Error::BundleRefused(format!("the archive is damaged or broke off: {text}"))
        };
        let mut archive = Archive::new(archive);
        // Raw: the long names and sparse files of tar's extensions, which could grow without
        // bounds, have no place in a layout.
        for (number, entry) in archive.entries().map_err(broken)?.raw(true).enumerate() {
            let mut entry = entry.map_err(broken)?;
            if number >= MAX_ENTRIES {
                return Err(Error::BundleRefused(format!(
                    "the archive has more than {MAX_ENTRIES} entries"
                )));
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name = name.strip_prefix("./").unwrap_or(&name);
            match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {}
                EntryType::Directory | EntryType::XHeader | EntryType::XGlobalHeader => {
                    layout.spend(name, entry.size())?;
                    continue;
                }
                other => {
                    return Err(Error::BundleRefused(format!(
                        "the archive's entry `{}` is of type {other:?}, expected regular files",
                        name.escape_debug()
                    )));
                }
            }
            let size = entry.size();
            layout.take(name, size, &mut entry)?;
        }
        let index = layout.finish()?;
        self.finish_layout(&index)
    }

    pub(super) fn read_folder(self, path: &Path) -> Result<Staged, Error> {
        let mut layout = LayoutReader::new(&self);
        let mut names = vec!["oci-layout".to_owned(), "index.json".to_owned()];
        let blobs = Blobs::in_layout(path);
        names.extend(blobs.list()?.iter().map(|digest| format!("blobs/sha256/{}", digest.hex())));
        for name in names {
            let file = path.join(&name);
            let mut open = File::open(&file).map_err(|error| storage(&file, &error))?;
            let size = open.metadata().map_err(|error| storage(&file, &error))?.len();
            layout.take(&name, size, &mut open)?;
        }
        let index = layout.finish()?;
        self.finish_layout(&index)
    }

    fn finish_layout(self, index: &[u8]) -> Result<Staged, Error> {
        let index: OciImageIndex = serde_json::from_slice(index).map_err(|error| {
            Error::BundleRefused(format!("index.json is not an OCI image index: {error}"))
        })?;
        let is_signature = |entry: &&ImageIndexEntry| {
            let name = entry.annotations.as_ref().and_then(|all| all.get(REF_NAME));
            name.is_some_and(|name| name.ends_with(".sig"))
        };
        let (signatures, bundles): (Vec<_>, Vec<_>) =
            index.manifests.iter().partition(is_signature);
        let [bundle] = bundles[..] else {
            return Err(Error::BundleRefused(format!(
                "expected one bundle in index.json, got {}",
                bundles.len()
            )));
        };
        let digests = signatures.iter().map(|entry| Digest::parse(&entry.digest));
        let digests = digests.collect::<Result<_, _>>().map_err(refused_text)?;
        let digest = Digest::parse(&bundle.digest)
            .map_err(|reason| Error::BundleRefused(format!("index.json: {reason}")))?;
        self.finish(&digest, digests)
    }
}

/// Puts a layout's files where they belong, within the bounds.
struct LayoutReader<'a> {
    staging: &'a Staging,
    room: u64,
    index: Option<Vec<u8>>,
}

impl<'a> LayoutReader<'a> {
    fn new(staging: &'a Staging) -> Self {
        Self { staging, room: staging.limit.saturating_add(OVERHEAD_BYTES), index: None }
    }

    fn spend(&mut self, name: &str, size: u64) -> Result<(), Error> {
        self.room = self.room.checked_sub(size).ok_or_else(|| {
            Error::BundleRefused(format!(
                "`{}`: with its {size} bytes the bundle is over the {} bytes that are taken here",
                name.escape_debug(),
                self.staging.limit
            ))
        })?;
        Ok(())
    }

    fn take(&mut self, name: &str, size: u64, content: &mut dyn Read) -> Result<(), Error> {
        self.spend(name, size)?;
        let cut = |came: u64| {
            Error::BundleRefused(format!(
                "the archive ends in the middle of `{name}`: expected {size} bytes, got {came}"
            ))
        };
        if let Some(hex) = name.strip_prefix("blobs/sha256/") {
            let digest = Digest::parse(&format!("sha256:{hex}"));
            let digest = digest.map_err(|reason| {
                Error::BundleRefused(format!("`{}`: {reason}", name.escape_debug()))
            })?;
            let mut counted = Counted { inner: content, count: 0 };
            let received = self.staging.blobs.receive(name, &digest, &mut counted, size);
            let came = counted.count;
            return match received {
                Err(error @ Error::Storage(_)) => Err(error),
                _ if came < size => Err(cut(came)),
                other => other,
            };
        }
        if !matches!(name, "oci-layout" | "index.json") {
            return Err(Error::BundleRefused(format!(
                "unexpected entry `{}`: expected oci-layout, index.json and blobs/sha256/…",
                name.escape_debug()
            )));
        }
        if size > MAX_DOCUMENT_BYTES {
            return Err(Error::BundleRefused(format!(
                "{name} has {size} bytes, expected at most {MAX_DOCUMENT_BYTES}"
            )));
        }
        let mut bytes = Vec::new();
        content.take(size).read_to_end(&mut bytes).map_err(|error| {
            Error::BundleRefused(format!("the archive broke off in `{name}`: {error}"))
        })?;
        if (bytes.len() as u64) < size {
            return Err(cut(bytes.len() as u64));
        }
        if name == "index.json" {
            self.index = Some(bytes);
            return Ok(());
        }
        let layout: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        match layout["imageLayoutVersion"].as_str() {
            Some(LAYOUT_VERSION) => Ok(()),
            other => Err(Error::BundleRefused(format!(
                "oci-layout: expected imageLayoutVersion {LAYOUT_VERSION}, got {}",
                one_line(other.unwrap_or("none"))
            ))),
        }
    }

    fn finish(self) -> Result<Vec<u8>, Error> {
        self.index
            .ok_or_else(|| Error::BundleRefused("not a bundle: it has no index.json".to_owned()))
    }
}

struct Counted<'a> {
    inner: &'a mut dyn Read,
    count: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count += read as u64;
        Ok(read)
    }
}

impl Staged {
    /// Writes the layout as a tar; the same bundle gives the same bytes.
    ///
    /// # Errors
    /// The disk.
    pub fn write_tar(&self, out: impl Write) -> Result<(), Error> {
        self.try_write_tar(out)
            .map_err(|error| Error::Storage(format!("the archive cannot be written: {error}")))
    }

    fn try_write_tar(&self, out: impl Write) -> io::Result<()> {
        let missing = |error: Error| io::Error::other(error.to_string());
        let head = &self.artifact.head;
        let entry = |digest: &Digest, size: u64, name: String, artifact_type: Option<&str>| {
            ImageIndexEntry {
                media_type: OCI_IMAGE_MEDIA_TYPE.to_owned(),
                digest: digest.to_string(),
                size: size.cast_signed(),
                platform: None,
                annotations: Some([(REF_NAME.to_owned(), name)].into()),
                artifact_type: artifact_type.map(str::to_owned),
            }
        };
        let version = self.artifact.manifest.version.clone().unwrap_or_else(|| "latest".to_owned());
        let mut manifests =
            vec![entry(&head.digest, head.manifest_size, version, Some(ARTIFACT_TYPE))];
        let mut digests = vec![head.digest.clone()];
        digests.extend(head.blobs().map(|blob| blob.digest.clone()));
        for digest in &self.signatures {
            let manifest = self.blobs.map(digest).map_err(missing)?;
            let name = signature::tag(&head.digest);
            manifests.push(entry(digest, manifest.len() as u64, name, None));
            digests.push(digest.clone());
            let parts = Signature::blobs(&manifest).map_err(io::Error::other)?;
            digests.extend(parts);
        }
        let index = OciImageIndex {
            schema_version: 2,
            media_type: Some(OCI_IMAGE_INDEX_MEDIA_TYPE.to_owned()),
            manifests,
            artifact_type: None,
            annotations: None,
        };
        let mut archive = Builder::new(out);
        let layout = json!({"imageLayoutVersion": LAYOUT_VERSION}).to_string();
        append(&mut archive, "oci-layout", layout.len() as u64, layout.as_bytes())?;
        let index = serde_json::to_vec(&index)?;
        append(&mut archive, "index.json", index.len() as u64, &index[..])?;
        let mut written = BTreeSet::new();
        for digest in digests {
            if written.insert(digest.clone()) {
                let file = File::open(self.blobs.path(&digest))?;
                let size = file.metadata()?.len();
                append(&mut archive, &format!("blobs/sha256/{}", digest.hex()), size, file)?;
            }
        }
        archive.into_inner()?.flush()
    }
}

/// An entry that says nothing of who packed it, where and when.
fn append(
    archive: &mut Builder<impl Write>,
    name: &str,
    size: u64,
    content: impl Read,
) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_path(name)?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_entry_type(EntryType::Regular);
    header.set_cksum();
    archive.append(&header, content)
}
