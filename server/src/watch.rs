//! A watched folder: `.wisp` files are deployed as they appear and change, and undeployed when
//! they vanish. Looked at twice a second rather than notified of: mounted volumes notify nobody,
//! and a file that is the same at two looks is one that nobody is writing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::deploy::{Change, Deployer, Deployment};
use crate::error::Error;

const INTERVAL: Duration = Duration::from_millis(500);

/// What tells one content of a file from the next without reading it: length, time of change
/// (s, ns) and inode.
type Fingerprint = (u64, i64, i64, u64);

/// What was seen of the folder so far.
#[derive(Default)]
struct Seen {
    /// By file name.
    files: BTreeMap<String, Fingerprint>,
    /// What has been dealt with, well or not.
    handled: BTreeMap<String, Fingerprint>,
    unreadable: bool,
    /// Versions whose file is gone and that have traffic: told once.
    stuck: BTreeSet<(String, String)>,
}

/// Watches until the runtime ends.
pub async fn watch(folder: PathBuf, deployer: Arc<Deployer>) {
    let mut seen = Seen::default();
    loop {
        let (look, on) = (folder.clone(), deployer.clone());
        let looked = tokio::task::spawn_blocking(move || {
            seen.look(&look, &on);
            seen
        });
        seen = match looked.await {
            Ok(seen) => seen,
            Err(error) => {
                tracing::error!("looking at the watched folder panicked: {error}");
                Seen::default()
            }
        };
        tokio::time::sleep(INTERVAL).await;
    }
}

impl Seen {
    fn look(&mut self, folder: &Path, deployer: &Deployer) {
        let now = match list(folder) {
            Ok(now) => now,
            Err(error) => {
                // A volume that is gone for a moment must not take the models along.
                if !std::mem::replace(&mut self.unreadable, true) {
                    tracing::error!("the watched folder {}: {error}", folder.display());
                }
                return;
            }
        };
        self.unreadable = false;
        let before = std::mem::replace(&mut self.files, now);
        let settled = self.files.iter().filter(|(name, print)| {
            before.get(*name) == Some(print) && self.handled.get(*name) != Some(print)
        });
        let settled: Vec<_> = settled.map(|(name, print)| (name.clone(), *print)).collect();
        for (name, print) in settled {
            if let Err(error) = take(folder, &name, &self.files, deployer) {
                tracing::error!(
                    file = name,
                    "a bundle in the watched folder is not deployed: {error}"
                );
            }
            self.handled.insert(name, print);
        }
        self.handled.retain(|name, _| self.files.contains_key(name));
        // Gone at two looks: a file that is replaced by a slow copy is not there for a moment.
        let is_gone = |file: &str| !self.files.contains_key(file) && !before.contains_key(file);
        let gone: Vec<_> =
            deployer.watched().into_iter().filter(|(_, _, file)| is_gone(file)).collect();
        for (model, version, file) in gone {
            if !self.stuck.contains(&(model.clone(), version.clone()))
                && !drop_version(deployer, &model, &version, &file)
            {
                self.stuck.insert((model, version));
            }
        }
    }
}

fn list(folder: &Path) -> std::io::Result<BTreeMap<String, Fingerprint>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // rsync and its kin write to hidden names first.
        if name.starts_with('.') || !name.ends_with(".wisp") {
            continue;
        }
        // Through links, as mounted configuration has them; one that leads nowhere is no file.
        if let Ok(metadata) = fs::metadata(entry.path())
            && metadata.is_file()
        {
            let print = (metadata.len(), metadata.mtime(), metadata.mtime_nsec(), metadata.ino());
            files.insert(name, print);
        }
    }
    Ok(files)
}

/// Deploys one file, and keeps of its earlier contents only the one to roll back to.
fn take(
    folder: &Path,
    file: &str,
    files: &BTreeMap<String, Fingerprint>,
    deployer: &Deployer,
) -> Result<(), Error> {
    let staged = deployer.stage()?.open(&folder.join(file))?;
    let name = staged.artifact.manifest.name.clone().unwrap_or_default();
    let watched = deployer.watched();
    let other = watched
        .iter()
        .find(|(model, _, other)| *model == name && other != file && files.contains_key(other));
    if let Some((_, _, other)) = other {
        return Err(Error::Conflict(format!("its model `{name}` comes from {other} already")));
    }
    let ask = Deployment {
        activate: true,
        source: folder.join(file).display().to_string(),
        watched: Some(file.to_owned()),
        ..Deployment::default()
    };
    let deployed = deployer.deploy(&staged, ask)?;
    let view = deployer.view(&deployed.name)?;
    let mut old: Vec<_> = view.versions.iter().filter(|version| version.traffic == 0).collect();
    old.retain(|version| {
        version.stored.as_ref().is_some_and(|stored| stored.watched.as_deref() == Some(file))
    });
    // The last of them had the traffic before.
    old.pop();
    for version in old {
        deployer.change(&deployed.name, Change::RemoveVersion(version.version.clone()), false)?;
    }
    Ok(())
}

/// Whether the version is gone.
fn drop_version(deployer: &Deployer, model: &str, version: &str, file: &str) -> bool {
    let others = deployer.view(model).is_ok_and(|view| {
        view.versions.iter().any(|version| {
            version.stored.as_ref().is_some_and(|stored| stored.watched.as_deref() != Some(file))
        })
    });
    let change = match others {
        true => Change::RemoveVersion(version.to_owned()),
        false => Change::Remove,
    };
    match deployer.change(model, change, false) {
        // Gone with an earlier version of the same file.
        Ok(_) | Err(Error::UnknownModel(_) | Error::UnknownVersion { .. }) => {
            tracing::info!(model, version, file, "its file is gone, so is the bundle");
            true
        }
        Err(error) => {
            tracing::warn!(model, version, file, "its file is gone, the bundle stays: {error}");
            false
        }
    }
}
