//! The state directory: content-addressed blobs, and an index of what is deployed. Every write
//! is to another name first, made durable, and renamed: at any moment the directory holds what
//! was before or what is now. One process at a time owns it.

mod blobs;
mod index;
mod layout;
mod staged;

pub use blobs::{BlobWriter, Blobs};
pub use index::{EngineRecord, Index, ModelRecord, Policy, ShadowRecord, VersionRecord};
pub use staged::{Staged, Staging, bundle_of};

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::bundle::{Artifact, Bundle, Head};
use crate::digest::{Digest, Digesting};
use crate::error::Error;

/// The file that makes a folder a state folder, and whose lock says who has it.
pub const LOCK: &str = "wisp.lock";

/// More than any index is likely to have.
const RESERVE_BYTES: usize = 1 << 20;

/// An open state directory; no other process has it.
pub struct Store {
    root: PathBuf,
    blobs: Blobs,
    index: Mutex<Index>,
    /// Whether the index was missing when it was opened, and blobs were there.
    is_lost: bool,
    _lock: File,
}

/// What was found wrong in a store, for an operator.
#[derive(Debug, Default, Serialize)]
pub struct Verification {
    pub models: usize,
    pub versions: usize,
    pub blobs: usize,
    pub bytes: u64,
    /// Blobs that nothing refers to: harmless, collected at the next start.
    pub unused: usize,
    pub problems: Vec<String>,
}

impl Store {
    /// Opens the directory, made where it is missing. What a crash left in it is cleared away.
    ///
    /// # Errors
    /// Another process has it, it cannot be written, or its index is damaged.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let make = fs::DirBuilder::new().recursive(true).mode(0o700).create(root);
        make.map_err(|error| storage(root, &error))?;
        check_own(root)?;
        let lock = lock(root)?;
        let staging = root.join("staging");
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(storage(&staging, &error));
            }
            _ => {}
        }
        fs::create_dir(&staging).map_err(|error| storage(&staging, &error))?;
        let blobs = Blobs::at(root)?;
        let index = read_index(root)?;
        // An index that was lost may be put back, and is worth nothing without its blobs.
        let is_lost = index.is_none() && !blobs.list()?.is_empty();
        if is_lost {
            tracing::warn!(
                "there are blobs and no index.json: nothing is deployed, nothing is removed"
            );
        }
        let index = Mutex::new(index.unwrap_or_default());
        let store = Self { root: root.to_owned(), blobs, index, is_lost, _lock: lock };
        store.reserve();
        Ok(store)
    }

    /// A folder for a bundle on its way in. Of `limit` bytes at most.
    ///
    /// # Errors
    /// The disk.
    pub fn stage(&self, limit: u64) -> Result<Staging, Error> {
        Staging::new(&self.root.join("staging"), limit)
    }

    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// What is deployed now.
    pub fn index(&self) -> Index {
        self.lock_index().clone()
    }

    fn lock_index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One model's record.
    ///
    /// # Errors
    /// No such model is deployed.
    pub fn model(&self, name: &str) -> Result<ModelRecord, Error> {
        let record = self.lock_index().models.get(name).cloned();
        record.ok_or_else(|| Error::UnknownModel(name.to_owned()))
    }

    /// Changes one model's record: on disk first, then here. `None` takes the model out. Callers
    /// see to it that no two changes cross.
    ///
    /// # Errors
    /// The disk; nothing has changed then.
    pub fn put_model(&self, name: &str, record: Option<ModelRecord>) -> Result<(), Error> {
        let mut index = self.lock_index();
        let before = match record {
            Some(record) => index.models.insert(name.to_owned(), record),
            None => index.models.remove(name),
        };
        let written = self.write_index(&index);
        if written.is_err() {
            match before {
                Some(before) => drop(index.models.insert(name.to_owned(), before)),
                None => drop(index.models.remove(name)),
            }
        }
        written
    }

    /// Holds some of the disk, so that on a full one what is deployed can still be taken out.
    fn reserve(&self) {
        let path = self.root.join("reserve");
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == RESERVE_BYTES as u64) {
            return;
        }
        // Zeros would do nothing on a disk that compresses; and where there is no room, there is
        // none to hold.
        let noise: Vec<u8> = (0..RESERVE_BYTES as u32 / 4)
            .flat_map(|word| word.wrapping_mul(0x9e37_79b1).to_le_bytes())
            .collect();
        if let Err(error) = fs::write(&path, noise) {
            tracing::debug!("nothing is held in reserve: {error}");
            let _ = fs::remove_file(&path);
        }
    }

    fn write_index(&self, index: &Index) -> Result<(), Error> {
        match self.try_write_index(index) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                // What is held in reserve is for this.
                let _ = fs::remove_file(self.root.join("reserve"));
                self.try_write_index(index)
            }
            other => other,
        }
        .map_err(|error| storage(&self.root.join("index.json"), &error))
    }

    fn try_write_index(&self, index: &Index) -> io::Result<()> {
        let (path, scratch) = (self.root.join("index.json"), self.root.join("index.json.tmp"));
        let mut file = File::create(&scratch)?;
        file.write_all(&serde_json::to_vec(index)?)?;
        file.sync_all()?;
        fs::rename(&scratch, &path)?;
        File::open(&self.root)?.sync_all()
    }

    /// Takes a bundle's blobs in, durably. Until the index names it, nothing refers to them.
    ///
    /// # Errors
    /// The disk.
    pub fn adopt(&self, staged: &Staged) -> Result<(), Error> {
        let head = &staged.artifact.head;
        // Once each: two files may have the same content.
        let digests: BTreeSet<_> =
            head.blobs().map(|blob| &blob.digest).chain([&head.digest]).collect();
        for digest in digests {
            self.blobs.adopt(&staged.blobs, digest)?;
        }
        self.blobs.sync()
    }

    /// The stored bundle of that digest, as its manifest has it.
    ///
    /// # Errors
    /// It is not here, or damaged.
    pub fn artifact(&self, digest: &Digest) -> Result<Artifact, Error> {
        let damaged =
            |reason: String| Error::Storage(format!("the stored bundle {digest}: {reason}"));
        let head = Head::read(&self.blobs.map(digest)?, u64::MAX).map_err(damaged)?;
        let config = self.blobs.map(&head.config.digest)?;
        let odd = head.blobs().find(|blob| self.blobs.size(&blob.digest) != Some(blob.size));
        if let Some(blob) = odd {
            return Err(damaged(format!("blob {} is missing or cut", blob.digest)));
        }
        Artifact::read(head, &config).map_err(damaged)
    }

    /// The contents of a stored bundle, mapped.
    ///
    /// # Errors
    /// It is not here, or damaged.
    pub fn bundle(&self, digest: &Digest) -> Result<Bundle, Error> {
        staged::bundle_of(&self.artifact(digest)?, &self.blobs)
    }

    /// Removes the blobs that nothing refers to. Callers see to it that no deployment is between
    /// [`Store::adopt`] and the index.
    ///
    /// # Errors
    /// A manifest in use cannot be read: nothing is removed then.
    pub fn collect(&self) -> Result<(u64, u64), Error> {
        if self.is_lost {
            return Ok((0, 0));
        }
        let used = self.used()?;
        let collected = self.blobs.collect(|digest| used.contains(digest));
        self.reserve();
        collected
    }

    fn used(&self) -> Result<BTreeSet<Digest>, Error> {
        let mut used = BTreeSet::new();
        for digest in digests(&self.lock_index()) {
            let damaged =
                |reason: String| Error::Storage(format!("the stored bundle {digest}: {reason}"));
            let head = Head::read(&self.blobs.map(&digest)?, u64::MAX).map_err(damaged)?;
            used.extend(head.blobs().map(|blob| blob.digest.clone()));
            used.insert(digest);
        }
        Ok(used)
    }

    /// Reads every blob in use and compares its digest.
    pub fn verify(&self) -> Verification {
        let index = self.index();
        let mut found = Verification { models: index.models.len(), ..Verification::default() };
        let mut used = BTreeSet::new();
        for (name, record) in &index.models {
            found.problems.extend(record.check(name).err());
            for (version, stored) in &record.versions {
                found.versions += 1;
                used.insert(stored.digest.clone());
                match self.artifact(&stored.digest) {
                    Ok(artifact) => {
                        used.extend(artifact.head.blobs().map(|blob| blob.digest.clone()))
                    }
                    Err(error) => found
                        .problems
                        .push(format!("version `{version}` of model `{name}`: {error}")),
                }
            }
        }
        for digest in &used {
            match self.digest_of(digest) {
                Ok((actual, bytes)) => {
                    found.blobs += 1;
                    found.bytes += bytes;
                    if actual != *digest {
                        found.problems.push(format!("blob {digest} has the content of {actual}"));
                    }
                }
                Err(error) => {
                    found.problems.push(storage(&self.blobs.path(digest), &error).to_string())
                }
            }
        }
        let all = self.blobs.list().unwrap_or_default();
        found.unused = all.iter().filter(|digest| !used.contains(digest)).count();
        found
    }

    fn digest_of(&self, digest: &Digest) -> io::Result<(Digest, u64)> {
        let mut content = Digesting::new(io::sink());
        io::copy(&mut File::open(self.blobs.path(digest))?, &mut content)?;
        let (_, actual, bytes) = content.finish();
        Ok((actual, bytes))
    }
}

fn digests(index: &Index) -> BTreeSet<Digest> {
    let versions = index.models.values().flat_map(|record| record.versions.values());
    versions.map(|version| version.digest.clone()).collect()
}

/// What is cleared away in a state folder must not be cleared away in another: one that holds
/// anything must have been made here.
fn check_own(root: &Path) -> Result<(), Error> {
    let entries = fs::read_dir(root).map_err(|error| storage(root, &error))?;
    let foreign = entries
        .filter_map(Result::ok)
        .map(|entry| entry.file_name())
        .find(|name| name != "lost+found");
    match foreign {
        Some(name) if !root.join(LOCK).is_file() => Err(Error::Storage(format!(
            "{} is no state folder, and not empty: it has {}",
            root.display(),
            name.display()
        ))),
        _ => Ok(()),
    }
}

fn lock(root: &Path) -> Result<File, Error> {
    let path = root.join(LOCK);
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = open.map_err(|error| storage(&path, &error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            // For the message only.
            let _ = file.read_to_string(&mut owner);
            return Err(Error::Conflict(format!(
                "the state directory {} is in use by another wisp (process {})",
                root.display(),
                owner.trim()
            )));
        }
        Err(TryLockError::Error(error)) => return Err(storage(&path, &error)),
    }
    let mut write = || {
        file.set_len(0)?;
        write!(file, "{}", std::process::id())
    };
    write().map_err(|error| storage(&path, &error))?;
    Ok(file)
}

impl Index {
    /// What a state folder has deployed, also while a server is on it; nothing where there is no
    /// folder.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn read(root: &Path) -> Result<Self, Error> {
        Ok(read_index(root)?.unwrap_or_default())
    }
}

/// `None`: there is none.
fn read_index(root: &Path) -> Result<Option<Index>, Error> {
    let path = root.join("index.json");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(storage(&path, &error)),
    };
    let damaged = |reason: String| {
        Error::Storage(format!(
            "the index {} is damaged: {reason}; put a copy of it back, or remove it to start with nothing deployed",
            path.display()
        ))
    };
    let value: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    match value["format"].as_u64() {
        Some(index::FORMAT) => {}
        Some(newer) if newer > index::FORMAT => {
            return Err(Error::Storage(format!(
                "the index {} has format {newer} of a newer wisp, this one reads format {}",
                path.display(),
                index::FORMAT
            )));
        }
        _ => return Err(damaged(format!("expected `format` {}", index::FORMAT))),
    }
    let index: Index = serde_json::from_value(value).map_err(|error| damaged(error.to_string()))?;
    index.models.iter().try_for_each(|(name, record)| record.check(name)).map_err(damaged)?;
    Ok(Some(index))
}

/// An error of the disk, with the file it befell.
fn storage(path: &Path, error: &io::Error) -> Error {
    Error::Storage(format!("{}: {error}", path.display()))
}
