//! [`PeakScopes`]: the peaks of nested and overlapping scopes, from one high-water mark that can be reset.
//!
//! The kernel (and a budget) keeps a single mark: the most since it was last reset. To know the peak of a scope inside
//! another, the mark must be reset at the inner scope's start, which would make the outer scope forget what it had. So
//! whoever opens or closes a scope first lets every open scope note the mark. Scopes may overlap in any way (other
//! threads open theirs), not only nest.

use std::sync::Mutex;

use dd_core::Bytes;

use crate::lock;

/// The peaks of all open scopes of one mark.
#[derive(Debug, Default)]
pub struct PeakScopes {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    scopes: Vec<(u64, Bytes)>,
}

impl Open {
    fn note(&mut self, mark: Bytes) {
        self.scopes.iter_mut().for_each(|(_, peak)| *peak = (*peak).max(mark));
    }
}

/// An open scope; it must be given back to [`PeakScopes::close`].
#[derive(Debug)]
#[must_use]
pub struct Scope(u64);

impl PeakScopes {
    /// No open scope.
    #[must_use]
    pub const fn new() -> Self {
        Self { open: Mutex::new(Open { next: 0, scopes: Vec::new() }) }
    }

    /// Opens a scope: `read` gives the mark, and `reset` lowers it to what is held now. Where resetting fails, its error
    /// is given back and no scope is opened.
    ///
    /// # Errors
    /// What `read` or `reset` says.
    pub fn open<E>(
        &self,
        read: impl FnOnce() -> Result<Bytes, E>,
        reset: impl FnOnce() -> Result<(), E>,
    ) -> Result<Scope, E> {
        let mut open = lock(&self.open);
        open.note(read()?);
        reset()?;
        let number = open.next;
        open.next += 1;
        open.scopes.push((number, Bytes::ZERO));
        Ok(Scope(number))
    }

    /// Closes a scope; gives its peak.
    ///
    /// # Errors
    /// What `read` says; the scope is closed all the same.
    pub fn close<E>(&self, scope: Scope, read: impl FnOnce() -> Result<Bytes, E>) -> Result<Bytes, E> {
        let mut open = lock(&self.open);
        let mark = read();
        if let Ok(mark) = &mark {
            open.note(*mark);
        }
        let place = open.scopes.iter().position(|(number, _)| *number == scope.0);
        let peak = place.map(|place| open.scopes.swap_remove(place).1);
        mark.map(|mark| peak.unwrap_or(mark))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// A mark as the kernel keeps it, with what is held beside it.
    #[derive(Default)]
    struct Mark {
        held: Cell<u64>,
        mark: Cell<u64>,
    }

    impl Mark {
        fn hold(&self, bytes: u64) {
            self.held.set(bytes);
            self.mark.set(self.mark.get().max(bytes));
        }

        fn open(&self, scopes: &PeakScopes) -> Scope {
            let reset = || {
                self.mark.set(self.held.get());
                Ok::<(), Infallible>(())
            };
            scopes.open(|| Ok(Bytes(self.mark.get())), reset).unwrap()
        }

        fn close(&self, scopes: &PeakScopes, scope: Scope) -> u64 {
            scopes.close(scope, || Ok::<_, Infallible>(Bytes(self.mark.get()))).unwrap().0
        }
    }

    #[test]
    fn inner_scopes_do_not_make_outer_ones_forget() {
        let (mark, scopes) = (Mark::default(), PeakScopes::new());
        mark.hold(50);
        mark.hold(5);
        let outer = mark.open(&scopes);
        mark.hold(30);
        mark.hold(10);
        let first = mark.open(&scopes);
        mark.hold(12);
        assert_eq!(mark.close(&scopes, first), 12);
        let second = mark.open(&scopes);
        assert_eq!(mark.close(&scopes, second), 12);
        mark.hold(0);
        assert_eq!(mark.close(&scopes, outer), 30);
    }

    #[test]
    fn a_reset_that_fails_opens_nothing() {
        let scopes = PeakScopes::new();
        let refused = scopes.open(|| Ok(Bytes(1)), || Err("no"));
        assert_eq!(refused.unwrap_err(), "no");
        assert!(lock(&scopes.open).scopes.is_empty());
    }

    proptest! {
        /// Any sequence of opening, closing (any open scope, not only the last) and holding gives each scope the most that
        /// was held while it was open.
        #[test]
        fn every_scope_has_its_own_peak(steps in proptest::collection::vec((0u8..3, 0u64..100), 0..80)) {
            let (mark, scopes) = (Mark::default(), PeakScopes::new());
            let mut open: Vec<(Scope, u64)> = Vec::new();
            for (what, figure) in steps {
                match what {
                    0 => open.push((mark.open(&scopes), mark.held.get())),
                    1 if !open.is_empty() => {
                        let place = usize::try_from(figure).unwrap() % open.len();
                        let (scope, expected) = open.swap_remove(place);
                        prop_assert_eq!(mark.close(&scopes, scope), expected);
                    }
                    _ => {
                        mark.hold(figure);
                        open.iter_mut().for_each(|(_, peak)| *peak = (*peak).max(figure));
                    }
                }
            }
        }
    }
}
