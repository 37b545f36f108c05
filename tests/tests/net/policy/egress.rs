//! Egress: the client's side decides too.

use fairlead_tests::traffic::Transport::Tcp;

use super::build::{With, all, anything, both, namespaces, ns, peers, pod, policy, ports, tcp};
use super::scenario;

scenario!(egress_denied_by_pod_selector, |bench| {
    bench.policies(vec![policy("x", "p", pod("a")).egress(vec![])]);
    bench.expect(Tcp, 80, |from, to| !from.is("x/a") || from == to);
});

scenario!(egress_denied_for_a_namespace, |bench| {
    bench.policies(vec![policy("x", "p", all()).egress(vec![])]);
    bench.expect(Tcp, 80, |from, to| from.ns != "x" || from == to);
});

scenario!(ingress_and_egress_together, |bench| {
    bench.policies(vec![
        policy("x", "p", pod("a"))
            .ingress(vec![peers(vec![namespaces(ns("y"))])])
            .egress(vec![ports(vec![tcp(80)])]),
    ]);
    let inward = |from: crate::bench::Who, to: crate::bench::Who| {
        !to.is("x/a") || from == to || from.ns == "y"
    };
    bench.expect(Tcp, 80, inward);
    bench.expect(Tcp, 81, |from, to| {
        inward(from, to) && (!from.is("x/a") || from == to)
    });
});

scenario!(the_client_side_denies_what_the_server_allows, |bench| {
    bench.policies(vec![
        policy("x", "client", pod("a")).egress(vec![]),
        policy("y", "server", pod("a")).ingress(vec![peers(vec![both(ns("x"), pod("a"))])]),
    ]);
    bench.expect(Tcp, 80, |from, to| {
        from == to || (!from.is("x/a") && !to.is("y/a"))
    });
});

scenario!(egress_to_a_server_in_a_different_namespace, |bench| {
    bench.policies(vec![
        policy("x", "p", pod("a")).egress(vec![peers(vec![both(ns("y"), pod("a"))])]),
    ]);
    bench.expect(Tcp, 80, |from, to| {
        !from.is("x/a") || from == to || to.is("y/a")
    });
});

scenario!(ingress_and_egress_independently, |bench| {
    let ingress = policy("x", "in", pod("a")).ingress(vec![anything()]);
    let egress = policy("x", "out", pod("a")).egress(vec![]);
    bench.policies(vec![ingress.clone()]);
    bench.expect(Tcp, 80, |_, _| true);
    bench.policies(vec![ingress, egress]);
    bench.expect(Tcp, 80, |from, to| !from.is("x/a") || from == to);
    bench.policies(vec![policy("x", "out", pod("a")).egress(vec![anything()])]);
    bench.expect(Tcp, 80, |_, _| true);
});
