//! The embedded store: one SQLite file in WAL mode, one writer thread.
//!
//! The writer takes whatever is queued as one SQLite transaction (group
//! commit), so the cost of the disk's flush is shared by everyone waiting.
//! The table holds the current state only: history lives in the watch cache.
//!
//! Revisions of writes that are kept in memory only (node Leases) never reach
//! the disk, yet must not be given out again after a restart. The file keeps a
//! *ceiling*, raised a block at a time; a new process starts above it.

use std::{
    collections::HashMap,
    fs::File,
    path::Path,
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use tokio::sync::{mpsc, oneshot};

use super::{
    Commit, CommitError, Committed, Expect, Observer, Revision, Store, StoreError, Stored, Write,
    at,
    file::{FILE, connect, lock, migrate, private},
};

/// Batches that may wait for the writer; further callers wait for room.
const QUEUE: usize = 4096;
/// Most batches in one SQLite transaction.
const GROUP: usize = 512;
/// Revisions reserved on disk at a time.
const BLOCK: u64 = 100_000;

/// The SQLite store. Dropping it stops the writer after the queue is empty.
#[derive(Debug)]
pub struct SqliteStore {
    queue: Option<mpsc::Sender<Job>>,
    reader: Mutex<Connection>,
    writer: Option<JoinHandle<()>>,
    start: Start,
    _lock: File,
}

/// Where a freshly opened store stands.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// The last revision that is on disk.
    pub durable: Revision,
    /// No revision up to and including this one will be given out again.
    pub ceiling: Revision,
}

#[derive(Debug)]
struct Job {
    batch: Vec<Write>,
    reply: oneshot::Sender<Result<Revision, CommitError>>,
}

impl SqliteStore {
    /// Opens or creates the store in `directory` and locks it for this process.
    ///
    /// Commits are refused until [`Self::start`] has been called.
    ///
    /// # Errors
    /// [`StoreError`]: in use, from a newer release, foreign, or I/O.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(directory).map_err(at(directory))?;
        let lock = lock(directory)?;
        let path = directory.join(FILE);
        let connection = connect(&path)?;
        let start = migrate(&connection, &path)?;
        drop(connection);
        private(&path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let reader = Mutex::new(Connection::open_with_flags(&path, flags)?);
        Ok(Self {
            queue: None,
            reader,
            writer: None,
            start,
            _lock: lock,
        })
    }

    /// Where the counter stood when the store was opened.
    pub fn opened_at(&self) -> Start {
        self.start
    }

    /// Starts the writer; from now on `observer` sees every commit.
    ///
    /// # Errors
    /// [`StoreError`] if the file cannot be opened for writing.
    pub fn start(
        &mut self,
        directory: &Path,
        observer: Box<dyn Observer>,
    ) -> Result<(), StoreError> {
        let connection = connect(&directory.join(FILE))?;
        let (queue, jobs) = mpsc::channel(QUEUE);
        let writer = Writer {
            connection,
            observer,
            revision: self.start.ceiling.0,
            ceiling: self.start.ceiling.0,
            memory: HashMap::new(),
        };
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(jobs))
            .map_err(at(directory))?;
        self.queue = Some(queue);
        self.writer = Some(thread);
        Ok(())
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.writer.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's writer panicked");
        }
    }
}

impl Store for SqliteStore {
    fn get(&self, key: &str) -> Result<Option<Stored>, StoreError> {
        let reader = self.reader.lock().expect("no reader panics");
        let mut select =
            reader.prepare_cached("SELECT key, value, revision FROM objects WHERE key = ?1")?;
        Ok(select.query_row([key], row).optional()?)
    }

    fn range(&self, prefix: &str, each: &mut dyn FnMut(Stored)) -> Result<(), StoreError> {
        let reader = self.reader.lock().expect("no reader panics");
        let mut select = reader.prepare_cached(
            "SELECT key, value, revision FROM objects WHERE key >= ?1 AND key < ?2 ORDER BY key",
        )?;
        // Keys are UTF-8, so no key can reach U+10FFFF as its next character.
        let end = format!("{prefix}\u{10ffff}");
        let mut rows = select.query([prefix, &end])?;
        while let Some(found) = rows.next()? {
            each(row(found)?);
        }
        Ok(())
    }

    fn commit(&self, batch: Vec<Write>) -> Commit {
        let queue = self.queue.clone();
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let queue = queue.ok_or(CommitError::Closed)?;
            queue
                .send(Job { batch, reply })
                .await
                .map_err(|_closed| CommitError::Closed)?;
            answer.await.map_err(|_closed| CommitError::Closed)?
        })
    }
}

fn row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Stored> {
    let revision: i64 = row.get(2)?;
    Ok(Stored {
        key: row.get(0)?,
        value: Bytes::from(row.get::<_, Vec<u8>>(1)?),
        revision: Revision(revision.cast_unsigned()),
    })
}

/// The writer thread's state.
struct Writer {
    connection: Connection,
    observer: Box<dyn Observer>,
    revision: u64,
    ceiling: u64,
    /// Where the keys stand that are kept in memory only. Bounded by what the
    /// API admits of such resources: one Lease per node and leader.
    memory: HashMap<Arc<str>, Revision>,
}

/// One batch that met its preconditions.
struct Taken {
    reply: oneshot::Sender<Result<Revision, CommitError>>,
    batch: Vec<Write>,
    revision: Revision,
}

impl Writer {
    fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut group = Vec::with_capacity(GROUP);
        while jobs.blocking_recv_many(&mut group, GROUP) > 0 {
            self.commit(std::mem::take(&mut group));
        }
        if let Err(error) = self
            .connection
            .execute_batch("PRAGMA wal_checkpoint(TRUNCATE);")
        {
            tracing::warn!(%error, "the write-ahead log stays until the next start");
        }
    }

    /// Commits a group; on an engine failure all of it is undone and refused.
    fn commit(&mut self, group: Vec<Job>) {
        let before = (self.revision, self.ceiling);
        let mut undo = Vec::new();
        let mut taken = Vec::with_capacity(group.len());
        let mut failed = None;
        let mut open = false;
        for Job { batch, reply } in group {
            if failed.is_some() {
                refuse(reply, failed.as_ref());
                continue;
            }
            match self.take(&batch, &mut open, &mut undo) {
                Ok(Ok(revision)) => taken.push(Taken {
                    reply,
                    batch,
                    revision,
                }),
                Ok(Err(refusal)) => answer(reply, Err(refusal)),
                Err(error) => {
                    failed = Some(error);
                    refuse(reply, failed.as_ref());
                }
            }
        }
        if failed.is_none() {
            failed = self.finish(open, before.0).err();
        }
        if let Some(error) = failed {
            tracing::error!(%error, "commit failed, the group is refused");
            self.roll_back(open, before, undo);
            for Taken { reply, .. } in taken {
                refuse(reply, Some(&error));
            }
            return;
        }
        self.publish(taken);
    }

    /// Checks one batch and writes it into the open transaction.
    fn take(
        &mut self,
        batch: &[Write],
        open: &mut bool,
        undo: &mut Vec<(Arc<str>, Option<Revision>)>,
    ) -> rusqlite::Result<Result<Revision, CommitError>> {
        for (index, write) in batch.iter().enumerate() {
            let current = match write.expect {
                Expect::Any => continue,
                Expect::Absent | Expect::At(_) => self.current(write)?,
            };
            let wanted = match write.expect {
                Expect::At(revision) => Some(revision),
                Expect::Any | Expect::Absent => None,
            };
            if current != wanted {
                return Ok(Err(CommitError::Precondition {
                    write: index,
                    current,
                }));
            }
        }
        self.revision += 1;
        let revision = Revision(self.revision);
        for write in batch {
            if write.durable {
                if !*open {
                    self.connection.execute_batch("BEGIN IMMEDIATE")?;
                    *open = true;
                }
                self.put(write, revision)?;
            } else {
                let old = match write.value {
                    Some(_) => self.memory.insert(Arc::clone(&write.key), revision),
                    None => self.memory.remove(&write.key),
                };
                undo.push((Arc::clone(&write.key), old));
            }
        }
        Ok(Ok(revision))
    }

    fn current(&self, write: &Write) -> rusqlite::Result<Option<Revision>> {
        if !write.durable {
            return Ok(self.memory.get(&write.key).copied());
        }
        let mut select = self
            .connection
            .prepare_cached("SELECT revision FROM objects WHERE key = ?1")?;
        select
            .query_row([&*write.key], |r| {
                Ok(Revision(r.get::<_, i64>(0)?.cast_unsigned()))
            })
            .optional()
    }

    fn put(&self, write: &Write, revision: Revision) -> rusqlite::Result<()> {
        match &write.value {
            Some(value) => self
                .connection
                .prepare_cached(
                    "INSERT INTO objects (key, revision, value) VALUES (?1, ?2, ?3)
                     ON CONFLICT (key) DO UPDATE SET revision = ?2, value = ?3",
                )?
                .execute(params![&*write.key, revision.0.cast_signed(), &value[..]])?,
            None => self
                .connection
                .prepare_cached("DELETE FROM objects WHERE key = ?1")?
                .execute([&*write.key])?,
        };
        Ok(())
    }

    /// Writes the counters and makes the transaction durable.
    fn finish(&mut self, mut open: bool, before: u64) -> rusqlite::Result<()> {
        if self.revision == before {
            return if open {
                self.connection.execute_batch("COMMIT")
            } else {
                Ok(())
            };
        }
        let raise = self.revision >= self.ceiling;
        if raise {
            if !open {
                self.connection.execute_batch("BEGIN IMMEDIATE")?;
                open = true;
            }
            self.ceiling = self.revision + BLOCK;
            self.count("ceiling", self.ceiling)?;
        }
        if open {
            self.count("durable", self.revision)?;
            self.connection.execute_batch("COMMIT")?;
        }
        Ok(())
    }

    fn count(&self, name: &str, value: u64) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("UPDATE counters SET value = ?2 WHERE name = ?1")?
            .execute(params![name, value.cast_signed()])?;
        Ok(())
    }

    fn roll_back(
        &mut self,
        open: bool,
        before: (u64, u64),
        undo: Vec<(Arc<str>, Option<Revision>)>,
    ) {
        if (open || !self.connection.is_autocommit())
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            tracing::debug!(%error, "nothing to roll back");
        }
        (self.revision, self.ceiling) = before;
        for (key, old) in undo.into_iter().rev() {
            match old {
                Some(revision) => drop(self.memory.insert(key, revision)),
                None => drop(self.memory.remove(&key)),
            }
        }
    }

    /// Shows the commits to the observer, then tells the writers.
    fn publish(&mut self, taken: Vec<Taken>) {
        let mut changes = Vec::with_capacity(taken.len());
        let mut replies = Vec::with_capacity(taken.len());
        for Taken {
            reply,
            batch,
            revision,
        } in taken
        {
            replies.push((reply, revision));
            for Write { key, value, .. } in batch {
                changes.push(Committed {
                    key,
                    value,
                    revision,
                });
            }
        }
        if !changes.is_empty() {
            self.observer.committed(changes);
        }
        for (reply, revision) in replies {
            answer(reply, Ok(revision));
        }
    }
}

fn refuse(reply: oneshot::Sender<Result<Revision, CommitError>>, error: Option<&rusqlite::Error>) {
    let text = error.map_or_else(String::new, ToString::to_string);
    answer(reply, Err(CommitError::Engine(text.into())));
}

/// A caller that has gone away does not want his answer.
fn answer(
    reply: oneshot::Sender<Result<Revision, CommitError>>,
    result: Result<Revision, CommitError>,
) {
    if reply.send(result).is_err() {
        tracing::debug!("a writer left before its commit was done");
    }
}
