//! [`Sampling`]: how the next token is chosen; the library's `LogitsProcessor`, one per prompt.

use candle_core::Tensor;
use candle_transformers::generation::LogitsProcessor;

use crate::error::{CliError, Result};

/// How tokens are chosen. A temperature of zero takes the likeliest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// What the logits are divided by.
    pub temperature: f64,
    /// Only the likeliest tokens that make up this probability are drawn from.
    pub top_p: Option<f64>,
    /// What the draws begin with.
    pub seed: u64,
}

impl Sampling {
    /// Checks what a user gave.
    ///
    /// # Errors
    /// [`CliError::Input`] with the option that cannot be.
    pub fn check(&self) -> Result<()> {
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            let problem = format!("it is {}", self.temperature);
            return Err(CliError::input(
                "--temperature",
                problem,
                "give 0 or more; 0 takes the likeliest token",
            ));
        }
        match self.top_p {
            Some(p) if !(p > 0.0 && p <= 1.0) => {
                Err(CliError::input("--top-p", format!("it is {p}"), "give a probability above 0, at most 1"))
            }
            _ => Ok(()),
        }
    }

    /// The chooser of one prompt. Each has its own draws, so that a text does not depend on what else is in its block.
    #[must_use]
    pub fn chooser(&self, prompt: usize) -> LogitsProcessor {
        LogitsProcessor::new(self.seed.wrapping_add(prompt as u64), Some(self.temperature), self.top_p)
    }
}

/// The next token of each row of `logits`, `[batch, vocab]`.
///
/// # Errors
/// [`CliError::Tensor`] where no token can be chosen, as from logits that are no numbers.
pub fn choose(logits: &Tensor, choosers: &mut [LogitsProcessor]) -> Result<Vec<u32>> {
    let one = |(row, chooser): (usize, &mut LogitsProcessor)| chooser.sample(&logits.get(row)?);
    choosers
        .iter_mut()
        .enumerate()
        .map(one)
        .collect::<candle_core::Result<_>>()
        .map_err(CliError::tensor("sampling"))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn draws(sampling: Sampling, prompt: usize) -> Vec<u32> {
        let logits = Tensor::new(&[[0.0f32, 2.0, 1.9, -3.0, 1.8]], &Device::Cpu).unwrap();
        let mut choosers = [sampling.chooser(prompt)];
        (0..50).map(|_| choose(&logits, &mut choosers).unwrap()[0]).collect()
    }

    #[test]
    fn draws_are_those_of_the_seed() {
        let greedy = Sampling { temperature: 0.0, top_p: None, seed: 1 };
        assert_eq!(draws(greedy, 0), [1; 50]);
        let warm = Sampling { temperature: 1.0, ..greedy };
        assert_eq!(draws(warm, 0), draws(warm, 0));
        assert_ne!(draws(warm, 0), draws(warm, 1));
        assert_ne!(draws(warm, 0), draws(Sampling { seed: 2, ..warm }, 0));
        let few = draws(Sampling { top_p: Some(0.6), ..warm }, 0);
        assert!(few.iter().all(|token| [1, 2].contains(token)), "{few:?}");
    }

    #[test]
    fn impossible_options_are_named() {
        let good = Sampling { temperature: 0.7, top_p: Some(0.9), seed: 0 };
        assert!(good.check().is_ok());
        for (bad, option) in [
            (Sampling { temperature: -1.0, ..good }, "--temperature"),
            (Sampling { temperature: f64::NAN, ..good }, "--temperature"),
            (Sampling { top_p: Some(0.0), ..good }, "--top-p"),
            (Sampling { top_p: Some(f64::NAN), ..good }, "--top-p"),
        ] {
            assert!(bad.check().unwrap_err().to_string().contains(option));
        }
    }
}
