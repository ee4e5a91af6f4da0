//! Where weights rest, and how they get to the computation in time: tiers, residency planning, transfer, the manager.
//!
//! Below the device there are only bytes: this crate knows no tensor type except through
//! [`Backend`](dd_core::Backend). Unchanged weights are never copied to disk, since the user's own safetensors file is
//! their place there; everything that takes memory takes it from one [`Budget`](dd_core::Budget).
//!
//! | module | what it holds |
//! |---|---|
//! | [`checkpoint`] | safetensors files, sharded or not: headers read and checked, weights not touched |
//! | [`io`] | direct, aligned reads, several in flight, into a pool of reused blocks; calibration |
//! | [`plan`] | which weights stay, which stream and when each read starts, decided as a value |
//! | [`store`] | the spill store on disk and the compressed store in memory |
//! | [`config`] | [`MemoryConfig`]: every option, validated |
//! | [`manager`] | [`MemoryManager`]: modules in, guards out; carries the plan out |
//! | [`error`] | [`Error`] |

pub mod checkpoint;
pub mod config;
pub mod error;
pub mod io;
pub mod manager;
pub mod plan;
pub mod store;

pub use config::MemoryConfig;
pub use error::{Error, Result};
pub use manager::MemoryManager;
