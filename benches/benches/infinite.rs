//! What an infinite tensor costs beside what its function computes, on the host backend.
//!
//! | contestant | what one turn is |
//! |---|---|
//! | `cold` | [`WINDOWS`]² windows of 32², none cached: planned, computed by a function that hands out a tensor it has, kept, copied |
//! | `warm` | the same read again: all are cached |
//! | `warm_large` | [`LARGE`]² windows of 512², all cached, copied into the caller's buffer |
//! | `memcpy` | control: the bytes of `warm_large`, copied in one piece |
//! | infinite-tensor, tensorstore | peers, where `DD_BENCH_PEERS` names a Python that has them: the same reads, and a raster sweep |
//! | `one_thread`, `two_threads` | [`HEAVY`]² windows of a function that computes, none cached |
//!
//! How to read it: microseconds per window. `cold` should be at most 2, `warm` at most 0.5 (what the bytes themselves take is
//! in both: `bytes` is that share, as one memcpy of them). `warm_large` should take at most 1.25 times `memcpy`, and
//! `one_thread` at least 1.8 times `two_threads`.

use std::ffi::OsStr;
use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use criterion::Criterion;
use dd_benches::Result;
use dd_benches::rounds::{Contestant, Rounds};
use dd_benches::settings::Settings;
use deep_dimensions::core::{Backend, Budget, DType, HostBackend, TensorDesc, Tier};
use deep_dimensions::infinite::{Engine, InfiniteTensor, Region, Span, TensorSpec, TensorWindow, Tiles};
use serde_json::Value;

/// Windows along each side of the small read.
const WINDOWS: i64 = 64;
/// Windows along each side of the large read.
const LARGE: i64 = 8;
/// Windows along each side of what is computed.
const HEAVY: i64 = 4;

fn main() -> Result<()> {
    let settings = Settings::read(env!("CARGO_TARGET_TMPDIR"))?;
    let mut criterion = settings.criterion();
    overhead(&settings, &mut criterion)?;
    copies(&settings, &mut criterion)?;
    threads(&settings, &mut criterion)?;
    criterion.final_summary();
    peers()
}

/// What the peers take for the same work (`cold`, `warm`), and how often they compute a window of a raster sweep: each in a
/// process of its own, where `DD_BENCH_PEERS` names a Python that has them.
fn peers() -> Result<()> {
    let Some(python) = std::env::var_os("DD_BENCH_PEERS") else {
        println!(
            "no peers: `cargo xtask bench infinite --peers` measures infinite-tensor and tensorstore too"
        );
        return Ok(());
    };
    let mib = |limit: u64| limit << 20;
    let tasks = [
        ("infinite-tensor", "cold", 32, WINDOWS, 5, None),
        ("tensorstore", "cold", 32, WINDOWS, 5, None),
        ("infinite-tensor", "warm", 32, WINDOWS, 5, None),
        ("tensorstore", "warm", 32, WINDOWS, 5, None),
        ("infinite-tensor", "raster", 256, 16, 1, Some(mib(64))),
        ("infinite-tensor", "raster", 256, 16, 1, Some(mib(16))),
    ];
    for (peer, work, window, side, rounds, limit) in tasks {
        let task = serde_json::json!({
            "peer": peer, "work": work, "window": window, "side": side, "rounds": rounds, "limit": limit,
        });
        println!("{}", peer_line(&python, &task)?);
    }
    Ok(())
}

/// One task of `benches/peers/infinite.py`, which prints its report as JSON in its last line.
fn peer_line(python: &OsStr, task: &Value) -> Result<String> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/infinite.py");
    let output = Command::new(python).args(["-W", "ignore"]).arg(program).arg(task.to_string()).output()?;
    if !output.status.success() {
        return Err(format!("{task}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let printed = String::from_utf8(output.stdout)?;
    let report: Value = serde_json::from_str(printed.lines().last().unwrap_or_default())?;
    let of = |name: &str| report.get(name).unwrap_or(&Value::Null);
    let mut cpu: Vec<f64> = of("cpu").as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    cpu.sort_unstable_by(f64::total_cmp);
    let median = cpu.get(cpu.len() / 2).copied().unwrap_or(f64::NAN);
    let windows = of("windows").as_f64().unwrap_or(f64::NAN);
    let resident = of("resident").as_f64().unwrap_or(f64::NAN) - of("baseline").as_f64().unwrap_or(f64::NAN);
    Ok(format!(
        "{} {} {} of {}²: {:.2} us CPU per window, {} calls for {} windows, {:.0} MiB above its libraries",
        of("peer").as_str().unwrap_or_default(),
        of("version").as_str().unwrap_or_default(),
        of("work").as_str().unwrap_or_default(),
        task.get("window").unwrap_or(&Value::Null),
        median / windows * 1e6,
        of("calls"),
        of("distinct"),
        resident / f64::from(1 << 20),
    ))
}

/// A tensor whose function hands out one tensor again and again.
fn constant(side: i64) -> Result<(Tiles<HostBackend>, InfiniteTensor<HostBackend>)> {
    let tiles = Tiles::in_memory(&Engine::new(HostBackend::default(), 1)?, Budget::unlimited("bench"));
    let desc = TensorDesc::new([usize::try_from(side)?, usize::try_from(side)?], DType::F32)?;
    let ready = HostBackend::default().upload(&desc, &vec![7; desc.len_in_memory()?], Tier::Host)?;
    let spec = TensorSpec::new("constant", [None, None], TensorWindow::new([side, side])?);
    let tensor = tiles.get_or_create(spec, move |_, _| Ok(ready.clone()))?;
    Ok((tiles, tensor))
}

fn square(side: i64) -> Region {
    Region::new([Span::new(0, side), Span::new(0, side)])
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed())
}

fn overhead(settings: &Settings, criterion: &mut Criterion) -> Result<()> {
    let side = WINDOWS * 32;
    let (tiles, tensor) = constant(32)?;
    let region = square(side);
    let len = usize::try_from(region.volume())? * 4;
    let (mut first, mut second) = (vec![0u8; len], vec![1u8; len]);
    let (from, mut to) = (vec![3u8; len], vec![0u8; len]);
    let mut contestants = [
        Contestant::new("cold", || {
            tiles.clear_cache();
            timed(|| Ok(tensor.read_region(&region, black_box(&mut first))?))
        }),
        Contestant::new("warm", || {
            tensor.read_region(&region, &mut second)?;
            timed(|| Ok(tensor.read_region(&region, black_box(&mut second))?))
        }),
        Contestant::new("bytes", || {
            timed(|| {
                black_box(&mut to).copy_from_slice(black_box(&from));
                Ok(())
            })
        }),
    ];
    let rounds = Rounds::run(settings.rounds, &mut contestants)?;
    drop(contestants);
    rounds.report(criterion, "infinite_overhead", |_| None);
    for name in ["cold", "warm", "bytes"] {
        println!("{name}: {:.3} µs per window", rounds.median(name) * 1e6 / (WINDOWS * WINDOWS) as f64);
    }
    Ok(())
}

fn copies(settings: &Settings, criterion: &mut Criterion) -> Result<()> {
    let (_tiles, tensor) = constant(512)?;
    let region = square(LARGE * 512);
    let len = usize::try_from(region.volume())? * 4;
    let (mut out, from, mut to) = (vec![1u8; len], vec![3u8; len], vec![2u8; len]);
    tensor.read_region(&region, &mut out)?;
    let mut contestants = [
        Contestant::new("warm_large", || timed(|| Ok(tensor.read_region(&region, black_box(&mut out))?))),
        Contestant::new("memcpy", || {
            timed(|| {
                black_box(&mut to).copy_from_slice(black_box(&from));
                Ok(())
            })
        }),
    ];
    let rounds = Rounds::run(settings.rounds, &mut contestants)?;
    drop(contestants);
    rounds.report(criterion, "infinite_copies", |_| None);
    println!(
        "warm_large / memcpy: {:.3}",
        rounds.median_of("warm_large", "memcpy", |warm, copy| warm / copy)
    );
    Ok(())
}

fn threads(settings: &Settings, criterion: &mut Criterion) -> Result<()> {
    let steps = if settings.quick { 10 } else { 4_000 };
    let make = |threads: usize| -> Result<_> {
        let tiles =
            Tiles::in_memory(&Engine::new(HostBackend::default(), threads)?, Budget::unlimited("bench"));
        let spec = TensorSpec::new("heavy", [None, None], TensorWindow::new([64, 64])?);
        let tensor = tiles.get_or_create(spec, move |context, _| {
            let mut bytes = Vec::with_capacity(64 * 64 * 4);
            for n in 0..64 * 64u32 {
                let mut value = (n as f32).mul_add(1e-4, context.index().iter().sum::<i64>() as f32);
                (0..steps).for_each(|_| value = value.mul_add(0.999, 0.001));
                bytes.extend_from_slice(&value.to_le_bytes());
            }
            Ok(HostBackend::default().upload(&TensorDesc::new([64, 64], DType::F32)?, &bytes, Tier::Host)?)
        })?;
        Ok((tiles, tensor))
    };
    let (one, two) = (make(1)?, make(2)?);
    let region = square(HEAVY * 64);
    let len = usize::try_from(region.volume())? * 4;
    let turn = |(tiles, tensor): &(Tiles<HostBackend>, InfiniteTensor<HostBackend>)| {
        tiles.clear_cache();
        let mut out = vec![0u8; len];
        timed(|| Ok(tensor.read_region(&region, black_box(&mut out))?))
    };
    let mut contestants =
        [Contestant::new("one_thread", || turn(&one)), Contestant::new("two_threads", || turn(&two))];
    let rounds = Rounds::run(settings.rounds, &mut contestants)?;
    drop(contestants);
    rounds.report(criterion, "infinite_threads", |_| None);
    println!(
        "one_thread / two_threads: {:.2}",
        rounds.median_of("one_thread", "two_threads", |one, two| one / two)
    );
    Ok(())
}
