//! Files come, change, break and go; the source keeps what it can read.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::mpsc;

use super::super::SourceId;
use super::*;
use crate::model::{Change, Kind, State};

/// A source over a fresh directory, and the state that its stream makes.
struct Bench {
    directory: PathBuf,
    queue: mpsc::Receiver<(SourceId, Event)>,
    state: State,
    faults: Vec<Fault>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.task.abort();
        fs::remove_dir_all(&self.directory).unwrap();
    }
}

impl Bench {
    async fn new(files: &[(&str, &str)]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("fl-source-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        for (name, text) in files {
            fs::write(directory.join(name), text).unwrap();
        }
        let (sender, queue) = mpsc::channel(4);
        let task = tokio::spawn(run(directory.clone(), Sender::new(SourceId(0), sender)));
        let mut bench = Self {
            directory,
            queue,
            state: State::default(),
            faults: Vec::new(),
            task,
        };
        while bench.next().await != Event::Synced {}
        bench
    }

    async fn next(&mut self) -> Event {
        let wait = tokio::time::timeout(Duration::from_secs(10), self.queue.recv());
        let (_, event) = wait.await.expect("an event within 10 s").unwrap();
        match &event {
            Event::Changes(changes) => changes.iter().cloned().for_each(|c| self.state.apply(c)),
            Event::Faults(faults) => self.faults.clone_from(faults),
            Event::Synced | Event::Unsupported(_) => {}
        }
        event
    }

    async fn until(&mut self, met: impl Fn(&Self) -> bool) {
        while !met(self) {
            self.next().await;
        }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.join(name), text).unwrap();
    }

    fn namespaces(&self) -> Vec<&str> {
        self.state.namespaces.keys().map(String::as_str).collect()
    }
}

fn namespace(name: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n")
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: {name}\n\
         spec:\n  {spec}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_there_at_the_start_comes_before_synced() {
    let text = namespace("a") + &namespace("b");
    let bench = Bench::new(&[("x.yaml", &text), ("y.txt", "kind: ["), (".z.yaml", "[")]).await;
    assert_eq!(bench.namespaces(), ["a", "b"]);
    assert_eq!(bench.faults, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_file_takes_its_objects_with_it() {
    let mut bench = Bench::new(&[("a.yaml", &namespace("a")), ("b.yaml", &namespace("b"))]).await;
    fs::remove_file(bench.directory.join("a.yaml")).unwrap();
    bench.until(|b| b.namespaces() == ["b"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rename_into_place_is_one_change() {
    let mut bench = Bench::new(&[("a.yaml", &namespace("old"))]).await;
    bench.write(".a.tmp", &namespace("new"));
    fs::rename(
        bench.directory.join(".a.tmp"),
        bench.directory.join("a.yaml"),
    )
    .unwrap();
    bench.until(|b| b.namespaces() == ["new"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_written_file_is_not_read_before_it_is_closed() {
    use std::io::Write;
    let mut bench = Bench::new(&[("a.yaml", &namespace("a"))]).await;
    let mut file = fs::File::create(bench.directory.join("b.yaml")).unwrap();
    file.write_all(b"apiVersion: v1\nkind: Namespace\nmetadata: {na")
        .unwrap();
    file.flush().unwrap();
    // Another file's change is seen meanwhile, the open one is not.
    bench.write("c.yaml", &namespace("c"));
    bench.until(|b| b.namespaces().contains(&"c")).await;
    let unread = bench.faults.is_empty() || bench.faults.iter().all(|f| !f.origin.starts_with('b'));
    assert!(unread, "{:?}", bench.faults);
    file.write_all(b"me: b}\n").unwrap();
    drop(file);
    bench.until(|b| b.namespaces() == ["a", "b", "c"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_object_in_two_files_the_last_wins_and_the_other_comes_back() {
    let labelled = |value: &str| namespace("a") + &format!("  labels: {{from: {value}}}\n");
    let mut bench = Bench::new(&[("1.yaml", &labelled("one")), ("2.yaml", &labelled("two"))]).await;
    let from = |b: &Bench| b.state.namespaces["a"].labels["from"].clone();
    assert_eq!(from(&bench), "two");
    fs::remove_file(bench.directory.join("2.yaml")).unwrap();
    bench.until(|b| from(b) == "one").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_another_takes_the_place_of_is_reported() {
    let mut bench = Bench::new(&[("1.yaml", &namespace("a")), ("2.yaml", &namespace("a"))]).await;
    let fault = bench.faults[0].clone();
    assert_eq!(fault.origin, "1.yaml, document 1");
    assert!(
        fault.reason.contains("Namespace a") && fault.reason.contains("2.yaml"),
        "{fault:?}"
    );
    fs::remove_file(bench.directory.join("2.yaml")).unwrap();
    bench.until(|b| b.faults.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_without_an_address_is_reported() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
                   spec: {selector: {app: web}, ports: [{port: 80}]}\n";
    let mut bench = Bench::new(&[("s.yaml", service)]).await;
    assert_eq!(bench.faults[0].origin, "Service default/web");
    bench.write(
        "s.yaml",
        &service.replace("spec: {", "spec: {clusterIP: None, "),
    );
    bench.until(|b| b.faults.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_whose_name_is_no_text_is_reported() {
    use std::os::unix::ffi::OsStrExt;
    let mut bench = Bench::new(&[("a.yaml", &namespace("a"))]).await;
    let name = std::ffi::OsStr::from_bytes(b"b\xff.yaml");
    fs::write(bench.directory.join(name), namespace("b")).unwrap();
    bench.until(|b| !b.faults.is_empty()).await;
    assert!(
        bench.faults[0].reason.contains("UTF-8"),
        "{:?}",
        bench.faults
    );
    fs::remove_file(bench.directory.join(name)).unwrap();
    bench.until(|b| b.faults.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipe_among_the_manifests_does_not_stop_the_others() {
    let mut bench = Bench::new(&[("a.yaml", &namespace("a"))]).await;
    let pipe = bench.directory.join("b.yaml");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    bench.write("c.yaml", &namespace("c"));
    bench.until(|b| b.namespaces() == ["a", "c"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mounted_config_map_that_is_swapped_is_read_anew() {
    let mut bench = Bench::new(&[]).await;
    let publish = |directory: &Path, version: &str, name: &str| {
        let data = directory.join(format!("..{version}"));
        fs::create_dir(&data).unwrap();
        fs::write(data.join("x.yaml"), namespace(name)).unwrap();
        std::os::unix::fs::symlink(format!("..{version}"), directory.join("..data_tmp")).unwrap();
        fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
    };
    publish(&bench.directory, "1", "a");
    std::os::unix::fs::symlink("..data/x.yaml", bench.directory.join("x.yaml")).unwrap();
    bench.until(|b| b.namespaces() == ["a"]).await;
    publish(&bench.directory, "2", "b");
    bench.until(|b| b.namespaces() == ["b"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_document_is_reported_by_file_and_number_and_spares_the_rest() {
    let text = namespace("a") + "---\nkind: [\n" + &namespace("b");
    let bench = Bench::new(&[("x.yaml", &text)]).await;
    assert_eq!(bench.namespaces(), ["a", "b"]);
    assert_eq!(bench.faults[0].origin, "x.yaml, document 2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_turns_bad_closes_instead_of_vanishing() {
    let good = policy("p", "podSelector: {}\n  ingress: [{}]");
    let mut bench = Bench::new(&[("p.yaml", &good)]).await;
    bench.write("p.yaml", &policy("p", "podSelector: {\n"));
    bench.until(|b| !b.state.rejected.is_empty()).await;
    let policy = bench.state.policies.values().next().unwrap();
    assert!(policy.is_closed_for_fault);
    bench.write("p.yaml", &good);
    bench.until(|b| b.state.rejected.is_empty()).await;
    assert!(
        !bench
            .state
            .policies
            .values()
            .next()
            .unwrap()
            .is_closed_for_fault
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_turns_unclear_keeps_its_last_good_content() {
    let mut bench = Bench::new(&[("a.yaml", &namespace("a"))]).await;
    bench.write("a.yaml", "{{{");
    bench.until(|b| !b.faults.is_empty()).await;
    assert_eq!(bench.namespaces(), ["a"]);
    bench.write("a.yaml", "");
    bench.until(|b| b.namespaces().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_comes_late_is_found() {
    let directory = std::env::temp_dir().join(format!("fl-source-late-{}", std::process::id()));
    let (sender, mut queue) = mpsc::channel(4);
    let task = tokio::spawn(run(directory.clone(), Sender::new(SourceId(3), sender)));
    let (id, first) = queue.recv().await.unwrap();
    assert_eq!(id, SourceId(3));
    assert!(matches!(&first, Event::Faults(f) if f[0].reason.contains("cannot be watched")));
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("a.yaml"), namespace("a")).unwrap();
    let mut seen = false;
    loop {
        match queue.recv().await.unwrap().1 {
            Event::Changes(changes) => {
                seen |= changes
                    .iter()
                    .any(|c| matches!(c, Change::Upsert(o) if o.key().kind == Kind::Namespace));
            }
            Event::Synced => break,
            Event::Faults(_) | Event::Unsupported(_) => {}
        }
    }
    task.abort();
    fs::remove_dir_all(&directory).unwrap();
    // The file may have been written just after the first look.
    assert!(seen || !directory.exists());
}
