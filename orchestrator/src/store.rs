//! Where objects live: a small key-value contract with one revision counter.
//!
//! A store knows nothing of Kubernetes. It keeps bytes under string keys,
//! numbers every commit, and shows each committed change, in order, to one
//! [`Observer`] *before* the writer is told that it succeeded: whoever reads
//! what the observer holds therefore reads his own writes.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;

pub mod archive;
pub mod file;
pub mod sqlite;

#[cfg(test)]
mod tests;

/// A point in the store's history. Zero is before everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What must be true of a key for a batch to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing: write whatever is there.
    Any,
    /// The key does not exist.
    Absent,
    /// The key was last written at exactly this revision.
    At(Revision),
}

/// One key's part of a batch. `value: None` deletes.
#[derive(Clone, Debug)]
pub struct Write {
    /// Full key, `resource/namespace/name`.
    pub key: Arc<str>,
    /// Precondition; if any of a batch fails, nothing of the batch happens.
    pub expect: Expect,
    /// New bytes, or `None` to delete.
    pub value: Option<Bytes>,
    /// False keeps the value in memory only: gone after a restart, never on disk.
    pub durable: bool,
}

/// A change that has been committed.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Full key.
    pub key: Arc<str>,
    /// New bytes, or `None` if deleted.
    pub value: Option<Bytes>,
    /// The commit's revision; all changes of one batch share it.
    pub revision: Revision,
}

/// A stored value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Full key.
    pub key: String,
    /// The bytes as they were put.
    pub value: Bytes,
    /// Revision of the last write.
    pub revision: Revision,
}

/// Sees every commit, in revision order, on the writer's thread: must be quick.
pub trait Observer: Send {
    /// `changes` is non-empty and ascending by revision.
    fn committed(&mut self, changes: Vec<Committed>);
}

/// Why a batch was not committed. Nothing of it has happened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// A precondition failed; `write` is its index in the batch.
    #[error("precondition of write {write} failed: the key is at {current:?}")]
    Precondition {
        /// Index into the batch.
        write: usize,
        /// Where the key is now, `None` if it does not exist.
        current: Option<Revision>,
    },
    /// The store is stopping.
    #[error("the store is closed")]
    Closed,
    /// The engine failed (disk full, I/O error).
    #[error("the store failed: {0}")]
    Engine(Arc<str>),
}

/// The future of a commit.
pub type Commit = Pin<Box<dyn Future<Output = Result<Revision, CommitError>> + Send>>;

/// Bytes under keys, with preconditions and one revision counter.
///
/// Implementations must make a commit durable before its future resolves.
pub trait Store: Send + Sync {
    /// The current value of `key`.
    ///
    /// # Errors
    /// [`StoreError`] if the engine fails.
    fn get(&self, key: &str) -> Result<Option<Stored>, StoreError>;

    /// Shows everything whose key starts with `prefix` to `each`, in key order.
    ///
    /// # Errors
    /// [`StoreError`] if the engine fails; `each` may have seen a part by then.
    fn range(&self, prefix: &str, each: &mut dyn FnMut(Stored)) -> Result<(), StoreError>;

    /// Takes all writes or none.
    fn commit(&self, batch: Vec<Write>) -> Commit;
}

/// Why a store cannot be opened, read, saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the directory open.
    #[error(
        "{directory} is in use by another process; hint: stop the other server or choose another --data-dir"
    )]
    InUse {
        /// The data directory.
        directory: String,
    },
    /// Written by a newer release.
    #[error(
        "the store has format {found}, this release knows formats up to {known}; hint: run the release that wrote it, or restore a backup made by this one"
    )]
    FromTheFuture {
        /// The format found.
        found: i64,
        /// The newest format known here.
        known: i64,
    },
    /// A SQLite file, but not ours.
    #[error("{path} is not a Fairlead store")]
    Foreign {
        /// The file.
        path: String,
    },
    /// The file is damaged.
    #[error("{path} is damaged: {finding}")]
    Damaged {
        /// The file.
        path: String,
        /// What the check found.
        finding: String,
    },
    /// A backup would overwrite something.
    #[error("{path} already exists; hint: name a file that does not")]
    Exists {
        /// The file in the way.
        path: String,
    },
    /// A restore would overwrite something.
    #[error("{path} already exists; hint: restore into an empty directory")]
    Occupied {
        /// The file in the way.
        path: String,
    },
    /// SQLite said no.
    #[error("the store cannot be used")]
    Engine(#[from] rusqlite::Error),
    /// The file system said no.
    #[error("{path}")]
    Io {
        /// The path that was touched.
        path: String,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
}

/// Attaches the path to an I/O error.
pub(crate) fn at(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> StoreError + '_ {
    |source| StoreError::Io {
        path: path.display().to_string(),
        source,
    }
}
