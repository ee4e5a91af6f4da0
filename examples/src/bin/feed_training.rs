//! Training on a data set of several times the memory: a small classifier, fed within a budget.
//!
//! The program writes 40,000 images of 24 × 24 bytes to disk (22 MiB) and trains on them with 4 MiB of memory for data. A [`FeedConfig`] tells how
//! large a batch may be, so that the network fits its own limit too; the feeder reads ahead on two threads, shuffles all images in every epoch, and
//! makes floats of bytes where they land: in the storage of candle's tensors. Loss and memory are drawn as `loss.png` and `memory.png`, in a folder
//! beside the program.

use std::fs;
use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Module, Optimizer, SGD, Sequential, VarBuilder, VarMap, linear, loss, seq};
use dd_examples::{Result, check};
use deep_dimensions::candle::CandleBackend;
use deep_dimensions::core::{self, Budget, Bytes, TensorDesc, Tier};
use deep_dimensions::feed::{
    self, Convert, FeedConfig, Feeder, MappedRows, Network, NetworkCounts, Shuffle, sample_seed,
};
use deep_dimensions::monitor::Timeline;
use deep_dimensions::monitor::timeline::{Point, plot_curves};

const SIDE: usize = 24;
const PIXELS: usize = SIDE * SIDE;
const CLASSES: usize = 10;
const HIDDEN: usize = 64;
const IMAGES: u64 = 40_000;
/// Not trained on.
const HELD_BACK: u64 = 1_000;
const EPOCHS: u64 = 2;
const DATA_LIMIT: Bytes = Bytes::mib(4);
/// What network, gradients and one batch may take: a device's memory, if this were one.
const NETWORK_LIMIT: Bytes = Bytes::mib(1);

fn main() -> Result {
    let folder = tempfile::tempdir()?;
    let data = generate(folder.path())?;
    println!("data set {data}, memory for data {DATA_LIMIT}");
    check(data.0 >= 5 * DATA_LIMIT.0, "the data set is several times larger than the memory for it")?;

    let budget = Budget::new("training", DATA_LIMIT);
    let feeder = feeder(folder.path(), &budget)?;
    println!("{}\n", feeder.plan());

    let variables = VarMap::new();
    let model = model(VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu))?;
    let mut optimizer = SGD::new(variables.all_vars(), 0.1)?;
    let mut timeline = Timeline::new("Memory for data while training").with_budget(DATA_LIMIT);
    let (start, mut losses) = (Instant::now(), Vec::new());
    for epoch in feeder.generate_epochs(EPOCHS)? {
        timeline.mark(start.elapsed(), format!("epoch {} begins", epoch.number() + 1));
        for batch in epoch {
            let (images, labels) = batch?.into_pair();
            let loss = loss::cross_entropy(&model.forward(&images)?, &labels)?;
            optimizer.backward_step(&loss)?;
            losses.push(f64::from(loss.to_scalar::<f32>()?));
            timeline
                .record(start.elapsed(), Point::new().usage(&budget.usage()).line("data set on disk", data));
        }
    }
    let stats = feeder.stats();
    println!(
        "{} batches, {} samples; waited {:.2?} for data of {:.2?}",
        stats.batches,
        stats.samples,
        stats.wait,
        start.elapsed()
    );
    check(stats.samples == EPOCHS * IMAGES, "every image came once per epoch")?;
    check(budget.usage().peak <= DATA_LIMIT, "the budget was kept")?;

    let accuracy = accuracy(&model)?;
    println!("accuracy on {HELD_BACK} images that were held back: {:.1} %", 100.0 * accuracy);
    check(accuracy > 0.8, "the classifier has learned")?;
    draw(&losses, &timeline)
}

/// The feeder, and by its plan the batch size.
fn feeder(folder: &Path, budget: &Budget) -> Result<Feeder<CandleBackend>> {
    let parameters = (PIXELS + 1) * HIDDEN + (HIDDEN + 1) * CLASSES;
    let config = FeedConfig::builder()
        .cpu_memory_limit(DATA_LIMIT)
        .gpu_memory_limit(NETWORK_LIMIT)
        .total_sample_count(IMAGES)
        .input([PIXELS], core::DType::F32)
        .output([], core::DType::U32)
        .network(Network::Counts(NetworkCounts {
            parameters: parameters as u64,
            intermediates: (2 * HIDDEN + CLASSES) as u64,
            dtype: core::DType::F32,
            training: Some(feed::Optimizer::Sgd),
        }))
        .preferred_batch_size(256)
        .build()?;
    let rows = |name, shape: &[usize], dtype| -> Result<MappedRows> {
        Ok(MappedRows::records(folder.join(name), TensorDesc::new(shape, dtype)?, 0)?)
    };
    let feeder = Feeder::builder(&config)
        .budget(budget)
        .inputs(rows("images", &[PIXELS], core::DType::U8)?)
        .outputs(rows("labels", &[], core::DType::U32)?)
        .convert_input(Convert::UNIT)
        .shuffle(Shuffle::Full, 7)
        .build_on(CandleBackend::new(core::Device::Cpu)?, Tier::Host)?;
    Ok(feeder)
}

fn model(vb: VarBuilder<'static>) -> candle_core::Result<Sequential> {
    let hidden = linear(PIXELS, HIDDEN, vb.pp("hidden"))?;
    Ok(seq().add(hidden).add(|x: &Tensor| x.relu()).add(linear(HIDDEN, CLASSES, vb.pp("classes"))?))
}

/// Writes images and labels; says how many bytes.
fn generate(folder: &Path) -> Result<Bytes> {
    let images: Vec<u8> = (0..IMAGES).flat_map(image).collect();
    let labels: Vec<u8> = (0..IMAGES).flat_map(|n| label(n).to_le_bytes()).collect();
    fs::write(folder.join("images"), &images)?;
    fs::write(folder.join("labels"), &labels)?;
    Ok(Bytes::of(images.len() + labels.len()))
}

/// The classes come one after the other, as in many data sets: without shuffling, a batch would see one alone.
fn label(n: u64) -> u32 {
    u32::try_from(n % IMAGES * CLASSES as u64 / IMAGES).unwrap_or(0)
}

/// Noise, and a bright square: where it is says the class, give or take two pixels.
fn image(n: u64) -> impl Iterator<Item = u8> {
    let chance = |what: u64, below: u64| sample_seed(1, what, n, 0) % below;
    let class = u64::from(label(n));
    let (left, top) = (1 + class % 4 * 5 + chance(0, 3), 1 + class / 4 * 7 + chance(1, 3));
    let bright = u8::try_from(60 + chance(2, 60)).unwrap_or(0);
    (0..PIXELS as u64).map(move |pixel| {
        let (x, y) = (pixel % SIDE as u64, pixel / SIDE as u64);
        let inside = (left..left + 5).contains(&x) && (top..top + 5).contains(&y);
        let noise = sample_seed(2, pixel, n, 0).to_le_bytes().first().map_or(0, |byte| byte / 2);
        noise.saturating_add(if inside { bright } else { 0 })
    })
}

/// The share of images that the model has never seen and puts where they belong.
fn accuracy(model: &Sequential) -> Result<f64> {
    // Numbers past the end give other noise and other places; classes go round.
    let numbers: Vec<u64> = (0..HELD_BACK).map(|n| IMAGES + n * IMAGES / HELD_BACK).collect();
    let pixels: Vec<f32> =
        numbers.iter().flat_map(|n| image(*n)).map(|byte| f32::from(byte) / 255.0).collect();
    let labels: Vec<u32> = numbers.iter().map(|n| label(*n)).collect();
    let found = model.forward(&Tensor::from_vec(pixels, (numbers.len(), PIXELS), &Device::Cpu)?)?;
    let found = found.argmax(1)?.to_vec1::<u32>()?;
    let right = found.iter().zip(&labels).filter(|(found, label)| found == label).count();
    Ok(right as f64 / HELD_BACK as f64)
}

/// The pictures, in a folder beside the program.
fn draw(losses: &[f64], timeline: &Timeline) -> Result {
    let program = std::env::current_exe()?;
    let folder = program.with_file_name("feed_training_pictures");
    fs::create_dir_all(&folder)?;
    let points: Vec<(f64, f64)> = losses.iter().enumerate().map(|(n, loss)| (n as f64, *loss)).collect();
    let mean = |n: usize| losses.iter().take(n + 1).skip((n + 1).saturating_sub(10));
    let smooth: Vec<(f64, f64)> =
        (0..losses.len()).map(|n| (n as f64, mean(n).sum::<f64>() / mean(n).count() as f64)).collect();
    let curves = [("each batch", points.as_slice()), ("mean of ten", smooth.as_slice())];
    plot_curves(folder.join("loss.png"), "Training loss", ("batch", "cross entropy"), &curves)?;
    timeline.plot(folder.join("memory.png"))?;
    println!("pictures in {}", folder.display());
    Ok(())
}
