//! The rig behind `policy test`: compiled policies in the real programs.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "test support")]

use std::collections::BTreeSet;
use std::net::IpAddr;

use fairlead_proxy::OBJECT;
use fairlead_proxy::compile::{Attachment, Compiler, Input};
use fairlead_proxy::datapath::rig::{Outcome, Rig, SLOT_FIRST};
use fairlead_proxy::model::ObjectName;
use fairlead_proxy::model::manifest::{Batch, Unknown};
use fairlead_proxy::source::document;
use proxy_ebpf::addr::proto;
use proxy_ebpf::event::Counter;

const MANIFESTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {containers: [{name: c, image: i}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: web}}
    - ipBlock: {cidr: 192.0.2.0/24}
    ports: [{port: 5432}]
---
apiVersion: v1
kind: Service
metadata: {name: none, namespace: shop}
spec: {clusterIP: 10.96.0.9, selector: {app: none}, ports: [{port: 80}]}
";

const WEB: u32 = SLOT_FIRST;
const DB: u32 = SLOT_FIRST + 1;

fn ips(last: u8) -> Vec<IpAddr> {
    vec![
        IpAddr::from([10, 0, 0, last]),
        format!("fd00::{last}").parse().unwrap(),
    ]
}

/// `None`: the host lacks what the test needs, and `CI` does not insist.
fn rig() -> Option<Rig> {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "root is needed");
        eprintln!("not run: root is needed");
        return None;
    }
    let rig = Rig::new(OBJECT).unwrap();
    let documents = document::read("test", MANIFESTS).documents;
    let batch = Batch::read(documents, Unknown::Reject);
    assert_eq!(batch.rejected, []);
    let mut inputs: Vec<Input> = batch
        .since(&Batch::default())
        .into_iter()
        .map(Input::Object)
        .collect();
    inputs.push(Input::NodeAddresses(BTreeSet::new()));
    for (slot, name, last) in [(WEB, "web", 1), (DB, "db", 2)] {
        rig.add_endpoint(slot, &ips(last)).unwrap();
        let attachment = Attachment {
            pod: Some(ObjectName::new("shop", name)),
            ips: ips(last),
            starts_open: false,
        };
        inputs.push(Input::Attach { slot, attachment });
    }
    let update = Compiler::new("node").update(inputs);
    rig.apply(&update.writes).unwrap();
    Some(rig)
}

#[test]
fn the_kernel_lets_through_what_the_policy_allows_and_nothing_else() {
    let Some(mut rig) = rig() else { return };
    let refused = Outcome::Dropped(Counter::PolicyIngress);
    for family in 0..2 {
        let (web, db) = (ips(1)[family], ips(2)[family]);
        let mut send = |protocol, port| rig.send(WEB, web, db, protocol, port).unwrap();
        assert_eq!(send(proto::TCP, 5432), Outcome::Passed);
        assert_eq!(send(proto::TCP, 5433), refused);
        assert_eq!(send(proto::UDP, 5432), refused);
        assert_eq!(send(proto::SCTP, 5432), refused);
        let icmp = if family == 0 {
            proto::ICMP
        } else {
            proto::ICMPV6
        };
        assert_eq!(send(icmp, 0), refused);
        // The other way round nothing isolates.
        assert_eq!(
            rig.send(DB, db, web, proto::TCP, 1).unwrap(),
            Outcome::Passed
        );
    }
}

#[test]
fn a_test_leaves_no_flow_that_would_let_a_later_one_through() {
    let Some(mut rig) = rig() else { return };
    let (web, db) = (ips(1)[0], ips(2)[0]);
    for _ in 0..3 {
        assert_eq!(
            rig.send(WEB, web, db, proto::TCP, 5432).unwrap(),
            Outcome::Passed
        );
        let again = rig.send(WEB, web, db, proto::TCP, 80).unwrap();
        assert_eq!(again, Outcome::Dropped(Counter::PolicyIngress));
    }
}

#[test]
fn addresses_outside_are_judged_on_their_way_in() {
    let Some(mut rig) = rig() else { return };
    let db = ips(2)[0];
    let mut receive =
        |from: [u8; 4], port| rig.receive(DB, from.into(), db, proto::TCP, port).unwrap();
    assert_eq!(receive([192, 0, 2, 7], 5432), Outcome::Passed);
    let refused = Outcome::Dropped(Counter::PolicyIngress);
    assert_eq!(receive([192, 0, 2, 7], 80), refused);
    assert_eq!(receive([198, 51, 100, 1], 5432), refused);
}

#[test]
fn a_service_without_endpoints_rejects() {
    let Some(mut rig) = rig() else { return };
    let vip = IpAddr::from([10, 96, 0, 9]);
    let outcome = rig.send(WEB, ips(1)[0], vip, proto::TCP, 80).unwrap();
    assert_eq!(outcome, Outcome::Rejected);
}
