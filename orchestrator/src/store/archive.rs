//! Backup and restore: one file that holds the objects and the keys.
//!
//! A backup is itself a store file (`VACUUM INTO`, a consistent snapshot of a
//! live store) plus a table with the small files beside it: the CA and the
//! ServiceAccount key, without which the objects are of no use.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags, params};

use super::{
    StoreError, at,
    file::{FILE, lock, private, recognise},
};

/// Files larger than this are not keys and are refused.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// A restored store skips this many revisions, so that clients which saw
/// states newer than the backup list again instead of missing changes.
const SKIP: i64 = 1_000_000_000;

/// What a backup or a restore did.
#[derive(Debug)]
pub struct Summary {
    /// Objects in the backup.
    pub objects: u64,
    /// Files beside the store (keys, certificates).
    pub files: u64,
    /// Size of the resulting file.
    pub bytes: u64,
}

/// Saves the store in `directory`, which may be live, to the new file `target`.
///
/// # Errors
/// [`StoreError::Exists`] if `target` exists; engine and I/O errors. Nothing
/// is left at `target` then.
pub fn backup(directory: &Path, target: &Path) -> Result<Summary, StoreError> {
    let source = directory.join(FILE);
    if target.exists() {
        return Err(StoreError::Exists {
            path: target.display().to_string(),
        });
    }
    let part = partial(target);
    discard(&part)?;
    let result = save(directory, &source, &part);
    match result {
        Ok(summary) => {
            fs::rename(&part, target).map_err(at(target))?;
            sync_parent(target)?;
            Ok(summary)
        }
        Err(error) => {
            discard(&part)?;
            Err(error)
        }
    }
}

fn save(directory: &Path, source: &Path, part: &Path) -> Result<Summary, StoreError> {
    fs::metadata(source).map_err(at(source))?;
    let live = Connection::open_with_flags(source, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    live.busy_timeout(std::time::Duration::from_secs(30))?;
    recognise(&live, source)?;
    // Made before SQLite writes to it, so that it is never readable by others.
    fs::File::create(part).map_err(at(part))?;
    private(part)?;
    live.execute("VACUUM INTO ?1", [part.to_string_lossy()])?;
    drop(live);
    let copy = Connection::open(part)?;
    copy.execute_batch("BEGIN; CREATE TABLE files (path TEXT PRIMARY KEY NOT NULL, mode INTEGER NOT NULL, body BLOB NOT NULL);")?;
    let mut files = 0;
    for path in companions(directory)? {
        add(&copy, directory, &path)?;
        files += 1;
    }
    copy.execute_batch("COMMIT")?;
    let objects = count(&copy)?;
    copy.close().map_err(|(_, error)| error)?;
    let file = fs::File::open(part).map_err(at(part))?;
    file.sync_all().map_err(at(part))?;
    let bytes = file.metadata().map_err(at(part))?.len();
    Ok(Summary {
        objects,
        files,
        bytes,
    })
}

/// Puts a backup into `directory`, which must be empty. The store comes last: until
/// it is there, nothing is restored.
///
/// # Errors
/// [`StoreError`]: occupied, damaged, foreign, from a newer release, or I/O.
/// Nothing is left in the directory then.
pub fn restore(source: &Path, directory: &Path) -> Result<Summary, StoreError> {
    fs::metadata(source).map_err(at(source))?;
    let backup = Connection::open_with_flags(source, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    recognise(&backup, source)?;
    let finding: String = backup.query_row("PRAGMA integrity_check", [], |r| r.get(0))?;
    if finding != "ok" {
        return Err(StoreError::Damaged {
            path: source.display().to_string(),
            finding,
        });
    }
    fs::create_dir_all(directory).map_err(at(directory))?;
    let _lock = lock(directory)?;
    if let Some(path) = content(directory)?.into_iter().next() {
        return Err(StoreError::Occupied {
            path: path.display().to_string(),
        });
    }
    let stage = directory.join(STAGE);
    clear(&stage)?;
    let result = fill(&backup, &stage).and_then(|summary| {
        publish(&stage, directory)?;
        Ok(summary)
    });
    if result.is_err() {
        clear(&stage)?;
    }
    result
}

/// Where a restore is made before it is moved into place.
const STAGE: &str = "restore.part";

/// What is in a data directory, besides the lock and what a restore left that was killed.
fn content(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = fs::read_dir(directory).map_err(at(directory))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(at(directory))?.path();
        if !path.ends_with("lock") && !path.ends_with(STAGE) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn clear(stage: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(stage) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at(stage)(error)),
        _ => Ok(()),
    }
}

/// Makes a data directory of a backup.
fn fill(backup: &Connection, stage: &Path) -> Result<Summary, StoreError> {
    private_folder(stage).map_err(at(stage))?;
    let files = unpack(backup, stage)?;
    let store = stage.join(FILE);
    fs::File::create(&store).map_err(at(&store))?;
    private(&store)?;
    backup.execute("VACUUM INTO ?1", [store.to_string_lossy()])?;
    let copy = Connection::open(&store)?;
    copy.execute_batch(&format!(
        "BEGIN; DROP TABLE IF EXISTS files;
         UPDATE counters SET value = value + {SKIP};
         UPDATE counters SET value = (SELECT max(value) FROM counters);
         COMMIT;"
    ))?;
    let objects = count(&copy)?;
    copy.close().map_err(|(_, error)| error)?;
    let file = fs::File::open(&store).map_err(at(&store))?;
    file.sync_all().map_err(at(&store))?;
    let bytes = file.metadata().map_err(at(&store))?.len();
    Ok(Summary {
        objects,
        files,
        bytes,
    })
}

/// Moves what was made into place, the store last.
fn publish(stage: &Path, directory: &Path) -> Result<(), StoreError> {
    let (stores, others): (Vec<_>, Vec<_>) = content(stage)?
        .into_iter()
        .partition(|path| path.ends_with(FILE));
    for path in others.into_iter().chain(stores) {
        let name = path.file_name().unwrap_or_default();
        fs::rename(&path, directory.join(name)).map_err(at(&path))?;
    }
    fs::remove_dir(stage).map_err(at(stage))?;
    sync_parent(&directory.join(FILE))
}

fn count(connection: &Connection) -> Result<u64, StoreError> {
    let objects: i64 =
        connection.query_row("SELECT count(*) FROM objects", [], |row| row.get(0))?;
    Ok(objects.cast_unsigned())
}

/// The small files of a data directory, two levels deep, without the store.
fn companions(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut found = Vec::new();
    let mut folders = vec![(directory.to_path_buf(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(at(&folder))? {
            let path = entry.map_err(at(&folder))?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let kind = fs::symlink_metadata(&path).map_err(at(&path))?;
            if kind.is_dir() && depth < 1 {
                folders.push((path, depth + 1));
            } else if kind.is_file()
                && kind.len() <= FILE_BYTES_MAX
                && !(depth == 0 && (name.starts_with(FILE) || name == "lock"))
            {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn add(copy: &Connection, directory: &Path, path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::PermissionsExt;
    let body = fs::read(path).map_err(at(path))?;
    let mode = fs::metadata(path).map_err(at(path))?.permissions().mode() & 0o777;
    let name = path
        .strip_prefix(directory)
        .unwrap_or(path)
        .to_string_lossy();
    copy.execute(
        "INSERT INTO files VALUES (?1, ?2, ?3)",
        params![name, mode, body],
    )?;
    Ok(())
}

/// Writes the files of a backup; never outside `directory`, never over others.
fn unpack(backup: &Connection, directory: &Path) -> Result<u64, StoreError> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt};
    let mut select = backup.prepare("SELECT path, mode, body FROM files")?;
    let mut rows = select.query([])?;
    let mut files = 0;
    while let Some(row) = rows.next()? {
        let (name, mode, body): (String, u32, Vec<u8>) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let relative = Path::new(&name);
        let plain = relative
            .components()
            .all(|c| matches!(c, std::path::Component::Normal(_)));
        if !plain {
            return Err(StoreError::Damaged {
                path: name,
                finding: "a file outside the data directory".to_owned(),
            });
        }
        let path = directory.join(relative);
        if let Some(parent) = path.parent() {
            private_folder(parent).map_err(at(parent))?;
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode & 0o777)
            .open(&path)
            .map_err(at(&path))?;
        file.write_all(&body)
            .and_then(|()| file.sync_all())
            .map_err(at(&path))?;
        files += 1;
    }
    Ok(files)
}

/// Makes a folder that only the owner may look into.
fn private_folder(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

fn partial(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

fn discard(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

/// A rename is durable once its directory is.
fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::File::open(parent)
        .and_then(|folder| folder.sync_all())
        .map_err(at(parent))
}
