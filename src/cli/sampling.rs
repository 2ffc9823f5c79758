//! Options that say how tokens are chosen.

use hotset::sampler::SamplerConfig;

use super::args::{OrAll, count_or_all};

/// How tokens are chosen. The defaults are llama.cpp's.
#[derive(clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct Sampling {
    /// Temperature; 0: always the most likely token
    #[arg(
        long,
        visible_alias = "temperature",
        value_name = "T",
        default_value_t = SamplerConfig::default().temperature,
        allow_negative_numbers = true
    )]
    temp: f32,
    /// Keep the N most likely tokens; 0 or -1: all
    #[arg(
        long,
        value_name = "N",
        default_value_t = OrAll(Some(SamplerConfig::default().top_k)),
        value_parser = count_or_all::<{ u32::MAX as usize }>,
        allow_negative_numbers = true
    )]
    top_k: OrAll,
    /// Keep the most likely tokens that together reach this probability; 1: all
    #[arg(long, value_name = "P", default_value_t = SamplerConfig::default().top_p, allow_negative_numbers = true)]
    top_p: f32,
    /// Keep tokens at least this fraction as likely as the most likely one; 0: all
    #[arg(long, value_name = "P", default_value_t = SamplerConfig::default().min_p, allow_negative_numbers = true)]
    min_p: f32,
    /// Penalise recent tokens if above 1
    #[arg(long, value_name = "X", default_value_t = SamplerConfig::default().repeat_penalty, allow_negative_numbers = true)]
    repeat_penalty: f32,
    /// Penalise tokens that came recently, once each, if above 0
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Penalise tokens as often as they came recently, if above 0
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// How many tokens are recent; -1: all of the context
    #[arg(
        long,
        value_name = "N",
        default_value_t = OrAll(Some(SamplerConfig::default().repeat_last_n)),
        value_parser = count_or_all::<{ u32::MAX as usize }>,
        allow_negative_numbers = true
    )]
    repeat_last_n: OrAll,
    /// The same seed, prompt and options give the same text, whatever the budget; -1: a new one, which the statistics name
    #[arg(short, long, value_name = "N", default_value = "-1", value_parser = seed, allow_negative_numbers = true)]
    seed: Seed,
}

/// What `--seed` asks for; `None`: any.
#[derive(Clone, Copy)]
struct Seed(Option<u64>);

fn seed(text: &str) -> Result<Seed, String> {
    match text {
        "-1" => Ok(Seed(None)),
        text => match text.parse() {
            Ok(n) => Ok(Seed(Some(n))),
            Err(_) => Err("expected a number from 0, or -1 for a new one".to_owned()),
        },
    }
}

impl Sampling {
    /// For a context of `n_ctx` tokens. The seed is drawn here if none was named.
    pub fn config(&self, n_ctx: usize) -> SamplerConfig {
        SamplerConfig {
            temperature: self.temp,
            top_k: self.top_k.0.unwrap_or(0),
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repeat_last_n: self.repeat_last_n.0.unwrap_or(n_ctx),
            seed: self.seed.0.unwrap_or_else(any_seed),
        }
    }
}

/// Another one each time, short enough to be typed.
pub fn any_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() >> 32
}
