//! Who the peers are: pods and namespaces, by labels and expressions.

use fairlead_tests::cluster::Operator::{In, NotIn};
use fairlead_tests::traffic::Transport::{Sctp, Tcp, Udp};

use super::build::{With, all, anything, both, listed, namespaces, ns, peers, pod, pods, policy};
use super::scenario;

scenario!(pods_of_the_server_namespace, |bench| {
    bench.policies(vec![
        policy("x", "p", pod("a")).ingress(vec![peers(vec![pods(pod("b"))])]),
    ]);
    bench.expect(Tcp, 80, |from, to| {
        !to.is("x/a") || from == to || from.is("x/b")
    });
});

scenario!(pods_of_the_server_namespace_udp, |bench| {
    bench.policies(vec![
        policy("x", "p", pod("a")).ingress(vec![peers(vec![pods(pod("b"))])]),
    ]);
    bench.expect(Udp, 80, |from, to| {
        !to.is("x/a") || from == to || from.is("x/b")
    });
});

scenario!(pods_of_the_server_namespace_sctp, |bench| {
    bench.policies(vec![
        policy("x", "p", pod("a")).ingress(vec![peers(vec![pods(pod("b"))])]),
    ]);
    bench.expect(Sctp, 80, |from, to| {
        !to.is("x/a") || from == to || from.is("x/b")
    });
});

scenario!(ingress_for_a_target, |bench| {
    bench.policies(vec![
        policy("x", "deny", all()).ingress(vec![]),
        policy("x", "allow", pod("a")).ingress(vec![anything()]),
    ]);
    bench.expect(Tcp, 80, |from, to| {
        to.ns != "x" || to.is("x/a") || from == to
    });
});

scenario!(pods_in_all_namespaces, |bench| {
    bench.policies(vec![
        policy("x", "p", pod("a")).ingress(vec![peers(vec![namespaces(all())])]),
    ]);
    bench.expect(Tcp, 80, |_, _| true);
});

scenario!(only_a_different_namespace, |bench| {
    let from_y = peers(vec![namespaces(ns("y"))]);
    bench.policies(vec![policy("x", "p", all()).ingress(vec![from_y])]);
    bench.expect(Tcp, 80, |from, to| {
        to.ns != "x" || from == to || from.ns == "y"
    });
});

scenario!(pod_expressions, |bench| {
    let from = peers(vec![pods(listed("pod", In, &["b"]))]);
    bench.policies(vec![policy("x", "p", pod("a")).ingress(vec![from])]);
    bench.expect(Tcp, 80, |from, to| {
        !to.is("x/a") || from == to || from.is("x/b")
    });
});

scenario!(namespace_expressions, |bench| {
    let from = peers(vec![namespaces(listed("ns", In, &["y"]))]);
    bench.policies(vec![policy("x", "p", pod("a")).ingress(vec![from])]);
    bench.expect(Tcp, 80, |from, to| {
        !to.is("x/a") || from == to || from.ns == "y"
    });
});

scenario!(pod_or_namespace, |bench| {
    let from = peers(vec![namespaces(ns("y")), pods(pod("b"))]);
    bench.policies(vec![policy("x", "p", pod("a")).ingress(vec![from])]);
    bench.expect(Tcp, 80, |from, to| {
        !to.is("x/a") || from == to || from.ns == "y" || from.is("x/b")
    });
});

scenario!(pod_and_namespace, |bench| {
    let from = peers(vec![both(ns("y"), pod("b"))]);
    bench.policies(vec![policy("x", "p", pod("a")).ingress(vec![from])]);
    bench.expect(Tcp, 80, |from, to| {
        !to.is("x/a") || from == to || from.is("y/b")
    });
});

scenario!(multiple_pod_and_namespace_selectors, |bench| {
    let from = peers(vec![both(
        listed("ns", NotIn, &["x"]),
        listed("pod", In, &["b", "c"]),
    )]);
    bench.policies(vec![policy("x", "p", pod("a")).ingress(vec![from])]);
    bench.expect(Tcp, 80, |from, to| {
        !to.is("x/a") || from == to || (from.ns != "x" && from.pod != "a")
    });
});

scenario!(any_of_several_pod_selectors, |bench| {
    let from = peers(vec![pods(pod("b")), pods(pod("c"))]);
    bench.policies(vec![policy("x", "p", pod("a")).ingress(vec![from])]);
    bench.expect(Tcp, 80, |from, to| !to.is("x/a") || from.ns == "x");
});

scenario!(a_pod_in_a_different_namespace, |bench| {
    let from = peers(vec![both(ns("y"), pod("a"))]);
    bench.policies(vec![policy("x", "p", pod("a")).ingress(vec![from])]);
    bench.expect(Tcp, 80, |from, to| {
        !to.is("x/a") || from == to || from.is("y/a")
    });
});

scenario!(a_pod_in_a_different_namespace_udp, |bench| {
    let from = peers(vec![both(ns("y"), pod("a"))]);
    bench.policies(vec![policy("x", "p", pod("a")).ingress(vec![from])]);
    bench.expect(Udp, 80, |from, to| {
        !to.is("x/a") || from == to || from.is("y/a")
    });
});

scenario!(a_pod_in_a_different_namespace_sctp, |bench| {
    let from = peers(vec![both(ns("y"), pod("a"))]);
    bench.policies(vec![policy("x", "p", pod("a")).ingress(vec![from])]);
    bench.expect(Sctp, 80, |from, to| {
        !to.is("x/a") || from == to || from.is("y/a")
    });
});

scenario!(the_default_name_label_by_labels, |bench| {
    let label = fairlead_tests::cluster::Selector::of(&[("kubernetes.io/metadata.name", "y")]);
    bench.policies(vec![
        policy("x", "p", all()).ingress(vec![peers(vec![namespaces(label)])]),
    ]);
    bench.expect(Tcp, 80, |from, to| {
        to.ns != "x" || from == to || from.ns == "y"
    });
});

scenario!(the_default_name_label_by_expressions, |bench| {
    let label = listed("kubernetes.io/metadata.name", NotIn, &["x"]);
    bench.policies(vec![
        policy("x", "p", all()).ingress(vec![peers(vec![namespaces(label)])]),
    ]);
    bench.expect(Tcp, 80, |from, to| {
        to.ns != "x" || from == to || from.ns != "x"
    });
});
