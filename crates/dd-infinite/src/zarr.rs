//! Tile stores in the format [Zarr v3](https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html): windows that outlive
//! the program, and that other programs can read.
//!
//! [`ZarrTileStore`] keeps them in a folder ([`ZarrTileStore::open`]) or, with the feature `object-store`, in anything that
//! the crate `object_store` speaks to. The two hold the same objects under the same names.
//!
//! # The scheme, for whoever reads a store with another program
//!
//! - The store is a Zarr group. Each tensor is one array in it, named after the tensor's id: letters, digits, `-`, `_` and `.`
//!   stand for themselves, every other byte (and a `.` or `_` in front, and that of `zarr.json`) is `=` and two upper-case hexadecimal digits; an id
//!   that becomes longer than 120 characters is its first 80, `=h`, and its XXH3 hash of 128 bits.
//! - The array holds *windows side by side, not the blended tensor*: where a window's index has `k` coordinates and its output
//!   `r` dimensions, the array has `k + r` dimensions, and `array[z(i₁), …, z(iₖ)]` is the output of window `(i₁, …, iₖ)`.
//!   Zarr has no negative positions, so `z(i) = 2·i` for `i ≥ 0` and `−2·i − 1` below: 0, −1, 1, −2, 2, … become 0, 1, 2, 3, 4.
//!   The first `k` dimensions are declared 2⁵² long. A chunk is one window.
//! - Indices from ±2⁵¹ on are in a second array beside the first, of the same name with `=far` behind it, in which each
//!   coordinate takes two dimensions of 2³² each: `z(i) >> 32` and `z(i) & 0xffff_ffff`. It is there only where such windows
//!   are.
//! - Element types that zarr-python has no name for are stored as unsigned integers of the same width: `BF16` as `uint16`,
//!   8-bit floats as `uint8`; packed and block-quantised types as rows of `uint8`. The attribute `deep_dimensions.dtype` says
//!   what they mean.
//! - Chunks are compressed with zstd and end with a CRC32C. With [`ZarrOptions::inner`] a chunk is a shard of such inner
//!   chunks, so that part of a window can be read.
//! - A window that was never computed reads as zeros elsewhere: which windows are there is told by which chunks are there
//!   (`c.z(i₁).….z(iₖ).0.….0`).
//!
//! # What is promised
//!
//! A window is written to a file beside the store's folders, flushed to the disk and then renamed: it is there whole or not at
//! all, whenever the program or the machine ends. There is one chunk per window and no chunk is ever rewritten, so nothing can
//! be counted twice and there is nothing to repair. What a program that was killed leaves (one unnamed file per thread at most)
//! is removed when the store is next opened. Several programs may use one store at once; only a tensor that others use must
//! not be removed.
//!
//! A chunk that is not what was written gives [`Error::Corrupt`](crate::Error::Corrupt), a full disk
//! [`Error::Full`](crate::Error::Full); all else stays as it was. Files that are not the store's are never touched.

mod chunk;
mod directory;
mod layout;
mod medium;
mod meta;
#[cfg(feature = "object-store")]
mod object;
mod options;
mod store;
mod summary;

pub use options::{Flush, ZarrOptions};
pub use store::ZarrTileStore;
pub use summary::{StoreSummary, TensorSummary};
