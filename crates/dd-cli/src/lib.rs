//! The parts of the command `deepdim`, as a library so that they can be tested.
//!
//! | module | what it holds |
//! |---|---|
//! | [`args`], [`error`] | the command line; messages and exit codes |
//! | [`run`], [`plan`], [`pack`], [`scale`], [`demo`] | the subcommands |
//! | [`generate`] | text generation with the stock model code of candle-transformers |
//! | [`inspect`] | `deepdim inspect`: what a network needs, from its headers |
//! | [`tiles`] | `deepdim tiles`: a region of an endless terrain as a picture; what a tile store holds |
//! | [`monitor`] | `deepdim monitor`: the dashboard, and lines |
//! | [`engine`] | a model that is ready to run, and its budget |
//! | [`bert`] | a BERT encoder written for streaming, the same for held and for managed weights |
//! | [`activations`] | the peak of a pass's activation bytes, known before it starts |
//! | [`weights`] | a checkpoint read tensor by tensor into plain memory |
//! | [`disk`] | what the disk gives |
//! | [`text`], [`pooling`] | sentences to tokens, and states to one vector per sentence |
//! | [`resolve`] | MODEL: a folder, a file, or a name on the hub |
//! | [`process`], [`timeline`], [`plot`] | what the kernel says of this process, sampled and drawn |
//! | [`report`] | what is printed |
//! | [`heap`], [`page_cache`], [`warm`] | the allocator, the page cache and the threads, held still for measuring |
//! | [`interrupt`] | tidying up on Ctrl-C |
//! | [`testing`] | small models for tests |

pub mod activations;
pub mod args;
pub mod bert;
pub mod demo;
pub mod disk;
pub mod engine;
pub mod error;
pub mod generate;
pub mod heap;
pub mod inspect;
pub mod interrupt;
pub mod monitor;
pub mod pack;
pub mod page_cache;
pub mod plan;
pub mod plot;
pub mod pooling;
pub mod process;
pub mod report;
pub mod resolve;
pub mod run;
pub mod scale;
pub mod testing;
pub mod text;
pub mod tiles;
pub mod timeline;
pub mod warm;
pub mod weights;
