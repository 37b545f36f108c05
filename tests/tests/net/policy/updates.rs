//! Changes of policies and labels while pods run.

use fairlead_tests::cluster::labels;
use fairlead_tests::traffic::Transport::Tcp;

use super::build::{With, all, anything, namespaces, ns, peers, pod, pods, policy};
use super::scenario;

scenario!(an_updated_policy, |bench| {
    bench.policies(vec![policy("x", "p", all()).ingress(vec![])]);
    bench.expect(Tcp, 81, |from, to| to.ns != "x" || from == to);
    bench.policies(vec![policy("x", "p", all()).ingress(vec![anything()])]);
    bench.expect(Tcp, 81, |_, _| true);
});

scenario!(an_updated_namespace, |bench| {
    let label = fairlead_tests::cluster::Selector::of(&[("ns2", "updated")]);
    bench.policies(vec![
        policy("x", "p", pod("a")).ingress(vec![peers(vec![namespaces(label)])]),
    ]);
    bench.expect(Tcp, 80, |from, to| !to.is("x/a") || from == to);
    let y = bench
        .cluster
        .namespaces
        .iter_mut()
        .find(|ns| ns.name == "y")
        .unwrap();
    y.labels.insert("ns2".into(), "updated".into());
    bench.apply();
    bench.expect(Tcp, 80, |from, to| {
        !to.is("x/a") || from == to || from.ns == "y"
    });
});

scenario!(an_updated_pod, |bench| {
    let label = fairlead_tests::cluster::Selector::of(&[("pod2", "updated")]);
    bench.policies(vec![
        policy("x", "p", pod("a")).ingress(vec![peers(vec![pods(label)])]),
    ]);
    bench.expect(Tcp, 80, |from, to| !to.is("x/a") || from == to);
    set_labels(bench, "x", "b", &[("pod", "b"), ("pod2", "updated")]);
    bench.expect(Tcp, 80, |from, to| {
        !to.is("x/a") || from == to || from.is("x/b")
    });
});

scenario!(pods_of_other_namespaces_are_denied, |bench| {
    bench.policies(vec![
        policy("x", "p", all()).ingress(vec![peers(vec![pods(all())])]),
    ]);
    bench.expect(Tcp, 80, |from, to| to.ns != "x" || from.ns == "x");
});

scenario!(a_pod_that_comes_to_be_selected_is_isolated, |bench| {
    let target = fairlead_tests::cluster::Selector::of(&[("target", "isolated")]);
    bench.policies(vec![policy("x", "p", target).ingress(vec![])]);
    bench.expect(Tcp, 80, |_, _| true);
    set_labels(bench, "x", "a", &[("pod", "a"), ("target", "isolated")]);
    bench.expect(Tcp, 80, |from, to| !to.is("x/a") || from == to);
});

scenario!(deleted_policies_end, |bench| {
    let deny = policy("x", "deny", all()).ingress(vec![]).egress(vec![]);
    let some = policy("x", "some", all()).ingress(vec![peers(vec![namespaces(ns("y"))])]);
    bench.policies(vec![deny, some]);
    bench.expect(Tcp, 80, |from, to| {
        from == to || (from.ns != "x" && (to.ns != "x" || from.ns == "y"))
    });
    bench.policies(vec![]);
    bench.expect(Tcp, 80, |_, _| true);
});

fn set_labels(bench: &mut crate::bench::Bench, ns: &str, name: &str, pairs: &[(&str, &str)]) {
    let pods = &mut bench.cluster.pods;
    let pod = pods
        .iter_mut()
        .find(|pod| pod.namespace == ns && pod.name == name)
        .unwrap();
    pod.labels = labels(pairs);
    bench.apply();
}
