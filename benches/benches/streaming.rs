//! Seconds per pass of a model that is twice its budget, against what the disk allows.
//!
//! The model is a transformer at batch 1 (F32, blocks of 1024: 50 MB each), its weights W (`DD_BENCH_SIZE`, 512 MiB unless
//! told) in a file, the budget M half of that. Of the budget, the plan takes blocks for reading and staging S; the
//! rest R is resident. So a pass must read W − R, and no order of reading can make it faster than the limit
//! `max(C, (W − R) / B)`, for the bandwidth B of the disk and the time C of the computation alone.
//!
//! How R is counted: it is [`ResidencyPlan::resident_bytes`](deep_dimensions::offload::plan::ResidencyPlan), every weight
//! that the plan never lets go; M = R + staging + read blocks + what no whole tensor could use. Tensors stay or go as a
//! whole. W − R is the plan's `streamed_bytes`; how much was really read is counted by the kernel.
//!
//! In every round, in changing order:
//!
//! | contestant | what it does |
//! |---|---|
//! | `managed` | a pass through the manager, output compared bit by bit; the mean of three after one that does not count, so that a pass finds the staging as full as the one before it left it |
//! | `direct_read` | control: W − R bytes of the same file, read by an engine of the same blocks and dropped as they arrive; the mean of three after one that does not count, since a disk that was at rest is faster for a while; gives B |
//! | `in_memory` | control: the same pass over the same weights in memory; gives C |
//! | `mmap` | the peer: candle's own mapped file, mapped anew and out of the page cache before each pass, each block built (which copies its weights from the mapping), used and dropped. What a page cache of any size below W comes to when the same weights are needed in the same order again and again |
//!
//! How to read it: the share of the limit, `max(C, (W − R) / B) / managed` in each round, of which the median is
//! reported, is what the manager makes of the disk. It should be 0.90 or more.
#![allow(
    unsafe_code,
    reason = "candle's mapped files trust that nobody changes them; this one is ours alone"
)]

use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use candle_nn::{Module, VarBuilder};
use dd_benches::cache::evict;
use dd_benches::checkpoint::{Values, write};
use dd_benches::model::{Block, Shape, pass};
use dd_benches::rounds::{Contestant, Rounds, median};
use dd_benches::settings::Settings;
use dd_benches::sweep::sweep;
use dd_benches::{Error, Result};
use deep_dimensions::candle::CandleBackend;
use deep_dimensions::candle::managed::{ManagedModel, ManagedModule};
use deep_dimensions::core::{self, Bytes};
use deep_dimensions::monitor::{IoCounters, ProcessId, Root};
use deep_dimensions::offload::MemoryConfig;
use deep_dimensions::offload::io::{DirectFile, EngineKind, Geometry, engine};
use deep_dimensions::offload::plan::ResidencyPlan;

const HEADS: usize = 16;
/// Passes that one turn of the managed model, and of the bare read, times.
const PASSES: u32 = 3;
/// Passes after which the order is known and the plan has settled.
const SETTLING: usize = 4;

fn main() -> Result<()> {
    let settings = Settings::read(env!("CARGO_TARGET_TMPDIR"))?;
    let folder = settings.scratch()?;
    let file = folder.path().join("model.safetensors");
    let shape = Shape::of_size(settings.size.0, settings.width);
    write(&file, &shape.tensors(), Values::Random)?;
    let input = shape.input(1)?;
    let plain = in_memory(&file, shape)?;
    let expected = bits(&pass(&plain, &input)?)?;
    evict(&file)?;

    let budget = Bytes(shape.bytes() / 2);
    let config = MemoryConfig::builder().memory_limit(budget).build()?;
    let model = ManagedModel::open(&file, CandleBackend::new(core::Device::Cpu)?, config)?;
    let blocks = managed(&model, shape)?;
    for _ in 0..SETTLING {
        check(&pass(&blocks, &input)?, &expected)?;
    }
    let plan = model.manager().plan()?;
    let geometry = Geometry::within(Bytes(budget.0 / 16));
    let direct = DirectFile::open(&file)?;

    let (mut counted, mut waited) = (Vec::new(), Vec::new());
    let managed = || {
        check(&pass(&blocks, &input)?, &expected)?;
        let (before, started) = (io()?, Instant::now());
        let waited_before = model.manager().memory_summary().waited;
        for _ in 0..PASSES {
            check(&pass(&blocks, &input)?, &expected)?;
        }
        let took = started.elapsed() / PASSES;
        counted.push(io()?.since(&before));
        let waiting = model.manager().memory_summary().waited.saturating_sub(waited_before);
        waited.push((waiting / PASSES).as_secs_f64());
        settle(&model);
        Ok(took)
    };
    let mut bare = engine(EngineKind::Auto, geometry)?;
    let mut direct_read = || sweep(bare.as_mut(), &direct, plan.streamed_bytes.0);
    let direct_read = || {
        direct_read()?;
        let took = (0..PASSES).map(|_| direct_read()).sum::<Result<Duration>>()?;
        Ok(took / PASSES)
    };
    let in_memory = || timed(|| check(&pass(&plain, &input)?, &expected));
    let mut mapped_read = Vec::new();
    let mapped = || {
        evict(&file)?;
        let before = io()?;
        let took = timed(|| check(&mapped_pass(&file, shape, &input)?, &expected))?;
        mapped_read.push(io()?.since(&before).read_bytes.0 as f64);
        evict(&file)?;
        Ok(took)
    };
    let rounds = Rounds::run(
        settings.rounds,
        &mut [
            Contestant::new("managed", managed),
            Contestant::new("direct_read", direct_read),
            Contestant::new("in_memory", in_memory),
            Contestant::new("mmap", mapped),
        ],
    )?;
    let mut criterion = settings.criterion();
    rounds.report(&mut criterion, "streaming", |_| None);
    criterion.final_summary();

    println!("{} blocks; read in {geometry}; direct: {}", shape.layers, direct.is_direct());
    let pass_read = counted.iter().map(|io| io.read_bytes.0 as f64 / f64::from(PASSES));
    let written: Bytes = counted.iter().map(|io| io.write_bytes).sum();
    print(&rounds, &plan, shape, [median(pass_read), median(mapped_read.into_iter())]);
    println!("waited for weights: {:.3} s of a managed pass", median(waited.into_iter()));
    println!("written during the managed passes: {written}");
    println!("accounted at most: {} of {budget}", model.manager().budget().usage().peak);
    Ok(())
}

fn print(rounds: &Rounds, plan: &ResidencyPlan, shape: Shape, [managed_read, mapped_read]: [f64; 2]) {
    let streamed = plan.streamed_bytes.0 as f64;
    let compute = rounds.median("in_memory");
    let read = rounds.median("direct_read");
    let spare = plan.budget.saturating_sub(plan.resident_bytes + plan.staging + plan.blocks);
    println!("W {}, budget {}", Bytes(shape.bytes()), plan.budget);
    println!(
        "R {}, staging {}, read blocks {}, unused {spare}; {} position(s) of read-ahead",
        plan.resident_bytes, plan.staging, plan.blocks, plan.lookahead
    );
    println!("B {:.2} GB/s, C {compute:.3} s, (W − R)/B {read:.3} s", streamed / read / 1e9);
    println!("{:<12} {:>9} {:>16}", "", "s / pass", "read / pass");
    let rows =
        [("managed", managed_read), ("direct_read", streamed), ("in_memory", 0.0), ("mmap", mapped_read)];
    for (name, bytes) in rows {
        println!("{name:<12} {:>9.3} {:>13.1} MB", rounds.median(name), bytes / 1e6);
    }
    // Each round against its own controls.
    let limits =
        rounds.times("direct_read").iter().zip(rounds.times("in_memory")).map(|(read, c)| read.max(c));
    let shares: Vec<f64> = limits
        .zip(rounds.times("managed"))
        .map(|(limit, managed)| limit.as_secs_f64() / managed.as_secs_f64())
        .collect();
    println!(
        "limit {:.3} s; share of the limit reached: {:.3} (rounds from {:.3} to {:.3})",
        read.max(compute),
        median(shares.iter().copied()),
        shares.iter().copied().fold(f64::INFINITY, f64::min),
        shares.iter().copied().fold(0.0, f64::max),
    );
    println!(
        "mmap takes {:.2} times as long",
        rounds.median_of("mmap", "managed", |mmap, managed| mmap / managed)
    );
}

fn in_memory(file: &Path, shape: Shape) -> Result<Vec<Block>> {
    let tensors = candle_core::safetensors::load(file, &Device::Cpu)?;
    let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let block = |n| Block::load(shape.width, HEADS, &vb.pp(Shape::layer(n)));
    Ok((0..shape.layers).map(block).collect::<candle_core::Result<_>>()?)
}

type Load = Box<dyn Fn(VarBuilder<'static>) -> candle_core::Result<Block>>;

fn managed(model: &ManagedModel, shape: Shape) -> Result<Vec<ManagedModule<Load>>> {
    let module = |n| {
        let load: Load = Box::new(move |vb| Block::load(shape.width, HEADS, &vb));
        Ok(model.module(&Shape::layer(n), load)?)
    };
    (0..shape.layers).map(module).collect()
}

fn mapped_pass(file: &Path, shape: Shape, input: &Tensor) -> Result<Tensor> {
    // SAFETY: the file lies in a folder of our own, and nobody writes to it while it is mapped.
    let vb = unsafe { VarBuilder::from_mmaped_safetensors(&[file], DType::F32, &Device::Cpu)? };
    let mut x = input.clone();
    for n in 0..shape.layers {
        x = Block::load(shape.width, HEADS, &vb.pp(Shape::layer(n)))?.forward(&x)?;
    }
    Ok(x)
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed())
}

/// Waits until the manager has read ahead what it may, so that it does not disturb the next one.
fn settle(model: &ManagedModel) {
    let mut before = Bytes::MAX;
    loop {
        let read = model.manager().memory_summary().read;
        if read == before {
            return;
        }
        before = read;
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn io() -> Result<IoCounters> {
    Ok(IoCounters::read(&Root::default(), ProcessId::Own)?)
}

fn bits(output: &Tensor) -> Result<Vec<u32>> {
    Ok(output.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

fn check(output: &Tensor, expected: &[u32]) -> Result<()> {
    match bits(output)? == expected {
        true => Ok(()),
        false => Err(Error::from("the output differs from that of the model in memory")),
    }
}
