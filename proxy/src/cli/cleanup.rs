//! `cleanup`: removes every trace, in the order that lets go of traffic first.

use std::error::Error;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use proxy_ebpf::abi::pin;
use proxy_ebpf::record::path;
use serde_json::json;

use super::{Outcome, Output, PlaceArgs};
use crate::netlink::Netlink;

pub(super) fn cleanup(
    place: &PlaceArgs,
    socket: &Path,
    state_dir: Option<&PathBuf>,
    output: Output,
) -> Outcome {
    if UnixStream::connect(socket).is_ok() {
        return Err(format!(
            "a daemon serves {}\nhint: stop it first; it would put everything back",
            socket.display()
        )
        .into());
    }
    let mut removed = Vec::new();
    let mut errors = Vec::new();
    let mut remove = |path: &Path| match remove_all(path) {
        Ok(files) => removed.extend(files),
        Err(error) => errors.push(format!("cannot remove {}: {error}", path.display())),
    };
    let filters = remove_filters();
    let root = place.bpffs.join("fairlead");
    // Every version's; programs are detached before their maps go.
    for version in versions(&root) {
        remove(&version.join("links"));
        remove(&version);
    }
    remove(&root);
    remove(socket);
    if let Some(state_dir) = state_dir {
        for name in path::STATE {
            remove(&state_dir.join(name));
        }
    }
    // Directories that hold nothing of anybody else's.
    let defaults = [
        Path::new(path::SOCKET).parent(),
        Some(Path::new(path::STATE_DIR)),
    ];
    let used = [socket.parent(), state_dir.map(PathBuf::as_path)];
    for (directory, default) in used.into_iter().zip(defaults) {
        if directory.is_some() && directory == default {
            removed.extend(
                directory
                    .filter(|path| std::fs::remove_dir(path).is_ok())
                    .map(Path::to_owned),
            );
        }
    }
    match filters {
        Ok(filters) => removed.extend(filters),
        Err(error) => errors.push(format!("cannot remove the filters of pods: {error}")),
    }
    let mut out = io::stdout().lock();
    if output == Output::Json {
        let value = json!({ "removed": removed, "errors": errors });
        writeln!(out, "{value:#}")?;
    } else {
        for path in &removed {
            writeln!(out, "removed {}", path.display())?;
        }
        if removed.is_empty() {
            writeln!(out, "nothing to remove")?;
        }
        for error in &errors {
            writeln!(io::stderr(), "error: {error}")?;
        }
    }
    Ok(if errors.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Takes the programs off the pods' host interfaces of this network namespace.
fn remove_filters() -> Result<Vec<PathBuf>, Box<dyn Error + Send + Sync>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let names = [pin::POD_OUT, pin::POD_IN];
    let removed = runtime.block_on(async { Netlink::open()?.remove_filters(&names).await })?;
    Ok(removed
        .iter()
        .map(|name| Path::new("filter").join(name))
        .collect())
}

fn versions(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Removes a file or a directory with what is in it; what was removed. That it
/// is not there is success.
fn remove_all(path: &Path) -> io::Result<Vec<PathBuf>> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut removed = Vec::new();
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path)? {
            removed.extend(remove_all(&entry?.path())?);
        }
        std::fs::remove_dir(path)?;
    } else {
        std::fs::remove_file(path)?;
    }
    removed.push(path.to_owned());
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_removed_and_named_and_again_is_no_error() {
        let root = std::env::temp_dir().join(format!("fl-cleanup-{}", std::process::id()));
        std::fs::create_dir_all(root.join("v1/links")).unwrap();
        std::fs::write(root.join("v1/MAP"), "").unwrap();
        assert_eq!(remove_all(&root).unwrap().len(), 4);
        assert_eq!(remove_all(&root).unwrap(), [] as [PathBuf; 0]);
    }
}
