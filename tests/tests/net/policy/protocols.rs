//! One protocol is not another.

use fairlead_tests::cluster::Protocol;
use fairlead_tests::traffic::Transport::{Sctp, Tcp, Udp};

use super::build::{With, all, any_of, number, pod, policy, ports};
use super::scenario;

scenario!(sctp_is_not_tcp, |bench| {
    let rule = ports(vec![number(Protocol::Sctp, 81)]);
    bench.policies(vec![policy("x", "p", pod("a")).ingress(vec![rule])]);
    bench.expect(Tcp, 81, |from, to| !to.is("x/a") || from == to);
});

scenario!(a_policy_that_allows_sctp_isolates, |bench| {
    let rule = ports(vec![number(Protocol::Sctp, 80)]);
    bench.policies(vec![policy("x", "p", pod("a")).ingress(vec![rule])]);
    bench.expect(Tcp, 80, |from, to| !to.is("x/a") || from == to);
    bench.expect(Sctp, 80, |_, _| true);
});

scenario!(udp_alone_allows_no_tcp, |bench| {
    let rule = ports(vec![number(Protocol::Udp, 81)]);
    bench.policies(vec![policy("x", "p", all()).ingress(vec![rule])]);
    bench.expect(Tcp, 81, |from, to| to.ns != "x" || from == to);
    bench.expect(Udp, 81, |_, _| true);
});

scenario!(default_deny_ingress_sctp, |bench| {
    bench.policies(vec![policy("x", "deny", all()).ingress(vec![])]);
    bench.expect(Sctp, 80, |from, to| to.ns != "x" || from == to);
});

scenario!(any_port_of_sctp, |bench| {
    let rule = ports(vec![any_of(Protocol::Sctp)]);
    bench.policies(vec![policy("x", "p", all()).ingress(vec![rule])]);
    bench.expect(Sctp, 81, |_, _| true);
    bench.expect(Udp, 81, |from, to| to.ns != "x" || from == to);
});
