//! What a server must have within reach, by its settings; the rest is taken from it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::config::{Config, certificate_paths, credential_files, home};
use crate::confine::{Confinement, Network, Programs, Reach};

/// What `wisp serve` needs for these PATHs under these settings.
pub(super) fn reach(config: &Config, paths: &[PathBuf], scratch: &Path) -> Reach {
    let deploy = &config.deploy;
    let listens = [Some(config.listen), config.grpc_listen, deploy.admin_listen];
    let listens = listens.into_iter().flatten().map(|address| address.port()).collect();
    let mut reads = paths.to_vec();
    reads.extend(paths.iter().flat_map(|path| linked(path)));
    // Other libraries that it brings lie beside it.
    reads.extend(config.engine.onnxruntime.as_deref().and_then(Path::parent).map(Path::to_owned));
    let cache = config.engine.cache.clone();
    // Made before it is needed, as only what is there can be named. Where it cannot be, the
    // server says so later.
    let _ = cache.as_deref().map(Cache::open);
    let writes = cache.into_iter().chain(deploy.state.clone()).collect();
    let scratch = Some(scratch.to_owned());
    if deploy.state.is_none() {
        let network = Network::Listens(listens);
        return Reach { reads, writes, scratch, network, programs: Programs::None };
    }
    reads.extend(deploy.models.as_deref().map(watched).into_iter().flatten());
    reads.extend(name_servers());
    reads.extend(certificate_paths());
    reads.extend(credential_files().into_iter().map(|(folder, _)| folder));
    let network = Network::ListensAndConnects(listens);
    Reach { reads, writes, scratch, network, programs: programs() }
}

/// The watched folder, what its links lead to, and the folder that it lies in: it may be replaced,
/// or mounted, while the server runs. But not all files there are, or all of a user's.
fn watched(folder: &Path) -> Vec<PathBuf> {
    let absolute = std::path::absolute(folder).ok();
    let around = absolute.as_deref().and_then(Path::parent);
    let around = around.filter(|at| at.parent().is_some() && !home().starts_with(at));
    let mut found: Vec<_> =
        [Some(folder), around].into_iter().flatten().map(Path::to_owned).collect();
    found.extend(linked(folder));
    found
}

/// Where the links of a folder lead to that may lead out of it.
fn linked(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let links = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    links.filter_map(|link| fs::canonicalize(link.path()).ok()).collect()
}

/// The folder of the file that names them, which is replaced as the network changes.
fn name_servers() -> Option<PathBuf> {
    let file = fs::canonicalize("/etc/resolv.conf").ok()?;
    file.parent().map(Path::to_owned)
}

/// Examinations are this program once more; but credentials may come from others.
fn programs() -> Programs {
    let helped = credential_files().into_iter().find(|(_, file)| {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.contains("\"credsStore\"") || text.contains("\"credHelpers\"")
    });
    match helped {
        Some((_, file)) => {
            Programs::Any(format!("{} names programs that keep credentials", file.display()))
        }
        None => Programs::Itself,
    }
}

pub(super) fn say_confinement(Confinement { on, off }: &Confinement) {
    let on = if on.is_empty() { "none".to_owned() } else { on.join(", ") };
    match off.is_empty() {
        true => tracing::info!("confinement: {on}"),
        false => tracing::info!("confinement: {on}; without {}", off.join(", ")),
    }
}
