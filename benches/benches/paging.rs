//! Demand paging: seconds per token of an unmodified model in half the memory that its weights take, against what the disk and
//! the computation allow, and against what else runs such a model.
//!
//! The model is candle-transformers' own `Llama` (1.2 GiB as F32 unless `DD_BENCH_SIZE` says another) with a random
//! checkpoint, written as F32 and, with the same numbers, as BF16. The budget is half of its F32 weights W. Every turn is
//! a process of its own, under a cap on its memory (budget + 128 MiB, page cache included) where the machine lets us set one, and
//! starts with the checkpoint out of the page cache. In every round, in changing order:
//!
//! | contestant | what it does |
//! |---|---|
//! | `in_memory` | control, without a cap: loaded with candle's mapped builder, which copies; one token per pass; gives C |
//! | `in_memory_block` | the same with a block of prompts (`DD_BENCH_BLOCK`, 64), one token of each per pass |
//! | `direct_read`, `direct_read_bf16`, `direct_read_packed` | control: the bytes of each file, read directly by a bare loop and dropped; gives B, which on a virtual disk differs from file to file |
//! | `in_memory_reading` | control: `in_memory` while the same bare loop reads the file beside it; gives C and B where both work at once |
//! | `first_touch` | control: memory of the budget's size, taken from the system by one thread; what it costs to have memory at all |
//! | `paged` | the F32 file paged within the budget, `paged_block` with the block of prompts |
//! | `paged_bf16` | the BF16 file, filling F32 tensors as it is paged |
//! | `paged_packed` | the BF16 file packed, filling F32 tensors as it is unpacked; what stays packed in memory is the planner's choice |
//! | `paged_kept` | the same in a budget of the BF16 weights / 1.4, with all packed bytes kept in memory: no read after the first pass |
//! | `paged_resident` | the F32 file with a budget that holds everything: what paging costs when nothing is left to do |
//! | `mmap` | peer: tensors whose storage is the mapped file; the page cache keeps what fits the cap |
//! | `accelerate`, `accelerate_direct` | peers, where `DD_BENCH_PEERS` names a Python that has them (`cargo xtask bench paging --peers`): disk offload of the same model by accelerate, written anew as documented, and read from the checkpoint itself; the interpreter's own memory is not counted against it |
//!
//! Candle's mapped builder is tried once under the cap too; it needs all weights in memory, so the kernel ends it.
//!
//! All candle variants with as many rows must give the same logits bit by bit, the peers' must come close: else the suite fails.
//! Per turn, the first two passes do not count, and the median of the others does. How to read the ratios: each is taken within a
//! round, and the median over the rounds is reported with its range.
#![allow(
    unsafe_code,
    reason = "candle's mapped builder trusts that nobody changes the file; this one is ours alone"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use dd_benches::cache::evict;
use dd_benches::cap::Cap;
use dd_benches::checkpoint::write_both;
use dd_benches::contest::{Loaded, Outcome, PagerFigures, Pass, Report, Task, UNAVAILABLE};
use dd_benches::figures::{Figures, SETTLING};
use dd_benches::llama::{LlamaShape, Session};
use dd_benches::rounds::{Contestant, Rounds};
use dd_benches::settings::Settings;
use dd_benches::{Error, Result, mapped};
use deep_dimensions::candle::paged::{self, PagedWeights};
use deep_dimensions::core::{Budget, Bytes};
use deep_dimensions::offload::checkpoint::Checkpoint;
use deep_dimensions::offload::io::bandwidth::measure_direct;
use deep_dimensions::offload::io::{DirectFile, Geometry};
use deep_dimensions::pager;
use deep_dimensions::pager::packed::{Keep, PackOptions, pack};

/// What a process may take beside its budget: code, activations, keys and values, the runtime.
const ALLOWANCE: Bytes = Bytes::mib(128);
/// Passes that count.
const PASSES: usize = 5;

fn main() -> Result<()> {
    match Task::of_child()? {
        Some(task) => child(&task),
        None => contest(),
    }
}

/// The work of a child process.
fn child(task: &Task) -> Result<()> {
    let report = match task.measure(load) {
        Err(error) if lacks_userfaultfd(&*error) => {
            eprintln!("{error}");
            std::process::exit(UNAVAILABLE);
        }
        report => report?,
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn load(task: &Task) -> Result<Loaded> {
    let file = task.files.first().ok_or("no file")?;
    let cpu = Device::Cpu;
    let vb = match task.variant.as_str() {
        // SAFETY: the file lies in a folder of our own, and nobody writes to it while it is mapped.
        "in_memory" | "in_memory_reading" => unsafe {
            VarBuilder::from_mmaped_safetensors(&[file], DType::F32, &cpu)?
        },
        "mmap" => VarBuilder::from_tensors(mapped::tensors(file)?, DType::F32, &cpu),
        "paged" => return paged(task, |options| options),
        "paged_kept" => return paged(task, keeping_all),
        other => return Err(format!("there is no variant {other}").into()),
    };
    let session = Session::load(vb, task.shape, task.rows)?;
    if let Some(geometry) = task.reading {
        read_for_ever(DirectFile::open(file)?, geometry);
    }
    Ok((session, None))
}

/// Reads the file again and again beside whatever this process does, until it ends.
fn read_for_ever(file: Arc<DirectFile>, geometry: Geometry) {
    std::thread::spawn(move || {
        loop {
            if let Err(error) = measure_direct(&file, Bytes::MAX, geometry) {
                eprintln!("reading beside the model: {error}");
                std::process::exit(1);
            }
        }
    });
}

/// With all that is read kept in memory, packed as it is.
fn keeping_all(mut options: pager::Options) -> pager::Options {
    if let Some(packed) = &mut options.packed {
        packed.keep = Keep::AtMost(Bytes::MAX);
    }
    options
}

fn paged(task: &Task, change: fn(pager::Options) -> pager::Options) -> Result<Loaded> {
    let budget = Budget::new("memory", Bytes(task.budget));
    let checkpoint = Checkpoint::from_files(&task.files)?;
    let weights = PagedWeights::with_options(checkpoint, DType::F32, &budget, change)?;
    let session = Session::load(weights.var_builder(), task.shape, task.rows)?;
    let figures = move || {
        let (plan, stats) = (weights.plan(), weights.stats());
        PagerFigures {
            used: plan.used.0,
            resident: plan.resident.0,
            frames: (plan.layout.frames * plan.layout.unit) as u64,
            staging: plan.staging.0,
            accounted: budget.usage().peak.0,
            faults: stats.faults,
            late: stats.late,
        }
    };
    Ok((session, Some(Box::new(figures))))
}

/// A file, read twice: a disk that was at rest is faster for a while. `first` is the second sweep's time.
fn direct_read(path: &Path, geometry: Geometry) -> Result<Report> {
    evict(path)?;
    let file = DirectFile::open(path)?;
    measure_direct(&file, Bytes::MAX, geometry)?;
    let size = file.extent()?;
    let seconds = size.0 as f64 / measure_direct(&file, Bytes::MAX, geometry)?;
    let pass = Pass { seconds, read: size.0, ..Pass::default() };
    Ok(Report { first: seconds, passes: vec![pass; SETTLING + 1], ..Report::default() })
}

/// How long one thread takes to have so much memory that nobody has used before, in huge pages.
fn first_touch(size: Bytes) -> Result<f64> {
    let mut map = memmap2::MmapMut::map_anon(size.to_usize()?)?;
    map.advise(memmap2::Advice::HugePage)?;
    let started = Instant::now();
    map.advise(memmap2::Advice::PopulateWrite)?;
    let seconds = started.elapsed().as_secs_f64();
    std::hint::black_box(map.first_mut());
    Ok(seconds)
}

fn lacks_userfaultfd(error: &(dyn std::error::Error + 'static)) -> bool {
    let error = error.downcast_ref::<paged::Error>();
    matches!(error, Some(paged::Error::Pager(pager::Error::Unsupported { .. })))
}

/// What all turns have in common.
struct Contest {
    settings: Settings,
    shape: LlamaShape,
    folder: PathBuf,
    f32: PathBuf,
    bf16: PathBuf,
    packed: PathBuf,
    budget: Bytes,
    block: usize,
    peers: Option<PathBuf>,
}

fn contest() -> Result<()> {
    let settings = Settings::of_size(env!("CARGO_TARGET_TMPDIR"), Bytes::mib(1229), Bytes::mib(48), 3)?;
    let folder = settings.scratch()?;
    let (f32, bf16) = (folder.path().join("model.safetensors"), folder.path().join("model-bf16.safetensors"));
    let shape = LlamaShape::of_size(settings.size.0, settings.quick);
    write_both(&f32, &bf16, &shape.tensors())?;
    let packed = folder.path().join("model-packed.safetensors");
    pack(&Checkpoint::open(&bf16)?, &packed, &PackOptions::default(), &mut |_| {})?;
    let contest = Contest {
        packed,
        shape,
        folder: folder.path().to_owned(),
        f32,
        bf16,
        budget: Bytes(shape.bytes() / 2),
        block: std::env::var("DD_BENCH_BLOCK").map_or(Ok(64), |rows| rows.parse())?,
        peers: std::env::var_os("DD_BENCH_PEERS").map(PathBuf::from),
        settings,
    };
    let figures = contest.run()?;
    print!("{}", figures.table());
    if std::env::var_os("DD_BENCH_JSON").is_some() {
        println!("{}", figures.json()?);
    }
    Ok(())
}

impl Contest {
    fn run(&self) -> Result<Figures> {
        let mut figures = Figures::default();
        // Who shows that something cannot be done, and who is foreign, is tried before, so that a round has only those who can.
        let builder = self.ending(&Task { cap: Some(self.cap()), ..self.task("in_memory", 1) })?;
        figures.note(format!(
            "candle's mapped builder under the cap: {}",
            builder.unwrap_or("it ran".to_owned())
        ));
        let peers = self.able_peers(&mut figures)?;
        let geometry = self.best_geometry()?;
        let shared = std::cell::RefCell::new(figures);
        let turn = |name: &'static str, task: Task, peer: bool| {
            let shared = &shared;
            Contestant::new(name, move || {
                let report = self.turn(&task, peer)?;
                let control = if task.rows == 1 { "in_memory" } else { "in_memory_block" };
                let mut figures = shared.borrow_mut();
                match peer {
                    true => figures.close(control, name, &report)?,
                    false => figures.same(control, name, &report)?,
                }
                let seconds = report.seconds();
                eprintln!("{name}: {seconds:.3} s/pass, {:.3} s to the first token", report.first);
                figures.add(name, report);
                Ok(Duration::from_secs_f64(seconds))
            })
        };
        let capped = |variant| Task { cap: Some(self.cap()), ..self.task(variant, 1) };
        let direct = |name: &'static str, path| {
            let shared = &shared;
            Contestant::new(name, move || {
                let report = direct_read(path, geometry)?;
                let seconds = report.first;
                shared.borrow_mut().add(name, report);
                Ok(Duration::from_secs_f64(seconds))
            })
        };
        let mut contestants = vec![
            turn("in_memory", self.task("in_memory", 1), false),
            turn("in_memory_block", self.task("in_memory", self.block), false),
            turn(
                "in_memory_reading",
                Task { reading: Some(geometry), ..self.task("in_memory_reading", 1) },
                false,
            ),
            Contestant::new("first_touch", || {
                let seconds = first_touch(self.budget)?;
                let pass = Pass { seconds, ..Pass::default() };
                let report = Report { first: seconds, passes: vec![pass; SETTLING + 1], ..Report::default() };
                shared.borrow_mut().add("first_touch", report);
                Ok(Duration::from_secs_f64(seconds))
            }),
            direct("direct_read", &self.f32),
            direct("direct_read_bf16", &self.bf16),
            direct("direct_read_packed", &self.packed),
            turn("mmap", capped("mmap"), false),
        ];
        if self.paging_is_available(&mut shared.borrow_mut())? {
            let paged = capped("paged");
            let plenty = Bytes(self.shape.bytes() + self.shape.bytes() / 8) + Bytes::mib(64);
            contestants.extend([
                turn("paged", paged.clone(), false),
                turn("paged_block", Task { rows: self.block, ..paged.clone() }, false),
                turn("paged_bf16", Task { files: vec![self.bf16.clone()], ..paged.clone() }, false),
                turn("paged_packed", Task { files: vec![self.packed.clone()], ..paged.clone() }, false),
                turn("paged_kept", self.kept(), false),
                turn(
                    "paged_resident",
                    Task { budget: plenty.0, cap: Some((plenty + ALLOWANCE).0), ..paged },
                    false,
                ),
            ]);
        }
        for name in peers {
            contestants.push(turn(name, capped(name), true));
        }
        if let Ok(only) = std::env::var("DD_BENCH_ONLY") {
            contestants.retain(|c| only.split(',').any(|name| c.name() == name));
        }
        let rounds = Rounds::run(self.settings.rounds, &mut contestants)?;
        drop(contestants);
        let mut figures = shared.into_inner();
        let mut criterion = self.settings.criterion();
        rounds.report(&mut criterion, "paging", |_| None);
        criterion.final_summary();
        self.derive(&mut figures, geometry);
        Ok(figures)
    }

    fn cap(&self) -> u64 {
        (self.budget + ALLOWANCE).0
    }

    /// BF16 weights of 1.4 times the budget, kept packed.
    fn kept(&self) -> Task {
        let budget = Bytes(self.shape.bytes() / 2).scaled(1.0 / 1.4);
        let (files, cap) = (vec![self.packed.clone()], Some((budget + ALLOWANCE).0));
        Task { files, budget: budget.0, cap, ..self.task("paged_kept", 1) }
    }

    fn task(&self, variant: &str, rows: usize) -> Task {
        Task {
            variant: variant.to_owned(),
            files: vec![self.f32.clone()],
            folder: self.folder.clone(),
            shape: self.shape,
            rows,
            passes: SETTLING + if self.settings.quick { 1 } else { PASSES },
            budget: self.budget.0,
            reading: None,
            cap: None,
            door: None,
        }
    }

    /// One turn, from a cold page cache.
    fn outcome(&self, task: &Task, peer: bool) -> Result<Outcome> {
        task.files.iter().try_for_each(|file| evict(file))?;
        match (&self.peers, peer) {
            (Some(python), true) => {
                let mut command = Command::new(python);
                command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/accelerate_offload.py"));
                let outcome = task.run_as(command);
                let _ = std::fs::remove_dir_all(self.folder.join("offload")); // There only if it wrote one.
                outcome
            }
            _ => task.run(),
        }
    }

    fn turn(&self, task: &Task, peer: bool) -> Result<Report> {
        let mut ended = String::new();
        // A peer that the cap ended may try again: how much it takes differs from turn to turn.
        for _ in 0..if peer { 4 } else { 1 } {
            match self.outcome(task, peer)? {
                Outcome::Done(report) => return Ok(*report),
                Outcome::Ended(how) | Outcome::Unavailable(how) => ended = how,
            }
            eprintln!("{} ended with {ended}", task.variant);
        }
        Err(Error::from(format!("{} ended with {ended}", task.variant)))
    }

    /// Whether the kernel lets a process serve its own page faults. Everything else that goes wrong is an error.
    fn paging_is_available(&self, figures: &mut Figures) -> Result<bool> {
        match self.outcome(&Task { passes: 1, ..self.task("paged", 1) }, false)? {
            Outcome::Done(_) => Ok(true),
            Outcome::Ended(how) => Err(Error::from(format!("paged ended with {how}"))),
            Outcome::Unavailable(why) => {
                println!("skipped: the paged contestants: {why}");
                figures.note(format!("skipped: the paged contestants: {why}"));
                Ok(false)
            }
        }
    }

    /// How a turn ended that did not report; nothing of one that did.
    fn ending(&self, task: &Task) -> Result<Option<String>> {
        Ok(match self.outcome(task, self.is_peer(&task.variant))? {
            Outcome::Done(_) => None,
            Outcome::Ended(how) | Outcome::Unavailable(how) => Some(how),
        })
    }

    fn is_peer(&self, variant: &str) -> bool {
        self.peers.is_some() && variant.starts_with("accelerate")
    }

    /// The peers that run under the cap. Their libraries are in the page cache after that.
    fn able_peers(&self, figures: &mut Figures) -> Result<Vec<&'static str>> {
        let mut able = Vec::new();
        if self.peers.is_none() {
            figures.note("accelerate: not asked for (cargo xtask bench paging --peers)".to_owned());
            return Ok(able);
        }
        for name in ["accelerate", "accelerate_direct"] {
            // The first run, without a cap, is charged with the pages of the libraries themselves.
            let free = self.ending(&Task { passes: 1, ..self.task(name, 1) })?;
            let capped = self.ending(&Task { cap: Some(self.cap()), ..self.task(name, 1) })?;
            match free.or(capped) {
                None => able.push(name),
                Some(how) => figures.note(format!("{name} under the cap: {how}")),
            }
        }
        Ok(able)
    }

    /// Of a few ways to cut direct reads, the one that this disk answers fastest.
    fn best_geometry(&self) -> Result<Geometry> {
        let file = DirectFile::open(&self.f32)?;
        let mut best = (0.0, Geometry::default());
        for (block, depth) in [(512 << 10, 4), (512 << 10, 4), (1 << 20, 4), (1 << 20, 8), (2 << 20, 8)] {
            let geometry = Geometry { block, depth };
            let bandwidth = measure_direct(&file, Bytes::MAX, geometry)?;
            if bandwidth > best.0 {
                best = (bandwidth, geometry);
            }
        }
        Ok(best.1)
    }

    /// What the disk and the computation allow, each alone and both at work, and how much of that is reached.
    fn limits(&self, figures: &mut Figures, stored: &[(&str, f64, Vec<f64>)]) {
        let beside: Vec<(f64, f64)> = figures
            .of("in_memory_reading")
            .iter()
            .map(|control| (control.seconds(), control.per_pass(|pass| pass.read as f64 / pass.seconds)))
            .collect();
        // What a pass needs of W: all but the table, of which it needs a row.
        let needed = self.shape.bytes() - self.shape.table_bytes();
        for (name, share, bandwidth) in stored {
            let alone = figures.of("in_memory").iter().map(Report::seconds).zip(bandwidth.iter().copied());
            let alone: Vec<(f64, f64)> = alone.collect();
            let reached = |limits: &[(f64, f64)]| -> Vec<f64> {
                let turns = figures.of(name).iter().zip(limits);
                let share = |(paged, (compute, bandwidth)): (&Report, &(f64, f64))| {
                    // R is every frame but those for staging, whatever the pager says it keeps in them.
                    let pager = paged.pager.unwrap_or_default();
                    let resident = pager.frames.saturating_sub(pager.staging).max(pager.resident);
                    let streamed = needed.saturating_sub(resident) as f64 * share;
                    compute.max(streamed / bandwidth) / paged.seconds()
                };
                turns.map(share).collect()
            };
            let (alone, both) = (reached(&alone), reached(&beside));
            let title = format!("{name}: share of max(C, (W − R)/B) reached");
            figures.ratio(&title, alone.into_iter(), "0.95 or more");
            figures.ratio(
                &format!("{name}: the same, C and B taken beside each other"),
                both.into_iter(),
                "",
            );
        }
        figures.ratio("B beside a pass in memory, GB/s", beside.iter().map(|(_, b)| b / 1e9), "");
        let slower = figures
            .per_round("in_memory_reading", "in_memory", |beside, alone| beside.seconds() / alone.seconds());
        figures.ratio("C while the disk is read, times C", slower.into_iter(), "");
        let touch: Vec<f64> =
            figures.of("first_touch").iter().map(|touch| self.budget.0 as f64 / touch.first / 1e9).collect();
        figures.ratio("first touch of memory, one thread, GB/s", touch.into_iter(), "");
    }

    /// The ratios, each of a round's own figures, and the remarks.
    fn derive(&self, figures: &mut Figures, geometry: Geometry) {
        let all = self.shape.bytes() as f64;
        let bandwidths = |name: &str| -> Vec<f64> {
            let reads = figures.of(name).iter();
            reads.map(|read| read.per_pass(|pass| pass.read as f64 / pass.seconds)).collect()
        };
        let [wide, half, packed] = ["direct_read", "direct_read_bf16", "direct_read_packed"].map(bandwidths);
        for (file, bandwidth) in [("F32", &wide), ("BF16", &half), ("packed", &packed)] {
            figures.ratio(&format!("B of the {file} file, GB/s"), bandwidth.iter().map(|b| b / 1e9), "");
        }
        let stored = [("paged", 1.0, wide), ("paged_bf16", 0.5, half)];
        self.limits(figures, &stored);
        let share = figures.per_round("paged_block", "in_memory_block", |paged, control| {
            control.seconds() / paged.seconds()
        });
        figures.ratio("paged_block: share of the speed in memory", share.into_iter(), "0.95 or more");
        for (name, wanted) in
            [("paged_resident", "0.03 or less"), ("paged", "0.10 or less"), ("paged_block", "0.10 or less")]
        {
            let of_pass = |report: &Report| report.per_pass(|pass| pass.paging_cpu / pass.cpu);
            let shares: Vec<f64> = figures.of(name).iter().map(of_pass).collect();
            figures.ratio(
                &format!("{name}: share of the processor time, paging threads"),
                shares.into_iter(),
                wanted,
            );
            let control = if name == "paged_block" { "in_memory_block" } else { "in_memory" };
            let cpu = |report: &Report| report.per_pass(|pass| pass.cpu);
            let more = figures.per_round(name, control, |paged, control| cpu(paged) / cpu(control) - 1.0);
            figures.ratio(
                &format!("{name}: more processor time than in memory, all threads"),
                more.into_iter(),
                "",
            );
        }
        for (name, share, bandwidth) in stored {
            let reads = figures.of(name).iter().zip(&bandwidth);
            let ratios: Vec<f64> =
                reads.map(|(paged, bandwidth)| paged.first / (all * share / bandwidth)).collect();
            figures.ratio(
                &format!("{name}: first token from cold, against W/B"),
                ratios.into_iter(),
                "1.10 or less",
            );
        }
        for name in ["mmap", "accelerate", "accelerate_direct"] {
            let times = figures.per_round(name, "paged", |peer, paged| peer.seconds() / paged.seconds());
            figures.ratio(&format!("{name} takes as long as paged, times"), times.into_iter(), "more than 1");
        }
        for name in ["paged_packed", "paged_kept"] {
            let times = figures.per_round("paged", name, |wide, packed| wide.seconds() / packed.seconds());
            figures.ratio(&format!("paged takes as long as {name}, times"), times.into_iter(), "");
        }
        let read: Vec<f64> =
            figures.of("paged_kept").iter().map(|kept| kept.per_pass(|pass| pass.read as f64)).collect();
        figures.ratio("paged_kept: bytes read per pass after the first two", read.into_iter(), "0");
        let halved =
            figures.per_round("paged", "paged_bf16", |wide, narrow| wide.seconds() / narrow.seconds());
        figures.ratio("paged takes as long as paged_bf16, times", halved.into_iter(), "");
        let capped = Cap::new(Bytes(self.cap())).is_some();
        figures.note(format!(
            "W {} ({} of it a table of which a token needs one row), budget {}, cap {}, {} blocks; B with {geometry}; a block is {} prompts",
            Bytes(self.shape.bytes()),
            Bytes(self.shape.table_bytes()),
            self.budget,
            if capped { Bytes(self.cap()).to_string() } else { "none: this machine lets us set none".to_owned() },
            self.shape.layers,
            self.block,
        ));
        if let Some(pager) = figures.of("paged").last().and_then(|report| report.pager) {
            let [used, resident, frames, staging, accounted] =
                [pager.used, pager.resident, pager.frames, pager.staging, pager.accounted].map(Bytes);
            figures.note(format!(
                "paged: frames {frames}, for staging {staging}; by its own account used in a pass {used}, of it resident {resident}; accounted at most {accounted}"
            ));
        }
    }
}
