//! Default deny, in one direction and in both.

use fairlead_tests::traffic::Transport::{Tcp, Udp};

use super::build::{With, all, policy};
use super::scenario;

scenario!(default_deny_ingress, |bench| {
    bench.policies(vec![policy("x", "deny", all()).ingress(vec![])]);
    bench.expect(Tcp, 80, |from, to| to.ns != "x" || from == to);
});

scenario!(default_deny_ingress_udp, |bench| {
    bench.policies(vec![policy("x", "deny", all()).ingress(vec![])]);
    bench.expect(Udp, 80, |from, to| to.ns != "x" || from == to);
});

scenario!(default_deny_all, |bench| {
    bench.policies(vec![
        policy("x", "deny", all()).ingress(vec![]).egress(vec![]),
    ]);
    bench.expect(Tcp, 80, |from, to| {
        from == to || (to.ns != "x" && from.ns != "x")
    });
});

scenario!(no_policy_allows_everything, |bench| {
    bench.policies(vec![]);
    bench.expect(Tcp, 80, |_, _| true);
});
