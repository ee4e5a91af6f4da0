//! candle behind the traits of dd-core: tensors, operations and managed modules.
//!
//! candle's tensors are immutable handles to storage that clones and views share. This crate gives them the
//! contract of [`dd_core::Backend`]: storage can be allocated without an abort, filled in place, read back byte for
//! byte, and taken for another use once nobody else sees it.
//!
//! | module | what it holds |
//! |---|---|
//! | [`backend`] | [`CandleBackend`]: [`dd_core::Backend`] and [`dd_core::Linalg`] over [`candle_core::Tensor`] |
//! | [`dtype`] | candle's element types and ours, both ways |
//! | [`device`] | which candle device a [`dd_core::Device`] means on this machine |
//! | [`managed`] | modules and embeddings whose weights are managed within a budget |
//! | [`gguf`] | quantised models, loaded by candle-transformers' own code, within a budget |
//! | [`capture`] | the global allocator that this takes |
//! | [`paged`] | stock candle models whose weights are paged within a budget: `paged_var_builder` |
//! | [`error`] | candle's errors as ours; running out of device memory is [`dd_core::Error::OutOfMemory`] |
//!
//! Inside, `storage` holds the bytes of host storage, `copy` fills them past the caches, `unique` knows who shares
//! storage, and `cuda` holds what only NVIDIA devices need; `unsafe` is in these four, in `capture` and in `gguf`'s `hole`. `staging` is the part of `cuda` that needs no device: which
//! block of page-locked memory is free, and what must be waited for.
//!
//! CUDA and Metal are features (`cuda`, `metal`). Where this was written there was neither: the CUDA code was compiled
//! against candle-core 0.11.1 and cudarc 0.19.10 and not run (`docs/gpu-checklist.md` is what to look at first where
//! there is a device); for Metal there is no code of our own.

pub mod backend;
#[cfg(all(feature = "pager", target_os = "linux"))]
pub mod capture;
mod copy;
#[cfg_attr(not(feature = "cuda"), path = "no_cuda.rs")]
mod cuda;
pub mod device;
pub mod dtype;
pub mod error;
#[cfg(all(feature = "pager", target_os = "linux"))]
pub mod gguf;
#[cfg(feature = "offload")]
pub mod managed;
#[cfg(feature = "pager")]
pub mod paged;
#[cfg(any(feature = "cuda", test))]
mod staging;
mod storage;
mod unique;

pub use backend::CandleBackend;
