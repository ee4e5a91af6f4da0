//! Batches within a memory limit: every sample exactly once per epoch, in any order, from any source.
//!
//! A [`FeedConfig`] says what there is: memory, samples, shapes, a network. What follows is a [`FeedPlan`]: how many samples fit, how large a
//! batch is, how many batches are in memory. A [`Feeder`] carries it out: epochs of batches as plain iterators, read ahead on threads within the
//! budget, each sample once per epoch and variation, the tail included.
//!
//! ```
//! use dd_core::{Bytes, DType};
//! use dd_feed::{FeedConfig, Feeder, Shuffle};
//!
//! let config = FeedConfig::builder()
//!     .cpu_memory_limit(Bytes::kib(64))
//!     .total_sample_count(1000)
//!     .input([16], DType::F32)
//!     .output([1], DType::F32)
//!     .preferred_batch_size(128)
//!     .build()?;
//! let names: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
//! let feeder = Feeder::builder(&config)
//!     .input_list(names)
//!     .read_input(|name, samples| samples.push_f32(&[name.parse()?; 16]))
//!     .get_output(|name, samples| samples.push_f32(&[name.parse()?]))
//!     .shuffle(Shuffle::Full, 42)
//!     .build()?;
//! let mut seen = 0;
//! for epoch in feeder.generate_epochs(3)? {
//!     for batch in epoch {
//!         let (x, y) = batch?.into_pair();
//!         assert_eq!(x.bytes()[..4], y.bytes()[..4]);
//!         seen += y.desc().shape()[0];
//!     }
//! }
//! assert_eq!(seen, 3000);
//! # Ok::<(), dd_feed::Error>(())
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`], [`plan`] | [`FeedConfig`] and [`FeedPlan`]: limits and shapes, and what follows from them |
//! | [`feeder`], [`epochs`] | [`Feeder`], and the epochs and batches that it gives |
//! | [`stream`] | [`Stream`], [`Samples`], [`Listed`]: where samples come from, by number |
//! | [`forward`] | [`ForwardSource`]: where they can only be read one after the other |
//! | [`source`] | folders, mapped records, `.npy` and safetensors, ready to use |
//! | [`convert`] | [`Convert`]: bytes to floats in the pass that copies them |
//! | [`permutation`], [`order`] | [`Permutation`], [`Order`]: shuffling in constant memory, and how good it is |
//! | [`state`] | [`FeedState`]: where a feed stands, in 40 bytes |
//! | [`stats`] | [`FeedStats`] and [`ErrorPolicy`] |
//! | `progress` | a progress bar (feature `progress`) |
//! | [`error`] | [`Error`]: what was wrong, where, and what to do |
//!
//! **Memory.** What a feed takes is reserved from its budget before it is taken: batches, windows of forward sources, the cache. Batches that were
//! handed over stay accounted until the caller lets go of their tensors. Not counted are what a reader of the caller's allocates for itself, mapped
//! pages, lists of identities, and the threads' stacks.
//!
//! **Ranks.** All ranks walk through one order in steps of one batch each; every rank makes the same number of steps, none with an empty batch, and
//! nothing is repeated. The samples, their order and their seeds do not depend on how many ranks or threads there are.

mod cache;
pub mod config;
pub mod convert;
mod engine;
pub mod epochs;
pub mod error;
pub mod feeder;
pub mod forward;
pub mod order;
pub mod permutation;
pub mod plan;
mod primitive;
#[cfg(feature = "progress")]
pub mod progress;
mod seed;
mod shared;
pub mod source;
pub mod state;
pub mod stats;
mod steps;
pub mod stream;

pub use config::{FeedConfig, FeedConfigBuilder, Network, NetworkCounts, Optimizer};
pub use convert::Convert;
pub use epochs::{Batch, Epoch, Epochs};
pub use error::{Error, Result};
pub use feeder::{Feeder, FeederBuilder};
pub use forward::ForwardSource;
pub use order::{Order, OrderQuality, Shuffle};
pub use permutation::Permutation;
pub use plan::{DevicePlan, FeedPlan};
pub use seed::sample_seed;
pub use source::{FolderSource, MappedRows};
pub use state::FeedState;
pub use stats::{ErrorPolicy, FeedStats};
pub use stream::{Listed, Samples, Stream};
