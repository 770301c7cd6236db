//! Content-addressed files: `blobs/sha256/<digest>`, as in an OCI image layout.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use memmap2::Mmap;

use super::storage;
use crate::digest::{Digest, Digesting};
use crate::error::Error;

/// A folder of blobs, none of which ever changes.
#[derive(Debug, Clone)]
pub struct Blobs {
    folder: PathBuf,
}

impl Blobs {
    /// The blobs of the layout at `root`, whose folder is made where it is missing.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn at(root: &Path) -> Result<Self, Error> {
        let folder = root.join("blobs/sha256");
        fs::create_dir_all(&folder).map_err(|error| storage(&folder, &error))?;
        Ok(Self { folder })
    }

    /// The blobs of a layout that is only read.
    pub fn in_layout(root: &Path) -> Self {
        Self { folder: root.join("blobs/sha256") }
    }

    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.hex())
    }

    /// Its size in bytes, if it is there.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        let metadata = fs::symlink_metadata(self.path(digest)).ok()?;
        metadata.is_file().then_some(metadata.len())
    }

    /// All digests, in no order. What is not named like a blob is left out.
    pub fn list(&self) -> Result<Vec<Digest>, Error> {
        let entries = fs::read_dir(&self.folder).map_err(|error| storage(&self.folder, &error))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter_map(|name| Digest::parse(&format!("sha256:{name}")).ok()).collect())
    }

    /// The blob's content, mapped: pages come in as they are read, and are shared.
    ///
    /// # Errors
    /// It is not there or cannot be read.
    pub fn map(&self, digest: &Digest) -> Result<Bytes, Error> {
        let path = self.path(digest);
        let open = || {
            let file = File::open(&path)?;
            // SAFETY: a blob is written under another name and never changed once it has its
            // own; the folder is this user's. Removing it leaves the mapping whole.
            unsafe { Mmap::map(&file) }
        };
        let map = open().map_err(|error| storage(&path, &error))?;
        Ok(Bytes::from_owner(map))
    }

    /// Takes content in and digests it. More than `limit` bytes are refused.
    ///
    /// # Errors
    /// Too much comes, `content` breaks off, or the disk is full.
    pub fn put(
        &self,
        what: &str,
        content: &mut dyn Read,
        limit: u64,
    ) -> Result<(Digest, u64), Error> {
        // By hand instead of io::copy, to tell a broken source from a full disk.
        let mut content = BufReader::with_capacity(256 << 10, content);
        let mut blob = self.writer(what, limit)?;
        loop {
            let bytes = content
                .fill_buf()
                .map_err(|error| Error::BundleRefused(format!("{what} broke off: {error}")))?;
            if bytes.is_empty() {
                return blob.finish();
            }
            let count = bytes.len();
            blob.write(bytes)?;
            content.consume(count);
        }
    }

    /// A blob that is written piece by piece, of at most `limit` bytes.
    ///
    /// # Errors
    /// The disk.
    pub fn writer(&self, what: &str, limit: u64) -> Result<BlobWriter<'_>, Error> {
        let scratch = self.folder.join(format!("{}.tmp", scratch_name()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&scratch);
        let file = Digesting::new(file.map_err(|error| storage(&scratch, &error))?);
        let what = what.to_owned();
        Ok(BlobWriter { blobs: self, what, scratch, file: Some(file), written: 0, limit })
    }

    /// Takes in content that must have this digest.
    ///
    /// # Errors
    /// As [`Blobs::put`], and content of another digest.
    pub fn receive(
        &self,
        what: &str,
        expected: &Digest,
        content: &mut dyn Read,
        limit: u64,
    ) -> Result<(), Error> {
        let (digest, _) = self.put(what, content, limit)?;
        if digest == *expected {
            return Ok(());
        }
        // What was put may be another blob that is wanted: it stays, under its true name.
        Err(Error::BundleRefused(format!("{what}: expected {expected}, its content is {digest}")))
    }

    /// Moves a blob in from another folder on the same disk, made durable. It replaces one that
    /// is here already, which may be damaged. [`Blobs::sync`] makes the move durable.
    ///
    /// # Errors
    /// The disk.
    pub fn adopt(&self, from: &Blobs, digest: &Digest) -> Result<(), Error> {
        let (source, target) = (from.path(digest), self.path(digest));
        let adopt = || {
            File::open(&source)?.sync_all()?;
            fs::rename(&source, &target)
        };
        adopt().map_err(|error| storage(&target, &error))
    }

    /// Has this folder share a blob of another on the same disk, if it is there and whole.
    pub fn borrow(&self, from: &Blobs, digest: &Digest) -> bool {
        from.map(digest).is_ok_and(|content| Digest::of(&content) == *digest)
            && fs::hard_link(from.path(digest), self.path(digest)).is_ok()
    }

    /// Makes what was moved in durable.
    ///
    /// # Errors
    /// The disk.
    pub fn sync(&self) -> Result<(), Error> {
        let sync = File::open(&self.folder).and_then(|folder| folder.sync_all());
        sync.map_err(|error| storage(&self.folder, &error))
    }

    /// Removes every file that `keep` does not want, scratch of a crash too; returns how many
    /// files and bytes.
    ///
    /// # Errors
    /// The folder cannot be read; a file that cannot be removed is only told.
    pub fn collect(&self, keep: impl Fn(&Digest) -> bool) -> Result<(u64, u64), Error> {
        let entries = fs::read_dir(&self.folder).map_err(|error| storage(&self.folder, &error))?;
        let (mut files, mut bytes) = (0, 0);
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let digest = Digest::parse(&format!("sha256:{name}"));
            if digest.is_ok_and(|digest| keep(&digest)) {
                continue;
            }
            let size = entry.metadata().map_or(0, |metadata| metadata.len());
            match fs::remove_file(entry.path()) {
                Ok(()) => (files, bytes) = (files + 1, bytes + size),
                Err(error) => {
                    tracing::warn!(path = %entry.path().display(), "an unused blob stays: {error}")
                }
            }
        }
        Ok((files, bytes))
    }
}

/// A blob on its way in; gone without a trace where it is not finished.
pub struct BlobWriter<'a> {
    blobs: &'a Blobs,
    what: String,
    scratch: PathBuf,
    file: Option<Digesting<File>>,
    written: u64,
    limit: u64,
}

impl BlobWriter<'_> {
    pub fn written(&self) -> u64 {
        self.written
    }

    /// # Errors
    /// It is over its limit, or the disk.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.written += bytes.len() as u64;
        if self.written > self.limit {
            return Err(Error::BundleRefused(format!(
                "{} has more than the {} bytes expected",
                self.what, self.limit
            )));
        }
        let write = self.file.as_mut().map_or(Ok(()), |file| file.write_all(bytes));
        write.map_err(|error| storage(&self.scratch, &error))
    }

    /// Gives the blob its name.
    ///
    /// # Errors
    /// The disk.
    pub fn finish(mut self) -> Result<(Digest, u64), Error> {
        let file =
            self.file.take().ok_or_else(|| Error::Internal("a blob without a file".into()))?;
        let (_, digest, size) = file.finish();
        let path = self.blobs.path(&digest);
        fs::rename(&self.scratch, &path).map_err(|error| storage(&path, &error))?;
        Ok((digest, size))
    }
}

impl Drop for BlobWriter<'_> {
    fn drop(&mut self) {
        // Finished, or failing already: then the first error is the one to report.
        let _ = fs::remove_file(&self.scratch);
    }
}

/// A name no other write of this process has.
fn scratch_name() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}
