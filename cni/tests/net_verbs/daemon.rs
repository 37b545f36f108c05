//! What the plugin says to the daemon, and what it makes of the answer.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use proxy_ebpf::record::{EndpointRecord, Notice, PodRef};
use serde_json::json;

use crate::node::{Node, is_root};

/// Listens as the daemon would; answers each of `answers` to one notice, after
/// `look` has seen it.
fn serve(
    node: &Node,
    answers: &'static [&'static str],
    mut look: impl FnMut(&Notice) + Send + 'static,
) -> JoinHandle<Vec<Notice>> {
    let path = node.directory.join("fairlead.sock");
    drop(std::fs::remove_file(&path));
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let mut notices = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap())
                .read_line(&mut line)
                .unwrap();
            let notice: Notice = serde_json::from_str(&line).unwrap();
            look(&notice);
            notices.push(notice);
            stream.write_all(answer.as_bytes()).unwrap();
        }
        notices
    })
}

const DONE: &str = "{\"result\":\"done\"}\n";

#[test]
fn add_returns_when_the_daemon_says_that_the_policy_is_in_force() {
    if !is_root() {
        return;
    }
    let mut node = Node::new();
    node.variables = vec![(
        "CNI_ARGS".into(),
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u1".into(),
    )];
    let state = node.state();
    let seen = serve(&node, &[DONE, DONE], move |notice| {
        // The daemon finds the record and the interface by the time it is told.
        if let Notice::EndpointAdded { .. } = notice {
            let bytes = std::fs::read(state.join("endpoints/a-eth0.json")).unwrap();
            let record: EndpointRecord = serde_json::from_slice(&bytes).unwrap();
            let (namespace, name) = ("shop".to_owned(), "web".to_owned());
            let uid = Some("u1".to_owned());
            assert_eq!(
                record.pod,
                Some(PodRef {
                    namespace,
                    name,
                    uid
                })
            );
            assert_eq!(record.network, "pods");
            assert_ne!((record.slot, record.host_ifindex), (0, 0));
            assert_eq!(record.ips.len(), 2);
        }
    });
    node.netns("a");
    node.call_with("ADD", "a", &json!({"waitForPolicy": 1234}))
        .good();
    node.call("DEL", "a").good();
    let (container_id, ifname) = ("a".to_owned(), "eth0".to_owned());
    let added = Notice::EndpointAdded {
        container_id: container_id.clone(),
        ifname: ifname.clone(),
        timeout_ms: 1234,
    };
    let removed = Notice::EndpointRemoved {
        container_id,
        ifname,
    };
    assert_eq!(seen.join().unwrap(), [added, removed]);
    node.assert_clean();
}

#[test]
fn a_policy_that_cannot_be_put_in_force_fails_the_add_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let failed = "{\"result\":\"failed\",\"message\":\"the policy map is full\"}\n";
    let seen = serve(&node, Box::leak(Box::new([failed, DONE])), |_| {});
    node.netns("a");
    let (code, text) = node.call("ADD", "a").bad();
    assert_eq!(code, 104);
    assert!(text.contains("the policy map is full"), "{text}");
    node.assert_clean();
    assert_eq!(
        seen.join().unwrap().len(),
        2,
        "the daemon is told that the pod is gone"
    );
}

#[test]
fn a_silent_daemon_delays_the_add_no_longer_than_configured() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let listener = UnixListener::bind(node.directory.join("fairlead.sock")).unwrap();
    node.netns("a");
    let start = Instant::now();
    let reply = node.call_with("ADD", "a", &json!({"waitForPolicy": 100}));
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    assert!(
        start.elapsed() >= Duration::from_millis(100),
        "{:?}",
        start.elapsed()
    );
    assert!(
        reply.stderr.contains("the pod stays closed"),
        "{}",
        reply.stderr
    );
    reply.good();
    drop(listener);
    // A socket file without a listener is an absent daemon.
    node.netns("b");
    let reply = node.call("ADD", "b");
    assert_eq!(reply.stderr, "");
    reply.good();
}
