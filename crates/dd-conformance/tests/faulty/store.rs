//! Broken stores.

use std::sync::Mutex;
use std::time::Duration;

use dd_core::{Budget, Bytes, Error, MemoryStore, Result, TensorDesc, TensorStore, Tier};

use crate::caught;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    RefusedPutLosesTheOld,
    FullLosesTheOld,
    TakesWrongLengths,
    ReadsWhatFits,
    FlipsABit,
    FlattensSlashes,
    LowersCase,
    CutsLongNames,
    TrimsNames,
    ForgetsEmptyTensors,
    AbsentReadsAsNothing,
    AbsentIsCorrupt,
    RemoveAlwaysTrue,
    RemoveForgetsTheWrongOne,
    NeverForgetsUse,
    UsesNothing,
    TearsReplacements,
    FullIsALibraryError,
}

/// A store that works but for its fault.
struct Faulty {
    inner: MemoryStore,
    fault: Fault,
    ever: Mutex<Bytes>,
}

impl Faulty {
    fn new(capacity: Bytes, fault: Fault) -> Self {
        Self { inner: MemoryStore::new(Budget::new("faulty", capacity)), fault, ever: Mutex::default() }
    }

    fn name(&self, name: &str) -> String {
        match self.fault {
            Fault::FlattensSlashes => name.replace('/', "_"),
            Fault::LowersCase => name.to_lowercase(),
            Fault::CutsLongNames => name.chars().take(255).collect(),
            Fault::TrimsNames => name.trim().to_owned(),
            _ => name.to_owned(),
        }
    }
}

impl TensorStore for Faulty {
    fn tier(&self) -> Tier {
        self.inner.tier()
    }

    fn used(&self) -> Bytes {
        match self.fault {
            Fault::NeverForgetsUse => *self.ever.lock().unwrap(),
            Fault::UsesNothing => Bytes::ZERO,
            _ => self.inner.used(),
        }
    }

    fn put(&self, name: &str, desc: &TensorDesc, bytes: &[u8]) -> Result<()> {
        let name = &self.name(name);
        *self.ever.lock().unwrap() += Bytes::of(bytes.len());
        let mut bytes = bytes.to_vec();
        let right = desc.check_len(bytes.len(), "put").is_ok();
        if self.fault == Fault::RefusedPutLosesTheOld || self.fault == Fault::FullLosesTheOld && right {
            self.inner.remove(name)?;
        }
        match self.fault {
            Fault::TakesWrongLengths => bytes.resize(desc.len_in_memory()?, 0),
            Fault::ForgetsEmptyTensors if bytes.is_empty() => return Ok(()),
            Fault::FlipsABit => bytes.last_mut().map_or((), |last| *last ^= 1),
            Fault::TearsReplacements => {
                let mut torn = bytes.clone();
                let middle = torn.len() / 2;
                torn[middle..].fill(0xEE);
                self.inner.put(name, desc, &torn)?;
                std::thread::sleep(Duration::from_micros(200));
            }
            _ => {}
        }
        match self.inner.put(name, desc, &bytes) {
            Err(error) if error.is_out_of_memory() && self.fault == Fault::FullIsALibraryError => {
                Err(Error::library("faulty", "put", error))
            }
            result => result,
        }
    }

    fn describe(&self, name: &str) -> Result<Option<TensorDesc>> {
        self.inner.describe(&self.name(name))
    }

    fn read_into(&self, name: &str, out: &mut [u8]) -> Result<()> {
        let name = &self.name(name);
        let stored = self.inner.describe(name)?;
        match (self.fault, stored) {
            (Fault::AbsentReadsAsNothing, None) => Ok(()),
            (Fault::AbsentIsCorrupt, None) => {
                let (name, place, reason) = (name.clone(), "faulty".to_owned(), "absent".to_owned());
                Err(Error::Corrupt { name, place, reason })
            }
            (Fault::ReadsWhatFits, Some(desc)) => {
                let mut all = vec![0; desc.len_in_memory()?];
                self.inner.read_into(name, &mut all)?;
                out.iter_mut().zip(all).for_each(|(to, from)| *to = from);
                Ok(())
            }
            _ => self.inner.read_into(name, out),
        }
    }

    fn remove(&self, name: &str) -> Result<bool> {
        let removed = self.inner.remove(&self.name(name))?;
        if self.fault == Fault::RemoveForgetsTheWrongOne {
            self.inner.remove("other")?;
        }
        Ok(removed || self.fault == Fault::RemoveAlwaysTrue)
    }
}

#[test]
fn broken_stores_are_found_out() {
    let rows = [
        (Fault::RefusedPutLosesTheOld, "a refused put leaves the old"),
        (Fault::FullLosesTheOld, "a failed put leaves the old"),
        (Fault::TakesWrongLengths, "expected Error::Mismatch"),
        (Fault::ReadsWhatFits, "expected Error::Mismatch"),
        (Fault::FlipsABit, "round trip: contents"),
        (Fault::FlattensSlashes, "odd name"),
        (Fault::LowersCase, "odd name"),
        (Fault::CutsLongNames, "odd name"),
        (Fault::TrimsNames, "odd name"),
        (Fault::ForgetsEmptyTensors, "description of"),
        (Fault::AbsentReadsAsNothing, "expected Error::NotFound"),
        (Fault::AbsentIsCorrupt, "expected Error::NotFound"),
        (Fault::RemoveAlwaysTrue, "remove of a removed tensor"),
        (Fault::RemoveForgetsTheWrongOne, "remove of another tensor"),
        (Fault::NeverForgetsUse, "used after"),
        (Fault::UsesNothing, "used is 0 B"),
        (Fault::TearsReplacements, "half replaced"),
        (Fault::FullIsALibraryError, "expected OutOfMemory"),
    ];
    for (fault, words) in rows {
        let suite = || dd_conformance::tensor_store(|capacity| Faulty::new(capacity, fault));
        caught(&format!("{fault:?}"), words, suite);
    }
    dd_conformance::tensor_store(|capacity| Faulty::new(capacity, Fault::None));
}
