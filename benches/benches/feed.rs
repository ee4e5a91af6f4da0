//! Feeding: processor time per sample of (3, 64, 64) bytes in shuffled batches of 128, everything warm, against what moving the bytes takes.
//!
//! The samples lie in a mapped file of 384 MiB (`DD_BENCH_SIZE`), their labels in another. A turn goes through them in random order twice, and
//! the second time counts: the processor time of the whole process, threads included. In every round, in changing order:
//!
//! | contestant | what it does |
//! |---|---|
//! | `gather`, `again` | control, twice: each row and label copied from the same mapped files into one buffer that stays, in a random order that was made before |
//! | `feed_0`, `feed_2` | the feeder without threads, and with two |
//! | `gather_f32` | control: the same rows, each byte converted to a float in the pass that copies it |
//! | `feed_f32` | the feeder with the same conversion, without threads |
//! | `torch_0`, `torch_2` | peers, where `DD_BENCH_PEERS` names a Python that has torch: its `DataLoader` over the same files as NumPy maps, without workers and with two |
//!
//! How to read it: `feed_0 / gather` should be at most 1.2. `again / gather` says how noisy the machine is.
#![allow(unsafe_code, reason = "the processor time of the process is a call of the system's")]

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dd_benches::Result;
use dd_benches::rounds::{Contestant, Rounds};
use dd_benches::settings::Settings;
use deep_dimensions::core::{Bytes, DType, TensorDesc};
use deep_dimensions::feed::{Convert, FeedConfig, Feeder, MappedRows, Permutation, Shuffle, Stream};

const SHAPE: [usize; 3] = [3, 64, 64];
const ROW: usize = 3 * 64 * 64;
const BATCH: usize = 128;

fn main() -> Result<()> {
    let settings = Settings::of_size(env!("CARGO_TARGET_TMPDIR"), Bytes::mib(384), Bytes::mib(8), 10)?;
    let folder = settings.scratch()?;
    let data = Data::write(folder.path(), settings.size.0 / ROW as u64)?;
    let mut contestants = vec![
        Contestant::new("gather", || data.gather(false)),
        Contestant::new("feed_0", || data.feed(0, DType::U8)),
        Contestant::new("feed_2", || data.feed(2, DType::U8)),
        Contestant::new("again", || data.gather(false)),
        Contestant::new("gather_f32", || data.gather(true)),
        Contestant::new("feed_f32", || data.feed(0, DType::F32)),
    ];
    if let Some(python) = std::env::var_os("DD_BENCH_PEERS").map(PathBuf::from) {
        for workers in [0, 2] {
            let (python, data) = (python.clone(), &data);
            let name = format!("torch_{workers}");
            contestants.push(Contestant::new(name, move || data.torch(&python, workers)));
        }
    }
    let names: Vec<String> =
        ["gather", "again", "feed_0", "feed_2", "gather_f32", "feed_f32", "torch_0", "torch_2"]
            .map(str::to_owned)
            .into();
    let rounds = Rounds::run(settings.rounds, &mut contestants)?;
    drop(contestants);
    let mut criterion = settings.criterion();
    rounds.report(&mut criterion, "feed", |_| Some(Bytes(data.count * ROW as u64)));
    criterion.final_summary();
    for name in names.iter().filter(|name| !rounds.times(name).is_empty()) {
        let control = if name.ends_with("f32") { "gather_f32" } else { "gather" };
        println!(
            "{name:10}  {:6.2} µs of processor time per sample, {:.3} of {control}",
            rounds.median(name) / data.count as f64 * 1e6,
            rounds.median_of(name, control, |this, control| this / control),
        );
    }
    Ok(())
}

/// Samples and labels in files.
struct Data {
    x: PathBuf,
    y: PathBuf,
    count: u64,
}

impl Data {
    fn write(folder: &Path, count: u64) -> Result<Self> {
        let (x, y) = (folder.join("x.bin"), folder.join("y.bin"));
        let order = Permutation::new(1 << 20, 1);
        let rows: Vec<u8> =
            (0..count * ROW as u64).map(|n| order.at(n % (1 << 20)).to_le_bytes()[0]).collect();
        fs::write(&x, rows)?;
        fs::write(&y, (0..count).flat_map(u64::to_le_bytes).collect::<Vec<u8>>())?;
        Ok(Self { x, y, count })
    }

    fn rows(&self) -> Result<(MappedRows, MappedRows)> {
        let desc = |shape: &[usize], dtype| TensorDesc::new(shape, dtype);
        let x = MappedRows::records(&self.x, desc(&SHAPE, DType::U8)?, 0)?;
        Ok((x, MappedRows::records(&self.y, desc(&[1], DType::I64)?, 0)?))
    }

    /// The control: nothing but the copies.
    fn gather(&self, convert: bool) -> Result<Duration> {
        let (x, y) = self.rows()?;
        let (mut rows, mut floats) =
            (vec![0u8; BATCH * ROW], vec![0f32; if convert { BATCH * ROW } else { 0 }]);
        let mut labels = vec![0u8; BATCH * 8];
        let mut spent = Duration::ZERO;
        for epoch in 0..2 {
            let order = Permutation::new(self.count, epoch);
            let order: Vec<u64> = (0..self.count).map(|position| order.at(position)).collect();
            let started = processor_time();
            for batch in order.chunks(BATCH) {
                for (place, index) in batch.iter().enumerate() {
                    let (from, label) =
                        (x.borrow(*index).unwrap_or_default(), y.borrow(*index).unwrap_or_default());
                    if convert {
                        let to = floats.iter_mut().skip(place * ROW);
                        to.zip(from).for_each(|(to, from)| *to = f32::from(*from) / 255.0);
                    } else if let Some(to) = rows.get_mut(place * ROW..(place + 1) * ROW) {
                        to.copy_from_slice(from);
                    }
                    if let Some(to) = labels.get_mut(place * 8..(place + 1) * 8) {
                        to.copy_from_slice(label);
                    }
                }
                black_box((&mut rows, &mut floats, &mut labels));
            }
            spent = processor_time().saturating_sub(started);
        }
        Ok(spent)
    }

    fn feed(&self, workers: usize, dtype: DType) -> Result<Duration> {
        let config = FeedConfig::builder()
            .cpu_memory_limit(Bytes::mib(64))
            .total_sample_count(self.count)
            .input(SHAPE, dtype)
            .output([1], DType::I64)
            .preferred_batch_size(BATCH as u64)
            .build()?;
        let (x, y) = self.rows()?;
        let mut builder =
            Feeder::builder(&config).inputs(x).outputs(y).workers(workers).shuffle(Shuffle::Full, 1);
        if dtype == DType::F32 {
            builder = builder.convert_input(Convert::UNIT);
        }
        let feeder = builder.build()?;
        let mut spent = Duration::ZERO;
        let mut samples = 0;
        for epoch in feeder.generate_epochs(2)? {
            let started = processor_time();
            for batch in epoch {
                samples += black_box(batch?).samples as u64;
            }
            spent = processor_time().saturating_sub(started);
        }
        if samples != 2 * self.count {
            return Err(format!("{samples} samples instead of {}", 2 * self.count).into());
        }
        Ok(spent)
    }

    /// The peer reports its own processor time, its workers' included.
    fn torch(&self, python: &Path, workers: usize) -> Result<Duration> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/feed.py");
        let mut command = Command::new(python);
        command.arg(script).arg(&self.x).arg(&self.y).arg(self.count.to_string()).arg(workers.to_string());
        let output = command.output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        let text = String::from_utf8(output.stdout)?;
        let seconds: f64 = text.lines().last().unwrap_or_default().trim().parse()?;
        Ok(Duration::from_secs_f64(seconds))
    }
}

/// The processor time that this process has taken so far, all threads together.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer, which the call only writes.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanoseconds)
}
