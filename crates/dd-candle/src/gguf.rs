//! Quantised models in less memory than their weights: candle-transformers' own loaders, unmodified, over a GGUF file.
//!
//! ```no_run
//! use candle_core::{Device, Tensor};
//! use dd_candle::gguf::PagedGguf;
//! use dd_core::{Budget, Bytes};
//! # struct ModelWeights;
//! # impl ModelWeights {
//! #     fn from_gguf<R>(_: candle_core::quantized::gguf_file::Content, _: &mut R, _: &Device) -> candle_core::Result<Self> {
//! #         Ok(Self)
//! #     }
//! # }
//!
//! #[global_allocator]
//! static ALLOCATOR: dd_candle::capture::CapturingAllocator = dd_candle::capture::CapturingAllocator;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let gguf = PagedGguf::open("model.gguf".as_ref(), &Budget::new("model", Bytes::gib(2)))?;
//! let model = gguf.load(ModelWeights::from_gguf)?; // As any other model from here on.
//! # Ok(())
//! # }
//! ```
//!
//! candle gives a GGUF loader no say in where a tensor lies, so its allocations are captured ([`crate::capture`]) and made
//! of paged memory. While a model is loaded, and for as long as it lives:
//!
//! - A buffer that a tensor is read to gets no bytes but the place of its bytes in the file; they are read when touched.
//! - candle then copies that buffer. The copy's pages are compared, by their hashes, with the file's when they leave
//!   memory: those that are equal are read from the file from then on.
//! - Anything else (an embedding table made f32; the *repacked copies* that candle makes of most quantised tensors at the
//!   first product, see `packs`) is written to an unnamed spill file when it first leaves memory, and read from there.
//!
//! | module | what it holds |
//! |---|---|
//! | `header` | the file's tensors, checked before anything is read |
//! | `memory` | captured allocations, and who asks for them |
//! | `backing` | where the pages of one of them are while they are not in memory |
//! | `digest`, `spill` | hashes of the file's pages; the spill file |
//! | `file` | the model file, which must stay as it is |
//! | `packs` | which copies candle makes of its weights |
//! | `reader` | [`GgufReader`], what the loader reads from |
//! | `error` | [`Error`] |
//!
//! What this costs: hashing whatever is evicted, and one write of the repacked copies and the f32
//! table to the spill file, in the first pass. From the second pass on candle reads the copies only, which for Q4_K are a
//! third larger than the file's blocks; so the memory that keeps a model from streaming is that of the copies.
//!
//! Linux only. What candle allocates besides weights (activations, key-value caches, metadata) is the program's own.

use std::io::BufReader;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

use candle_core::Device;
use candle_core::quantized::gguf_file::Content;
use dd_core::{Budget, Bytes, Holder};
use dd_offload::store::SpillConfig;
use dd_pager::{Layout, Options, PagedMemory, Plan, Stats};

mod backing;
mod digest;
mod error;
mod file;
mod header;
mod hole;
mod memory;
mod packs;
mod reader;
mod spill;

pub use error::{Error, Result};
pub use memory::CaptureStats;
pub use reader::GgufReader;

use backing::Backing;
use file::{FromStart, ModelFile};
use header::{Header, TensorEntry};
use memory::{Loading, Memory};
use packs::Packs;
use spill::Spill;

use crate::capture;

/// How a GGUF file is paged.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct GgufOptions {
    /// Where to write what is not in the file, and how much of it. Compression is not used.
    pub spill: SpillConfig,
    /// Threads that will use the model at once; nothing means as many as the machine has processors.
    pub threads: Option<usize>,
}

/// A GGUF file whose models are paged within a budget. A model that was loaded may outlive it.
#[derive(Debug)]
pub struct PagedGguf {
    file: Arc<ModelFile>,
    header: Header,
    memory: Arc<Memory>,
}

impl PagedGguf {
    /// Opens the file at `path`, checks its header, and takes what the pager needs of the budget: at most what the model
    /// can use, at least [`Plan::least`] and 0.25 % of what is paged for tables. No tensor is read.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a file that is no whole GGUF file; [`Error::NoAllocator`]; [`Error::Pager`] where the
    /// budget is too small or the kernel does not page; [`Error::Offload`] where there is nowhere to spill to.
    pub fn open(path: &Path, budget: &Budget) -> Result<Self> {
        Self::open_with(path, budget, &GgufOptions::default())
    }

    /// [`open`](Self::open), with options.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_with(path: &Path, budget: &Budget, options: &GgufOptions) -> Result<Self> {
        let file = Arc::new(ModelFile::open(path)?);
        let header = Header::read(BufReader::new(FromStart::new(&file)), file.len(), path)?;
        if !capture::is_installed() {
            return Err(Error::NoAllocator);
        }
        let packs = Packs::of(&header);
        let expected = expected(&header, &packs);
        let tables = Bytes(Backing::table_bytes(expected.0));
        let least = Bytes(tables.0.saturating_add(Layout::least().0));
        if budget.available() < least {
            let (what, available) = (path.display().to_string(), budget.available());
            return Err(dd_pager::Error::TooSmall { what, least, available }.into());
        }
        let tables = budget.reserve(tables, &Holder::new("page tables"))?;
        let pager = PagedMemory::new(budget, pager_options(path, expected, options))?;
        let memory = Memory {
            pager,
            file: Arc::clone(&file),
            path: path.to_owned(),
            spill: Arc::new(Spill::open(&options.spill)?),
            packs,
            sizes: header.tensors.iter().map(TensorEntry::len).collect(),
            counts: memory::Counts::default(),
            watch: Mutex::new(Weak::new()),
            _tables: tables,
        };
        Ok(Self { file, header, memory: Arc::new(memory) })
    }

    /// Has `build` load a model on the CPU, from the file's content and a reader of it, as every `from_gguf` of
    /// candle-transformers does. It must allocate what is to be paged on the calling thread.
    ///
    /// # Errors
    /// [`Error::Load`] where `build` fails; [`Error::Pager`] where one of its allocations cannot be paged.
    pub fn load<M>(
        &self,
        build: impl FnOnce(Content, &mut GgufReader, &Device) -> candle_core::Result<M>,
    ) -> Result<M> {
        let loading = Arc::new(Loading::new(&self.memory));
        let mut reader = GgufReader::new(Arc::clone(&self.file), Arc::clone(&loading));
        let content = self.content()?;
        let provider: Arc<dyn capture::Provider> = Arc::<Loading>::clone(&loading);
        let built = capture::scope(&provider, || build(content, &mut reader, &Device::Cpu));
        match loading.take_refused() {
            Some(refused) => Err(refused),
            None => built.map_err(|error| self.failed(error)),
        }
    }

    /// The file's metadata and tensor list, parsed anew.
    ///
    /// # Errors
    /// [`Error::Load`] where candle does not accept it.
    pub fn content(&self) -> Result<Content> {
        let mut file = BufReader::new(FromStart::new(&self.file));
        Content::read(&mut file).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: candle_core::Error) -> Error {
        Error::Load { path: self.memory.path.clone(), source: error.into() }
    }

    /// Bytes of all tensors in the file.
    #[must_use]
    pub fn weights(&self) -> Bytes {
        Bytes(self.header.weights())
    }

    /// Bytes of the repacked copies that this processor's kernels may have candle make.
    #[must_use]
    pub fn repacked(&self) -> Bytes {
        Bytes(self.memory.packs.bytes())
    }

    /// What stays in memory and what streams.
    #[must_use]
    pub fn plan(&self) -> Plan {
        self.memory.pager.plan()
    }

    /// What paging did.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.memory.pager.stats()
    }

    /// What was captured.
    #[must_use]
    pub fn capture_stats(&self) -> CaptureStats {
        self.memory.capture_stats()
    }

    /// Where the spill file is.
    #[must_use]
    pub fn spill_directory(&self) -> &Path {
        self.memory.spill.directory()
    }
}

/// What a model can come to use: its weights, their copies, the embedding table as f32, buffers in flight, and an eighth
/// for whatever else a loader keeps. Frames that are never used are never made, so too much is only reserved.
fn expected(header: &Header, packs: &Packs) -> Bytes {
    let largest = header.tensors.iter().max_by_key(|tensor| tensor.len());
    let buffer = largest.map_or(0, TensorEntry::len);
    let widened = header.tensors.iter().map(|tensor| tensor.dims.iter().product::<u64>()).max();
    let paged =
        header.weights().saturating_add(packs.bytes()).saturating_add(widened.unwrap_or(0).saturating_mul(4));
    Bytes(paged.saturating_add(paged / 8).saturating_add(buffer.saturating_mul(2)))
}

fn pager_options(path: &Path, expected: Bytes, options: &GgufOptions) -> Options {
    let mut pager = Options::new(path.display().to_string(), expected);
    // Address space is not reused, and each tensor takes it twice per load: for its buffer and for its copy.
    pager.capacity = Bytes(expected.0.saturating_mul(16).saturating_add(64 << 30));
    if let Some(threads) = options.threads {
        pager.threads = threads;
    }
    pager
}
