//! A directory of manifests, watched.
//!
//! `*.yaml`, `*.yml` and `*.json`, each with any number of documents; not
//! recursive. The objects in force are those the files hold now: a file that
//! goes takes its objects with it. Of an object in several files the last wins,
//! in the order of file names. A file with a document that cannot even be
//! attributed to an object keeps its last good content.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use tracing::{debug, warn};

use super::document::{self, Documents};
use super::{Event, Fault, Sender};
use crate::inotify::{Changed, DirectoryWatch};
use crate::model::manifest::{Batch, Document, Unknown};
use crate::model::{Instead, Object};

/// A longer file is not read: a manifest of 10,000 objects is some 10 MB.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// How long a burst of file changes is gathered.
const SETTLE: Duration = Duration::from_millis(20);

/// How long to wait for a directory that is not there.
const RETRY: Duration = Duration::from_secs(1);

/// The files of a directory, as last read.
#[derive(Debug, Default)]
struct Files {
    by_name: BTreeMap<String, Documents>,
    /// Manifests by their ending, but not by their names.
    unnamed: Vec<Fault>,
    batch: Batch,
}

/// Runs until the daemon goes.
pub async fn run(directory: PathBuf, sender: Sender) {
    let mut files = Files::default();
    let mut is_synced = false;
    loop {
        let mut watch = match DirectoryWatch::new(&directory) {
            Ok(watch) => watch,
            Err(error) => {
                if !report_missing(&directory, &error, &sender).await {
                    return;
                }
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        // The watch is set before the first look, so no change falls between.
        let mut changed = Changed {
            everything: true,
            ..Changed::default()
        };
        loop {
            let events = tokio::task::block_in_place(|| files.refresh(&directory, &changed));
            for event in events {
                if !sender.send(event).await {
                    return;
                }
            }
            if !is_synced {
                is_synced = true;
                if !sender.send(Event::Synced).await {
                    return;
                }
            }
            changed = match settle(&mut watch).await {
                Ok(changed) => changed,
                Err(error) => {
                    warn!(%error, directory = %directory.display(), "watching a source failed");
                    break;
                }
            };
            if changed.gone {
                warn!(directory = %directory.display(), "a source directory is gone; its objects stay in force");
                break;
            }
        }
    }
}

async fn report_missing(directory: &Path, error: &io::Error, sender: &Sender) -> bool {
    let fault = Fault {
        origin: directory.display().to_string(),
        reason: format!("cannot be watched: {error}"),
        hint: if error.kind() == io::ErrorKind::NotADirectory {
            "give the directory that the file is in".to_owned()
        } else {
            "make the directory; it is looked for every second".to_owned()
        },
    };
    sender.send(Event::Faults(vec![fault])).await
}

/// The next changes, with those that follow within [`SETTLE`].
async fn settle(watch: &mut DirectoryWatch) -> io::Result<Changed> {
    let mut all = watch.changed().await?;
    let deadline = tokio::time::Instant::now() + SETTLE;
    while let Ok(more) = tokio::time::timeout_at(deadline, watch.changed()).await {
        let more = more?;
        all.names.extend(more.names);
        all.everything |= more.everything;
        all.gone |= more.gone;
    }
    Ok(all)
}

impl Files {
    /// Reads what changed. Empty if nothing came of it.
    fn refresh(&mut self, directory: &Path, changed: &Changed) -> Vec<Event> {
        let mut faults = Vec::new();
        if changed.everything {
            match list(directory) {
                Ok((names, unnamed)) => {
                    self.unnamed = unnamed;
                    self.by_name.retain(|name, _| names.contains(name));
                    for name in names {
                        self.read(directory, &name);
                    }
                }
                Err(error) => faults.push(Fault {
                    origin: directory.display().to_string(),
                    reason: format!("cannot be listed: {error}"),
                    hint: "give the daemon the right to read it".to_owned(),
                }),
            }
        } else {
            for name in changed.names.iter().filter(|name| is_manifest(name)) {
                self.read(directory, name);
            }
        }
        let documents = self.by_name.values().flat_map(|file| file.documents.iter());
        let batch = Batch::read(documents.cloned(), Unknown::Reject);
        let changes = batch.since(&self.batch);
        debug!(
            files = self.by_name.len(),
            changes = changes.len(),
            "source read"
        );
        faults.extend(self.unnamed.iter().cloned());
        faults.extend(self.by_name.values().flat_map(|file| file.faults.clone()));
        faults.extend(superseded(&batch));
        faults.extend(addressless(&batch));
        let mut events = Vec::new();
        if !changes.is_empty() {
            events.push(Event::Changes(changes));
        }
        events.push(Event::Faults(faults));
        if batch.unsupported != self.batch.unsupported {
            events.push(Event::Unsupported(batch.unsupported.clone()));
        }
        self.batch = batch;
        events
    }

    fn read(&mut self, directory: &Path, name: &str) {
        let previous = self.by_name.remove(name).unwrap_or_default();
        let read = match read_text(&directory.join(name)) {
            Ok(Some(text)) => document::read(name, &text),
            Ok(None) => return,
            Err(error) => Documents {
                documents: Vec::new(),
                faults: vec![Fault {
                    origin: name.to_owned(),
                    reason: format!("cannot be read: {error}"),
                    hint: "its last good content stays in force".to_owned(),
                }],
                is_unclear: true,
            },
        };
        let documents: Vec<Document> = if read.is_unclear && !previous.documents.is_empty() {
            previous.documents
        } else {
            read.documents
        };
        self.by_name
            .insert(name.to_owned(), Documents { documents, ..read });
    }
}

/// Objects that another document of the same kind and name has taken the place of.
fn superseded(batch: &Batch) -> impl Iterator<Item = Fault> {
    let rejected = batch.rejected.iter();
    let later = rejected.filter(|rejected| rejected.instead == Instead::Later);
    later.flat_map(|rejected| {
        rejected.errors.iter().map(|error| Fault {
            origin: rejected.origin.to_string(),
            reason: format!("{}: {}: {}", rejected.key, error.path, error.reason),
            hint: error.hint.clone(),
        })
    })
}

/// Services that wait for an address, which an API server would give them.
fn addressless(batch: &Batch) -> impl Iterator<Item = Fault> {
    batch
        .objects
        .iter()
        .filter_map(|(key, object)| match object {
            Object::Service(service) if service.is_proxied && service.cluster_ips.is_empty() => {
                Some(Fault {
                    origin: key.to_string(),
                    reason: "has no address: nobody gives it one here".to_owned(),
                    hint: "state spec.clusterIP, or `None` for a headless Service".to_owned(),
                })
            }
            _ => None,
        })
}

/// `None`: there is no such file (any more), or it is something else.
fn read_text(path: &Path) -> io::Result<Option<String>> {
    // Opening a pipe would wait for its writer.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let reason = format!("longer than {FILE_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    Ok(Some(text))
}

/// The names of manifests, and the files that cannot be told by theirs.
fn list(directory: &Path) -> io::Result<(BTreeSet<String>, Vec<Fault>)> {
    let (mut names, mut unnamed) = (BTreeSet::new(), Vec::new());
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let shown = name.to_string_lossy();
        if !is_manifest(&shown) {
            continue;
        }
        match name.to_str() {
            Some(name) => {
                names.insert(name.to_owned());
            }
            None => unnamed.push(Fault {
                origin: shown.into_owned(),
                reason: "is not read: its name is not UTF-8".to_owned(),
                hint: "rename the file".to_owned(),
            }),
        }
    }
    Ok((names, unnamed))
}

/// Hidden files are editors' temporary ones.
fn is_manifest(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str());
    !name.starts_with('.') && matches!(extension, Some("yaml" | "yml" | "json"))
}

#[cfg(test)]
mod tests;
