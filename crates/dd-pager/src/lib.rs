//! Demand paging of CPU tensors: model code that knows nothing of it runs in less memory than its weights (Linux).
//!
//! Linux can tell a program when a page is touched that is not there (userfaultfd, whose user-mode-only form needs no
//! privilege), and can move pages from one address to another without copying. [`PagedMemory`] is address space made of
//! that: a range is registered with the [`Source`] of its bytes, a tensor library is given the address, and whatever
//! touches it waits until the bytes are there. The budget is a fixed number of page frames, reserved at once: what is
//! read or decoded into a frame is moved to its place, and moved back when evicted, so memory cannot grow.
//!
//! What is correct never depends on a prediction. What is fast does: the order of use is learned from the touches of the
//! first pass; from then on a part of the weights stays, spread evenly over the order, and the rest is read ahead into
//! frames that are *held back*. The first touch of such a unit is one fault, answered by one move, and tells where the
//! program is.
//!
//! | module | what it holds |
//! |---|---|
//! | `memory` | [`PagedMemory`], [`Region`], [`Options`] |
//! | `source` | [`Source`]: where bytes come from; files, as they are or widened |
//! | [`convert`] | exact widening of floats |
//! | [`packed`] | weights stored packed, lossless; memory filled from them; what of them is kept |
//! | `layout` | how a budget is cut into frames |
//! | `shares` | how memory is shared between frames and packed bytes |
//! | `order` | the order of use, learned from touches |
//! | `state` | which unit is where and what comes next: decides, does nothing |
//! | `engine` | the threads that do it |
//! | `inject` | faults put in on purpose, in tests |
//! | `sys` | mappings and userfaultfd: the unsafe part |

pub mod convert;
mod engine;
pub mod error;
mod inject;
mod layout;
mod memory;
mod order;
pub mod packed;
mod scratch;
mod shares;
mod source;
mod state;
mod stats;
#[cfg(test)]
mod stress;
mod sys;

pub use engine::OnFatal;
pub use error::{Error, Result};
pub use layout::Layout;
pub use memory::{Options, PagedMemory, Region};
pub use packed::PackedSource;
pub use scratch::{Decoding, Scratch};
pub use source::{FileSource, Source, WideningSource};
pub use stats::{Plan, Stats};
