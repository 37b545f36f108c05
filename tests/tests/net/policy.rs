//! NetworkPolicy on real pods: upstream's 48 scenarios, and what upstream lacks.

mod blocks;
pub(crate) mod build;
mod composition;
mod defaults;
mod egress;
mod nodes;
mod ping;
mod ports;
mod protocols;
mod selectors;
mod updates;

/// `scenario!(name, |bench| ..)`: a test on the shared bench.
macro_rules! scenario {
    ($name:ident, |$bench:ident| $body:block) => {
        #[test]
        fn $name() {
            fairlead_tests::require!(Root, Bpf);
            $crate::bench::with_bench(|$bench| $body);
        }
    };
}
pub(crate) use scenario;
