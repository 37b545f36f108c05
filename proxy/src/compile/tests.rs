//! The compilers against naive interpreters of the rules, over random clusters
//! and random histories. A failure prints its seed: `FAIRLEAD_SEED=n` repeats it.

mod bounds;
mod naive;
mod policy;
mod service;
mod world;

/// Runs `check` with many seeds (`FAIRLEAD_CASES`), or the one of `FAIRLEAD_SEED`.
fn for_seeds(cases: u64, check: impl Fn(u64)) {
    let from_env = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    if let Some(seed) = from_env("FAIRLEAD_SEED") {
        return check(seed);
    }
    for seed in 0..from_env("FAIRLEAD_CASES").unwrap_or(cases) {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(seed)));
        if let Err(panic) = outcome {
            eprintln!("FAIRLEAD_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
