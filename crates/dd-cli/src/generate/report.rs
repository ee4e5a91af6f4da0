//! [`GenerateReport`]: what a run that writes reports, as JSON and as text.

use std::time::Instant;

use deep_dimensions::core::Bytes;
use serde::{Deserialize, Serialize};

use super::plan::GeneratePlan;
use super::session::{Block, Finish};
use crate::report::{Memory, figures};

/// What a run reports; `--json` prints it.
#[derive(Debug, Serialize)]
pub struct GenerateReport {
    /// MODEL as given.
    pub model: String,
    /// Which model code ran.
    pub family: String,
    /// Whether the model's chat template was put around the prompts.
    pub chat: bool,
    /// One per prompt: those given as text, then those given as ids.
    pub texts: Vec<Text>,
    /// New tokens of all texts.
    pub tokens: usize,
    /// New tokens of all texts per second of writing, prompts included.
    pub tokens_per_second: f64,
    /// Until the model was there.
    pub open_seconds: f64,
    /// From before the model was opened until the first token.
    pub seconds_to_first_token: Option<f64>,
    /// Time and bytes of each block of prompts.
    pub blocks: Vec<BlockReport>,
    /// What stays and what streams, and what that costs.
    pub paging: Paging,
    /// What was held.
    pub memory: Memory,
}

/// What was written for one prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Text {
    /// The prompt, where it was given as text.
    pub prompt: Option<String>,
    /// Its length.
    pub prompt_tokens: usize,
    /// What was written, where there is a tokenizer.
    pub text: Option<String>,
    /// What was written, without the token that ends it.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// Time and bytes of one block.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BlockReport {
    /// Prompts that went together.
    pub prompts: usize,
    /// Tokens of each.
    pub prompt_tokens: usize,
    /// Passes after the one over the prompt.
    pub steps: usize,
    /// Seconds of those passes.
    pub step_seconds: f64,
    /// Seconds of all.
    pub seconds: f64,
    /// Bytes that the kernel fetched from disks for this process.
    pub bytes_read: Option<Bytes>,
}

impl BlockReport {
    pub(super) fn of(rows: &[(usize, &[u32])], done: &Block, started: Instant, read: Option<Bytes>) -> Self {
        Self {
            prompts: rows.len(),
            prompt_tokens: rows.first().map_or(0, |(_, tokens)| tokens.len()),
            steps: done.steps.len(),
            step_seconds: done.steps.iter().map(std::time::Duration::as_secs_f64).sum(),
            seconds: started.elapsed().as_secs_f64(),
            bytes_read: read,
        }
    }
}

/// What a paged run's plan says, and what came of it. Nothing is said where nothing is paged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Paging {
    /// Bytes of weights that stay in memory.
    pub resident: Option<Bytes>,
    /// Bytes of weights that are read in every pass.
    pub streamed: Option<Bytes>,
    /// Bytes of weights that stay in memory packed.
    pub packed: Option<Bytes>,
    /// The least `--memory` that would do.
    pub least_budget: Option<Bytes>,
    /// Seconds of a pass over one token of each prompt, as planned.
    pub predicted_seconds_per_token: Option<f64>,
    /// The same, as it came.
    pub seconds_per_token: Option<f64>,
}

impl Paging {
    /// What is known, as rows of a table.
    #[must_use]
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let bytes = [
            ("resident weights", self.resident),
            ("streamed per pass", self.streamed),
            ("packed in memory", self.packed),
            ("least --memory", self.least_budget),
        ];
        let seconds = [
            ("seconds per token, predicted", self.predicted_seconds_per_token),
            ("seconds per token", self.seconds_per_token),
        ];
        let bytes = bytes.into_iter().filter_map(|(name, value)| Some((name, value?.to_string())));
        let seconds = seconds.into_iter().filter_map(|(name, value)| Some((name, format!("{:.4}", value?))));
        bytes.chain(seconds).collect()
    }
}

/// A run's report as text; a lone text was shown while it was written.
#[must_use]
pub fn generate_text(report: &GenerateReport) -> String {
    let mut lines = Vec::new();
    for (number, text) in (1..).zip(&report.texts) {
        let ids = || text.tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        match &text.text {
            Some(_) if report.texts.len() == 1 => lines.push(String::new()),
            Some(written) => lines.push(format!("[{number}] {written}")),
            None => lines.push(format!("[{number}] {}", ids())),
        }
    }
    let mut rows = vec![
        ("model code", report.family.clone()),
        ("chat template", if report.chat { "used" } else { "not used" }.to_owned()),
        ("blocks of prompts", report.blocks.len().to_string()),
        ("new tokens", report.tokens.to_string()),
        ("new tokens per second", format!("{:.2}", report.tokens_per_second)),
        ("seconds to open", format!("{:.3}", report.open_seconds)),
    ];
    rows.extend(report.seconds_to_first_token.map(|s| ("seconds to first token", format!("{s:.3}"))));
    rows.extend(report.paging.rows());
    rows.extend(report.memory.rows());
    format!("{}\n\n{}", lines.join("\n"), figures(&report.model, rows))
}

/// A plan's report as text.
#[must_use]
pub fn plan_text(report: &GeneratePlan) -> String {
    let mut rows = vec![
        ("model code", report.family.clone()),
        ("limit", report.limit.to_string()),
        ("weights, stored", report.weights.to_string()),
        ("weights, in memory", report.weights_in_memory.to_string()),
        ("tokens of the prompt", report.tokens.to_string()),
        ("new tokens", report.plan.new.to_string()),
        ("tables", report.plan.tables.to_string()),
        ("caches, states, logits", report.plan.activations.to_string()),
    ];
    rows.extend(report.paging.rows());
    figures(&report.model, rows).to_string()
}
