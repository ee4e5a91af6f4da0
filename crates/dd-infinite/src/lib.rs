//! Infinite tensors: windows, dependency planning, tile stores; planned, parallel, exactly bounded.
//!
//! A tensor whose dimensions may be unbounded is made of windows that a function gives, one at a time, when they are needed.
//! Tensors may be made of each other. Before anything runs, a read is planned: the exact windows of every layer, their last
//! use, the most bytes held at once. What does not fit the budget is done in pieces, or refused with the least that would do.
//!
//! ```
//! use dd_core::{Backend, Budget, Bytes, HostBackend, TensorDesc, DType, Tier};
//! use dd_infinite::{Engine, TensorSpec, TensorWindow, Tiles};
//!
//! let engine = Engine::new(HostBackend::default(), 2)?;
//! let tiles = Tiles::in_memory(&engine, Budget::new("tiles", Bytes::mib(16)));
//! let spec = TensorSpec::new("rows", [None, None], TensorWindow::new([64, 64])?);
//! let rows = tiles.get_or_create(spec, |context, _args| {
//!     let row = context.index()[0] as f32;
//!     let bytes: Vec<u8> = (0..64 * 64).flat_map(|_| row.to_le_bytes()).collect();
//!     Ok(HostBackend::default().upload(&TensorDesc::new([64, 64], DType::F32)?, &bytes, Tier::Host)?)
//! })?;
//! let read = rows.read(&[(-1..1).into(), 1_000_000.into()])?;
//! assert_eq!(read.bytes, [(-1f32).to_le_bytes(), 0f32.to_le_bytes()].concat());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`region`], [`window`], [`slice`](mod@slice) | boxes of coordinates; which box a window's index stands for; regions as users write them |
//! | [`blend`] | how overlapping windows are combined |
//! | [`spec`], [`tiles`], [`tensor`] | [`TensorSpec`], [`Tiles`], [`InfiniteTensor`]: making tensors and reading them |
//! | [`stream`] | regions larger than memory, piece by piece |
//! | [`engine`] | [`Engine`]: threads and the one lock |
//! | [`store`] | [`TileStore`]: who keeps finished windows |
//! | `zarr` | the same on disk and in object stores, in the format Zarr v3 (features `zarr`, `object-store`) |
//! | [`error`] | [`Error`] |

pub mod blend;
mod cache;
mod claim;
mod def;
mod element;
pub mod engine;
pub mod error;
mod fold;
mod plan;
mod primitive;
mod read;
pub mod region;
mod run;
pub mod slice;
pub mod spec;
mod split;
mod state;
pub mod store;
pub mod stream;
pub mod tensor;
pub mod tiles;
pub mod window;
#[cfg(feature = "zarr")]
pub mod zarr;

pub use blend::{Blend, CustomFold, Weight};
pub use def::{Context, FunctionError};
pub use engine::Engine;
pub use error::{Error, Result};
pub use region::{Index, Region, Span};
pub use slice::Slice;
pub use spec::TensorSpec;
pub use store::{Manifest, MemoryTileStore, TileStore};
pub use stream::{Order, Stream};
pub use tensor::{Cancel, Dense, InfiniteTensor, PlanSummary, ScopeGuard};
pub use tiles::{Tiles, TilesUsage};
pub use window::{EdgeMode, TensorWindow};
