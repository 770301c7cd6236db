//! A watched folder: `.wisp` files are deployed as they appear and change, and undeployed when
//! they vanish. Looked at twice a second rather than notified of: mounted volumes notify nobody,
//! and a file that is the same at two looks is one that nobody is writing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::deploy::{Change, Deployer, Deployment, VersionView};
use crate::error::Error;

const INTERVAL: Duration = Duration::from_millis(500);
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// What tells one content of a file from the next without reading it: length, time of change
/// (s, ns) and inode.
type Fingerprint = (u64, i64, i64, u64);

/// By file name.
type Files = BTreeMap<String, Fingerprint>;

/// Device and inode of the folder.
type Identity = (u64, u64);

/// What was seen of the folder so far.
#[derive(Default)]
struct Seen {
    files: Option<Files>,
    /// What has been dealt with, well or not.
    handled: Files,
    /// When what failed for no fault of its own may be tried again.
    retries: BTreeMap<String, Instant>,
    /// The folder that had files, when it last had some.
    filled: Option<Identity>,
    /// Whether it was looked at before.
    looked: bool,
    in_doubt: bool,
    /// Versions whose file is gone and that have traffic.
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
        let (identity, now) = match list(folder) {
            Ok(now) => now,
            Err(error) => {
                self.doubt(&format!("the watched folder {}: {error}", folder.display()));
                return;
            }
        };
        let watched = deployer.watched();
        // A volume that is not mounted, yet or any more, leaves an empty folder of another
        // identity: that must not take the models along.
        if now.is_empty() && !watched.is_empty() && self.filled != Some(identity) {
            self.doubt(&format!(
                "the watched folder {} is empty and was not before: its models stay until it has files again",
                folder.display()
            ));
            return;
        }
        self.in_doubt = false;
        if !now.is_empty() {
            self.filled = Some(identity);
        }
        let before = self.files.replace(now).unwrap_or_default();
        let files = self.files.clone().unwrap_or_default();
        for (name, print) in &files {
            let is_settled = before.get(name) == Some(print);
            let is_due = self.retries.get(name).is_none_or(|again| Instant::now() >= *again);
            if is_settled && is_due && self.handled.get(name) != Some(print) {
                self.handle(folder, name, *print, &files, deployer);
            }
        }
        self.handled.retain(|name, _| files.contains_key(name));
        // Gone at two looks: a file that is replaced by a slow copy is not there for a moment.
        let is_gone = |file: &str| !files.contains_key(file) && !before.contains_key(file);
        if std::mem::replace(&mut self.looked, true) {
            for (model, version, file) in watched.into_iter().filter(|(_, _, file)| is_gone(file)) {
                self.drop_version(deployer, &model, &version, &file);
            }
        }
    }

    /// Tells once.
    fn doubt(&mut self, what: &str) {
        if !std::mem::replace(&mut self.in_doubt, true) {
            tracing::error!("{what}");
        }
    }

    fn handle(
        &mut self,
        folder: &Path,
        name: &str,
        print: Fingerprint,
        files: &Files,
        deployer: &Deployer,
    ) {
        let changed = self.handled.contains_key(name);
        match take(folder, name, files, changed, deployer) {
            // The disk or the machine, not the bundle.
            Err(error @ (Error::Storage(_) | Error::NotReady { .. } | Error::Internal(_))) => {
                tracing::error!(
                    file = name,
                    "a bundle in the watched folder is not deployed, it is tried again: {error}"
                );
                self.retries.insert(name.to_owned(), Instant::now() + RETRY_AFTER);
                return;
            }
            Err(error) => {
                tracing::error!(
                    file = name,
                    "a bundle in the watched folder is not deployed: {error}"
                );
            }
            Ok(()) => {}
        }
        self.retries.remove(name);
        self.handled.insert(name.to_owned(), print);
    }

    fn drop_version(&mut self, deployer: &Deployer, model: &str, version: &str, file: &str) {
        let others = deployer
            .view(model)
            .is_ok_and(|view| view.versions.iter().any(|version| !is_of(version, file)));
        let change = match others {
            true => Change::RemoveVersion(version.to_owned()),
            false => Change::Remove,
        };
        let key = (model.to_owned(), version.to_owned());
        match deployer.change(model, change, false) {
            // Gone with an earlier version of the same file.
            Ok(_) | Err(Error::UnknownModel(_) | Error::UnknownVersion { .. }) => {
                tracing::info!(model, version, file, "its file is gone, so is the bundle");
                self.stuck.remove(&key);
            }
            // Tried at each look, told once: it goes when its traffic has.
            Err(error) => {
                if self.stuck.insert(key) {
                    tracing::warn!(
                        model,
                        version,
                        file,
                        "its file is gone, the bundle stays: {error}"
                    );
                }
            }
        }
    }
}

fn is_of(version: &VersionView, file: &str) -> bool {
    version.stored.as_ref().is_some_and(|stored| stored.watched.as_deref() == Some(file))
}

fn list(folder: &Path) -> std::io::Result<(Identity, Files)> {
    let metadata = fs::metadata(folder)?;
    let mut files = Files::new();
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
    Ok(((metadata.dev(), metadata.ino()), files))
}

/// Deploys one file, and keeps of its earlier contents only what a rollback would need. What is
/// deployed already gets traffic only where the file `changed` before our eyes: at a start it
/// is left as the operator left it.
fn take(
    folder: &Path,
    file: &str,
    files: &Files,
    changed: bool,
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
    let is_known = deployer.view(&name).is_ok_and(|view| {
        view.versions.iter().any(|version| {
            let digest = version.stored.as_ref().map(|stored| &stored.digest);
            is_of(version, file) && digest == Some(staged.digest())
        })
    });
    let ask = Deployment {
        activate: changed || !is_known,
        source: folder.join(file).display().to_string(),
        watched: Some(file.to_owned()),
        ..Deployment::default()
    };
    let deployed = deployer.deploy(&staged, ask)?;
    let record = deployer.store().model(&deployed.name)?;
    let earlier = record.history.last().cloned().unwrap_or_default();
    let view = deployer.view(&deployed.name)?;
    let is_old = |version: &&VersionView| {
        version.traffic == 0
            && version.version != deployed.version
            && !earlier.contains_key(&version.version)
            && is_of(version, file)
    };
    for version in view.versions.iter().filter(is_old) {
        deployer.change(&deployed.name, Change::RemoveVersion(version.version.clone()), false)?;
    }
    Ok(())
}
