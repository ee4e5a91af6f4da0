//! Memory for deep learning in Rust: one budget, in bytes, that is kept.
//!
//! This crate has no code of its own. It names the crates of the project in one place, with a feature per tensor
//! library; each of them can be used alone.
//!
//! | module | crate | what it holds |
//! |---|---|---|
//! | [`core`] | `dd-core` | bytes, tensors, tiers, budgets; the contracts |
//! | [`inspect`] | `dd-inspect` | what a network needs: parameters, live peak, memory plans, file headers |
//! | [`infinite`] | `dd-infinite` | endless tensors: windows, planning, tile stores (on disk with the feature `zarr`, on by default) |
//! | [`monitor`] | `dd-monitor` | where memory stands: host, container, process, disk, GPU |
//! | [`offload`] | `dd-offload` | weights that do not fit: checkpoints, plans, transfer, the manager |
//! | [`pager`] | `dd-pager` | the same under code that cannot be changed: demand paging (Linux) |
//! | [`scale`] | `dd-scale` | which sizes fit: dimensions and batches |
//! | `feed` | `dd-feed` | batches within a memory limit: plan, feeder, shuffling, resuming (feature `feed`, on by default) |
//! | `candle` | `dd-candle` | candle tensors and managed candle modules (feature `candle`, on by default) |

#[cfg(feature = "candle")]
pub use dd_candle as candle;
pub use dd_core as core;
#[cfg(feature = "feed")]
pub use dd_feed as feed;
pub use dd_infinite as infinite;
pub use dd_inspect as inspect;
pub use dd_monitor as monitor;
pub use dd_offload as offload;
pub use dd_pager as pager;
pub use dd_scale as scale;

/// The README's example, so that it cannot rot.
#[cfg(all(doctest, feature = "candle"))]
#[doc = include_str!("../../../README.md")]
mod readme {}
