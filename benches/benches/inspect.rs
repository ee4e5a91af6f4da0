//! What it costs to read a header, and to plan memory; and how good the plans are.
//!
//! Headers: sparse files of 100 GB with a true header of 800 tensors.
//!
//! | contestant | what one turn is |
//! |---|---|
//! | `safetensors`, `gguf` | the file opened, its header read and checked |
//! | `safetensors_bytes`, `gguf_bytes` | control: the same bytes read, nothing looked at |
//! | `config_7b` | the `config.json` of a Llama 7B made a network, and the peak of a training step found |
//!
//! Plans: 1,000 random DAGs of 2 to 5,000 tensors (`crates/dd-inspect/tests/support/dags.rs` says which), each planned once.
//! Printed are the arena against the live lower bound (mean, the worst, how many above 1.02), the time of each (median, the
//! longest), and how many of those up to 30 tensors are proven optimal.
//!
//! How to read it: a header in at most 5 ms; every arena within 1.02, in at most 10 ms; at least 95 % of the small ones optimal.

#[path = "../../crates/dd-inspect/tests/support/dags.rs"]
mod dags;
#[allow(dead_code, reason = "of the files that tests make, two are used here")]
#[path = "../../crates/dd-inspect/tests/support/files.rs"]
mod files;

use std::fs::File;
use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dd_benches::Result;
use dd_benches::rounds::{Contestant, Rounds};
use dd_benches::settings::Settings;
use deep_dimensions::inspect::arena::{ArenaPlan, Block, PlanOptions};
use deep_dimensions::inspect::estimate::Work;
use deep_dimensions::inspect::program::{Optimizer, Training};
use deep_dimensions::inspect::read::{ReadLimits, WeightFiles, config};
use deep_dimensions::inspect::{NetworkCost, Sizes};

const HUGE: u64 = 100_000_000_000;
const DAGS: u32 = 1000;
const MOST: usize = 5000;
const SEVEN: &str = r#"{"model_type":"llama","vocab_size":32000,"hidden_size":4096,"intermediate_size":11008,
    "num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":32}"#;

fn main() -> Result<()> {
    let settings = Settings::read(env!("CARGO_TARGET_TMPDIR"))?;
    let folder = settings.scratch()?;
    let safetensors = sparse(folder.path(), "model.safetensors", &files::safetensors(800, HUGE), HUGE)?;
    let gguf = sparse(folder.path(), "model.gguf", &files::gguf(800, HUGE), HUGE + (1 << 20))?;
    let open = |path: &Path| timed(|| Ok(WeightFiles::open(path, &ReadLimits::default())?));
    let bytes = |header: &(PathBuf, usize)| {
        timed(|| {
            let mut bytes = vec![0; header.1];
            File::open(&header.0)?.read_exact(&mut bytes)?;
            Ok(bytes)
        })
    };
    let training = Work::Training(Training { optimizer: Optimizer::AdamW, ..Training::default() });
    let rounds = Rounds::run(
        settings.rounds,
        &mut [
            Contestant::new("safetensors", || open(&safetensors.0)),
            Contestant::new("safetensors_bytes", || bytes(&safetensors)),
            Contestant::new("gguf", || open(&gguf.0)),
            Contestant::new("gguf_bytes", || bytes(&gguf)),
            Contestant::new("config_7b", || {
                timed(|| {
                    let model = config::parse(SEVEN, "config.json")?;
                    Ok(NetworkCost::new(model.graph, training).estimate(Sizes::new(1, 2048))?)
                })
            }),
        ],
    )?;
    let mut criterion = settings.criterion();
    rounds.report(&mut criterion, "inspect_headers", |_| None);
    for name in ["safetensors", "safetensors_bytes", "gguf", "gguf_bytes", "config_7b"] {
        println!("{name}: {:.3} ms", rounds.median(name) * 1e3);
    }
    criterion.final_summary();
    plans(if settings.quick { 20 } else { DAGS })
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<Duration> {
    let started = Instant::now();
    black_box(work()?);
    Ok(started.elapsed())
}

fn sparse(folder: &Path, name: &str, header: &[u8], len: u64) -> Result<(PathBuf, usize)> {
    let path = folder.join(name);
    let mut file = File::create(&path)?;
    file.write_all(header)?;
    file.set_len(len)?;
    Ok((path, header.len()))
}

/// What became of one DAG.
struct Outcome {
    count: usize,
    ratio: f64,
    optimal: bool,
    took: Duration,
}

fn plans(dags: u32) -> Result<()> {
    let mut random = dags::Random(88_172_645_463_325_252);
    let mut outcomes = Vec::new();
    for dag in 0..dags {
        // A tenth are small: for those the plan should be the best there is.
        let most = if dag % 10 == 0 { 30 } else { MOST };
        let count = random.within(2, most);
        let blocks = dags::dag(&mut random, count);
        let started = Instant::now();
        let plan = ArenaPlan::of_blocks(&blocks, &PlanOptions::default())?;
        let took = started.elapsed();
        if let Some((one, other)) = plan.conflict(&blocks, 0) {
            return Err(format!("DAG {dag}: blocks {one} and {other} overlap").into());
        }
        let ratio = plan.size.fraction_of(plan.lower_bound);
        outcomes.push(Outcome { count, ratio, optimal: plan.optimal, took });
    }
    for (name, low, high) in
        [("all", 0, MOST), ("up to 30", 0, 30), ("31 to 1000", 31, 1000), ("above 1000", 1001, MOST)]
    {
        let of: Vec<&Outcome> = outcomes.iter().filter(|one| (low..=high).contains(&one.count)).collect();
        let count = of.len().max(1) as f64;
        let mean = of.iter().map(|one| one.ratio).sum::<f64>() / count;
        let worst = of.iter().map(|one| one.ratio).fold(1.0, f64::max);
        let above = of.iter().filter(|one| one.ratio > 1.02).count();
        let optimal = of.iter().filter(|one| one.optimal).count();
        let mut times: Vec<Duration> = of.iter().map(|one| one.took).collect();
        times.sort_unstable();
        let middle = times.get(times.len() / 2).copied().unwrap_or_default();
        let longest = times.last().copied().unwrap_or_default();
        let late = times.iter().filter(|time| **time > Duration::from_millis(10)).count();
        println!(
            "plans, {name}: {} DAGs; arena / bound mean {mean:.4}, worst {worst:.4}, above 1.02: {above}; optimal {optimal}; \
             time median {middle:.2?}, longest {longest:.2?}, above 10 ms: {late}",
            of.len()
        );
    }
    Ok(())
}
