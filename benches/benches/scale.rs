//! What it costs to choose sizes that fit: four dimensions, (64, 3, 2048, 2048) F32 into 96 MiB.
//!
//! | contestant | what one turn is: [`CALLS`] calls |
//! |---|---|
//! | `linear`, `exponential` | `Scaler::fit` with γ = 1 and γ = ½ |
//! | `frozen` | linear, the channels kept and the picture in multiples of 8 |
//! | `nothing` | what fits as it is |
//! | `any_cost` | linear through `ScalingStrategy::plan`, which knows the cost only by asking |
//! | `estimate` | control: the wished sizes checked and multiplied |
//! | `deep-dimensions 0.2.4` | the peer's calculation of the same, by the Python that `DD_BENCH_PEERS` names (`cargo xtask bench scale --peers`), or else `python3`; left out where that cannot import it |
//!
//! Then a million random wishes are scaled and what must hold for each is checked: the target, the bounds, the steps, that
//! no dimension can grow.
//!
//! How to read it: nanoseconds per call. `linear` and `exponential` should be at most 1000.

use std::cell::RefCell;
use std::hint::black_box;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use dd_benches::Result;
use dd_benches::rounds::{Contestant, Rounds};
use dd_benches::settings::Settings;
use deep_dimensions::core::{Bytes, DType, Dim, ScalingStrategy};
use deep_dimensions::scale::cost::TensorCost;
use deep_dimensions::scale::{PowerLaw, Scaler, ScalingConfig, ScalingConfigBuilder, Strategy, fit};

/// Calls per turn.
const CALLS: u32 = 1000;
/// Random wishes that are checked.
const WISHES: u32 = 1_000_000;
const DIMS: [usize; 4] = [64, 3, 2048, 2048];
/// The peer's two strategies.
const PEERS: [(&str, &str); 2] =
    [("deep-dimensions 0.2.4 linear", "linear"), ("deep-dimensions 0.2.4 exponential", "exponential")];
const TARGET: Bytes = Bytes::mib(96);

fn main() -> Result<()> {
    let settings = Settings::read(env!("CARGO_TARGET_TMPDIR"))?;
    let mut criterion = settings.criterion();
    let rounds = if settings.quick { 1 } else { settings.rounds };
    let scaler = |config: ScalingConfigBuilder| config.build().map(Scaler::new);
    let linear = scaler(whole())?;
    let exponential = scaler(whole().strategy(Strategy::Exponential))?;
    let frozen = scaler(whole().frozen([1]).steps(vec![1, 1, 8, 8]))?;
    let dims = DIMS.map(Dim::scalable);
    for scaler in [&linear, &exponential, &frozen] {
        println!("{:?}", scaler.fit(&DIMS, DType::F32, TARGET)?.dims);
    }
    let fit = |scaler: &Scaler, target| timed(|| Ok(scaler.fit(black_box(&DIMS), DType::F32, target)?));
    let peer = RefCell::new(Peer::start());
    let mut contestants = vec![
        Contestant::new("linear", || fit(&linear, TARGET)),
        Contestant::new("exponential", || fit(&exponential, TARGET)),
        Contestant::new("frozen", || fit(&frozen, TARGET)),
        Contestant::new("nothing", || fit(&linear, Bytes::gib(8))),
        Contestant::new("any_cost", || {
            timed(|| Ok(PowerLaw::LINEAR.plan(black_box(&dims), &TensorCost(DType::F32), TARGET)?))
        }),
        Contestant::new("estimate", || timed(|| Ok(fit::estimate(black_box(&DIMS), DType::F32)?))),
    ];
    let mut names = vec!["linear", "exponential", "frozen", "nothing", "any_cost", "estimate"];
    if peer.borrow().is_some() {
        for (name, strategy) in PEERS {
            names.push(name);
            contestants.push(Contestant::new(name, {
                let peer = &peer;
                move || ask(peer, strategy)
            }));
        }
    }
    let rounds = Rounds::run(rounds, &mut contestants)?;
    rounds.report(&mut criterion, "scale_four_dimensions", |_| None);
    for name in names {
        println!("{name}: {:.0} ns per call", rounds.median(name) * 1e9 / f64::from(CALLS));
    }
    drop(contestants);
    let wishes = if settings.quick { 1000 } else { WISHES };
    let started = Instant::now();
    let fitted = check_random_wishes(wishes)?;
    println!(
        "{wishes} random wishes, {fitted} of which fit: all as they must be, in {:.1?}",
        started.elapsed()
    );
    criterion.final_summary();
    Ok(())
}

fn ask(peer: &RefCell<Option<Peer>>, strategy: &str) -> Result<Duration> {
    peer.borrow_mut().as_mut().ok_or("the peer has gone")?.ask(strategy)
}

fn whole() -> ScalingConfigBuilder {
    ScalingConfig::builder().memory_threshold(1.0).safety_margin(0.0)
}

fn timed<T>(mut work: impl FnMut() -> Result<T>) -> Result<Duration> {
    let started = Instant::now();
    for _ in 0..CALLS {
        black_box(work()?);
    }
    Ok(started.elapsed())
}

/// The peer, in a process of its own that calculates when it is asked.
struct Peer {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts it; says why where it cannot be.
    fn start() -> Option<Self> {
        let python = std::env::var_os("DD_BENCH_PEERS").unwrap_or_else(|| "python3".into());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/scale.py");
        let mut command = Command::new(&python);
        command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().ok()?;
        let (stdin, stdout) = (child.stdin.take()?, child.stdout.take()?);
        let mut peer = Self { child, stdin, stdout: BufReader::new(stdout) };
        let lines: Vec<String> = (0..2).filter_map(|_| peer.line().ok()).collect();
        if lines.iter().any(String::is_empty) || lines.len() < 2 {
            println!("left out: {} cannot import deep-dimensions 0.2.4", python.display());
            return None;
        }
        lines.iter().for_each(|line| println!("deep-dimensions 0.2.4: {line} of the target"));
        Some(peer)
    }

    fn ask(&mut self, strategy: &str) -> Result<Duration> {
        writeln!(self.stdin, "{strategy} {CALLS}")?;
        Ok(Duration::from_nanos(self.line()?.parse()?))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// A small generator (an LCG): the same wishes in every run.
struct Random(u64);

impl Random {
    fn within(&mut self, low: usize, high: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        low + usize::try_from(self.0 >> 33).unwrap_or(0) % (high - low + 1)
    }
}

/// Scales random wishes; says how many fit, and which is not as it must be.
fn check_random_wishes(wishes: u32) -> Result<u32> {
    let mut random = Random(1);
    let mut fitted = 0;
    for _ in 0..wishes {
        let rank = random.within(1, 5);
        let most = [1 << 28, 1 << 15, 1 << 11, 500, 100].get(rank - 1).copied().unwrap_or(1);
        let dims: Vec<usize> = (0..rank).map(|_| random.within(1, most)).collect();
        let steps: Vec<usize> =
            dims.iter().map(|_| if random.within(0, 3) == 0 { random.within(1, 8) } else { 1 }).collect();
        let min: Vec<usize> = dims.iter().map(|dim| random.within(1, dim.div_ceil(4))).collect();
        let frozen: Vec<usize> = (0..rank).filter(|_| random.within(0, 6) == 0).collect();
        let gamma = random.within(0, 8) as f64 / 4.0;
        let config = whole()
            .strategy(Strategy::Power(PowerLaw::new(gamma)?))
            .min_dimensions(min.clone())
            .steps(steps.clone())
            .frozen(frozen.clone());
        let target = Bytes(1 << random.within(6, 30)) + Bytes::of(random.within(0, 1 << 16));
        match Scaler::new(config.build()?).fit(&dims, DType::F32, target) {
            Err(error) if error.is_out_of_memory() => {}
            Err(error) => return Err(error.into()),
            Ok(result) => {
                fitted += 1;
                let bytes = |sizes: &[usize]| fit::estimate(sizes, DType::F32).unwrap_or(Bytes::MAX);
                let mut good = bytes(&result.dims) <= target;
                let rows = result.dims.iter().zip(&dims).zip(min.iter().zip(&steps)).enumerate();
                for (index, ((size, wished), (min, step))) in rows {
                    if frozen.contains(&index) {
                        good &= size == wished;
                        continue;
                    }
                    good &= size >= min && size.is_multiple_of(*step);
                    let mut grown = result.dims.clone();
                    grown.iter_mut().skip(index).take(1).for_each(|size| *size += step);
                    good &= size + step > *wished || bytes(&grown) > target;
                }
                if !good {
                    return Err(format!("{dims:?} γ {gamma} min {min:?} steps {steps:?}: {result:?}").into());
                }
            }
        }
    }
    Ok(fitted)
}
