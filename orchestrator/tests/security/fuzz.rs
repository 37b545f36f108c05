//! Fuzzing: valid input of every kind, bent at random, into the parsers and through the whole API.
//!
//! `FAIRLEAD_CASES` sets how many cases each test runs (`cargo xtask test --cases`), and
//! `FAIRLEAD_SEED` repeats a run; a failure prints both. What must hold: no panic (a release build
//! aborts on one), no hang, memory bounded by the input, and every refusal a `Status` below 500.

mod api;
mod bend;
mod cluster;
mod kinds;
mod parsers;
mod request;
mod seeds;

/// `SplitMix64` (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    /// True with a chance of `percent` in 100.
    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of them; there is at least one.
    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The cases of a run; each is told by its own seed.
struct Cases {
    seed: u64,
    count: u64,
    at: u64,
}

impl Cases {
    fn new(default: u64) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = number("FAIRLEAD_SEED").unwrap_or(u64::from(now.unwrap().subsec_nanos()));
        Self {
            seed,
            count: number("FAIRLEAD_CASES").unwrap_or(default),
            at: 0,
        }
    }

    /// The next case's random numbers, until all have been.
    fn next(&mut self) -> Option<Random> {
        let at = self.at;
        self.at += 1;
        let mut random = Random(self.seed ^ at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        random.next();
        (at < self.count).then_some(random)
    }
}

impl Drop for Cases {
    #[expect(clippy::print_stderr, reason = "so that a failure can be repeated")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { seed, at, .. } = self;
            eprintln!("case {at} failed; repeat with FAIRLEAD_SEED={seed} FAIRLEAD_CASES={at}");
        }
    }
}
