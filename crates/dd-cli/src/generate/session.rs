//! [`Session`]: a model that writes, block by block.
//!
//! A block is a batch of prompts of equal length: one pass over the weights serves all of them, which is what a model
//! larger than memory is short of. A text that has ended waits for the others of its block.

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};

use super::model::Model;
use super::sampling::{Sampling, choose};
use crate::error::{CliError, Result};

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The model said so.
    Eos,
    /// As many tokens as were asked for.
    Length,
}

/// What was written for one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The tokens, without the one that ends the text.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// What a block gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// In the order of the prompts.
    pub written: Vec<Written>,
    /// When the first tokens were there.
    pub first: Instant,
    /// How long each pass after the first took.
    pub steps: Vec<Duration>,
}

/// A model, and when and how it writes.
pub struct Session {
    /// The model.
    pub model: Box<dyn Model>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Ids that end a text.
    pub eos: Vec<u32>,
    /// The most tokens of a text.
    pub most: usize,
}

impl Session {
    /// Writes on from prompts of equal length; `prompts` has each one's number in the run, which its draws depend on.
    /// `told` is given each token as it comes: the place in the block, and the token.
    ///
    /// # Errors
    /// [`CliError::Tensor`] where a pass fails.
    pub fn write(&mut self, prompts: &[(usize, &[u32])], told: &mut dyn FnMut(usize, u32)) -> Result<Block> {
        self.model.reset();
        let mut choosers: Vec<_> = prompts.iter().map(|(number, _)| self.sampling.chooser(*number)).collect();
        let mut texts: Vec<Option<Finish>> = vec![None; prompts.len()];
        let mut tokens = vec![Vec::new(); prompts.len()];
        let rows: Vec<&[u32]> = prompts.iter().map(|(_, tokens)| *tokens).collect();
        let mut position = rows.first().map_or(0, |row| row.len());
        let mut next = choose(&self.pass(&rows, 0)?, &mut choosers)?;
        let (first, mut steps) = (Instant::now(), Vec::new());
        for done in 1..=self.most {
            for (place, token) in next.iter().enumerate() {
                let (Some(finish), Some(text)) = (texts.get_mut(place), tokens.get_mut(place)) else {
                    continue;
                };
                if finish.is_some() {
                    continue;
                }
                if self.eos.contains(token) {
                    *finish = Some(Finish::Eos);
                    continue;
                }
                text.push(*token);
                told(place, *token);
            }
            if done == self.most || texts.iter().all(Option::is_some) {
                break;
            }
            let started = Instant::now();
            let rows: Vec<&[u32]> = next.iter().map(std::slice::from_ref).collect();
            let logits = self.pass(&rows, position)?;
            next = choose(&logits, &mut choosers)?;
            steps.push(started.elapsed());
            position += 1;
        }
        self.model.reset();
        let written = tokens.into_iter().zip(texts);
        let written =
            written.map(|(tokens, finish)| Written { tokens, finish: finish.unwrap_or(Finish::Length) });
        Ok(Block { written: written.collect(), first, steps })
    }

    fn pass(&mut self, rows: &[&[u32]], position: usize) -> Result<Tensor> {
        let shape = (rows.len(), rows.first().map_or(0, |row| row.len()));
        let failed = || CliError::tensor(format!("the pass at position {position}"));
        let tokens = Tensor::from_vec(rows.concat(), shape, &Device::Cpu).map_err(failed())?;
        self.model.forward(&tokens, position).map_err(failed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says the sum of what it was given, plus one, modulo eight.
    struct Counting(Vec<u32>);

    impl Model for Counting {
        fn forward(&mut self, tokens: &Tensor, position: usize) -> candle_core::Result<Tensor> {
            let rows = tokens.to_vec2::<u32>()?;
            if position == 0 {
                self.0 = vec![0; rows.len()];
            }
            let mut logits = vec![0f32; rows.len() * 8];
            for (row, (sum, tokens)) in self.0.iter_mut().zip(&rows).enumerate() {
                *sum += tokens.iter().sum::<u32>();
                logits[row * 8 + (*sum as usize + 1) % 8] = 1.0;
            }
            Tensor::from_vec(logits, (rows.len(), 8), &Device::Cpu)
        }

        fn reset(&mut self) {
            self.0.clear();
        }
    }

    #[test]
    fn texts_end_at_their_own_end_and_at_the_most() {
        let sampling = Sampling { temperature: 0.0, top_p: None, seed: 0 };
        let model = Box::new(Counting(Vec::new()));
        let mut session = Session { model, sampling, eos: vec![7], most: 4 };
        let mut told = Vec::new();
        let block = session
            .write(&[(0, &[1, 1]), (1, &[2, 0]), (2, &[3, 3])], &mut |row, token| told.push((row, token)));
        // 2 → 3, 6, 4, 0; 6 → 7, the end.
        let written = block.unwrap().written;
        let length = Written { tokens: vec![3, 6, 4, 0], finish: Finish::Length };
        assert_eq!(written, [length.clone(), length, Written { tokens: vec![], finish: Finish::Eos }]);
        assert_eq!(told[..3], [(0, 3), (1, 3), (0, 6)]);
        let block = session.write(&[(0, &[6])], &mut |_, _| {}).unwrap();
        assert_eq!((block.written[0].finish, block.steps.len()), (Finish::Eos, 0));
    }
}
