//! The demo's tensors: heights, the heights blurred, and a relief of those. Each is endless in both directions.

use std::ops::Range;
use std::sync::Arc;

use deep_dimensions::core::{Backend as _, Budget, Bytes, DType, HostBackend, HostTensor, TensorDesc, Tier};
use deep_dimensions::infinite::zarr::ZarrTileStore;
use deep_dimensions::infinite::{
    Context, Engine, FunctionError, InfiniteTensor, Slice, TensorSpec, TensorWindow, TileStore, Tiles,
};

use super::render::Layer;
use super::terrain::{self, BLUR, SLOPE};
use crate::error::Result;

/// The side of a window.
pub const WINDOW: usize = 128;

/// What the functions compute: a store remembers it, so that windows of other functions are not mixed up with these.
const VERSION: &str = "terrain 1";

/// The three tensors, and the store behind them if there is one.
pub struct Layers {
    tiles: Tiles<HostBackend>,
    heights: InfiniteTensor<HostBackend>,
    blurred: InfiniteTensor<HostBackend>,
    shaded: InfiniteTensor<HostBackend>,
    store: Option<Arc<ZarrTileStore>>,
}

impl Layers {
    /// The tensors of a seed, within this budget.
    ///
    /// # Errors
    /// A store that cannot be used; threads that cannot be started.
    pub fn new(budget: &Budget, seed: u64, threads: usize, store: Option<ZarrTileStore>) -> Result<Self> {
        let engine = Engine::new(HostBackend::default(), threads)?;
        let store = store.map(Arc::new);
        let tiles = match &store {
            None => Tiles::in_memory(&engine, budget.clone()),
            Some(store) => {
                Tiles::with_store(&engine, budget.clone(), Arc::clone(store) as Arc<dyn TileStore>)
            }
        };
        let side = WINDOW.cast_signed() as i64;
        let plane = |size: [i64; 2], name: &str| -> Result<TensorSpec<HostBackend>> {
            let spec = TensorSpec::new(format!("{name}-{seed}"), [None, None], TensorWindow::new(size)?);
            Ok(spec.version(VERSION).seed(seed).workspace(workspace(3)))
        };
        let around = |reach: usize| -> Result<TensorWindow> {
            let reach = reach.cast_signed() as i64;
            let size = side + 2 * reach;
            Ok(TensorWindow::new([size, size])?.with_stride([side, side])?.with_offset([-reach, -reach])?)
        };
        let heights = tiles.get_or_create(plane([side, side], "heights")?, move |at, _| heights(seed, at))?;
        let spec = plane([side, side], "blurred")?.arg(&heights, around(BLUR)?);
        let blurred = tiles.get_or_create(spec, blurred)?;
        let window = TensorWindow::new([side, side, 3])?.with_dimension_map([Some(0), Some(1), None])?;
        let spec = TensorSpec::new(format!("shaded-{seed}"), [None, None, Some(3)], window);
        let spec = spec.dtype(DType::U8).version(VERSION).seed(seed).workspace(workspace(2));
        let shaded = tiles.get_or_create(spec.arg(&blurred, around(SLOPE)?), shaded)?;
        Ok(Self { tiles, heights, blurred, shaded, store })
    }

    /// Reads a rectangle of a layer: `f32` heights, or red, green and blue of the relief.
    ///
    /// # Errors
    /// Memory that does not do; a store that fails.
    pub fn read(&self, layer: Layer, rows: Range<i64>, columns: Range<i64>, out: &mut [u8]) -> Result<()> {
        let area: [Slice; 2] = [rows.into(), columns.into()];
        match layer {
            Layer::Heights => self.heights.read_into(&area, out)?,
            Layer::Blurred => self.blurred.read_into(&area, out)?,
            Layer::Shaded => self.shaded.read_into(&[&area[..], &[Slice::Ellipsis]].concat(), out)?,
        }
        Ok(())
    }

    /// Windows computed so far, of all layers.
    #[must_use]
    pub fn computed(&self) -> u64 {
        self.tiles.usage().computed.values().sum()
    }

    /// Windows of these tensors that the store holds, if there is one.
    ///
    /// # Errors
    /// A store that cannot be read.
    pub fn stored(&self) -> Result<Option<u64>> {
        let Some(store) = &self.store else { return Ok(None) };
        let mut count = 0;
        for tensor in [&self.heights, &self.blurred, &self.shaded] {
            store.for_each_window(tensor.id(), &mut |_| {
                count += 1;
                true
            })?;
        }
        Ok(Some(count))
    }

    /// Returns when all windows are on the disk.
    ///
    /// # Errors
    /// A disk that fails.
    pub fn sync(&self) -> Result<()> {
        Ok(self.store.as_ref().map_or(Ok(()), |store| store.sync())?)
    }
}

/// So many windows of floats, a little wider than they are: what a function holds beside what it was given and gives.
fn workspace(windows: u64) -> Bytes {
    let wide = WINDOW + 2 * BLUR;
    let rows = terrain::blur_memory(WINDOW, WINDOW);
    Bytes::of(wide * wide * size_of::<f32>()).checked_mul(windows).unwrap_or(Bytes::MAX) + Bytes(rows)
}

/// First row, first column, number of rows and of columns of the window that is asked for.
fn frame(at: &Context) -> Result<(i64, i64, usize, usize), FunctionError> {
    let [rows, columns, ..] = at.region().spans() else { return Err("a window of two dimensions".into()) };
    let (height, width) = (usize::try_from(rows.len())?, usize::try_from(columns.len())?);
    Ok((rows.start(), columns.start(), height, width))
}

fn heights(seed: u64, at: &Context) -> Result<HostTensor, FunctionError> {
    let (top, left, height, width) = frame(at)?;
    let mut out = vec![0.0; height * width];
    terrain::heights(seed, top, left, width, &mut out);
    upload(height, width, &out)
}

fn blurred(at: &Context, args: &[HostTensor]) -> Result<HostTensor, FunctionError> {
    let (_, _, height, width) = frame(at)?;
    let mut out = vec![0.0; height * width];
    terrain::blur(&floats(args), width, &mut out);
    upload(height, width, &out)
}

fn shaded(at: &Context, args: &[HostTensor]) -> Result<HostTensor, FunctionError> {
    let (_, _, height, width) = frame(at)?;
    let mut out = vec![0; height * width * 3];
    terrain::shade(&floats(args), width, &mut out);
    Ok(HostBackend::default().upload(&TensorDesc::new([height, width, 3], DType::U8)?, &out, Tier::Host)?)
}

fn floats(args: &[HostTensor]) -> Vec<f32> {
    let bytes = args.first().map(HostTensor::bytes).unwrap_or_default();
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn upload(height: usize, width: usize, values: &[f32]) -> Result<HostTensor, FunctionError> {
    let mut bytes = Vec::with_capacity(size_of_val(values));
    values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    Ok(HostBackend::default().upload(&TensorDesc::new([height, width], DType::F32)?, &bytes, Tier::Host)?)
}
