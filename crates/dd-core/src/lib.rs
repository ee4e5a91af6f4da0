//! The vocabulary and the contracts of Deep Dimensions.
//!
//! This crate does no I/O, starts no thread and names no tensor library. What is here is here because at least
//! two crates above need to agree on it:
//!
//! | module | what it holds |
//! |---|---|
//! | [`bytes`] | [`Bytes`], the only unit of memory |
//! | [`dtype`], [`desc`] | [`DType`] and [`TensorDesc`]: element types and checked sizes |
//! | [`tier`], [`device`] | [`Tier`] and [`Device`]: where a tensor is, and how a user names a place |
//! | [`budget`] | [`Budget`]: the shared ceiling, its reservations, and who can give back |
//! | [`memory`] | [`MemoryProvider`]: who reports how much memory there is |
//! | [`cost`], [`scaling`] | [`CostModel`] and [`ScalingStrategy`]: what a size costs, and which size to take |
//! | [`store`] | [`TensorStore`]: who keeps bytes by name |
//! | [`backend`] | [`Backend`] and [`Linalg`]: what a tensor library must be able to do |
//! | [`host`] | [`HostBackend`]: the reference backend, with simulated tiers of limited capacity |
//! | [`observer`] | [`Observer`] and [`Event`]: who is told what happened |
//! | [`error`] | [`Error`]: what can go wrong, as values that callers branch on |
//!
//! Each trait has an in-memory reference implementation beside it, and one exported suite in `dd-conformance`.

pub mod backend;
pub mod budget;
pub mod bytes;
pub mod cost;
pub mod desc;
pub mod device;
pub mod dtype;
pub mod error;
pub mod host;
pub mod memory;
pub mod observer;
mod primitive;
pub mod scaling;
pub mod store;
pub mod tier;

pub use backend::{Backend, Linalg};
pub use budget::{Budget, Holder, Reclaim, Reservation, Usage};
pub use bytes::Bytes;
pub use cost::CostModel;
pub use desc::TensorDesc;
pub use device::Device;
pub use dtype::DType;
pub use error::{Error, Result};
pub use host::{HostBackend, HostTensor};
pub use memory::{MemoryProvider, MemorySample};
pub use observer::{Event, Observer};
pub use scaling::{Dim, ScalingPlan, ScalingStrategy};
pub use store::{MemoryStore, TensorStore, TensorStoreExt};
pub use tier::Tier;
