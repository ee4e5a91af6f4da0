//! What the read engines make of the disk: bandwidth by engine and geometry, beside a bare read loop.
//!
//! A file of `DD_BENCH_SIZE` (512 MiB unless told) is read directly from its first byte to its last, in blocks of each size
//! with each number of reads in flight. In every round, for each geometry:
//!
//! | contestant | what it does |
//! |---|---|
//! | `io_uring`, `threads` | the engine, fed with the file in blocks, its bytes dropped as they arrive |
//! | `bare` | control: as many threads, each in `pread` for the next block; no engine |
//!
//! How to read it: an engine should be within a few percent of `bare` for the same geometry; and the smallest
//! geometry that is about as fast as any is the one to use, since its memory is taken from the weights. Figures of
//! different geometries are taken one after the other, in an order that rotates, so compare them by their medians.

use std::time::Duration;

use dd_benches::Result;
use dd_benches::checkpoint::{Values, write};
use dd_benches::model::Shape;
use dd_benches::rounds::{Contestant, Rounds};
use dd_benches::settings::Settings;
use dd_benches::sweep::sweep;
use deep_dimensions::core::Bytes;
use deep_dimensions::offload::io::bandwidth::measure_direct;
use deep_dimensions::offload::io::{DirectFile, EngineKind, Geometry, engine};

/// KiB per block, and how many.
const GEOMETRIES: [(usize, usize); 8] =
    [(256, 4), (256, 16), (512, 2), (512, 4), (512, 8), (1024, 4), (1024, 8), (4096, 4)];

fn main() -> Result<()> {
    let settings = Settings::read(env!("CARGO_TARGET_TMPDIR"))?;
    let folder = settings.scratch()?;
    let path = folder.path().join("model.safetensors");
    let size = write(&path, &Shape::of_size(settings.size.0, 256).tensors(), Values::Random)?;
    let file = DirectFile::open(&path)?;
    let mut contestants = Vec::new();
    for (kib, depth) in GEOMETRIES {
        let geometry = Geometry { block: kib << 10, depth };
        let file = &file;
        let bare = move || {
            Ok(Duration::try_from_secs_f64(size as f64 / measure_direct(file, Bytes(size), geometry)?)?)
        };
        contestants.push(Contestant::new(name("bare", geometry), bare));
        for kind in [EngineKind::IoUring, EngineKind::Threads] {
            match engine(kind, geometry) {
                Ok(mut engine) => {
                    let turn = move || sweep(engine.as_mut(), file, size);
                    contestants.push(Contestant::new(name(&kind.to_string(), geometry), turn));
                }
                Err(error) => println!("skipped: {kind} with {geometry}: {error}"),
            }
        }
    }
    let rounds = Rounds::run(settings.rounds, &mut contestants)?;
    let mut criterion = settings.criterion();
    rounds.report(&mut criterion, "engines", |_| Some(Bytes(size)));
    criterion.final_summary();
    println!("{} read per sweep; direct: {}; GB/s", Bytes(size), file.is_direct());
    println!("{:<14} {:>8} {:>10} {:>10} {:>12}", "geometry", "bare", "io_uring", "threads", "uring/bare");
    for (kib, depth) in GEOMETRIES {
        let geometry = Geometry { block: kib << 10, depth };
        let rate = |who: &str| size as f64 / rounds.median(&name(who, geometry)) / 1e9;
        let share = rounds
            .median_of(&name("bare", geometry), &name("io_uring", geometry), |bare, engine| bare / engine);
        println!(
            "{:<14} {:>8.2} {:>10.2} {:>10.2} {share:>12.3}",
            label(geometry),
            rate("bare"),
            rate("io_uring"),
            rate("threads")
        );
    }
    Ok(())
}

fn label(geometry: Geometry) -> String {
    format!("{}KiB_x{}", geometry.block >> 10, geometry.depth)
}

fn name(who: &str, geometry: Geometry) -> String {
    format!("{who}_{}", label(geometry))
}
