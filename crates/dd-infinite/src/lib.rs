//! Infinite tensors: windows, dependency planning, tile stores; planned, parallel, exactly bounded.

pub mod error;
mod primitive;
pub mod store;
#[cfg(feature = "zarr")]
pub mod zarr;

pub use error::{Error, Result};
pub use store::{Manifest, MemoryTileStore, TileStore};
