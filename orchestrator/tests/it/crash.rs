//! The store under `kill -9`: what was acknowledged is there, whole.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use fairlead::store::{
    Committed, Expect, Observer, Revision, Store as _, Write, sqlite::SqliteStore,
};

use k8s_openapi::api::core::v1::ConfigMap;

use crate::harness::Folder;

/// Times that the writer is killed.
const KILLS: usize = 200;
/// Writers in the child.
const WRITERS: u32 = 8;
/// Names the directory to the child process.
const CHILD: &str = "FAIRLEAD_TEST_CRASH_DIRECTORY";

struct Deaf;
impl Observer for Deaf {
    fn committed(&mut self, _changes: Vec<Committed>) {}
}

fn open(directory: &Path) -> SqliteStore {
    let mut store = SqliteStore::open(directory).unwrap();
    store.start(directory, Box::new(Deaf)).unwrap();
    store
}

/// A value that says its number all over, so that half of one is seen.
fn value(number: u64) -> Bytes {
    format!("{number} ").repeat(200).into()
}

fn number(value: &[u8]) -> u64 {
    let text = std::str::from_utf8(value).unwrap();
    let words: Vec<&str> = text.split_terminator(' ').collect();
    assert_eq!(words.len(), 200, "a whole value");
    assert!(
        words.iter().all(|word| *word == words[0]),
        "one value, not two"
    );
    words[0].parse().unwrap()
}

/// The child: pairs of keys, written together, each write told when acknowledged.
#[test]
fn crash_child() {
    let Ok(directory) = std::env::var(CHILD) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = Arc::new(open(Path::new(&directory)));
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let store = Arc::clone(&store);
            tasks.spawn(async move {
                let keys = [format!("test/{writer}/a"), format!("test/{writer}/b")];
                let mut next = store.get(&keys[0]).unwrap().map_or(0, |s| number(&s.value)) + 1;
                loop {
                    let batch = keys.iter().map(|key| Write {
                        key: key.as_str().into(),
                        expect: Expect::Any,
                        value: Some(value(next)),
                        durable: true,
                    });
                    let revision = store.commit(batch.collect()).await.unwrap();
                    println!("ack {writer} {next} {revision}");
                    next += 1;
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    });
}

fn spawn(directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["crash::crash_child", "--exact", "--nocapture"])
        .env(CHILD, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn kill_9_loses_no_acknowledged_write_and_leaves_none_half_done() {
    let folder = Folder::new("crash");
    let mut acknowledged: BTreeMap<u32, u64> = BTreeMap::new();
    let mut newest = Revision(0);
    // A cheap generator of kill points, the same in every run.
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..KILLS {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let lines_before_kill = seed % 120 + 1;
        let mut child = spawn(&folder.0);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        let take = |line: String, acknowledged: &mut BTreeMap<u32, u64>, newest: &mut Revision| {
            // The harness's own lines share the pipe; a killed child may end in half a line.
            let words: Vec<&str> = line.split(' ').collect();
            let ["ack", writer, number, revision] = words[..] else {
                return false;
            };
            let (Ok(writer), Ok(number), Ok(revision)) =
                (writer.parse(), number.parse::<u64>(), revision.parse())
            else {
                return false;
            };
            let last = acknowledged.entry(writer).or_insert(0);
            *last = number.max(*last);
            *newest = Revision(revision).max(*newest);
            true
        };
        while seen < lines_before_kill {
            let line = lines
                .next()
                .expect("the child writes until it is killed")
                .unwrap();
            seen += u64::from(take(line, &mut acknowledged, &mut newest));
        }
        std::thread::park_timeout(Duration::from_micros(seed % 3000));
        child.kill().unwrap();
        child.wait().unwrap();
        // All but the last line are whole; the last may be cut within a number.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        for line in rest.iter().rev().skip(1) {
            take(line.clone(), &mut acknowledged, &mut newest);
        }
        let store = open(&folder.0);
        assert!(
            store.opened_at().ceiling >= newest,
            "no revision comes twice"
        );
        for (writer, last) in &acknowledged {
            let [a, b] = ["a", "b"].map(|half| {
                let stored = store
                    .get(&format!("test/{writer}/{half}"))
                    .unwrap()
                    .unwrap();
                (number(&stored.value), stored.revision)
            });
            assert_eq!(a, b, "a batch is whole");
            assert!(
                a.0 >= *last,
                "{last} of writer {writer} was acknowledged, found {}",
                a.0
            );
        }
    }
    assert!(newest > Revision(KILLS as u64), "the child wrote");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_serves_what_it_had_acknowledged() {
    let folder = Folder::new("killed-server");
    let start = || {
        let mut child = Command::new(env!("CARGO_BIN_EXE_fairlead"))
            .args(["server", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&folder.0)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready = lines.find(|line| line.as_ref().unwrap().starts_with("ready"));
        assert!(ready.is_some(), "the server starts");
        // Keeps the pipe open and empty.
        std::thread::spawn(move || lines.for_each(drop));
        child
    };
    let api = async || {
        let file = folder.path("admin.kubeconfig");
        let config = kube::config::Kubeconfig::read_from(file).unwrap();
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(config, &options)
            .await
            .unwrap();
        let client = kube::Client::try_from(config).unwrap();
        kube::Api::<ConfigMap>::namespaced(client, "default")
    };
    for round in 0..3 {
        let mut server = start();
        let maps = api().await;
        for number in 0..10 {
            let mut object = ConfigMap::default();
            object.metadata.name = Some(format!("c-{round}-{number}"));
            maps.create(&kube::api::PostParams::default(), &object)
                .await
                .unwrap();
        }
        server.kill().unwrap();
        server.wait().unwrap();
    }
    let mut server = start();
    let list = api()
        .await
        .list(&kube::api::ListParams::default())
        .await
        .unwrap();
    let ours = list
        .items
        .iter()
        .filter(|o| o.metadata.name.as_ref().unwrap().starts_with("c-"));
    assert_eq!(ours.count(), 30);
    server.kill().unwrap();
    server.wait().unwrap();
}
