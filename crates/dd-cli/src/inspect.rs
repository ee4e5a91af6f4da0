//! `deepdim inspect`: what a network needs, from its headers.
//!
//! A folder in Hugging Face layout or a `config.json` gives a network and, where weights lie beside it, what their headers
//! say; an ONNX file gives both; safetensors and GGUF files give parameters alone.

mod fits;
mod plot;
mod report;

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use deep_dimensions::core::{Bytes, DType};
use deep_dimensions::inspect::arena::{ArenaPlan, PlanOptions};
use deep_dimensions::inspect::estimate::{NetworkCost, Work};
use deep_dimensions::inspect::liveness::Liveness;
use deep_dimensions::inspect::program::{Inference, Optimizer, Precision, Training};
use deep_dimensions::inspect::read::{ReadLimits, WeightFiles, config, onnx};
use deep_dimensions::inspect::{Error, Graph, Sizes};

pub use report::{Report, text};

use crate::error::{CliError, Result};
use report::{Needs, Parameters};

/// `deepdim inspect`.
#[derive(Clone, Debug, ClapArgs)]
pub struct InspectArgs {
    /// A folder in Hugging Face layout, a config.json, or a .safetensors, .index.json, .gguf or .onnx file.
    pub path: PathBuf,
    /// Samples at once.
    #[arg(long, default_value_t = 1)]
    pub batch: usize,
    /// Positions of each sample.
    #[arg(long, default_value_t = 128)]
    pub seq: usize,
    /// A training step instead of a pass forward, with this optimizer: sgd, momentum, adam, adamw, momentum8bit or
    /// adamw8bit.
    #[arg(long, value_name = "OPTIMIZER")]
    pub train: Option<Optimizer>,
    /// The element type of weights and results, for example f32 or bf16; that of the file unless given.
    #[arg(long)]
    pub dtype: Option<DType>,
    /// Compute in --dtype, keep parameters in f32 besides.
    #[arg(long, requires_all = ["train", "dtype"])]
    pub mixed: bool,
    /// Positions that a cache of keys and values holds already, for a step of text generation.
    #[arg(long, value_name = "POSITIONS", conflicts_with = "train")]
    pub past: Option<usize>,
    /// Count attention as fused kernels do it, which never hold all scores at once.
    #[arg(long)]
    pub fused_attention: bool,
    /// Memory to fit into; read from this machine unless given.
    #[arg(long)]
    pub available: Option<Bytes>,
    /// Draw memory over the program into this SVG or PNG file.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

impl InspectArgs {
    fn sizes(&self) -> Sizes {
        Sizes::new(self.batch, self.seq)
    }

    fn work(&self, stored: Option<DType>) -> Work {
        let dtype =
            self.dtype.or(stored.filter(|dtype| dtype.element_bytes().is_some())).unwrap_or(DType::F32);
        let precision = if self.mixed { Precision::mixed(dtype) } else { Precision::all(dtype) };
        match self.train {
            Some(optimizer) => Work::Training(Training { precision, optimizer }),
            None => Work::Inference(Inference { precision, past: self.past }),
        }
    }
}

/// What a path holds.
struct Found {
    format: String,
    graph: Option<Graph>,
    /// Why there is no network.
    reason: Option<String>,
    weights: Option<WeightFiles>,
    dtype: Option<DType>,
}

/// Runs the command.
///
/// # Errors
/// [`CliError::Input`] for a path or options that cannot be; [`CliError::Io`] where a file cannot be read or written.
pub fn inspect(args: &InspectArgs) -> Result<Report> {
    if args.batch == 0 || args.seq == 0 {
        return Err(CliError::input("--batch, --seq", "one of them is 0", "give at least 1"));
    }
    let found = find(&args.path)?;
    let work = args.work(found.dtype);
    let mut report = Report {
        path: args.path.clone(),
        format: found.format,
        parameters: found.weights.as_ref().map(Parameters::of),
        table: None,
        needs: None,
        fits: None,
        without_network: found.reason,
    };
    let graph =
        found.graph.map(|graph| if args.fused_attention { graph.with_fused_attention() } else { graph });
    let Some(graph) = graph else {
        if args.plot.is_some() {
            let reason = report.without_network.as_deref().unwrap_or("the file holds weights alone");
            return Err(CliError::input("--plot", reason, "give a config.json or a folder with one"));
        }
        return Ok(report);
    };
    let precision = match work {
        Work::Inference(options) => options.precision,
        Work::Training(options) => options.precision,
        _ => Precision::default(),
    };
    report.table = Some(graph.table(args.sizes(), precision).map_err(refused)?);
    let program = work.program(&graph, args.sizes()).map_err(refused)?;
    let live = Liveness::of(&program);
    let plan = ArenaPlan::of_program(&program, &PlanOptions::default()).map_err(refused)?;
    let cost = NetworkCost::new(graph, work);
    let estimate = cost.estimate(args.sizes()).map_err(refused)?;
    report.needs = Some(Needs::new(args, precision, &estimate, &plan, cost.graph().has_seq()));
    report.fits = Some(fits::of(&cost, args)?);
    if let Some(path) = &args.plot {
        plot::draw(path, cost.graph(), &program, &live)?;
    }
    Ok(report)
}

fn find(path: &Path) -> Result<Found> {
    let limits = ReadLimits::default();
    if !path.exists() {
        return Err(CliError::input(
            path.display(),
            "there is no such folder or file",
            "give one that is there",
        ));
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let end = path.extension().and_then(|end| end.to_str()).unwrap_or_default().to_ascii_lowercase();
    let is_config = path.is_file() && end == "json" && !name.ends_with(".index.json");
    let folder_config = path.is_dir() && path.join("config.json").is_file();
    if is_config || folder_config {
        let weights = if path.is_dir() { WeightFiles::open(path, &limits) } else { Err(no_weights()) };
        let weights = match weights {
            Err(Error::Setting { .. }) => None, // There are none: the config alone says enough.
            other => Some(other.map_err(refused)?),
        };
        let model = config::read(path).map_err(refused)?;
        let stored = weights.as_ref().and_then(most_common).or(model.dtype);
        let format = format!("config.json of {}", model.family.model_type());
        return Ok(Found { format, graph: Some(model.graph), reason: None, weights, dtype: stored });
    }
    if end == "onnx" {
        let model = onnx::read(path, &limits).map_err(refused)?;
        let (graph, reason) = match model.graph {
            Ok(graph) => (Some(graph), None),
            Err(error) => (None, Some(error.to_string())),
        };
        return Ok(Found {
            format: "ONNX".to_owned(),
            graph,
            reason,
            weights: Some(model.weights),
            dtype: None,
        });
    }
    let weights = WeightFiles::open(path, &limits).map_err(refused)?;
    let dtype = most_common(&weights);
    let reason = Some("its header names weights, not how they are used".to_owned());
    Ok(Found { format: "weights".to_owned(), graph: None, reason, weights: Some(weights), dtype })
}

fn no_weights() -> Error {
    Error::Setting { option: "path", value: String::new(), reason: String::new() }
}

/// The element type that most bytes are of.
fn most_common(weights: &WeightFiles) -> Option<DType> {
    let (kind, _) = weights.by_kind().into_iter().max_by_key(|(_, bytes)| *bytes)?;
    kind.parse().ok()
}

/// What dd-inspect refused, for the user.
fn refused(error: Error) -> CliError {
    match error {
        Error::Core { source } => source.into(),
        Error::Io { operation, path, source } => CliError::io(operation, &path, source),
        other => CliError::input("inspect", other, "see deepdim inspect --help"),
    }
}
