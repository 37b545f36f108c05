//! The store's file: locked, recognised, brought to the newest format.

use std::{
    fs::{File, TryLockError},
    path::Path,
};

use rusqlite::Connection;

use super::{Revision, StoreError, at, sqlite::Start};

/// The newest format this release writes. Raise it with a step in [`migrate`].
pub(super) const FORMAT: i64 = 1;
/// "FLDS": says that a SQLite file is ours.
pub(super) const APPLICATION_ID: i64 = 0x464c_4453;
/// The file's name in the data directory.
pub const FILE: &str = "store.db";

/// Takes the directory's lock file for as long as the returned handle lives.
pub(super) fn lock(directory: &Path) -> Result<File, StoreError> {
    let path = directory.join("lock");
    let file = File::create(&path).map_err(at(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse {
            directory: directory.display().to_string(),
        }),
        Err(TryLockError::Error(source)) => Err(at(&path)(source)),
    }
}

/// Secrets are in there: only the owner may read.
pub(super) fn private(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(at(path))
}

/// What an engine's error means for the file at `path`.
fn of_file(path: &Path) -> impl Fn(rusqlite::Error) -> StoreError + '_ {
    |error| match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase) => StoreError::Foreign {
            path: path.display().to_string(),
        },
        _ => StoreError::Engine(error),
    }
}

pub(super) fn connect(path: &Path) -> Result<Connection, StoreError> {
    let connection = Connection::open(path)?;
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(of_file(path))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 2000)?;
    connection.pragma_update(None, "cache_size", -2048)?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    Ok(connection)
}

/// Checks that a file is ours and not newer than we are.
pub(super) fn recognise(connection: &Connection, path: &Path) -> Result<i64, StoreError> {
    let application: i64 = connection
        .pragma_query_value(None, "application_id", |r| r.get(0))
        .map_err(of_file(path))?;
    let format: i64 = connection.pragma_query_value(None, "user_version", |r| r.get(0))?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
    if application != APPLICATION_ID && (application != 0 || tables != 0) {
        return Err(StoreError::Foreign {
            path: path.display().to_string(),
        });
    }
    if format > FORMAT {
        return Err(StoreError::FromTheFuture {
            found: format,
            known: FORMAT,
        });
    }
    Ok(format)
}

/// Brings the file to [`FORMAT`], one versioned step at a time.
pub(super) fn migrate(connection: &Connection, path: &Path) -> Result<Start, StoreError> {
    let format = recognise(connection, path)?;
    if format < 1 {
        connection.execute_batch(&format!(
            "BEGIN;
             CREATE TABLE objects (key TEXT PRIMARY KEY NOT NULL, revision INTEGER NOT NULL, value BLOB NOT NULL);
             CREATE TABLE counters (name TEXT PRIMARY KEY NOT NULL, value INTEGER NOT NULL);
             INSERT INTO counters VALUES ('durable', 0), ('ceiling', 0);
             PRAGMA application_id = {APPLICATION_ID};
             PRAGMA user_version = 1;
             COMMIT;"
        ))?;
    }
    let counter = |name: &str| -> rusqlite::Result<Revision> {
        connection.query_row("SELECT value FROM counters WHERE name = ?1", [name], |r| {
            Ok(Revision(r.get::<_, i64>(0)?.cast_unsigned()))
        })
    };
    Ok(Start {
        durable: counter("durable")?,
        ceiling: counter("ceiling")?,
    })
}
