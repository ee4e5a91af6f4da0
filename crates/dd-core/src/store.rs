//! [`TensorStore`]: who keeps tensors' bytes by name.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::budget::{Budget, Holder, Reservation};
use crate::bytes::Bytes;
use crate::desc::TensorDesc;
use crate::error::{Error, Result};
use crate::tier::Tier;

/// Keeps tensors' bytes by name: dense, row-major, little-endian. Object safe; bytes only.
///
/// A failed `put` leaves what was stored under that name as it was.
pub trait TensorStore: Send + Sync {
    /// Where the bytes rest.
    fn tier(&self) -> Tier;

    /// The bytes it holds now (as stored: compressed ones count compressed).
    fn used(&self) -> Bytes;

    /// Stores a tensor, replacing any of that name.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where `bytes` is not as long as `desc` says; [`Error::OutOfMemory`] where the store is
    /// full; what the medium says.
    fn put(&self, name: &str, desc: &TensorDesc, bytes: &[u8]) -> Result<()>;

    /// The shape and dtype stored under that name; nothing where there is none.
    ///
    /// # Errors
    /// What the medium says.
    fn describe(&self, name: &str) -> Result<Option<TensorDesc>>;

    /// Reads a whole tensor.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Mismatch`] where `out` has another length; [`Error::Corrupt`] where the bytes
    /// are not those that were put; what the medium says.
    fn read_into(&self, name: &str, out: &mut [u8]) -> Result<()>;

    /// Forgets a tensor; says whether there was one.
    ///
    /// # Errors
    /// What the medium says.
    fn remove(&self, name: &str) -> Result<bool>;
}

/// Conveniences over any [`TensorStore`].
pub trait TensorStoreExt: TensorStore {
    /// Reads a tensor into a new buffer, with its description.
    ///
    /// # Errors
    /// As [`TensorStore::read_into`].
    fn get(&self, name: &str) -> Result<(TensorDesc, Vec<u8>)> {
        let desc = self.describe(name)?.ok_or_else(|| not_found(name, self.tier()))?;
        let mut bytes = vec![0; desc.len_in_memory()?];
        self.read_into(name, &mut bytes)?;
        Ok((desc, bytes))
    }

    /// Whether there is a tensor of that name.
    ///
    /// # Errors
    /// What the medium says.
    fn contains(&self, name: &str) -> Result<bool> {
        Ok(self.describe(name)?.is_some())
    }
}

impl<S: TensorStore + ?Sized> TensorStoreExt for S {}

fn not_found(name: &str, tier: Tier) -> Error {
    Error::NotFound { name: name.to_owned(), place: format!("the {tier} store") }
}

/// The reference store: host memory, within a budget.
#[derive(Debug)]
pub struct MemoryStore {
    budget: Budget,
    holder: Holder,
    tensors: Mutex<BTreeMap<String, Stored>>,
}

#[derive(Debug)]
struct Stored {
    desc: TensorDesc,
    bytes: Box<[u8]>,
    reservation: Reservation,
}

impl MemoryStore {
    /// A store whose bytes are reserved from this budget.
    #[must_use]
    pub fn new(budget: Budget) -> Self {
        Self { budget, holder: Holder::new("memory store"), tensors: Mutex::default() }
    }

    fn tensors(&self) -> MutexGuard<'_, BTreeMap<String, Stored>> {
        self.tensors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TensorStore for MemoryStore {
    fn tier(&self) -> Tier {
        Tier::Host
    }

    fn used(&self) -> Bytes {
        self.tensors().values().map(|stored| stored.reservation.bytes()).sum()
    }

    fn put(&self, name: &str, desc: &TensorDesc, bytes: &[u8]) -> Result<()> {
        desc.check_len(bytes.len(), name)?;
        // Reserved before the lock is taken: a reclaimer may need this store.
        let reservation = self.budget.reserve(desc.bytes(), &self.holder)?;
        let stored = Stored { desc: desc.clone(), bytes: bytes.into(), reservation };
        let replaced = self.tensors().insert(name.to_owned(), stored);
        drop(replaced);
        Ok(())
    }

    fn describe(&self, name: &str) -> Result<Option<TensorDesc>> {
        Ok(self.tensors().get(name).map(|stored| stored.desc.clone()))
    }

    fn read_into(&self, name: &str, out: &mut [u8]) -> Result<()> {
        let tensors = self.tensors();
        let stored = tensors.get(name).ok_or_else(|| not_found(name, Tier::Host))?;
        stored.desc.check_len(out.len(), name)?;
        out.copy_from_slice(&stored.bytes);
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<bool> {
        let removed = self.tensors().remove(name);
        Ok(removed.is_some())
    }
}
