//! The suite of [`Reclaim`].

use std::sync::Arc;

use dd_core::{Budget, Bytes, Holder, Reclaim};

use crate::rule::{done, on_threads};

/// More rounds than any reclaimer of the suite needs that really gives.
const MANY: usize = 100_000;

/// Checks a [`Reclaim`]er.
///
/// `make` gives one, each time another, that holds some bytes of the budget (which has no limit then) that it can
/// give back; it does not register it. Checked:
///
/// - what it says that it gave is what its reservations fell by, whatever was wanted, also nothing and everything;
/// - asked again and again it comes to an end, then says zero, and goes on saying zero;
/// - asked by the budget, on behalf of a reservation, it makes room, without a deadlock;
/// - four threads asking at once get each byte once.
///
/// ```
/// # use std::sync::{Arc, Mutex};
/// # use dd_core::{Budget, Bytes, Holder, Reclaim, Reservation};
/// struct Cache(Mutex<Vec<Reservation>>);
/// impl Reclaim for Cache {
///     fn reclaim(&self, _wanted: Bytes) -> Bytes {
///         self.0.lock().unwrap().pop().map_or(Bytes::ZERO, |entry| entry.bytes())
///     }
/// }
/// dd_conformance::reclaim(|budget| {
///     let entry = |n| budget.reserve(Bytes(n), &Holder::new("cache")).unwrap();
///     Arc::new(Cache(Mutex::new((1..10).map(entry).collect())))
/// });
/// ```
///
/// # Panics
/// Where the reclaimer breaks the contract.
pub fn reclaim<R: Reclaim + 'static>(make: impl Fn(&Budget) -> Arc<R>) {
    let filled = || {
        let budget = Budget::unlimited("suite");
        let reclaimer = make(&budget);
        let held = budget.usage().used;
        assert!(
            held > Bytes::ZERO,
            "the reclaimer under test holds no bytes of the budget that it was given"
        );
        (budget, reclaimer, held)
    };
    for wanted in [Bytes(1), Bytes(4096), Bytes::MAX] {
        let (budget, reclaimer, _) = filled();
        says_what_it_gives(&budget, &*reclaimer, Bytes::ZERO);
        comes_to_an_end(&budget, &*reclaimer, wanted);
    }
    let (budget, reclaimer, held) = filled();
    makes_room(&budget, &reclaimer, held);
    let (budget, reclaimer, _) = filled();
    serves_threads(&budget, &*reclaimer);
}

/// Asks once, and checks the answer against the budget.
fn says_what_it_gives(budget: &Budget, reclaimer: &dyn Reclaim, wanted: Bytes) -> Bytes {
    let before = budget.usage().used;
    let said = reclaimer.reclaim(wanted);
    let after = budget.usage().used;
    let gave = before.checked_sub(after);
    assert_eq!(
        gave,
        Some(said),
        "asked for {wanted}, it says {said}, but its reservations went from {before} to {after}"
    );
    said
}

fn comes_to_an_end(budget: &Budget, reclaimer: &dyn Reclaim, wanted: Bytes) {
    let ends = (0..MANY).any(|_| says_what_it_gives(budget, reclaimer, wanted) == Bytes::ZERO);
    assert!(ends, "after being asked {MANY} times it still gives");
    let again = says_what_it_gives(budget, reclaimer, wanted);
    assert_eq!(again, Bytes::ZERO, "it gives again after it said that nothing is left");
}

/// Fills the budget to its limit with what the reclaimer holds, then reserves one byte.
fn makes_room<R: Reclaim + 'static>(budget: &Budget, reclaimer: &Arc<R>, held: Bytes) {
    done(budget.set_limit(held), "the suite's own limit");
    let shared: Arc<dyn Reclaim> = reclaimer.clone();
    budget.register(0, Arc::downgrade(&shared));
    let byte = budget.reserve(Bytes(1), &Holder::new("suite"));
    drop(done(byte, format_args!("a reservation of 1 B in a budget that the reclaimer fills with {held}")));
    assert!(budget.usage().used < held, "the budget made room, but the reclaimer's reservations stay");
}

fn serves_threads(budget: &Budget, reclaimer: &dyn Reclaim) {
    let before = budget.usage().used;
    let drain = |_| {
        let answers = (0..MANY).map(|_| reclaimer.reclaim(Bytes(1)));
        answers.take_while(|given| *given > Bytes::ZERO).sum::<Bytes>()
    };
    let said: Bytes = on_threads(drain).into_iter().sum();
    let after = budget.usage().used;
    let gave = before.checked_sub(after);
    assert_eq!(
        gave,
        Some(said),
        "four threads were given {said}, but reservations went from {before} to {after}"
    );
}
