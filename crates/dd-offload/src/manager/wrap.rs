//! Taking modules in, changing their values, and sending them away on request.

use std::collections::HashSet;
use std::sync::{Arc, MutexGuard, PoisonError};

use dd_core::{Backend, Bytes, TensorDesc};

use super::homes::full_name;
use super::module::{ModuleHandle, ModuleSpec, Parameter, Source};
use super::state::{Free, Home, Near, Part, State, Stop, Unit};
use super::{Inner, MemoryManager};
use crate::error::{Error, Result};

impl<B: Backend> MemoryManager<B> {
    /// Manages a module from now on. Reads nothing; values that are in no file are stored away at once unless eager
    /// offload is switched off.
    ///
    /// # Errors
    /// [`Error::DuplicateModule`]; [`Error::MissingTensor`]; [`Error::BudgetTooSmall`] where not even the read blocks
    /// fit; what storing values away gave.
    pub fn wrap_module(&self, spec: ModuleSpec<B>) -> Result<ModuleHandle<B>> {
        self.start()?;
        if self.inner.lock().names.contains_key(&spec.name) {
            return Err(Error::DuplicateModule { name: spec.name });
        }
        let (name, pinned) = (spec.name, spec.pinned);
        check_names(&name, &spec.parameters)?;
        let mut parts: Vec<Part<B>> = Vec::with_capacity(spec.parameters.len());
        for parameter in spec.parameters {
            match self.inner.make_part(&name, parameter, pinned) {
                Ok(part) => parts.push(part),
                Err(error) => {
                    self.inner.forget_parts(&parts);
                    return Err(error);
                }
            }
        }
        let mut state = self.inner.lock();
        let refused = match state.check_running("wrapping a module") {
            Ok(()) if !state.names.contains_key(&name) => None,
            Ok(()) => Some(Error::DuplicateModule { name: name.clone() }), // Another thread was quicker.
            Err(error) => Some(error),
        };
        if let Some(error) = refused {
            drop(state);
            self.inner.forget_parts(&parts);
            return Err(error);
        }
        let unit = state.units.len();
        state.units.push(Unit {
            name: name.as_str().into(),
            kind: spec.kind,
            parts,
            users: 0,
            waiters: 0,
            failed: None,
            since: None,
            compute: None,
            uses: 0,
        });
        state.names.insert(name, unit);
        state.stale = true;
        state.poke();
        drop(state);
        Ok(ModuleHandle { inner: Arc::clone(&self.inner), owner: Arc::clone(&self.owner), unit })
    }

    /// The module of that name, if it is managed.
    #[must_use]
    pub fn module(&self, name: &str) -> Option<ModuleHandle<B>> {
        let unit = self.inner.lock().names.get(name).copied()?;
        Some(ModuleHandle { inner: Arc::clone(&self.inner), owner: Arc::clone(&self.owner), unit })
    }
}

/// Refuses two parameters of one name: only one of them could be found again.
fn check_names<B: Backend>(module: &str, parameters: &[Parameter<B>]) -> Result<()> {
    let mut seen = HashSet::new();
    match parameters.iter().find(|parameter| !seen.insert(parameter.name.as_str())) {
        None => Ok(()),
        Some(twice) => {
            let reason = format!("module {module:?} has {:?} twice; give each a name of its own", twice.name);
            Err(dd_core::Error::InvalidArgument { argument: "parameters", reason }.into())
        }
    }
}

impl<B: Backend> Inner<B> {
    /// Removes what was stored for parts that are not managed after all.
    fn forget_parts(&self, parts: &[Part<B>]) {
        parts.iter().for_each(|part| self.stores.forget(part.home.as_ref()));
    }

    fn make_part(&self, module: &str, parameter: Parameter<B>, pinned: bool) -> Result<Part<B>> {
        match parameter.source {
            Source::File { checkpoint, tensor } => {
                let location = checkpoint.tensor(&tensor)?.clone();
                let desc = location.desc.clone();
                let pinned = pinned || self.stays(&desc, true);
                let home = Some(Home::File { checkpoint, location });
                Ok(Part {
                    name: parameter.name.into(),
                    desc,
                    pinned,
                    near: Near::Absent,
                    home,
                    host: None,
                    stuck: false,
                })
            }
            Source::Tensor(tensor) => self.take_in(module, &parameter.name, tensor, pinned),
        }
    }

    /// Whether a part may never leave the tier that computes, by the configuration.
    fn stays(&self, desc: &TensorDesc, in_file: bool) -> bool {
        let small = desc.rank() <= 1 && !*self.config.offload_1d_parameters();
        let below = self.stores.has_host()
            || *self.config.enable_disk_offload()
            || !in_file && self.stores.has_compressed();
        small || !below
    }

    /// A part from a tensor that is in memory: kept where it is pinned or fits and is not to leave at once, else
    /// stored away.
    fn take_in(&self, module: &str, name: &str, tensor: B::Tensor, pinned: bool) -> Result<Part<B>> {
        let desc = self.backend.describe(&tensor)?;
        let pinned = pinned || self.stays(&desc, false);
        let mut part = Part {
            name: name.into(),
            desc: desc.clone(),
            pinned,
            near: Near::Absent,
            home: None,
            host: None,
            stuck: false,
        };
        if !pinned {
            self.reserve_scratch()?; // It will have to be stored away one day, when memory is short.
        }
        let keep = pinned || !*self.config.eager_offload_on_wrap();
        if keep && self.backend.tier_of(&tensor) == self.near {
            match self.near_budget.reserve(desc.bytes(), &self.weights) {
                Ok(room) => {
                    part.near = Near::Filled(Box::new(Free { tensor, desc, room }));
                    return Ok(part);
                }
                Err(error) if pinned => return Err(error.into()),
                Err(_) => {}
            }
        }
        match self.copy_to_host(&tensor, &desc) {
            Ok(Some(copy)) => {
                part.host = Some(copy);
                return Ok(part);
            }
            Ok(None) => {}
            Err(error) if error.is_out_of_memory() => {}
            Err(error) => return Err(error),
        }
        let mut read = |offset: usize, piece: &mut [u8]| Ok(self.backend.read(&tensor, offset, piece)?);
        part.home = Some(self.put(&full_name(module, name), &desc, &mut read)?);
        Ok(part)
    }

    pub(super) fn update(&self, unit: usize, name: &str, tensor: B::Tensor) -> Result<()> {
        let desc = self.backend.describe(&tensor)?;
        let mut state = self.lock();
        state.check_running("changing a parameter")?;
        let own = state.unit(unit)?;
        let module = Arc::clone(&own.name);
        let missing =
            || dd_core::Error::NotFound { name: name.to_owned(), place: format!("module {module:?}") };
        let number = own.parts.iter().position(|part| *part.name == *name).ok_or_else(missing)?;
        let Some(part) = own.parts.get(number) else { return Err(missing().into()) };
        if part.desc != desc {
            let (expected, found) = (part.desc.to_string(), desc.to_string());
            return Err(
                dd_core::Error::Mismatch { context: format!("{module}/{name}"), expected, found }.into()
            );
        }
        let (pinned, old) = self.take_out(state, unit, number)?;
        // Until the new values are in place nobody fills, stores or uses the part.
        let (old, new) = self.exchange(&module, name, tensor, pinned, old);
        let mut state = self.lock();
        state.moving -= 1;
        let place = state.part(unit, number);
        let (result, discarded) = match (new, place) {
            (Ok(new), Some(part)) => (Ok(()), Some(std::mem::replace(part, new))),
            (Ok(new), None) => (Err(Error::Stopped { what: "changing a parameter".to_owned() }), Some(new)),
            (Err(error), Some(part)) => {
                part.near = old.map_or(Near::Absent, |free| Near::Filled(Box::new(free)));
                (Err(error), None)
            }
            (Err(error), None) => (Err(error), None),
        };
        state.poke();
        drop(state);
        if let Some(part) = discarded {
            self.stores.forget(part.home.as_ref());
        }
        self.changed.notify_all();
        self.work.notify_one();
        result
    }

    /// Waits until a part is neither arriving nor leaving, and takes it for itself: what was in place, if anything.
    #[allow(clippy::type_complexity, reason = "whether it is pinned, and its storage")]
    fn take_out(
        &self,
        mut state: MutexGuard<'_, State<B>>,
        unit: usize,
        number: usize,
    ) -> Result<(bool, Option<Free<B>>)> {
        loop {
            state.check_running("changing a parameter")?;
            let own = state.unit(unit)?;
            let in_use = own.users > 0;
            let Some(part) = own.parts.get_mut(number) else {
                return Err(Error::Stopped { what: "changing a parameter".to_owned() });
            };
            if in_use {
                let reason = format!(
                    "{} is in use; release its guards before changing it",
                    full_name(&own.name, &part.name)
                );
                return Err(dd_core::Error::InvalidArgument { argument: "parameter", reason }.into());
            }
            let pinned = part.pinned;
            match std::mem::replace(&mut part.near, Near::Leaving) {
                Near::Absent => {
                    state.moving += 1;
                    return Ok((pinned, None));
                }
                Near::Filled(free) => {
                    state.moving += 1;
                    return Ok((pinned, Some(*free)));
                }
                moving => part.near = moving,
            }
            state.updating += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.updating -= 1;
        }
    }

    /// The part with its new values, in the room of the old ones where it stays in place; the old ones, if it fails.
    fn exchange(
        &self,
        module: &str,
        name: &str,
        tensor: B::Tensor,
        pinned: bool,
        mut old: Option<Free<B>>,
    ) -> (Option<Free<B>>, Result<Part<B>>) {
        if !pinned && let Err(error) = self.reserve_scratch() {
            return (old, Err(error));
        }
        let alone = old.as_mut().is_some_and(|old| self.backend.is_unique(&mut old.tensor));
        let stays =
            (pinned || !*self.config.eager_offload_on_wrap()) && self.backend.tier_of(&tensor) == self.near;
        match old {
            Some(old) if stays && alone => {
                let Free { desc, room, .. } = old;
                let near = Near::Filled(Box::new(Free { tensor, desc: desc.clone(), room }));
                let part =
                    Part { name: name.into(), desc, pinned, near, home: None, host: None, stuck: false };
                (None, Ok(part))
            }
            old => {
                let new = self.take_in(module, name, tensor, pinned);
                match (new, old) {
                    (Ok(new), Some(old)) => {
                        self.lock().set_free(&self.backend, old);
                        (None, Ok(new))
                    }
                    (new, old) => (old, new),
                }
            }
        }
    }

    /// Sends one part away, if its unit is idle and it is in place.
    fn offload_part(&self, unit: usize, number: usize) -> Result<Bytes> {
        let mut state = self.lock();
        if state.stop == Some(Stop::Whole) {
            return Err(Error::Stopped { what: "offloading".to_owned() });
        }
        let stored_first =
            state.part(unit, number).is_some_and(|part| part.is_filled() && part.home.is_none());
        if stored_first {
            drop(state);
            self.reserve_scratch()?; // Without the lock: others may be asked to give back.
            state = self.lock();
        }
        if state.unit(unit)?.is_idle() { self.leave(state, (unit, number)) } else { Ok(Bytes::ZERO) }
    }

    pub(super) fn offload_unit(&self, unit: usize) -> Result<Bytes> {
        let parts = {
            let mut state = self.lock();
            state.cursors.clear(); // What was sent away on request is not read ahead again before the next use.
            state.unit(unit)?.parts.len()
        };
        let freed = (0..parts).map(|number| self.offload_part(unit, number)).sum::<Result<Bytes>>()?;
        let mut state = self.lock();
        state.pool.clear();
        state.sweep(&self.backend);
        Ok(freed)
    }
}
