//! Whatever is killed, and whenever: DEL or GC leaves nothing behind.

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::node::{Node, is_root};

/// Numbers below `bound`, from a printed seed.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let seed = u64::from(now.subsec_nanos()) | 1;
        println!("seed {seed}");
        Self(seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// How long an ADD takes here, so that the kills hit all of it.
fn duration_of_add(node: &Node) -> Duration {
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        node.netns("timed");
        let start = Instant::now();
        node.call("ADD", "timed").good();
        slowest = slowest.max(start.elapsed());
        node.call("DEL", "timed").good();
    }
    slowest
}

/// Begins ADD and kills it after a random time, up to 1.1 of what it takes.
fn add_and_kill(node: &Node, id: &str, random: &mut Random, limit: Duration) {
    let micros = u64::try_from(limit.as_micros()).unwrap() * 11 / 10;
    let wait = Duration::from_micros(random.below(micros));
    let start = Instant::now();
    let mut child = node.spawn("ADD", id, &node.config);
    while start.elapsed() < wait {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn del_cleans_up_after_an_add_killed_at_any_time() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let mut random = Random::new();
    let limit = duration_of_add(&node);
    let mut cut_short = 0;
    for round in 0..100 {
        let id = format!("k{round}");
        node.netns(&id);
        add_and_kill(&node, &id, &mut random, limit);
        let before = node.leftovers().len();
        // A whole attachment: record, two addresses, interface, slot, two map entries.
        cut_short += u32::from(before > 0 && before < 7);
        node.call("DEL", &id).good();
        node.assert_clean();
        assert!(!node.run_in(&id, "ip -o link").contains("eth0"));
        // The same container can be attached afterwards.
        if round % 10 == 0 {
            node.call("ADD", &id).good();
            node.call("DEL", &id).good();
        }
        node.remove_netns(&id);
    }
    println!("{cut_short} of 100 were cut short");
    assert!(cut_short > 10, "the kills missed: {cut_short}");
}

#[test]
fn gc_cleans_up_after_killed_adds_and_keeps_the_valid_ones() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let mut random = Random::new();
    let limit = duration_of_add(&node);
    let kept = node.add("kept");
    let whole = node.leftovers().len();
    for round in 0..30 {
        let id = format!("g{round}");
        node.netns(&id);
        add_and_kill(&node, &id, &mut random, limit);
    }
    let valid = json!({"cni.dev/valid-attachments": [{"containerID": "kept", "ifname": "eth0"}]});
    node.call_with("GC", "", &valid).good();
    assert_eq!(node.leftovers().len(), whole, "{:?}", node.leftovers());
    node.call_with("CHECK", "kept", &json!({"prevResult": kept}))
        .good();
    node.call_with("GC", "", &json!({"cni.dev/valid-attachments": []}))
        .good();
    node.assert_clean();
}

#[test]
fn gc_leaves_other_networks_alone_and_needs_its_list() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add("a");
    let whole = node.leftovers();
    let other = json!({"name": "other", "cni.dev/valid-attachments": []});
    node.call_with("GC", "", &other).good();
    assert_eq!(node.leftovers(), whole);
    let (code, text) = node.call("GC", "").bad();
    assert_eq!(code, 7);
    assert!(
        text.contains("cni.dev/valid-attachments: missing"),
        "{text}"
    );
    node.call_with("GC", "", &json!({"cni.dev/attachments": []}))
        .good();
    node.assert_clean();
}

/// A reboot takes links, pins and maps; the state directory stays.
fn reboot(node: &Node, ids: &[&str]) {
    for id in ids {
        node.remove_netns(id);
    }
    node.wait_for_links(0);
    for entry in fs::read_dir(node.state().join("endpoints")).unwrap() {
        let path = entry.unwrap().path();
        let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        record["boot_id"] = json!("11111111-2222-3333-4444-555555555555");
        fs::write(&path, record.to_string()).unwrap();
    }
    fs::write(
        node.state().join("boot_id"),
        "11111111-2222-3333-4444-555555555555",
    )
    .unwrap();
    node.forget_pins();
}

#[test]
fn after_a_reboot_addresses_are_free_and_the_same_container_can_be_added() {
    if !is_root() {
        return;
    }
    let mut node = Node::new();
    node.config["podCIDRs"] = json!(["10.77.0.0/30"]);
    node.add("a");
    node.add("b");
    reboot(&node, &["a", "b"]);
    // Both addresses were taken; the ranges are full unless the reboot is noticed.
    node.add("a");
    node.add("c");
    let records = fs::read_dir(node.state().join("endpoints"))
        .unwrap()
        .count();
    assert_eq!(records, 2);
    // The runtime calls DEL for what it remembers from before.
    node.call("DEL", "b").good();
    node.call("DEL", "a").good();
    node.call("DEL", "c").good();
    node.assert_clean();
}

#[test]
fn del_after_a_reboot_without_an_add_removes_the_record() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add("a");
    reboot(&node, &["a"]);
    node.call("DEL", "a").good();
    node.assert_clean();
}

#[test]
fn a_torn_record_is_nobodys() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add("a");
    let record = node.state().join("endpoints/a-eth0.json");
    reboot(&node, &["a"]);
    fs::write(&record, "{\"version\":1,\"netw").unwrap();
    node.call("DEL", "a").good();
    node.assert_clean();
    fs::write(&record, "").unwrap();
    node.call_with("GC", "", &json!({"cni.dev/valid-attachments": []}))
        .good();
    node.assert_clean();
}

#[test]
fn del_without_a_namespace_or_with_a_vanished_one_succeeds() {
    if !is_root() {
        return;
    }
    let mut node = Node::new();
    node.add("a");
    node.add("b");
    node.remove_netns("a");
    node.call("DEL", "a").good();
    node.variables = vec![("CNI_NETNS".into(), String::new())];
    node.call("DEL", "b").good();
    node.variables.clear();
    node.assert_clean();
    assert!(!node.run_in("b", "ip -o link").contains("eth0"));
    node.call("DEL", "never-added").good();
}

#[test]
fn addresses_of_containers_that_vanished_are_taken_back_when_none_is_left() {
    if !is_root() {
        return;
    }
    let mut node = Node::new();
    node.config["podCIDRs"] = json!(["10.77.0.0/30"]);
    node.add("a");
    node.add("b");
    node.remove_netns("a");
    node.wait_for_links(1);
    let result = node.add("c");
    assert_eq!(result["ips"][0]["address"], "10.77.0.1/32");
    node.netns("d");
    let (code, text) = node.call("ADD", "d").bad();
    assert_eq!(code, 101);
    assert!(
        text.contains("all addresses of 10.77.0.1-10.77.0.2 are taken"),
        "{text}"
    );
    for id in ["b", "c", "d"] {
        node.call("DEL", id).good();
    }
    node.assert_clean();
}
