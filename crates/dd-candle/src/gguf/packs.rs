//! Which allocations candle makes at the first product with a quantised tensor: repacked copies of its weights.
//!
//! candle keeps, beside each quantised tensor, copies of its blocks in the order in which its kernels read them; they are
//! made on the first product, in memory of their own, and stay for the tensor's life. No switch turns them off, and a run
//! without them would not be bit-identical to one with them. So they are captured by their exact layout, which follows
//! from the tensor's shape and type (candle-core 0.11, `quantized/repack.rs` and `repack_x86.rs`):
//!
//! | processor | type | rows, values per tile | bytes per tile | against the file |
//! |---|---|---|---|---|
//! | x86-64 | Q4_K | 16 × 256 | 3072 | 1.33 |
//! | x86-64 with AMX, blocks of 32 rows and more | Q4_K | 16 × 256 | 5120 | 2.22, beside the other |
//! | x86-64, blocks of more than one row | Q6_K | 16 × 256 | 5120 | 1.52 |
//! | x86-64 | Q8_0 | 16 × 32 | 544 | 1.00 |
//! | aarch64 | Q4_0, Q8_0 | 4 × 32 | 72, 136 | 1.00 |
//! | aarch64 | Q4_K, Q5_K, Q6_K | 8 × 256 | 1152, 1408, 1680 | 1.00 |
//!
//! The original blocks are read once more for each copy and then no longer, so a paged run reads the copies only.

use std::alloc::Layout;
use std::collections::BTreeMap;

use candle_core::quantized::GgmlDType;

use super::header::{Header, TensorEntry};

/// A tile: rows, values of a row, bytes, alignment.
type Tile = (u64, u64, u64, usize);

/// How often each layout is expected: once per tensor that has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Packs(BTreeMap<(usize, usize), usize>);

impl Packs {
    /// The copies that candle may make of a file's tensors on this processor.
    pub(crate) fn of(header: &Header) -> Self {
        let mut packs = Self::default();
        for layout in header.tensors.iter().flat_map(layouts) {
            *packs.0.entry((layout.size(), layout.align())).or_default() += 1;
        }
        packs
    }

    /// Whether one of them has that layout.
    pub(crate) fn expects(&self, layout: Layout) -> bool {
        self.0.contains_key(&(layout.size(), layout.align()))
    }

    /// Bytes of all of them.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(|((size, _), count)| (*size as u64).saturating_mul(*count as u64)).sum()
    }
}

fn layouts(tensor: &TensorEntry) -> Vec<Layout> {
    let Some((width, outer)) = tensor.dims.split_last() else { return Vec::new() };
    let rows = outer.iter().product::<u64>(); // The header has checked the product.
    let layout = |&(tile_rows, tile_width, bytes, align): &Tile| {
        let whole = rows.is_multiple_of(tile_rows) && width.is_multiple_of(tile_width);
        let tiles = (rows / tile_rows).checked_mul(width / tile_width).filter(|tiles| whole && *tiles > 0)?;
        let size = usize::try_from(tiles.checked_mul(bytes)?).ok()?;
        Layout::from_size_align(size, align).ok()
    };
    tiles(tensor.dtype).iter().filter_map(layout).collect()
}

#[cfg(target_arch = "x86_64")]
const fn tiles(dtype: GgmlDType) -> &'static [Tile] {
    match dtype {
        GgmlDType::Q4K => &[(16, 256, 3072, 4), (16, 256, 5120, 4)],
        GgmlDType::Q6K => &[(16, 256, 5120, 4)],
        GgmlDType::Q8_0 => &[(16, 32, 544, 2)],
        _ => &[],
    }
}

#[cfg(target_arch = "aarch64")]
const fn tiles(dtype: GgmlDType) -> &'static [Tile] {
    match dtype {
        GgmlDType::Q4_0 => &[(4, 32, 72, 2)],
        GgmlDType::Q8_0 => &[(4, 32, 136, 2)],
        GgmlDType::Q4K => &[(8, 256, 1152, 2)],
        GgmlDType::Q5K => &[(8, 256, 1408, 2)],
        GgmlDType::Q6K => &[(8, 256, 1680, 2)],
        _ => &[],
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const fn tiles(_: GgmlDType) -> &'static [Tile] {
    &[]
}
