//! `deepdim scale`: the sizes of a tensor that fit.

use clap::Args as ClapArgs;
use deep_dimensions::core::{Bytes, DType, Device, MemoryProvider, Tier};
use deep_dimensions::monitor::SystemMemory;
use deep_dimensions::scale::report::{self, Report};
use deep_dimensions::scale::{Error, Scaler, ScalingConfig, Strategy, parse};

use crate::error::{CliError, Result};

/// `deepdim scale`.
#[derive(Clone, Debug, ClapArgs)]
pub struct ScaleArgs {
    /// The wished sizes, outermost first, for example 1024,1024,3.
    #[arg(value_name = "SIZES", allow_hyphen_values = true)]
    pub dims: String,
    /// The element type, for example f32, bf16, u8 or Q4_K.
    #[arg(long, default_value = "f32")]
    pub dtype: DType,
    /// What there is, for example 2MiB; read from this machine unless given.
    #[arg(long)]
    pub available: Option<Bytes>,
    /// Where the tensor is to be: auto, cpu, cuda:N or metal:N. Says what is read from this machine.
    #[arg(long, default_value = "auto", conflicts_with = "available")]
    pub device: Device,
    /// The share of it that may be taken, before the margin.
    #[arg(long, default_value_t = 0.8, allow_negative_numbers = true)]
    pub threshold: f64,
    /// The share of it that is kept free.
    #[arg(long, default_value_t = 0.1, allow_negative_numbers = true)]
    pub margin: f64,
    /// linear, exponential, or the number γ of d' = min(d, κ·d^γ).
    #[arg(long, default_value = "linear", allow_negative_numbers = true)]
    pub strategy: Strategy,
    /// The least sizes, one per dimension.
    #[arg(long, value_name = "SIZES", allow_hyphen_values = true)]
    pub min: Option<String>,
    /// The largest sizes, one per dimension.
    #[arg(long, value_name = "SIZES", allow_hyphen_values = true)]
    pub max: Option<String>,
    /// The dimensions that stay, counted from zero, for example 2 or 0,2.
    #[arg(long, value_name = "PLACES")]
    pub freeze: Option<String>,
    /// What each size is a multiple of, for example 8,8,1.
    #[arg(long, value_name = "SIZES", allow_hyphen_values = true)]
    pub step: Option<String>,
    /// Grow beyond the wished sizes where there is room.
    #[arg(long)]
    pub maximize: bool,
}

/// Runs the command.
///
/// # Errors
/// [`CliError::Input`] for sizes or options that cannot be; [`CliError::CannotFit`] where not even the least sizes fit;
/// [`CliError::Io`] where memory cannot be read.
pub fn scale(args: &ScaleArgs) -> Result<Report> {
    let dims = parse::dimensions(&args.dims).map_err(|error| refused("SIZES", error))?;
    let list = |option: &'static str, text: &Option<String>| {
        text.as_deref().map(parse::dimensions).transpose().map_err(|error| refused(option, error))
    };
    let frozen = args.freeze.as_deref().map(parse::places).transpose();
    let config = ScalingConfig::builder()
        .memory_threshold(args.threshold)
        .safety_margin(args.margin)
        .device(args.device)
        .strategy(args.strategy)
        .min_dimensions(list("--min", &args.min)?)
        .max_dimensions(list("--max", &args.max)?)
        .steps(list("--step", &args.step)?)
        .frozen(frozen.map_err(|error| refused("--freeze", error))?.unwrap_or_default())
        .maximize(args.maximize)
        .build()
        .map_err(|error| refused("options", error))?;
    let available = args.available.map_or_else(|| available(args.device), Ok)?;
    let target = config.target(available);
    let result =
        Scaler::new(config).fit(&dims, args.dtype, target).map_err(|error| refused("SIZES", error))?;
    Ok(Report::new(result, available))
}

/// A report as text.
#[must_use]
pub fn scale_text(report: &Report) -> String {
    format!("{}of {} available", report::text(&report.result), report.available)
}

/// The least of what the device and the host leave; the container's limit counts as the host's.
fn available(device: Device) -> Result<Bytes> {
    let memory = SystemMemory::open(std::env::temp_dir())
        .map_err(|error| CliError::input("--available", error, "give it: memory cannot be read here"))?;
    let nearest = || memory.tiers().first().copied().filter(|tier| matches!(tier, Tier::Device(_)));
    let tier = device.tier().or_else(nearest).unwrap_or(Tier::Host);
    let no_figure =
        |error| CliError::input(format!("--device {device}"), error, "see deepdim monitor for what is here");
    let near = memory.sample(tier).map_err(no_figure)?;
    Ok(near.available.min(memory.sample(Tier::Host)?.available))
}

/// What scaling refused, for the user.
fn refused(place: &str, error: Error) -> CliError {
    match error {
        Error::Core { source: deep_dimensions::core::Error::OutOfMemory { place, needed, available } } => {
            let remedy = "give more with --available or --threshold, or smaller --min and fewer --freeze";
            CliError::CannotFit {
                what: format!("the least tensor for {place}"),
                needed,
                available,
                remedy: remedy.to_owned(),
            }
        }
        other => CliError::input(place, other, "see deepdim scale --help"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    fn run(words: &[&str]) -> Result<Report> {
        let args = Args::try_parse_from(["deepdim", "scale"].iter().chain(words));
        match args.map_err(|error| CliError::input("usage", error, ""))?.command {
            Command::Scale(args) => scale(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn sizes_and_refusals() {
        let all = ["--threshold", "1.0", "--margin", "0"];
        type Sizes = std::result::Result<&'static [usize], (u8, &'static str)>;
        let rows: [(&[&str], Sizes); 12] = [
            (&["1024,1024,3", "--available", "2MiB"], Ok(&[512, 512, 2])),
            (&["1024,256,3", "--available", "384KiB", "--strategy", "exponential"], Ok(&[256, 128, 3])),
            (&["1024,1024,3", "--available", "2MiB", "--freeze", "2", "--step", "8,8,1"], Ok(&[416, 416, 3])),
            (&["10,10", "--available", "400", "--dtype", "u8", "--maximize"], Ok(&[20, 20])),
            (
                &["4", "--available", "3"],
                Err((3, "the least tensor for the scaling target does not fit: 4 B")),
            ),
            (&["4,-3", "--available", "1MiB"], Err((2, "SIZES: dimension 1 is -3"))),
            (&["4,0", "--available", "1MiB"], Err((2, "SIZES: dimension 1 is 0"))),
            (
                &["4", "--available", "1MiB", "--min", "9", "--max", "8"],
                Err((2, "options: min_dimensions[0] is 9")),
            ),
            (&["4", "--available", "1MiB", "--min", "1,1"], Err((2, "SIZES: min_dimensions has 2 entries"))),
            (&["4", "--available", "1MiB", "--freeze", "x"], Err((2, "--freeze: frozen is \"x\""))),
            (&["4", "--available", "1MiB", "--dtype", "f31"], Err((2, "usage: error: invalid value 'f31'"))),
            (&["4", "--available", "1MiB", "--strategy", "-1"], Err((2, "usage: error: invalid value '-1'"))),
        ];
        for (words, expected) in rows {
            let words: Vec<&str> = words.iter().chain(&all).copied().collect();
            match (run(&words), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.result.dims, expected, "{words:?}"),
                (Err(error), Err((code, message))) => {
                    assert_eq!(error.exit_code(), code, "{words:?}: {error}");
                    assert!(error.to_string().starts_with(message), "{words:?}: {error}");
                }
                (found, expected) => panic!("{words:?}: expected {expected:?}, found {found:?}"),
            }
        }
        let over = run(&["4", "--available", "1MiB", "--threshold", "0.95", "--margin", "0.1"]).unwrap_err();
        assert!(over.to_string().contains("memory_threshold + safety_margin"), "{over}");
        let absent = run(&["4", "--device", "cuda:4000"]).unwrap_err();
        assert!(absent.to_string().starts_with("--device cuda:4000: "), "{absent}");
        assert_eq!(absent.exit_code(), 2, "{absent}");
        assert!(run(&["4"]).unwrap().available > Bytes::ZERO, "what this machine has");
    }
}
