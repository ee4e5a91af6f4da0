//! Time to a usable managed model of 10 GB, none of whose weights are read.
//!
//! The file is sparse: a true header (a transformer of 32 blocks, 2560 wide, 512 tensors) and a hole of 10 GB behind it.
//! *Usable* is: the checkpoint open and checked, a manager with its threads, every block wrapped as a module, and the
//! plan made that the first use would ask for.
//!
//! | contestant | what it does |
//! |---|---|
//! | `managed_model` | all of that, and dropping it again |
//! | `checkpoint` | only opening the checkpoint: what reading and checking the header takes |
//! | `header` | control: the header's bytes read, nothing looked at |
//! | `header_parsed` | control: the file mapped, and its header parsed by the `safetensors` crate |
//!
//! How to read it: `managed_model` should be below 50 ms, whatever the size of the file. What the process read from
//! disk meanwhile is printed beside it.
#![allow(unsafe_code, reason = "a mapped file trusts that nobody changes it; this one is ours alone")]

use std::fs::File;
use std::hint::black_box;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use candle_nn::VarBuilder;
use dd_benches::Result;
use dd_benches::checkpoint::{Values, write};
use dd_benches::model::{Block, Shape};
use dd_benches::rounds::{Contestant, Rounds};
use dd_benches::settings::Settings;
use deep_dimensions::candle::CandleBackend;
use deep_dimensions::candle::managed::ManagedModel;
use deep_dimensions::core::{self, Bytes};
use deep_dimensions::monitor::{IoCounters, ProcessId, Root};
use deep_dimensions::offload::MemoryConfig;
use deep_dimensions::offload::checkpoint::Checkpoint;

const SHAPE: Shape = Shape { width: 2560, layers: 32 };

fn main() -> Result<()> {
    let settings = Settings::read(env!("CARGO_TARGET_TMPDIR"))?;
    let folder = settings.scratch()?;
    let file = folder.path().join("model.safetensors");
    let size = write(&file, &SHAPE.tensors(), Values::Hole)?;
    let counters = || IoCounters::read(&Root::default(), ProcessId::Own);
    let before = counters()?;
    let rounds = Rounds::run(
        settings.rounds,
        &mut [
            Contestant::new("managed_model", || timed(|| managed_model(&file))),
            Contestant::new("checkpoint", || timed(|| checkpoint(&file))),
            Contestant::new("header", || timed(|| header(&file).map(|header| drop(black_box(header))))),
            Contestant::new("header_parsed", || timed(|| parsed(&file))),
        ],
    )?;
    let read = counters()?.since(&before).read_bytes;
    let mut criterion = settings.criterion();
    rounds.report(&mut criterion, "load", |_| None);
    criterion.final_summary();
    println!(
        "{} of weights, {} tensors, header {} B",
        Bytes(size),
        SHAPE.tensors().len(),
        header(&file)?.len()
    );
    for name in ["managed_model", "checkpoint", "header", "header_parsed"] {
        let most = rounds.times(name).iter().max().copied().unwrap_or_default();
        println!(
            "{name:<14} {:>8.2} ms, at most {:>8.2} ms",
            rounds.median(name) * 1e3,
            most.as_secs_f64() * 1e3
        );
    }
    println!("read from disk in all rounds: {read}");
    Ok(())
}

fn managed_model(file: &Path) -> Result<()> {
    let config = MemoryConfig::builder().memory_limit(Bytes::gib(4)).build()?;
    let model = ManagedModel::open(file, CandleBackend::new(core::Device::Cpu)?, config)?;
    let load = |vb: VarBuilder<'static>| Block::load(SHAPE.width, 20, &vb);
    let module = |n| model.module(&Shape::layer(n), load);
    let blocks = (0..SHAPE.layers).map(module).collect::<Result<Vec<_>, _>>()?;
    black_box((model.manager().plan()?, &blocks));
    Ok(())
}

fn checkpoint(file: &Path) -> Result<()> {
    black_box(Checkpoint::open(file)?);
    Ok(())
}

/// The header's bytes, without the eight that say how many they are.
fn header(file: &Path) -> Result<Vec<u8>> {
    let mut file = File::open(file)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let mut header = vec![0; usize::try_from(u64::from_le_bytes(length))?];
    file.read_exact(&mut header)?;
    Ok(header)
}

fn parsed(file: &Path) -> Result<()> {
    // SAFETY: the file lies in a folder of our own, and nobody writes to it while it is mapped.
    let mapped = unsafe { memmap2::Mmap::map(&File::open(file)?)? };
    black_box(safetensors::SafeTensors::read_metadata(&mapped)?);
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed())
}
