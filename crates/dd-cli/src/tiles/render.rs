//! `deepdim tiles render`: a region of an endless terrain as a PNG, row by row, in as little memory as is allowed.

use std::io::{BufWriter, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use clap::{Args as ClapArgs, ValueEnum};
use deep_dimensions::core::{Budget, Bytes, Holder};
use deep_dimensions::infinite::zarr::{Flush, ZarrOptions, ZarrTileStore};
use indicatif::{ProgressBar, ProgressStyle};
use png::{BitDepth, ColorType, Encoder};
use serde::Serialize;
use tempfile::NamedTempFile;

use super::layers::{Layers, WINDOW};
use super::terrain;
use crate::error::{CliError, Result};
use crate::report::{align, table};

/// The largest side of a picture, in pixels.
const MOST: i64 = 1 << 20;

/// Which of the demo's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// Heights, as noise of six octaves.
    Heights,
    /// The heights, blurred.
    Blurred,
    /// A relief of the blurred heights in colour, lit from the north-west.
    Shaded,
}

/// `deepdim tiles render`.
#[derive(Clone, Debug, ClapArgs)]
pub struct RenderArgs {
    /// The picture to write, a PNG.
    #[arg(value_name = "FILE.png")]
    pub out: PathBuf,
    /// Rows and columns, each as first:end; negative ones are as good as any.
    #[arg(long, value_name = "ROWS,COLUMNS", default_value = "0:512,0:512", allow_hyphen_values = true)]
    pub region: Area,
    /// What to draw.
    #[arg(long, value_enum, default_value = "shaded")]
    pub layer: Layer,
    /// Windows, buffers and the picture's rows together, for example 16MiB.
    #[arg(long, default_value = "64MiB")]
    pub memory: Bytes,
    /// Which terrain: the same seed draws the same one.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Keep the windows in this folder (Zarr v3), and take from it those that are there.
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// How many threads compute; as many as there are processors unless given.
    #[arg(long)]
    pub threads: Option<usize>,
}

/// A rectangle of pixels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Area {
    /// First row and the one past the last.
    pub rows: Range<i64>,
    /// First column and the one past the last.
    pub columns: Range<i64>,
}

impl FromStr for Area {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rows, columns) = text.split_once(',').ok_or("give rows and columns, as 0:512,0:512")?;
        Ok(Self { rows: range(rows)?, columns: range(columns)? })
    }
}

fn range(text: &str) -> Result<Range<i64>, String> {
    let (first, end) = text.split_once(':').ok_or_else(|| format!("{text:?} is no range such as -64:448"))?;
    let number = |text: &str| text.trim().parse::<i64>().map_err(|error| format!("{text:?}: {error}"));
    let (first, end) = (number(first)?, number(end)?);
    match end.checked_sub(first) {
        Some(1..=MOST) => Ok(first..end),
        _ => Err(format!("{first}:{end} is no range of 1 to {MOST} pixels")),
    }
}

/// What was drawn; `--json` prints it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RenderReport {
    /// The picture.
    pub out: PathBuf,
    /// What it shows.
    pub layer: Layer,
    /// Which part of it.
    pub region: Area,
    /// Windows that were computed, of all layers.
    pub computed: u64,
    /// Windows that the store now holds of them, if there is one.
    pub stored: Option<u64>,
    /// What `--memory` allowed.
    pub limit: Bytes,
    /// The most that was accounted at once.
    pub accounted_peak: Bytes,
    /// How long it took.
    pub seconds: f64,
}

/// Runs the command.
///
/// # Errors
/// [`CliError::CannotFit`] where the memory does not do, with the least that would; [`CliError::Io`] for a picture or a store
/// that cannot be written.
pub fn render(args: &RenderArgs) -> Result<RenderReport> {
    let start = Instant::now();
    let budget = Budget::new("tiles", args.memory);
    let options = ZarrOptions { flush: Flush::OnSync, ..ZarrOptions::default() };
    let store = args.store.as_ref().map(|place| ZarrTileStore::open(place, options)).transpose()?;
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));
    let layers = Layers::new(&budget, args.seed, threads.clamp(1, 256), store)?;
    let folder = args.out.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let failed = |error| CliError::io("write", &args.out, error);
    let file = NamedTempFile::new_in(folder).map_err(failed)?;
    draw(&layers, args, &budget, &file)?;
    layers.sync()?;
    file.persist(&args.out).map_err(|error| failed(error.error))?;
    Ok(RenderReport {
        out: args.out.clone(),
        layer: args.layer,
        region: args.region.clone(),
        computed: layers.computed(),
        stored: layers.stored()?,
        limit: args.memory,
        accounted_peak: budget.usage().peak,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Reads bands of rows as high as the memory allows, and writes each before the next.
fn draw(layers: &Layers, args: &RenderArgs, budget: &Budget, file: &NamedTempFile) -> Result<()> {
    let failed = |error: png::EncodingError| CliError::io("write", &args.out, std::io::Error::other(error));
    let Area { rows, columns } = &args.region;
    let (height, width) = (length(rows), length(columns));
    let (element, color) = match args.layer {
        Layer::Shaded => (3, ColorType::Rgb),
        Layer::Heights | Layer::Blurred => (size_of::<f32>(), ColorType::Grayscale),
    };
    let band = band(args.memory, width as usize * element);
    let buffer =
        budget.reserve(Bytes::of(width as usize * element * band), &Holder::new("rows of the picture"))?;
    let mut pixels = vec![0; width as usize * element * band];
    let target = file.as_file().try_clone().map_err(|error| CliError::io("write", &args.out, error))?;
    let mut encoder = Encoder::new(BufWriter::new(target), width, height);
    encoder.set_color(color);
    encoder.set_depth(BitDepth::Eight);
    let mut stream = encoder.write_header().and_then(png::Writer::into_stream_writer).map_err(failed)?;
    let bar = progress(u64::from(height));
    let mut top = rows.start;
    while top < rows.end {
        // Bands end where windows do, so that none is read twice.
        let step = band.cast_signed() as i64;
        let end = (top.div_euclid(step) + 1).saturating_mul(step).min(rows.end);
        let read = length(&(top..end)) as usize * width as usize * element;
        let read = pixels.get_mut(..read).unwrap_or_default();
        layers.read(args.layer, top..end, columns.clone(), read)?;
        let pixels = if args.layer == Layer::Shaded { &*read } else { gray(read) };
        stream.write_all(pixels).map_err(|error| CliError::io("write", &args.out, error))?;
        bar.inc(u64::from(length(&(top..end))));
        top = end;
    }
    bar.finish_and_clear();
    drop(buffer);
    stream.finish().map_err(failed)
}

/// Heights in 0..=1 to bytes, in place.
fn gray(heights: &mut [u8]) -> &[u8] {
    let count = heights.len() / size_of::<f32>();
    for n in 0..count {
        let place = n * size_of::<f32>();
        let value = heights
            .get(place..)
            .and_then(|rest| rest.first_chunk())
            .map_or(0.0, |bytes| f32::from_le_bytes(*bytes));
        if let Some(out) = heights.get_mut(n) {
            *out = terrain::byte(value * 255.0 + 0.5);
        }
    }
    heights.get(..count).unwrap_or_default()
}

/// How many rows are read at once: a whole number of windows where an eighth of the memory allows it, else fewer, at least one.
fn band(memory: Bytes, row: usize) -> usize {
    let most = usize::try_from(memory.0 / 8 / (row as u64).max(1)).unwrap_or(usize::MAX);
    match most {
        0 => 1,
        few if few < WINDOW => 1 << few.ilog2(), // Divides a window's height.
        many => many.min(4 * WINDOW) / WINDOW * WINDOW,
    }
}

/// The length of a range that was checked: at most [`MOST`].
fn length(range: &Range<i64>) -> u32 {
    u32::try_from(range.end - range.start).unwrap_or(0)
}

fn progress(rows: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("drawing {bar:40} {pos} of {len} rows, {eta} left");
    ProgressBar::new(rows).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// A report as text.
#[must_use]
pub fn render_text(report: &RenderReport) -> String {
    let Area { rows, columns } = &report.region;
    let mut figures = table(["", &report.out.display().to_string()]);
    let mut row = |name: &str, value: String| {
        figures.add_row([name.to_owned(), value]);
    };
    row("rows", format!("{}:{}", rows.start, rows.end));
    row("columns", format!("{}:{}", columns.start, columns.end));
    row("windows computed", report.computed.to_string());
    if let Some(stored) = report.stored {
        row("windows in the store", stored.to_string());
    }
    row("memory limit", report.limit.to_string());
    row("accounted peak", report.accounted_peak.to_string());
    row("seconds", format!("{:.3}", report.seconds));
    align(&mut figures);
    figures.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_read_or_refused() {
        let area = |rows, columns| Some(Area { rows, columns });
        let rows = [
            ("0:512,0:512", area(0..512, 0..512)),
            ("-8:-4,-9223372036854775808:-9223372036854775807", area(-8..-4, i64::MIN..i64::MIN + 1)),
            ("0:512", None),
            ("0:0,0:1", None),
            ("4:3,0:1", None),
            ("0:1,0:1048577", None),
            ("-9223372036854775808:9223372036854775807,0:1", None),
            ("a:1,0:1", None),
        ];
        for (text, expected) in rows {
            assert_eq!(text.parse::<Area>().ok(), expected, "{text}");
        }
    }

    #[test]
    fn bands_divide_windows_or_are_made_of_them() {
        for (memory, row) in [(1, 1), (1 << 10, 512), (1 << 20, 3 << 10), (1 << 24, 3 << 10), (u64::MAX, 3)] {
            let band = band(Bytes(memory), row);
            assert!(band >= 1 && (band.is_multiple_of(WINDOW) || WINDOW.is_multiple_of(band)), "{band}");
        }
    }

    #[test]
    fn heights_become_bytes() {
        let mut heights: Vec<u8> =
            [0.0f32, 0.5, 1.0, 2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(gray(&mut heights), [0, 128, 255, 255]);
    }
}
