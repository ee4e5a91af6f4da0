//! One exported test suite per trait of dd-core: every implementation, ours or foreign, calls it.
//!
//! A suite is a plain function to be called from an ordinary `#[test]`. It returns where the implementation keeps the
//! trait's contract, and otherwise panics with a message that names the rule, what was expected and what was found.
//! The tests of this crate run every suite on broken implementations and check that each is found out.
//!
//! | suite | of | called with |
//! |---|---|---|
//! | [`tensor_store()`] | [`TensorStore`](dd_core::TensorStore) | a function that makes an empty store of a capacity |
//! | [`backend()`] | [`Backend`](dd_core::Backend) | the backend |
//! | [`linalg()`] | [`Linalg`](dd_core::Linalg) | the backend |
//! | [`memory_provider()`] | [`MemoryProvider`](dd_core::MemoryProvider) | the provider |
//! | [`cost_model()`] | [`CostModel`](dd_core::CostModel) | the model |
//! | [`scaling_strategy()`] | [`ScalingStrategy`](dd_core::ScalingStrategy) | the strategy |
//! | [`observer()`] | [`Observer`](dd_core::Observer) | the observer |
//! | [`reclaim()`] | [`Reclaim`](dd_core::Reclaim) | a function that makes one that holds bytes of a budget |
//!
//! [`skipped!`] is for tests that lack what they need on the machine at hand.
//!
//! The whole of a test, the body of one `#[test]` function:
//!
//! ```
//! use dd_core::{Bytes, HostBackend, Tier};
//!
//! let backend = HostBackend::with_tiers([(Tier::Device(0), Bytes::mib(4)), (Tier::Host, Bytes::MAX)]);
//! dd_conformance::backend(&backend);
//! dd_conformance::linalg(&backend);
//! ```
#![allow(clippy::panic, clippy::indexing_slicing, reason = "a suite reports a breach by panicking")]

mod backend;
mod cost;
mod linalg;
mod memory;
mod observer;
mod reclaim;
mod rule;
mod scaling;
mod skip;
mod store;

pub use backend::backend;
pub use cost::cost_model;
pub use linalg::linalg;
pub use memory::memory_provider;
pub use observer::observer;
pub use reclaim::reclaim;
pub use scaling::scaling_strategy;
pub use skip::skipped;
pub use store::tensor_store;
