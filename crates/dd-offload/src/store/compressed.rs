//! [`CompressedStore`]: tensors packed in host memory, within a budget.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dd_core::{Budget, Bytes, Holder, Reservation, TensorDesc, TensorStore, Tier};

use super::codec::{self, CHUNK, Packer, Unpacker, chunks};
use super::into_core;
use crate::error::{Error, Result};

/// Keeps tensors in host memory, packed with zstd; a chunk that does not get smaller is kept as it is.
///
/// Its reservation is exactly the stored bytes. A tensor that replaces another is built beside it, so that a refused
/// one changes nothing; until then both are held. A read that began keeps its bytes, and their reservation, until it
/// ends.
///
/// ```
/// use dd_core::{Budget, Bytes, DType, TensorDesc, TensorStore};
/// use dd_offload::store::CompressedStore;
///
/// let store = CompressedStore::new(&Budget::new("job", Bytes::mib(1)), 1)?;
/// let desc = TensorDesc::new([1 << 20], DType::F32)?;
/// store.put("zeros", &desc, &vec![0; 4 << 20])?;
/// assert!(store.used() < Bytes::kib(4));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct CompressedStore {
    budget: Budget,
    holder: Holder,
    level: i32,
    working: Bytes,
    tensors: Mutex<BTreeMap<String, Arc<Stored>>>,
}

#[derive(Debug)]
struct Stored {
    desc: TensorDesc,
    chunks: Vec<Chunk>,
    _reservation: Reservation,
}

#[derive(Debug)]
struct Chunk {
    bytes: Box<[u8]>,
    packed: bool,
}

/// Packs chunk after chunk, reserving before it keeps.
struct Building {
    chunks: Vec<Chunk>,
    reservation: Reservation,
    packer: Packer,
}

impl Building {
    fn chunk(&mut self, raw: &[u8]) -> Result<()> {
        let (stored, packed) = self.packer.pack(raw);
        self.reservation.grow(Bytes::of(stored.len()))?;
        self.chunks.push(Chunk { bytes: stored.into(), packed });
        Ok(())
    }
}

impl CompressedStore {
    /// How many raw bytes go through a buffer at once.
    pub const CHUNK: usize = CHUNK;

    /// A store in a child of this budget, with this zstd level.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] where zstd has no such level.
    pub fn new(budget: &Budget, level: i32) -> Result<Self> {
        Ok(Self {
            working: codec::working_bytes(Some(level))?,
            budget: budget.child("compressed", Bytes::MAX),
            holder: Holder::new("compressed store"),
            level,
            tensors: Mutex::default(),
        })
    }

    /// The memory that one call takes at most, besides what it stores and the caller's own: two chunks and the
    /// compressor's state, as measured. It is not reserved here.
    #[must_use]
    pub const fn working_bytes(&self) -> Bytes {
        self.working
    }

    /// Stores a tensor whose bytes come in pieces: `fill` is called with an offset and a buffer to fill, in order.
    ///
    /// # Errors
    /// What `fill` says; out of memory where the budget refuses. What was stored under that name stays as it was.
    pub fn write_from(
        &self,
        name: &str,
        desc: &TensorDesc,
        fill: &mut dyn FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let total = desc.len_in_memory()?;
        self.store(name, desc, &mut |building| {
            let mut buffer = vec![0; total.min(CHUNK)];
            for (offset, len) in chunks(total) {
                let piece = buffer.get_mut(..len).unwrap_or_default();
                fill(offset, piece)?;
                building.chunk(piece)?;
            }
            Ok(())
        })
    }

    /// Reads a tensor in pieces: `take` is called with an offset and the bytes there, in order.
    ///
    /// # Errors
    /// What `take` says; [`Error::Core`] where there is no such tensor or it does not unpack.
    pub fn read_chunks(&self, name: &str, take: &mut dyn FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        let stored = self.stored(name)?;
        let total = stored.desc.len_in_memory()?;
        let mut buffer = vec![0; total.min(CHUNK)];
        let mut unpacker = Unpacker::default();
        for ((offset, len), chunk) in chunks(total).zip(&stored.chunks) {
            let piece = buffer.get_mut(..len).unwrap_or_default();
            chunk.read(name, &mut unpacker, piece)?;
            take(offset, piece)?;
        }
        Ok(())
    }

    fn store(
        &self,
        name: &str,
        desc: &TensorDesc,
        feed: &mut dyn FnMut(&mut Building) -> Result<()>,
    ) -> Result<()> {
        let reservation = self.budget.reserve(Bytes::ZERO, &self.holder)?;
        let packer = Packer::new(Some(self.level))?;
        let mut building = Building { chunks: Vec::new(), reservation, packer };
        feed(&mut building)?;
        let Building { chunks, reservation, .. } = building;
        let stored = Stored { desc: desc.clone(), chunks, _reservation: reservation };
        let replaced = self.tensors().insert(name.to_owned(), Arc::new(stored));
        drop(replaced);
        Ok(())
    }

    fn stored(&self, name: &str) -> Result<Arc<Stored>> {
        let found = self.tensors().get(name).map(Arc::clone);
        let place = || "the compressed store".to_owned();
        Ok(found.ok_or_else(|| dd_core::Error::NotFound { name: name.to_owned(), place: place() })?)
    }

    fn read_whole(&self, name: &str, out: &mut [u8]) -> Result<()> {
        let stored = self.stored(name)?;
        stored.desc.check_len(out.len(), name)?;
        let mut unpacker = Unpacker::default();
        let mut pieces = out.chunks_mut(CHUNK).zip(&stored.chunks);
        pieces.try_for_each(|(piece, chunk)| chunk.read(name, &mut unpacker, piece))
    }

    fn tensors(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Stored>>> {
        self.tensors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Chunk {
    fn read(&self, name: &str, unpacker: &mut Unpacker, out: &mut [u8]) -> Result<()> {
        if !self.packed {
            out.copy_from_slice(&self.bytes);
            return Ok(());
        }
        unpacker.unpack(&self.bytes, out).map_err(|reason| {
            let place = "the compressed store".to_owned();
            Error::Core(dd_core::Error::Corrupt { name: name.to_owned(), place, reason })
        })
    }
}

impl TensorStore for CompressedStore {
    fn tier(&self) -> Tier {
        Tier::Compressed
    }

    fn used(&self) -> Bytes {
        self.budget.usage().used
    }

    fn put(&self, name: &str, desc: &TensorDesc, bytes: &[u8]) -> dd_core::Result<()> {
        desc.check_len(bytes.len(), name)?;
        let feed = &mut |building: &mut Building| bytes.chunks(CHUNK).try_for_each(|raw| building.chunk(raw));
        self.store(name, desc, feed).map_err(into_core)
    }

    fn describe(&self, name: &str) -> dd_core::Result<Option<TensorDesc>> {
        Ok(self.tensors().get(name).map(|stored| stored.desc.clone()))
    }

    fn read_into(&self, name: &str, out: &mut [u8]) -> dd_core::Result<()> {
        self.read_whole(name, out).map_err(into_core)
    }

    fn remove(&self, name: &str) -> dd_core::Result<bool> {
        let removed = self.tensors().remove(name);
        Ok(removed.is_some())
    }
}

#[cfg(test)]
mod tests {
    use dd_core::{DType, TensorStoreExt};

    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        (0..len).map(|_| next()).collect()
    }

    fn desc(len: usize) -> TensorDesc {
        TensorDesc::new([len], DType::U8).unwrap()
    }

    /// One check for all rows: what comes back, and what it takes.
    fn check(what: &str, bytes: &[u8], stored: impl Fn(Bytes) -> bool) {
        let store = CompressedStore::new(&Budget::unlimited("job"), 1).unwrap();
        store.put(what, &desc(bytes.len()), bytes).unwrap();
        assert!(stored(store.used()), "{what}: {} B stored", store.used().0);
        let held: usize = store.stored(what).unwrap().chunks.iter().map(|chunk| chunk.bytes.len()).sum();
        assert_eq!(store.used(), Bytes::of(held), "{what}");
        assert_eq!(store.get(what).unwrap(), (desc(bytes.len()), bytes.to_vec()), "{what}");
        let mut streamed = Vec::new();
        let mut take = |offset: usize, piece: &[u8]| {
            assert_eq!(offset, streamed.len());
            streamed.extend_from_slice(piece);
            Ok(())
        };
        store.read_chunks(what, &mut take).unwrap();
        assert_eq!(streamed, bytes, "{what}");
        let mut fill = |offset: usize, piece: &mut [u8]| {
            piece.copy_from_slice(&bytes[offset..offset + piece.len()]);
            Ok(())
        };
        store.write_from("again", &desc(bytes.len()), &mut fill).unwrap();
        assert_eq!(store.get("again").unwrap().1, bytes, "{what}");
        assert!(
            store.remove(what).unwrap() && store.remove("again").unwrap() && !store.remove(what).unwrap()
        );
        assert_eq!(store.used(), Bytes::ZERO, "{what}");
    }

    #[test]
    fn bytes_come_back_and_are_counted_exactly() {
        let len = 2 * CHUNK + 5;
        check("empty", &[], |used| used == Bytes::ZERO);
        check("one byte", &[7], |used| used == Bytes(1));
        check("noise stays raw", &noise(len), |used| used == Bytes::of(len));
        check("zeros shrink", &vec![0; len], |used| used < Bytes::kib(1));
        check("half", &[noise(CHUNK), vec![1; CHUNK]].concat(), |used| used < Bytes::of(CHUNK + 1024));
    }

    #[test]
    fn keeps_the_contract_of_stores() {
        for level in [-5, 1] {
            dd_conformance::tensor_store(|capacity| {
                CompressedStore::new(&Budget::new("job", capacity), level).unwrap()
            });
        }
    }

    #[test]
    fn a_refused_tensor_leaves_the_old_one() {
        let budget = Budget::new("job", Bytes::of(CHUNK + 10));
        let store = CompressedStore::new(&budget, 1).unwrap();
        store.put("a", &desc(3), b"old").unwrap();
        let error = store.put("a", &desc(2 * CHUNK), &noise(2 * CHUNK)).unwrap_err();
        assert!(error.is_out_of_memory(), "{error}");
        assert_eq!(store.get("a").unwrap().1, b"old");
        assert_eq!((store.used(), budget.usage().used), (Bytes(3), Bytes(3)));
        let mut fail = |_: usize, _: &mut [u8]| Err(Error::Stopped { what: "this test".to_owned() });
        assert!(matches!(store.write_from("a", &desc(3), &mut fail), Err(Error::Stopped { .. })));
        assert_eq!(store.get("a").unwrap().1, b"old");
        assert!(matches!(store.get("b"), Err(dd_core::Error::NotFound { .. })));
        assert!(matches!(store.put("c", &desc(2), b"1"), Err(dd_core::Error::Mismatch { .. })));
        assert!(matches!(store.read_into("a", &mut [0; 2]), Err(dd_core::Error::Mismatch { .. })));
    }
}
