//! Address blocks, which match pods too.

use fairlead_tests::traffic::Transport::Tcp;

use super::build::{With, block, peers, pod, policy};
use super::scenario;

// x/a is .10, x/b .11, x/c .12, y/a .13, .. z/c .18.
scenario!(egress_to_a_block, |bench| {
    let to = peers(vec![block("10.244.0.13/32", &[])]);
    bench.policies(vec![policy("x", "p", pod("a")).egress(vec![to])]);
    bench.expect(Tcp, 80, |from, to| {
        !from.is("x/a") || from == to || to.is("y/a")
    });
});

scenario!(egress_to_a_block_but_its_exception, |bench| {
    let to = peers(vec![block("10.244.0.0/24", &["10.244.0.12/30"])]);
    bench.policies(vec![policy("x", "p", pod("a")).egress(vec![to])]);
    // .12 to .15: x/c and all of y.
    bench.expect(Tcp, 80, |from, to| {
        !from.is("x/a") || !(to.ns == "y" || to.is("x/c"))
    });
});

scenario!(an_exception_that_another_block_allows, |bench| {
    let to = peers(vec![
        block("10.244.0.0/24", &["10.244.0.12/30"]),
        block("10.244.0.13/32", &[]),
    ]);
    bench.policies(vec![policy("x", "p", pod("a")).egress(vec![to])]);
    bench.expect(Tcp, 80, |from, to| {
        !from.is("x/a") || to.is("y/a") || !(to.ns == "y" || to.is("x/c"))
    });
});

// Upstream has no test of this.
scenario!(ingress_from_a_block, |bench| {
    let from = peers(vec![block("10.244.0.12/30", &["10.244.0.12/32"])]);
    bench.policies(vec![policy("x", "p", pod("a")).ingress(vec![from])]);
    bench.expect(Tcp, 80, |from, to| {
        !to.is("x/a") || from == to || from.ns == "y"
    });
});
