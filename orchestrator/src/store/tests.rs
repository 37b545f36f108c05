//! The store keeps what it acknowledged, and counts.

use super::{archive, sqlite::SqliteStore, *};
use std::sync::Mutex;

#[derive(Default, Clone)]
struct Seen(Arc<Mutex<Vec<Committed>>>);
impl Observer for Seen {
    fn committed(&mut self, changes: Vec<Committed>) {
        self.0.lock().unwrap().extend(changes);
    }
}

fn open(directory: &std::path::Path) -> (SqliteStore, Seen) {
    let mut store = SqliteStore::open(directory).unwrap();
    let seen = Seen::default();
    store.start(directory, Box::new(seen.clone())).unwrap();
    (store, seen)
}

fn put(key: &str, expect: Expect, value: &str) -> Write {
    Write {
        key: key.into(),
        expect,
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        durable: true,
    }
}

fn below(store: &SqliteStore, prefix: &str) -> Vec<Stored> {
    let mut all = Vec::new();
    store.range(prefix, &mut |found| all.push(found)).unwrap();
    all
}

/// A directory that goes with the test.
pub(crate) struct Folder(pub std::path::PathBuf);
impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fl-store-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&path));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}
impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

#[tokio::test]
async fn a_batch_is_taken_whole_or_not_at_all() {
    let folder = Folder::new("whole");
    let (store, seen) = open(&folder.0);
    let first = store
        .commit(vec![put("a/1", Expect::Absent, "x")])
        .await
        .unwrap();
    let refused = store
        .commit(vec![
            put("a/2", Expect::Absent, "y"),
            put("a/1", Expect::Absent, "z"),
        ])
        .await
        .unwrap_err();
    assert!(matches!(
        refused,
        CommitError::Precondition { write: 1, current: Some(r) } if r == first
    ));
    assert!(store.get("a/2").unwrap().is_none());
    let second = store
        .commit(vec![
            put("a/2", Expect::Absent, "y"),
            put("a/1", Expect::At(first), "z"),
        ])
        .await
        .unwrap();
    assert!(second > first);
    let all = below(&store, "a/");
    assert_eq!(all.len(), 2);
    assert!(all.iter().all(|s| s.revision == second));
    assert_eq!(seen.0.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn revisions_never_come_twice_even_those_kept_in_memory() {
    let folder = Folder::new("twice");
    let mut last = Revision(0);
    for _ in 0..3 {
        let (store, _) = open(&folder.0);
        for _ in 0..5 {
            let mut write = put("leases/a", Expect::Any, "x");
            write.durable = false;
            let revision = store.commit(vec![write]).await.unwrap();
            assert!(revision > last);
            last = revision;
        }
        assert!(store.get("leases/a").unwrap().is_none());
    }
}

#[tokio::test]
async fn a_store_from_the_future_is_refused() {
    let folder = Folder::new("future");
    drop(open(&folder.0));
    let file = folder.0.join(file::FILE);
    rusqlite::Connection::open(&file)
        .unwrap()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    let error = SqliteStore::open(&folder.0).unwrap_err();
    assert!(
        matches!(error, StoreError::FromTheFuture { found: 99, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("hint:"));
}

#[tokio::test]
async fn a_foreign_file_is_left_alone() {
    let folder = Folder::new("foreign");
    let file = folder.0.join(file::FILE);
    let other = rusqlite::Connection::open(&file).unwrap();
    other.execute_batch("CREATE TABLE mine (x)").unwrap();
    drop(other);
    assert!(matches!(
        SqliteStore::open(&folder.0).unwrap_err(),
        StoreError::Foreign { .. }
    ));
}

#[tokio::test]
async fn what_is_no_store_is_named() {
    let folder = Folder::new("junk");
    let file = folder.0.join(file::FILE);
    std::fs::write(
        &file,
        "no database at all, but longer than a header".repeat(20),
    )
    .unwrap();
    let error = SqliteStore::open(&folder.0).unwrap_err().to_string();
    assert!(
        error.contains("store.db is not a Fairlead store"),
        "{error}"
    );
    let error = archive::restore(&file, &folder.0.join("new")).unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
    let nothing = folder.0.join("nothing");
    for error in [
        archive::backup(&nothing, &folder.0.join("saved")).unwrap_err(),
        archive::restore(&nothing, &folder.0.join("new")).unwrap_err(),
    ] {
        assert!(error.to_string().contains("nothing"), "{error}");
    }
}

#[tokio::test]
async fn a_restore_happens_whole_or_leaves_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new("whole");
    let (live, saved, new) = (
        folder.0.join("live"),
        folder.0.join("saved.db"),
        folder.0.join("new"),
    );
    drop(open(&live));
    std::fs::create_dir(live.join("pki")).unwrap();
    std::fs::write(live.join("pki/ca.key"), "secret").unwrap();
    std::fs::write(live.join("admin.kubeconfig"), "x").unwrap();
    archive::backup(&live, &saved).unwrap();
    let names = || {
        let entries = std::fs::read_dir(&new).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    // Other keys are in the way.
    std::fs::create_dir_all(new.join("pki")).unwrap();
    let error = archive::restore(&saved, &new).unwrap_err();
    assert!(matches!(error, StoreError::Occupied { .. }), "{error}");
    assert_eq!(names(), ["lock", "pki"]);
    std::fs::remove_dir(new.join("pki")).unwrap();
    // The backup turns out to be bad half-way.
    let bad = rusqlite::Connection::open(&saved).unwrap();
    bad.execute("INSERT INTO files VALUES ('../out', 384, x'00')", [])
        .unwrap();
    let error = archive::restore(&saved, &new).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    assert_eq!(names(), ["lock"]);
    bad.execute("DELETE FROM files WHERE path = '../out'", [])
        .unwrap();
    // One was killed here before.
    std::fs::create_dir_all(new.join("restore.part/pki")).unwrap();
    archive::restore(&saved, &new).unwrap();
    assert_eq!(names(), ["admin.kubeconfig", "lock", "pki", "store.db"]);
    let mode = std::fs::metadata(new.join("pki")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o700, "keys are in there");
}

#[tokio::test]
async fn one_directory_has_one_server() {
    let folder = Folder::new("lock");
    let (_store, _) = open(&folder.0);
    assert!(matches!(
        SqliteStore::open(&folder.0).unwrap_err(),
        StoreError::InUse { .. }
    ));
}

#[tokio::test]
async fn a_live_backup_restores_objects_and_keys_and_moves_the_counter_on() {
    let folder = Folder::new("backup");
    let (live, saved, again) = (
        folder.0.join("live"),
        folder.0.join("saved.db"),
        folder.0.join("again"),
    );
    let (store, _) = open(&live);
    std::fs::create_dir(live.join("pki")).unwrap();
    std::fs::write(live.join("pki/ca.key"), "secret").unwrap();
    for i in 0..50 {
        store
            .commit(vec![put(&format!("a/{i:03}"), Expect::Absent, "v")])
            .await
            .unwrap();
    }
    let summary = archive::backup(&live, &saved).unwrap();
    assert_eq!((summary.objects, summary.files), (50, 1));
    assert!(matches!(
        archive::backup(&live, &saved).unwrap_err(),
        StoreError::Exists { .. }
    ));
    let newest = store
        .commit(vec![put("a/after", Expect::Absent, "v")])
        .await
        .unwrap();

    archive::restore(&saved, &again).unwrap();
    assert!(matches!(
        archive::restore(&saved, &again).unwrap_err(),
        StoreError::Occupied { .. }
    ));
    assert_eq!(std::fs::read(again.join("pki/ca.key")).unwrap(), b"secret");
    let (restored, _) = open(&again);
    assert_eq!(below(&restored, "a/").len(), 50);
    let next = restored
        .commit(vec![put("b", Expect::Absent, "v")])
        .await
        .unwrap();
    assert!(next > newest);
}
