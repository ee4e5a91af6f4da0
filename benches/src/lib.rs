//! The criterion suites of Deep Dimensions, each with its controls: what the suites in `benches/` share.
//!
//! A figure alone says little: a disk, a neighbour on the same machine or a clock that steps down changes it more than
//! any code. So every suite measures its *control* (a bare read of the same bytes, the same arithmetic with everything in
//! memory) in the same [rounds](rounds::Rounds), and what is reported first is the ratio of the two, round by round.
//!
//! | module | what it holds |
//! |---|---|
//! | [`cache`] | taking a file out of the page cache |
//! | [`cap`] | a limit on the memory of one child process |
//! | [`checkpoint`] | writing a model of any size: with values, or with a hole in their place |
//! | [`contest`] | a contestant that is a process of its own, and what it reports |
//! | [`figures`] | what the reports of many rounds amount to |
//! | [`llama`] | a Llama of any size, for candle-transformers' own model |
//! | [`mapped`] | plain `mmap` under an unmodified model |
//! | [`model`] | the networks that are measured: a transformer's block, an encoder's layer |
//! | [`rounds`] | contestants that take turns, and handing what they took to criterion |
//! | [`settings`] | how large, how often, where: from the environment |
//! | [`sweep`](mod@sweep) | a file read by an engine whose bytes nobody wants |

pub mod cache;
pub mod cap;
pub mod checkpoint;
pub mod contest;
pub mod figures;
pub mod llama;
pub mod mapped;
pub mod model;
pub mod rounds;
pub mod settings;
pub mod sweep;

/// What stops a suite.
pub type Error = Box<dyn std::error::Error>;

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;
