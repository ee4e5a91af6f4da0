//! What a user may write on the command line.

use std::path::PathBuf;

use clap::{ArgGroup, Args as ClapArgs, Parser, Subcommand};
use deep_dimensions::core::Bytes;

use crate::generate::prompt::TokenIds;
use crate::generate::sampling::Sampling;
use crate::inspect::InspectArgs;
use crate::monitor::MonitorArgs;
use crate::scale::ScaleArgs;
use crate::tiles::TilesCommand;

/// Run models in less memory than their weights.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "deepdim",
    version,
    after_help = "Exit codes: 0 done, 2 bad usage or input, 3 cannot fit, 4 I/O."
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Print the report, or the error, as JSON on standard output.
    #[arg(long, global = true)]
    pub json: bool,
}

/// The subcommands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Write on from prompts with a language model, or embed texts with a BERT-family model.
    Run(RunArgs),
    /// Show what would stay in memory, what would stream, and how long a pass would take.
    Plan(PlanArgs),
    /// Store a checkpoint in fewer bytes, without loss, so that less is read in every pass.
    Pack(PackArgs),
    /// Show which sizes of a tensor fit.
    Scale(ScaleArgs),
    /// Make a model larger than its memory, run it plainly and managed, and show both side by side.
    Demo(DemoArgs),
    /// Show what a network needs: layers, parameters, the peak of its memory, what fits here. Reads headers only.
    Inspect(InspectArgs),
    /// Show where memory stands, as it changes: a dashboard on a terminal, lines elsewhere.
    Monitor(MonitorArgs),
    /// Endless tensors: draw a region of one, or show what a tile store holds.
    #[command(subcommand)]
    Tiles(TilesCommand),
    /// One of the demo's two runs, in a process of its own.
    #[command(hide = true)]
    DemoPass(DemoPassArgs),
}

/// `deepdim run`.
#[derive(Clone, Debug, ClapArgs)]
#[command(group(ArgGroup::new("input").required(true).multiple(true).args(["texts", "prompts", "prompt_tokens"])))]
pub struct RunArgs {
    /// A folder in Hugging Face layout, a safetensors file in one, or a name on the hub.
    pub model: String,
    /// Weights, staging, caches and activations together, for example 32MiB.
    #[arg(long, required_unless_present = "unmanaged")]
    pub memory: Option<Bytes>,
    /// Hold all weights in memory; with --memory, only where they fit.
    #[arg(long)]
    pub unmanaged: bool,
    /// A text to embed; may be given several times.
    #[arg(long = "text", value_name = "TEXT", conflicts_with_all = ["prompts", "prompt_tokens"])]
    pub texts: Vec<String>,
    /// What to write on from, and how.
    #[command(flatten)]
    pub generation: GenerationArgs,
    /// Write memory over time to this SVG file.
    #[arg(long, value_name = "FILE.svg")]
    pub timeline: Option<PathBuf>,
    /// Where models from the hub are kept.
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
}

/// What `deepdim run` writes on from, and how.
#[derive(Clone, Debug, ClapArgs)]
pub struct GenerationArgs {
    /// A prompt to write on from; may be given several times. Prompts of equal length in tokens go through the model
    /// as one block, so that one pass over the weights serves them all.
    #[arg(long = "prompt", value_name = "TEXT")]
    pub prompts: Vec<String>,
    /// A prompt as token ids, for example 1,15043,29892; may be given several times, and needs no tokenizer.
    #[arg(long, value_name = "IDS")]
    pub prompt_tokens: Vec<TokenIds>,
    /// The most new tokens of a text.
    #[arg(long, default_value_t = 128, value_parser = at_least_one)]
    pub max_tokens: usize,
    /// What the logits are divided by before a token is drawn; 0 takes the likeliest token.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Draw only from the likeliest tokens that make up this probability.
    #[arg(long)]
    pub top_p: Option<f64>,
    /// What the draws begin with: the same seed writes the same texts.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Give the prompt to the model as it is, without the chat template that the model may have.
    #[arg(long)]
    pub raw: bool,
}

impl GenerationArgs {
    /// How tokens are chosen.
    #[must_use]
    pub const fn sampling(&self) -> Sampling {
        Sampling { temperature: self.temperature, top_p: self.top_p, seed: self.seed }
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("give at least 1".to_owned()),
        Ok(number) if number > 1 << 24 => Err("give at most 16777216".to_owned()),
        other => other.map_err(|e: std::num::ParseIntError| e.to_string()),
    }
}

/// `deepdim plan`.
#[derive(Clone, Debug, ClapArgs)]
pub struct PlanArgs {
    /// A folder in Hugging Face layout, a safetensors file in one, or a name on the hub.
    pub model: String,
    /// Weights, staging, caches and activations together, for example 32MiB.
    #[arg(long)]
    pub memory: Bytes,
    /// Tokens of the text that is planned for.
    #[arg(long, default_value_t = 128)]
    pub tokens: usize,
    /// The most new tokens, for a model that writes.
    #[arg(long, default_value_t = 128, value_parser = at_least_one)]
    pub max_tokens: usize,
    /// Where models from the hub are kept.
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
}

/// `deepdim pack`.
#[derive(Clone, Debug, ClapArgs)]
pub struct PackArgs {
    /// A folder in Hugging Face layout, or a safetensors file in one.
    pub model: String,
    /// The folder to make, or a .safetensors file; there must be nothing yet.
    pub out: PathBuf,
    /// Weights per chunk, a power of two: smaller chunks page in less memory, larger ones pack a little better.
    #[arg(long, default_value = "256KiB")]
    pub chunk: Bytes,
    /// The most memory for the work: a few chunks.
    #[arg(long, default_value = "64MiB")]
    pub memory: Bytes,
}

/// `deepdim demo`.
#[derive(Clone, Debug, ClapArgs)]
pub struct DemoArgs {
    /// The least size of the checkpoint.
    #[arg(long, default_value = "512MiB")]
    pub size: Bytes,
    /// The managed run's memory; half the weights unless given.
    #[arg(long)]
    pub memory: Option<Bytes>,
    /// How often the model is run.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub passes: u32,
    /// Where the checkpoint is made: a local disk with room for it. The current folder unless given.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Where the memory timeline is drawn.
    #[arg(long, value_name = "FILE.svg", default_value = "deepdim-demo.svg")]
    pub plot: PathBuf,
    /// Leave the checkpoint where it was made.
    #[arg(long)]
    pub keep: bool,
}

/// `deepdim demo-pass`.
#[derive(Clone, Debug, ClapArgs)]
pub struct DemoPassArgs {
    /// The checkpoint's folder.
    #[arg(long)]
    pub folder: PathBuf,
    /// The managed run's memory; all weights are held without it.
    #[arg(long)]
    pub memory: Option<Bytes>,
    /// How often the model is run.
    #[arg(long)]
    pub passes: u32,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn usage_is_checked() {
        let rows: [(&[&str], bool); 13] = [
            (&["run", "m", "--memory", "32MiB", "--text", "a", "--text", "b"], true),
            (&["run", "m", "--unmanaged", "--text", "a", "--json"], true),
            (&["run", "m", "--text", "a"], false),
            (&["run", "m", "--memory", "32 parsecs", "--text", "a"], false),
            (&["run", "m", "--memory", "32MiB"], false),
            (
                &["run", "m", "--memory", "1GiB", "--prompt", "a", "--prompt", "b", "--prompt-tokens", "1,2"],
                true,
            ),
            (&["run", "m", "--unmanaged", "--prompt", "a", "--temperature", "0.7", "--top-p", "0.9"], true),
            (&["run", "m", "--unmanaged", "--prompt", "a", "--text", "b"], false),
            (&["run", "m", "--unmanaged", "--prompt-tokens", "1,x"], false),
            (&["run", "m", "--unmanaged", "--prompt", "a", "--max-tokens", "0"], false),
            (&["run", "m", "--unmanaged"], false),
            (&["demo"], true),
            (&["demo", "--passes", "0"], false),
        ];
        for (words, good) in rows {
            let parsed = Args::try_parse_from(["deepdim"].iter().chain(words));
            assert_eq!(parsed.is_ok(), good, "{words:?}");
        }
    }
}
