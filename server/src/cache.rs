//! Compiled guests and compiled plans of graphs on disk, so that a restart loads in milliseconds
//! what took a second to make. The folder must be this user's alone: what lies in it is run as
//! machine code, and believed.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};
use rapidhash::v3::rapidhash_v3;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::bundle::ContractForm;
use crate::digest::{Digest as BlobDigest, hex};
use crate::sandbox::Snapshot;
use crate::tensor::Contract;

/// Of all that is kept; beyond it goes what was not used for longest.
const MAX_BYTES: u64 = 4 << 30;

/// No file takes so long to be written.
const SCRATCH_AGE: Duration = Duration::from_secs(3600);

/// A folder of compiled guests and plans.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
    /// Another that is only read.
    behind: Option<PathBuf>,
}

/// Names everything a compiled guest depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheKey(String);

impl CacheKey {
    /// The digest of parts; their lengths are part of it, so that none can run into another.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self(hex(&hasher.finalize()))
    }
}

/// A compiled guest found in the cache.
#[derive(Debug)]
pub struct Entry {
    pub compiled: PathBuf,
    pub contract: Contract,
}

/// What lies beside the compiled code.
#[derive(Serialize, Deserialize)]
struct Meta {
    /// Finds what a disk has damaged, faster than SHA-256 would at each wake. It is no defence: who
    /// can write here could change it, too.
    rapidhash: u64,
    contract: ContractForm,
}

impl Cache {
    /// Opens or makes the folder.
    ///
    /// # Errors
    /// It cannot be made, or others than this user can write to it.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let metadata = fs::metadata(folder)?;
        let owner = rustix::process::geteuid().as_raw();
        if metadata.uid() != owner || metadata.mode() & 0o022 != 0 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "{}: expected a folder of user {owner} that no other can write to, got one of user {} with mode {:o}",
                    folder.display(),
                    metadata.uid(),
                    metadata.mode() & 0o7777
                ),
            ));
        }
        Ok(Self { folder: folder.to_owned(), behind: None })
    }

    /// What is not in it is looked for there, too.
    pub fn before(self, folder: PathBuf) -> Self {
        Self { behind: Some(folder), ..self }
    }

    /// The entry of that key, if it is there and whole.
    pub fn get(&self, key: &CacheKey) -> Option<Entry> {
        [Some(&self.folder), self.behind.as_ref()]
            .into_iter()
            .flatten()
            .find_map(|folder| entry(folder, key))
    }

    /// Takes over the entry of that key from another folder, where it is not here already.
    ///
    /// # Errors
    /// It is damaged; or as [`Cache::put`].
    pub fn adopt(&self, key: &CacheKey, from: &Path) -> io::Result<()> {
        if entry(&self.folder, key).is_some() {
            return Ok(());
        }
        let Some((path, meta)) = named(from, key) else { return Ok(()) };
        // Read and not mapped: who writes there may cut it short at any time.
        let compiled = fs::read(&path)?;
        if rapidhash_v3(&compiled) != meta.rapidhash {
            let reason = format!("{}: the compiled code is damaged", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let contract = meta.contract.read();
        let contract =
            contract.map_err(|reason| io::Error::new(io::ErrorKind::InvalidData, reason))?;
        self.put(key, &Snapshot { compiled, contract })
    }

    /// Keeps a snapshot. The file of compiled code is whole before the other names it.
    ///
    /// # Errors
    /// The disk is full or the folder not writable.
    pub fn put(&self, key: &CacheKey, snapshot: &Snapshot) -> io::Result<()> {
        let meta = Meta {
            rapidhash: rapidhash_v3(&snapshot.compiled),
            contract: ContractForm::from(&snapshot.contract),
        };
        self.write(&compiled_path(&self.folder, key), |file| file.write_all(&snapshot.compiled))?;
        let meta = serde_json::to_vec(&meta)?;
        self.write(&meta_path(&self.folder, key), |file| file.write_all(&meta))?;
        self.trim(MAX_BYTES)
    }

    /// The compiled plan of the graph of that digest, mapped, if it is there.
    pub fn plan(&self, graph: &BlobDigest) -> Option<Bytes> {
        let file = fs::File::open(self.plan_path(graph)).ok()?;
        mark_used(&file);
        Some(Bytes::from_owner(map(&file, &MmapOptions::new()).ok()?))
    }

    /// Keeps the compiled plan of the graph of that digest, which `content` writes. It is on disk
    /// before it has its name.
    ///
    /// # Errors
    /// `content`'s, or the disk is full or the folder not writable.
    pub fn put_plan(
        &self,
        graph: &BlobDigest,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        self.write(&self.plan_path(graph), |file| {
            let mut file = io::BufWriter::with_capacity(64 << 10, file);
            content(&mut file)?;
            file.flush()
        })?;
        self.trim(MAX_BYTES)
    }

    /// Removes what was not used for longest until the rest has at most `most` bytes; and what
    /// was begun and never ended.
    fn trim(&self, most: u64) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let age = metadata.modified()?.elapsed().unwrap_or_default();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("cwasm" | "plan") => found.push((metadata.modified()?, metadata.len(), path)),
                // Of who was killed; or has gone meanwhile.
                Some("tmp") if age > SCRATCH_AGE => drop(fs::remove_file(&path)),
                _ => {}
            }
        }
        let mut total: u64 = found.iter().map(|(_, bytes, _)| bytes).sum();
        found.sort();
        for (_, bytes, path) in found {
            if total <= most {
                break;
            }
            // Mapped elsewhere it stays until it is let go.
            for path in [&path, &path.with_extension("json")] {
                match fs::remove_file(path) {
                    // Another process trims too.
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            total -= bytes;
        }
        Ok(())
    }

    fn write(
        &self,
        path: &Path,
        content: impl FnOnce(&mut fs::File) -> io::Result<()>,
    ) -> io::Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // Another process with this number may have been killed, or share the folder.
        let (scratch, mut file) = loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let scratch = self.folder.join(format!(".{}-{count}.tmp", process::id()));
            let mut options = fs::OpenOptions::new();
            match options.write(true).create_new(true).mode(0o600).open(&scratch) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                opened => break (scratch, opened?),
            }
        };
        let write = || {
            content(&mut file)?;
            file.sync_all()?;
            fs::rename(&scratch, path)
        };
        let written = write();
        if written.is_err() {
            // Already failing: the first error is the one to report.
            let _ = fs::remove_file(&scratch);
        }
        written
    }

    fn plan_path(&self, graph: &BlobDigest) -> PathBuf {
        self.folder.join(format!("{}.plan", graph.hex()))
    }
}

/// The entry of that key in a folder of this user's.
fn entry(folder: &Path, key: &CacheKey) -> Option<Entry> {
    let (compiled, meta) = named(folder, key)?;
    let file = fs::File::open(&compiled).ok()?;
    // Copied into memory, to be looked at once, it would cost a wake a millisecond and a half. A disk
    // that fails ends the process here as it does where the code runs, which is mapped, too.
    let mapped = map(&file, MmapOptions::new().populate()).ok()?;
    // A torn or damaged file would be run as it is.
    if rapidhash_v3(&mapped) != meta.rapidhash {
        tracing::warn!(path = %compiled.display(), "the cached code is damaged, it is compiled again");
        return None;
    }
    mark_used(&file);
    Some(Entry { compiled, contract: meta.contract.read().ok()? })
}

/// Where a folder has the code of that key, and what lies beside it.
fn named(folder: &Path, key: &CacheKey) -> Option<(PathBuf, Meta)> {
    let (meta, compiled) = (meta_path(folder, key), compiled_path(folder, key));
    // Neither links nor pipes: the folder may be one that an examination wrote to.
    let is_file = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
    if !is_file(&meta) || !is_file(&compiled) {
        return None;
    }
    Some((compiled, serde_json::from_slice(&fs::read(meta).ok()?).ok()?))
}

/// Maps a file of a folder of this user's.
fn map(file: &fs::File, options: &MmapOptions) -> io::Result<Mmap> {
    // SAFETY: what lies here was written under another name and never changes once it has its own; no
    // other user can write here. Removing it leaves the mapping whole.
    unsafe { options.map(file) }
}

fn compiled_path(folder: &Path, key: &CacheKey) -> PathBuf {
    folder.join(format!("{}.cwasm", key.0))
}

fn meta_path(folder: &Path, key: &CacheKey) -> PathBuf {
    folder.join(format!("{}.json", key.0))
}

/// A file's age says when it was used last. Where that cannot be told, it goes a bit early.
fn mark_used(file: &fs::File) {
    let _ = file.set_modified(SystemTime::now());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Contract;

    #[test]
    fn damaged_code_is_neither_served_nor_adopted() {
        let [folder, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [cache, examined] = [&other, &folder].map(|it| Cache::open(it.path()).unwrap());
        let (key, contract) = (CacheKey::of([]), Contract { inputs: vec![], outputs: vec![] });
        examined.put(&key, &Snapshot { compiled: vec![7; 1000], contract }).unwrap();
        cache.adopt(&key, folder.path()).unwrap();
        assert!(cache.get(&key).is_some());
        fs::write(compiled_path(folder.path(), &key), [8; 1000]).unwrap();
        assert!(examined.get(&key).is_none());
        // What is here already is not asked for again.
        cache.adopt(&key, folder.path()).unwrap();
        cache.trim(0).unwrap();
        let refused = cache.adopt(&key, folder.path()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        assert!(cache.get(&key).is_none());
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let contract = Contract { inputs: vec![], outputs: vec![] };
        let keys = [b"a", b"b", b"c"].map(|name| CacheKey::of([&name[..]]));
        for key in &keys {
            let snapshot = Snapshot { compiled: vec![0; 1000], contract: contract.clone() };
            cache.put(key, &snapshot).unwrap();
        }
        let used = |key: &CacheKey, seconds: u64| {
            let file = fs::File::open(compiled_path(folder.path(), key)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
        };
        used(&keys[0], 3).unwrap();
        used(&keys[1], 1).unwrap();
        used(&keys[2], 2).unwrap();
        cache.trim(2500).unwrap();
        assert!(cache.get(&keys[1]).is_none());
        assert!(cache.get(&keys[0]).is_some() && cache.get(&keys[2]).is_some());
        cache.trim(0).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
