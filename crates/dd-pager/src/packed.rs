//! Weights stored in fewer bytes, without loss: the packed checkpoint.
//!
//! Reading is what paging waits for, and a trained model's exponents are far from random: bf16 weights take about a
//! third less when their exponents are entropy-coded, f32 weights about a sixth. [`pack()`] makes a checkpoint into a
//! packed one; [`PackedCheckpoint`] says where each chunk of it is; a [`Decoder`] fills memory with a chunk's values, in
//! their own type or widened to f32 on the way; [`unpack()`] gives the original file back, to the byte.
//!
//! # The format, version 1
//!
//! A packed file is a safetensors file, so that whatever lists or copies those takes it. Each tensor of the source is
//! in it under its own name, in the same order, in one of two forms:
//! - *as it was*, with its own dtype and shape, where packing would gain less than
//!   [`LEAST_GAIN`](codec::LEAST_GAIN) (so are all types but bf16, f16 and f32);
//! - *packed*, with dtype `U8` and its stored length as shape: a table of the lengths of its chunks (the `table`
//!   module), the chunks one after the other without a gap (the [`codec`] module), and as many zero bytes (not checked)
//!   as make its length the raw length modulo 64, so that all that was aligned stays aligned.
//!
//! `__metadata__` holds, as texts:
//!
//! | key | value |
//! |---|---|
//! | `format` | `deepdim-packed` |
//! | `version` | `1` |
//! | `chunk_bytes` | raw bytes per chunk, a power of two from 4 KiB to 16 MiB; a tensor's last chunk has what is left |
//! | `source_header` | the source's header, to the byte: names, dtypes, shapes, offsets, and its own `__metadata__` |
//! | `source_checksum` | the xxh3 of `source_header`, as 16 hexadecimal digits |
//!
//! Each chunk and each table carries a checksum seeded with a hash of the tensor's name, type and shape, and with the
//! chunk's number: a flipped bit, a chunk in place of another and a tensor under another's name are all found. Tensors
//! stored as they were have none, as in the source.
//!
//! A model of several files is packed file by file, with an index beside them.

pub mod codec;
mod draft;
mod header;
mod kept;
mod measure;
mod open;
mod pack;
mod planes;
mod report;
mod source;
mod table;
mod tiers;
mod unpack;
pub(crate) mod vector;

pub use codec::{Decoder, Encoder};
pub use kept::KeptChunks;
pub use open::{Chunk, PackedCheckpoint, PackedTensor};
pub use pack::{PackOptions, pack};
pub use report::{PackReport, PackedEntry};
pub use source::PackedSource;
pub use tiers::{Keep, PackedUse, Problem, Speeds, Tiers};
pub use unpack::unpack;
