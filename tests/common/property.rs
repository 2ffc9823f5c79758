//! How property tests draw: from a seed that a failing test shows, so that `PROPTEST_RNG_SEED` repeats it.

use std::hash::{BuildHasher, RandomState};

use proptest::test_runner::{Config, RngSeed};

/// `cases` cases from the seed of the environment, or from one by chance.
pub fn cases(cases: u32) -> Config {
    let config = Config::default();
    let seed = match config.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => RandomState::new().hash_one(0),
    };
    eprintln!("PROPTEST_RNG_SEED={seed} repeats these cases");
    Config { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(seed), ..config }
}
