//! [`Budget`](dd_core::Budget) under a model checker that chooses the order of its threads: whatever the order, no
//! limit is exceeded, no byte is lost, nothing waits for ever. Built with `RUSTFLAGS="--cfg dd_shuttle"` only.
#![cfg(dd_shuttle)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::sync::Arc;

use dd_core::{Budget, Bytes, Error, Holder, Reclaim, Reservation};
use shuttle::sync::Mutex;
use shuttle::thread;

/// Runs a scenario in many random orders, and in orders that favour few, well-placed switches.
fn in_every_order(scenario: fn()) {
    shuttle::check_random(scenario, 20_000);
    shuttle::check_pct(scenario, 10_000, 3);
}

fn holder(name: &str) -> Holder {
    Holder::new(name)
}

/// At every look: within the limit, and the holders' bytes are the node's.
fn invariant(budget: &Budget) {
    let usage = budget.usage();
    assert!(usage.used <= usage.limit, "{}: {} used of {}", usage.name, usage.used, usage.limit);
    let sum: Bytes = usage.holders.iter().map(|row| row.used).sum();
    assert_eq!(sum, usage.used, "{}: holders against the whole", usage.name);
}

fn empty(budget: &Budget) {
    invariant(budget);
    assert_eq!(budget.usage().used, Bytes::ZERO, "lost bytes at {}", budget.name());
}

/// What a refusal says must have been true: more was needed than was there.
fn honest<T>(result: Result<T, Error>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(Error::OutOfMemory { needed, available, .. }) if needed > available => None,
        Err(error) => panic!("a refusal that does not hold: {error}"),
    }
}

fn run(threads: Vec<Box<dyn FnOnce() + Send>>) {
    let threads: Vec<_> = threads.into_iter().map(thread::spawn).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Gives back one entry at a time; where it has none, it may use the budget itself.
struct Cache {
    budget: Budget,
    entries: Mutex<Vec<Reservation>>,
}

impl Cache {
    fn filled(budget: &Budget, priority: u8, entries: &[u64]) -> Arc<Self> {
        let entry = |bytes: &u64| budget.reserve(Bytes(*bytes), &holder("cache")).unwrap();
        let entries = Mutex::new(entries.iter().map(entry).collect());
        let cache = Arc::new(Self { budget: budget.clone(), entries });
        let shared: Arc<dyn Reclaim> = cache.clone();
        budget.register(priority, Arc::downgrade(&shared));
        cache
    }
}

impl Reclaim for Cache {
    fn reclaim(&self, _wanted: Bytes) -> Bytes {
        let entry = self.entries.lock().unwrap().pop();
        invariant(&self.budget);
        drop(honest(self.budget.reserve(Bytes(1), &holder("inside"))));
        entry.map_or(Bytes::ZERO, |entry| entry.bytes())
    }
}

#[test]
fn three_threads_never_hold_more_than_the_limit() {
    in_every_order(|| {
        let root = Budget::new("root", Bytes(100));
        let child = root.child("child", Bytes(70));
        let work = |budget: Budget, bytes: u64| -> Box<dyn FnOnce() + Send> {
            Box::new(move || {
                if let Some(mut held) = honest(budget.reserve(Bytes(bytes), &holder("work"))) {
                    invariant(&budget);
                    honest(held.grow(Bytes(20)));
                    invariant(&budget);
                    let part = held.split(Bytes(10));
                    held.shrink_to(Bytes(5));
                    drop(part);
                }
                invariant(&budget);
            })
        };
        run(vec![work(root.clone(), 60), work(child.clone(), 40), work(child.clone(), 50)]);
        empty(&child);
        empty(&root);
    });
}

#[test]
fn reclaiming_from_several_threads_ends_and_loses_nothing() {
    in_every_order(|| {
        let root = Budget::new("root", Bytes(100));
        let first = Cache::filled(&root, 0, &[20, 20]);
        let second = Cache::filled(&root, 1, &[30, 30]);
        let work = |root: &Budget| -> Box<dyn FnOnce() + Send> {
            let root = root.clone();
            Box::new(move || {
                let held = honest(root.reserve(Bytes(30), &holder("work")));
                invariant(&root);
                drop(held);
            })
        };
        run(vec![work(&root), work(&root), work(&root)]);
        drop((first, second));
        empty(&root);
    });
}

#[test]
fn limits_may_change_meanwhile() {
    in_every_order(|| {
        let root = Budget::new("root", Bytes(100));
        let cache = Cache::filled(&root, 0, &[25, 25]);
        let reserve = {
            let root = root.clone();
            move || {
                let held = honest(root.reserve(Bytes(60), &holder("work")));
                invariant(&root);
                drop(held);
            }
        };
        let limit = {
            let root = root.clone();
            move || {
                for limit in [40, 80] {
                    honest(root.set_limit(Bytes(limit)));
                    invariant(&root);
                }
            }
        };
        let refill = {
            let (root, cache) = (root.clone(), Arc::clone(&cache));
            move || {
                let entry = honest(root.try_reserve(Bytes(10), &holder("cache")));
                cache.entries.lock().unwrap().extend(entry);
                invariant(&root);
            }
        };
        run(vec![Box::new(reserve), Box::new(limit), Box::new(refill)]);
        drop(cache);
        empty(&root);
    });
}

#[test]
fn a_reclaiming_thread_does_not_silence_the_others() {
    in_every_order(|| {
        // Each of two trees has just enough to give: whichever thread is inside a reclaimer, the other may ask.
        let work = || -> Box<dyn FnOnce() + Send> {
            Box::new(|| {
                let root = Budget::new("root", Bytes(40));
                let cache = Cache::filled(&root, 0, &[20, 20]);
                drop(root.reserve(Bytes(40), &holder("work")).unwrap());
                drop(cache);
                empty(&root);
            })
        };
        run(vec![work(), work()]);
    });
}

#[test]
fn nodes_and_reclaimers_may_end_while_they_are_asked() {
    in_every_order(|| {
        let root = Budget::new("root", Bytes(50));
        let child = root.child("child", Bytes(50));
        let cache = Cache::filled(&child, 0, &[25, 25]);
        drop(child);
        let ask = {
            let root = root.clone();
            move || {
                let held = honest(root.reserve(Bytes(30), &holder("work")));
                invariant(&root);
                drop(held);
            }
        };
        run(vec![Box::new(ask.clone()), Box::new(ask), Box::new(move || drop(cache))]);
        empty(&root);
    });
}
