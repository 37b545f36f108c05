//! The watch against a model: random writes, watchers of any speed, restarts.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::{
    resource::core::CONFIG_MAP,
    store::{Expect, Write, sqlite::SqliteStore},
};

/// One step of a history.
#[derive(Clone, Debug)]
enum Step {
    /// Writes these keys in one batch; each with a label value or as a removal.
    Commit(Vec<(u8, Option<u8>)>),
    /// A new watcher, of everything or of one label value, from its own list.
    Watch(Option<u8>),
    /// A watcher takes what is ready.
    Read(usize),
    /// A paged list begins; its pages are read over the following steps.
    List(usize),
    /// The next page of the paged list.
    Page,
    /// The server stops and starts.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let write = (0..12_u8, prop::option::weighted(0.75, 0..3_u8));
    prop_oneof![
        10 => prop::collection::vec(write, 1..4).prop_map(Step::Commit),
        2 => prop::option::of(0..3_u8).prop_map(Step::Watch),
        5 => (0..4_usize).prop_map(Step::Read),
        1 => (1..4_usize).prop_map(Step::List),
        3 => Just(Step::Page),
        1 => Just(Step::Restart),
    ]
}

type State = BTreeMap<u8, u8>;

/// What a client believes, by list and watch.
struct Follower {
    label: Option<u8>,
    seen: BTreeMap<String, Revision>,
    revision: Revision,
    watcher: Option<Watcher>,
}

struct Paging {
    at: Revision,
    after: Option<String>,
    limit: usize,
    keys: Vec<String>,
}

struct World {
    folder: PathBuf,
    store: Option<SqliteStore>,
    cache: Arc<Cache>,
    /// The state after every commit.
    history: BTreeMap<Revision, State>,
    followers: Vec<Follower>,
    paging: Option<Paging>,
    ring_bytes: usize,
}

fn name(key: u8) -> String {
    format!("ns{}/k{key:02}", key % 2)
}

fn open(folder: &std::path::Path, ring_bytes: usize) -> (SqliteStore, Arc<Cache>) {
    let mut store = SqliteStore::open(folder).unwrap();
    let at = store.opened_at();
    let cache = Arc::new(Cache::new(at.durable, at.ceiling, ring_bytes));
    cache.load(&store).unwrap();
    store
        .start(folder, Box::new(Feed(Arc::clone(&cache))))
        .unwrap();
    (store, cache)
}

impl World {
    fn new(ring_bytes: usize) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("fl-cache-{}-{number}", std::process::id()));
        drop(std::fs::remove_dir_all(&folder));
        let (store, cache) = open(&folder, ring_bytes);
        let history = BTreeMap::from([(Revision(0), State::new())]);
        Self {
            folder,
            store: Some(store),
            cache,
            history,
            followers: Vec::new(),
            paging: None,
            ring_bytes,
        }
    }

    fn now(&self) -> &State {
        self.history.last_key_value().unwrap().1
    }

    fn at(&self, revision: Revision) -> &State {
        self.history.range(..=revision).next_back().unwrap().1
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Commit(writes) => self.commit(&writes).await,
            Step::Watch(label) => self.follow(label),
            Step::Read(index) => self.read(index),
            Step::List(limit) => {
                self.paging = Some(Paging {
                    at: Revision(0),
                    after: None,
                    limit,
                    keys: Vec::new(),
                });
                self.page();
            }
            Step::Page => self.page(),
            Step::Restart => {
                self.store = None;
                let (store, cache) = open(&self.folder, self.ring_bytes);
                (self.store, self.cache) = (Some(store), cache);
                self.paging = None;
                for index in 0..self.followers.len() {
                    self.resume(index);
                }
            }
        }
    }

    async fn commit(&mut self, writes: &[(u8, Option<u8>)]) {
        let mut state = self.now().clone();
        let mut batch = Vec::new();
        let writes: BTreeMap<u8, Option<u8>> = writes.iter().copied().collect();
        for (key, label) in writes {
            let (namespace, short) = (key % 2, name(key));
            let value = label.map(|label| {
                let (_, plain) = short.split_once('/').unwrap();
                Bytes::from(format!(
                    r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"labels":{{"l":"{label}"}},"name":"{plain}","namespace":"ns{namespace}"}}}}"#
                ))
            });
            match label {
                Some(label) => drop(state.insert(key, label)),
                None => drop(state.remove(&key)),
            }
            let key = format!("configmaps/{short}").into();
            batch.push(Write {
                key,
                expect: Expect::Any,
                value,
                durable: true,
            });
        }
        let revision = self.store.as_ref().unwrap().commit(batch).await.unwrap();
        assert!(revision > *self.history.last_key_value().unwrap().0);
        self.history.insert(revision, state);
    }

    fn follow(&mut self, label: Option<u8>) {
        if self.followers.len() < 4 {
            let seen = BTreeMap::new();
            let follower = Follower {
                label,
                seen,
                revision: Revision(0),
                watcher: None,
            };
            self.followers.push(follower);
            self.relist(self.followers.len() - 1);
        }
    }

    /// The keys that a follower of `label` must see in a state.
    fn expected(state: &State, label: Option<u8>) -> Vec<String> {
        let chosen = state
            .iter()
            .filter(|(_, value)| label.is_none_or(|wanted| wanted == **value));
        let mut keys: Vec<String> = chosen.map(|(key, _)| name(*key)).collect();
        keys.sort();
        keys
    }

    fn relist(&mut self, index: usize) {
        let follower = &mut self.followers[index];
        let selector = match follower.label {
            Some(label) => Selector::labels(&format!("l={label}")).unwrap(),
            None => Selector::default(),
        };
        let cache = self.cache.of(&CONFIG_MAP);
        let (page, watcher) = cache.list_and_watch(None, selector).unwrap();
        follower.seen = page
            .entries
            .iter()
            .map(|entry| (entry.key.to_string(), entry.revision))
            .collect();
        follower.revision = page.revision;
        follower.watcher = Some(watcher);
        let keys: Vec<String> = follower.seen.keys().cloned().collect();
        let (revision, label) = (follower.revision, follower.label);
        assert_eq!(
            keys,
            Self::expected(self.at(revision), label),
            "list at {revision}"
        );
        assert_eq!(
            self.at(revision),
            self.now(),
            "a list without a revision is the newest"
        );
    }

    /// After a restart: go on from the last revision seen, or list again.
    fn resume(&mut self, index: usize) {
        let follower = &mut self.followers[index];
        let selector = match follower.label {
            Some(label) => Selector::labels(&format!("l={label}")).unwrap(),
            None => Selector::default(),
        };
        let cache = self.cache.of(&CONFIG_MAP);
        match cache.watch(follower.revision, None, selector) {
            Ok(watcher) => follower.watcher = Some(watcher),
            Err(_) => self.relist(index),
        }
    }

    fn read(&mut self, index: usize) {
        let Some(follower) = self.followers.get_mut(index) else {
            return;
        };
        let watcher = follower.watcher.as_mut().unwrap();
        let Ok(deliveries) = watcher.ready() else {
            return self.relist(index);
        };
        let mut last = follower.revision;
        for delivery in deliveries {
            let revision = delivery.event.revision();
            assert!(revision >= last, "events go forward");
            last = revision;
            let key = delivery.event.entry.key.to_string();
            let before = match delivery.kind {
                EventKind::Added => {
                    let before = follower.seen.insert(key.clone(), revision);
                    assert_eq!(before, None, "added only what was not there");
                    None
                }
                EventKind::Modified => {
                    let before = follower.seen.insert(key.clone(), revision);
                    assert!(before.is_some(), "modified only what was there");
                    before
                }
                EventKind::Deleted => {
                    let before = follower.seen.remove(&key);
                    assert!(before.is_some(), "deleted only what was there");
                    before
                }
            };
            assert!(
                before.is_none_or(|before| before < revision),
                "nothing comes twice"
            );
            let frame: serde_json::Value = serde_json::from_slice(&delivery.frame()).unwrap();
            let shown = &frame["object"]["metadata"];
            assert_eq!(shown["resourceVersion"], revision.to_string());
            assert_eq!(
                format!(
                    "{}/{}",
                    shown["namespace"].as_str().unwrap(),
                    shown["name"].as_str().unwrap()
                ),
                key
            );
            if let Some(label) = follower.label {
                assert_eq!(
                    shown["labels"]["l"],
                    label.to_string(),
                    "shows a selected state"
                );
            }
        }
        follower.revision = watcher.revision();
        let (keys, revision, label): (Vec<String>, _, _) = (
            follower.seen.keys().cloned().collect(),
            follower.revision,
            follower.label,
        );
        assert_eq!(
            keys,
            Self::expected(self.at(revision), label),
            "state at {revision}"
        );
    }

    fn page(&mut self) {
        let Some(paging) = &mut self.paging else {
            return;
        };
        let query = Query {
            limit: paging.limit,
            after: paging.after.clone(),
            at: (paging.at > Revision(0)).then_some(paging.at),
            ..Query::default()
        };
        let Ok(page) = self.cache.of(&CONFIG_MAP).list(&query) else {
            self.paging = None;
            return;
        };
        paging.at = page.revision;
        paging
            .keys
            .extend(page.entries.iter().map(|entry| entry.key.to_string()));
        paging.after = page.more_after.as_ref().map(ToString::to_string);
        let left = page.remaining.unwrap_or(0);
        let done = paging.after.is_none();
        let (at, keys) = (paging.at, paging.keys.clone());
        let expected = Self::expected(self.at(at), None);
        assert_eq!(keys.len() + left, expected.len(), "the rest is counted");
        assert_eq!(
            keys[..],
            expected[..keys.len()],
            "pages show the state at {at}"
        );
        if done {
            self.paging = None;
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.store = None;
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_watch_never_skips_repeats_or_reorders(
        steps in prop::collection::vec(step(), 1..80),
        ring_bytes in prop_oneof![Just(600_usize), Just(3_000), Just(1 << 20)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(ring_bytes);
            for step in steps {
                world.take(step).await;
            }
            for index in 0..world.followers.len() {
                world.read(index);
                let follower = &world.followers[index];
                let keys: Vec<String> = follower.seen.keys().cloned().collect();
                assert_eq!(keys, World::expected(world.now(), follower.label), "all arrive");
            }
        });
    }

    #[test]
    fn a_selector_of_any_text_is_parsed_or_refused(text in "\\PC{0,40}") {
        drop(Selector::labels(&text));
        drop(Selector::parse("", &text, &CONFIG_MAP));
    }
}

#[test]
fn every_watcher_sees_every_event_while_writers_race() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::new(RING_BYTES);
        let cache = Arc::clone(world.cache.of(&CONFIG_MAP));
        let total = 8 * 50;
        let watchers: Vec<_> = (0..20)
            .map(|_| {
                let mut watcher = cache.watch(Revision(0), None, Selector::default()).unwrap();
                tokio::spawn(async move {
                    let mut revisions = Vec::new();
                    while revisions.len() < total {
                        let events = watcher.next().await.unwrap();
                        revisions.extend(events.iter().map(|event| event.event.revision()));
                    }
                    revisions
                })
            })
            .collect();
        let store = Arc::new(world.store.as_ref().unwrap());
        let writers = (0..8_u8).map(|writer| {
            let store = Arc::clone(&store);
            async move {
                for number in 0..50 {
                    let value = format!(
                        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"w{writer}","generation":{number}}}}}"#
                    );
                    let key = format!("configmaps/ns/w{writer}").into();
                    let value = Some(Bytes::from(value));
                    let write = Write { key, expect: Expect::Any, value, durable: true };
                    store.commit(vec![write]).await.unwrap();
                }
            }
        });
        let mut writers: Vec<_> = writers.map(Box::pin).collect();
        std::future::poll_fn(|context| {
            writers.retain_mut(|writer| writer.as_mut().poll(context).is_pending());
            if writers.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
        for watcher in watchers {
            let revisions = watcher.await.unwrap();
            let expected: Vec<Revision> = (1..=total as u64).map(Revision).collect();
            assert_eq!(revisions, expected);
        }
    });
}

#[test]
fn a_watcher_that_sleeps_too_long_is_told_to_list_again() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut world = World::new(600);
        let cache = Arc::clone(world.cache.of(&CONFIG_MAP));
        let mut watcher = cache.watch(Revision(0), None, Selector::default()).unwrap();
        for key in 0..12 {
            world.commit(&[(key, Some(0))]).await;
        }
        let expired = watcher.ready().unwrap_err();
        assert_eq!(expired.wanted, Revision(0));
        assert!(
            world
                .cache
                .fill()
                .all(|(_, fill)| fill.ring_bytes <= 600 + 600)
        );
    });
}

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(std::sync::atomic::AtomicUsize);

impl std::task::Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Woken {
    fn times(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

async fn write_pod(world: &World, name: &str, node: &str) {
    let value = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","namespace":"ns"}},"spec":{{"nodeName":"{node}"}}}}"#
    );
    let write = Write {
        key: format!("pods/ns/{name}").into(),
        expect: Expect::Any,
        value: Some(Bytes::from(value)),
        durable: true,
    };
    let store = world.store.as_ref().unwrap();
    store.commit(vec![write]).await.unwrap();
}

#[test]
fn a_watcher_of_little_sleeps_through_the_rest() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::new(RING_BYTES);
        let pods = resource::find("", "v1", "pods").unwrap();
        let cache = Arc::clone(world.cache.of(pods));
        for fields in ["spec.nodeName=a", "metadata.name=mine"] {
            let selector = Selector::parse("", fields, pods).unwrap();
            let from = world.cache.revision();
            let mut watcher = cache.watch(from, Some("ns".into()), selector).unwrap();
            let woken = Arc::new(Woken::default());
            let waker = std::task::Waker::from(Arc::clone(&woken));
            let mut context = std::task::Context::from_waker(&waker);
            let mut next = Box::pin(watcher.next());
            assert!(next.as_mut().poll(&mut context).is_pending());
            for name in ["other", "one-more"] {
                write_pod(&world, name, "b").await;
            }
            assert_eq!(woken.times(), 0, "{fields}");
            // It comes, and it leaves for another node: both count.
            write_pod(&world, "mine", "a").await;
            assert_eq!(woken.times(), 1, "{fields}");
            let std::task::Poll::Ready(Ok(seen)) = next.as_mut().poll(&mut context) else {
                panic!("{fields}: an event is there");
            };
            assert_eq!(seen[0].kind, EventKind::Added);
            drop(next);
            write_pod(&world, "mine", "b").await;
            assert_eq!(watcher.ready().unwrap().len(), 1, "{fields}");
            assert_eq!(cache.topics.count(), 1);
            drop(watcher);
            assert_eq!(
                cache.topics.count(),
                0,
                "the last watcher takes its topic along"
            );
            let store = world.store.as_ref().unwrap();
            let key = "pods/ns/mine".into();
            let gone = Write {
                key,
                expect: Expect::Any,
                value: None,
                durable: true,
            };
            store.commit(vec![gone]).await.unwrap();
        }
    });
}

#[test]
fn a_watcher_that_sleeps_on_is_not_left_behind() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::new(3_000);
        let pods = resource::find("", "v1", "pods").unwrap();
        let selector = Selector::parse("", "spec.nodeName=a", pods).unwrap();
        let mut watcher = world
            .cache
            .of(pods)
            .watch(Revision(0), None, selector)
            .unwrap();
        let seen = tokio::spawn(async move { watcher.next().await });
        for number in 0..100 {
            write_pod(&world, &format!("p{number}"), "b").await;
            tokio::task::yield_now().await;
        }
        write_pod(&world, "mine", "a").await;
        let seen = seen
            .await
            .unwrap()
            .expect("what it waits for is still in the ring");
        assert_eq!(seen[0].entry().name(), "mine");
    });
}
