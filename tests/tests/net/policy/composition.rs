//! Several policies add up; none takes away.

use fairlead_tests::traffic::Transport::Tcp;

use super::build::{With, all, anything, namespaces, ns, policy, rule, tcp};
use super::scenario;

scenario!(stacked_policies, |bench| {
    let one = rule(vec![namespaces(ns("y"))], vec![tcp(80)]);
    let other = rule(vec![namespaces(ns("y"))], vec![tcp(81)]);
    bench.policies(vec![policy("x", "one", all()).ingress(vec![one.clone()])]);
    bench.expect(Tcp, 80, |from, to| {
        to.ns != "x" || from == to || from.ns == "y"
    });
    bench.expect(Tcp, 81, |from, to| to.ns != "x" || from == to);
    bench.policies(vec![
        policy("x", "one", all()).ingress(vec![one]),
        policy("x", "other", all()).ingress(vec![other]),
    ]);
    bench.expect(Tcp, 80, |from, to| {
        to.ns != "x" || from == to || from.ns == "y"
    });
    bench.expect(Tcp, 81, |from, to| {
        to.ns != "x" || from == to || from.ns == "y"
    });
});

scenario!(allow_all, |bench| {
    bench.policies(vec![policy("x", "allow", all()).ingress(vec![anything()])]);
    bench.expect(Tcp, 80, |_, _| true);
    bench.expect(Tcp, 81, |_, _| true);
});

scenario!(ingress_allow_all_takes_precedence, |bench| {
    let deny = policy("x", "deny", all()).ingress(vec![]);
    bench.policies(vec![deny.clone()]);
    bench.expect(Tcp, 80, |from, to| to.ns != "x" || from == to);
    bench.policies(vec![
        deny,
        policy("x", "allow", all()).ingress(vec![anything()]),
    ]);
    bench.expect(Tcp, 80, |_, _| true);
});

scenario!(egress_allow_all_takes_precedence, |bench| {
    let deny = policy("x", "deny", all()).egress(vec![]);
    bench.policies(vec![deny.clone()]);
    bench.expect(Tcp, 80, |from, to| from.ns != "x" || from == to);
    bench.policies(vec![
        deny,
        policy("x", "allow", all()).egress(vec![anything()]),
    ]);
    bench.expect(Tcp, 80, |_, _| true);
});
