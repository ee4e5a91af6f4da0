//! Infinite tensors: windows, dependency planning, tile stores; planned, parallel, exactly bounded.

pub mod error;
mod primitive;
pub mod store;

pub use error::{Error, Result};
pub use store::{Manifest, MemoryTileStore, TileStore};
