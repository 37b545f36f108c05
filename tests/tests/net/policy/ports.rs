//! Ports by number, name, protocol alone and range.

use fairlead_tests::cluster::Protocol;
use fairlead_tests::traffic::Transport::Tcp;

use super::build::{With, all, any_of, named, namespaces, ns, policy, ports, range, rule, tcp};
use super::scenario;

scenario!(ports_by_number, |bench| {
    let from = rule(vec![namespaces(ns("y"))], vec![tcp(81)]);
    bench.policies(vec![policy("x", "p", all()).ingress(vec![from])]);
    bench.expect(Tcp, 80, |from, to| to.ns != "x" || from == to);
    bench.expect(Tcp, 81, |from, to| {
        to.ns != "x" || from == to || from.ns == "y"
    });
});

scenario!(ingress_on_a_named_port, |bench| {
    let web = ports(vec![named(Protocol::Tcp, "serve-81-tcp")]);
    bench.policies(vec![policy("x", "p", all()).ingress(vec![web])]);
    bench.expect(Tcp, 81, |_, _| true);
    bench.expect(Tcp, 80, |from, to| to.ns != "x" || from == to);
});

scenario!(ingress_from_a_namespace_on_a_named_port, |bench| {
    let from = rule(
        vec![namespaces(ns("y"))],
        vec![named(Protocol::Tcp, "serve-80-tcp")],
    );
    bench.policies(vec![policy("x", "p", all()).ingress(vec![from])]);
    bench.expect(Tcp, 80, |from, to| {
        to.ns != "x" || from == to || from.ns == "y"
    });
    bench.expect(Tcp, 81, |from, to| to.ns != "x" || from == to);
});

scenario!(egress_on_a_named_port, |bench| {
    let web = ports(vec![named(Protocol::Tcp, "serve-80-tcp")]);
    bench.policies(vec![policy("x", "p", all()).egress(vec![web])]);
    bench.expect(Tcp, 80, |_, _| true);
    bench.expect(Tcp, 81, |from, to| from.ns != "x" || from == to);
});

scenario!(any_port_of_a_protocol, |bench| {
    bench.policies(vec![
        policy("x", "p", all()).ingress(vec![ports(vec![any_of(Protocol::Tcp)])]),
    ]);
    bench.expect(Tcp, 80, |_, _| true);
    bench.expect(Tcp, 81, |_, _| true);
});

// Upstream has no test of these.
scenario!(a_port_range_holds_its_ends_and_no_more, |bench| {
    bench.policies(vec![
        policy("x", "p", all()).ingress(vec![ports(vec![range(79, 80)])]),
    ]);
    bench.expect(Tcp, 80, |_, _| true);
    bench.expect(Tcp, 81, |from, to| to.ns != "x" || from == to);
    bench.policies(vec![
        policy("x", "p", all()).ingress(vec![ports(vec![range(80, 81)])]),
    ]);
    bench.expect(Tcp, 81, |_, _| true);
});
