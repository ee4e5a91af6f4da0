//! [`Budget`] under real threads, and under reclaimers that do what reclaimers should not: limits hold at every
//! moment, nothing is lost, nothing waits for ever.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use dd_core::{Budget, Bytes, Error, Holder, Reclaim, Reservation, Usage};

/// Fails, instead of hanging, where the work is never done. The time is no measure of speed: it is for a deadlock.
fn ends(work: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let worker = thread::spawn(move || {
        work();
        done.send(()).unwrap();
    });
    match wait.recv_timeout(Duration::from_secs(60)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("deadlock: not done after a minute"),
        _ => worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
}

fn holder() -> Holder {
    Holder::new("test")
}

fn invariant(usage: &Usage) {
    assert!(usage.used <= usage.limit, "{}: {} used of {}", usage.name, usage.used, usage.limit);
    assert!(usage.peak >= usage.used, "{}: peak {} below {}", usage.name, usage.peak, usage.used);
    let sum: Bytes = usage.holders.iter().map(|row| row.used).sum();
    assert_eq!(sum, usage.used, "{}: holders against the whole", usage.name);
}

/// A reclaimer made of a function.
struct Does<F>(F);

impl<F: Fn(Bytes) -> Bytes + Send + Sync> Reclaim for Does<F> {
    fn reclaim(&self, wanted: Bytes) -> Bytes {
        (self.0)(wanted)
    }
}

fn register(
    budget: &Budget,
    priority: u8,
    reclaim: impl Fn(Bytes) -> Bytes + Send + Sync + 'static,
) -> Arc<dyn Reclaim> {
    let reclaimer: Arc<dyn Reclaim> = Arc::new(Does(reclaim));
    budget.register(priority, Arc::downgrade(&reclaimer));
    reclaimer
}

/// Reservations that a reclaimer gives back.
type Entries = Arc<Mutex<Vec<Reservation>>>;

fn pop(entries: &Entries) -> Bytes {
    let entry = entries.lock().unwrap().pop();
    entry.map_or(Bytes::ZERO, |entry| entry.bytes())
}

/// A small generator (an LCG of Knuth's), so that each thread has its own order of operations.
fn next(state: &mut u64, below: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % below
}

#[test]
fn limits_hold_at_every_moment() {
    const LIMIT: u64 = 1000;
    const ROUNDS: u64 = 4000;
    ends(|| {
        let root = Budget::new("root", Bytes(LIMIT));
        let nodes = [root.clone(), root.child("a", Bytes(600)), root.child("b", Bytes(700))];
        let caches: Vec<Entries> = (0..3).map(|_| Entries::default()).collect();
        let reclaimers: Vec<_> = (0..3u8)
            .map(|n| {
                let entries = Arc::clone(&caches[usize::from(n)]);
                register(&nodes[usize::from(n)], n, move |_| pop(&entries))
            })
            .collect();
        let (real, running) = (AtomicU64::new(0), AtomicBool::new(true));
        let work = |thread: u64| {
            let (mut state, mut held) = (thread + 1, Vec::<Reservation>::new());
            for _ in 0..ROUNDS {
                let node = usize::try_from(next(&mut state, 3)).unwrap();
                let bytes = Bytes(next(&mut state, 120));
                match next(&mut state, 8) {
                    0..=2 => held.extend(nodes[node].reserve(bytes, &holder())),
                    3 => caches[node]
                        .lock()
                        .unwrap()
                        .extend(nodes[node].try_reserve(bytes, &Holder::new("cache"))),
                    4 => drop(nodes[1].set_limit(Bytes(500) + bytes)), // Refused where more is held: so be it.
                    5 => held.last_mut().map_or((), |last| drop(last.grow(bytes))),
                    6 => held.last_mut().map_or((), |last| last.shrink_to(bytes)),
                    _ => drop(held.pop()),
                }
                if held.len() > 4 {
                    held.remove(0);
                }
                let mine = held.iter().map(|reservation| reservation.bytes().0).sum::<u64>();
                // Counted from here until it is taken back: the threads' own sum, apart from the budget's.
                assert!(
                    real.fetch_add(mine, Ordering::SeqCst) + mine <= LIMIT,
                    "the threads hold more than the limit"
                );
                thread::yield_now();
                real.fetch_sub(mine, Ordering::SeqCst);
            }
        };
        thread::scope(|scope| {
            let sampler = scope.spawn(|| {
                let mut samples = 0u64;
                while running.load(Ordering::Relaxed) {
                    nodes.iter().for_each(|node| invariant(&node.usage()));
                    samples += 1;
                }
                samples
            });
            let workers: Vec<_> = (0..4).map(|n| scope.spawn(move || work(n))).collect();
            let results: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
            running.store(false, Ordering::Relaxed);
            assert!(results.iter().all(Result::is_ok), "a worker found the limit exceeded");
            assert!(sampler.join().unwrap() > 0, "nothing was sampled");
        });
        drop((caches, reclaimers));
        nodes
            .iter()
            .for_each(|node| assert_eq!(node.usage().used, Bytes::ZERO, "lost bytes at {}", node.name()));
    });
}

/// A full budget of 100 bytes in entries of 10, and the entries.
fn full() -> (Budget, Entries) {
    let budget = Budget::new("root", Bytes(100));
    let entries = (0..10).map(|_| budget.reserve(Bytes(10), &Holder::new("cache")).unwrap()).collect();
    (budget, Arc::new(Mutex::new(entries)))
}

#[test]
fn a_reclaimer_may_use_the_budget() {
    type Act = fn(&Budget, &Entries, &Mutex<Vec<Arc<dyn Reclaim>>>);
    let rows: [(&str, Act); 7] = [
        ("drops", |_, _, _| ()),
        ("reserves what fits", |budget, entries, _| {
            drop(entries.lock().unwrap().pop());
            drop(budget.reserve(Bytes(5), &Holder::new("inner")).unwrap());
        }),
        ("reserves what does not fit", |budget, _, _| {
            assert!(budget.reserve(Bytes(50), &Holder::new("inner")).unwrap_err().is_out_of_memory());
        }),
        ("reserves in another tree", |_, _, _| {
            let other = Budget::new("other", Bytes(10));
            let never = register(&other, 0, |_| panic!("asked from inside a reclaimer"));
            let held = other.reserve(Bytes(10), &Holder::new("inner")).unwrap();
            assert!(other.reserve(Bytes(1), &Holder::new("inner")).is_err());
            drop((held, never));
        }),
        ("registers", |budget, _, keep| {
            keep.lock().unwrap().push(register(budget, 9, |_| Bytes::ZERO));
        }),
        ("looks, and makes children", |budget, _, _| {
            invariant(&budget.usage());
            drop(budget.child("child", Bytes(1)).reserve(Bytes::ZERO, &Holder::new("inner")).unwrap());
            budget.reset_peak();
        }),
        ("sets limits", |budget, _, _| {
            assert!(budget.set_limit(Bytes(10)).unwrap_err().is_out_of_memory());
            budget.set_limit(Bytes(100)).unwrap();
        }),
    ];
    for (what, act) in rows {
        ends(move || {
            let (budget, entries) = full();
            let keep = Arc::new(Mutex::new(Vec::new()));
            let reclaimer = {
                let (budget, entries, keep) = (budget.clone(), Arc::clone(&entries), Arc::clone(&keep));
                register(&budget.clone(), 0, move |_| {
                    act(&budget, &entries, &keep);
                    pop(&entries)
                })
            };
            let taken =
                budget.reserve(Bytes(35), &holder()).unwrap_or_else(|error| panic!("{what}: {error}"));
            invariant(&budget.usage());
            drop((taken, reclaimer));
            entries.lock().unwrap().clear();
            assert_eq!(budget.usage().used, Bytes::ZERO, "{what}: lost bytes");
        });
    }
}

/// A reclaimer that holds reservations, a budget, and, where asked to, the last handle to itself.
struct Suicidal {
    last: Mutex<Option<Arc<Suicidal>>>,
    budget: Budget,
    held: Reservation,
}

impl Reclaim for Suicidal {
    fn reclaim(&self, _wanted: Bytes) -> Bytes {
        // The budget's handle is now the only one: its drop drops the reclaimer and what it holds.
        self.last.lock().unwrap().take().map_or(Bytes::ZERO, |_| self.held.bytes())
    }
}

impl Drop for Suicidal {
    fn drop(&mut self) {
        assert!(self.budget.reserve(Bytes(100), &holder()).is_err(), "a drop in a reclaimer asks others");
    }
}

#[test]
fn a_reclaimer_may_end_itself() {
    ends(|| {
        let budget = Budget::new("root", Bytes(100));
        let held = budget.reserve(Bytes(80), &holder()).unwrap();
        let suicidal = Arc::new(Suicidal { last: Mutex::new(None), budget: budget.clone(), held });
        *suicidal.last.lock().unwrap() = Some(Arc::clone(&suicidal));
        let shared: Arc<dyn Reclaim> = suicidal;
        budget.register(0, Arc::downgrade(&shared));
        let others = register(&budget, 1, |_| Bytes::ZERO);
        drop(shared);
        drop(budget.reserve(Bytes(90), &holder()).unwrap());
        assert_eq!(budget.usage().used, Bytes::ZERO);
        drop(others);
    });
}

#[test]
fn a_reclaimer_that_panics_leaves_all_whole() {
    ends(|| {
        let (budget, entries) = full();
        let bad = register(&budget, 0, |_| panic!("a broken reclaimer"));
        let result = catch_unwind(AssertUnwindSafe(|| budget.reserve(Bytes(10), &holder())));
        assert!(result.is_err(), "the panic is passed on");
        assert_eq!(budget.usage().used, Bytes(100), "a panic took or gave bytes");
        drop(bad);
        let cache = Arc::clone(&entries);
        let good = register(&budget, 1, move |_| pop(&cache));
        drop(budget.reserve(Bytes(30), &holder()).unwrap()); // This thread may still ask.
        assert_eq!(budget.usage().used, Bytes(70));
        drop(good);
    });
}

#[test]
fn liars_and_the_greedy_do_not_keep_a_request_going() {
    ends(|| {
        let (budget, _entries) = full();
        let asked = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&asked);
        let liar = register(&budget, 0, move |wanted| {
            count.fetch_add(1, Ordering::Relaxed);
            wanted
        });
        assert!(budget.reserve(Bytes(10), &holder()).unwrap_err().is_out_of_memory());
        assert!(budget.set_limit(Bytes(10)).unwrap_err().is_out_of_memory());
        assert!((2..1000).contains(&asked.load(Ordering::Relaxed)), "asked {asked:?} times");
        drop(liar);
    });
}

#[test]
fn asks_only_those_who_can_help_and_while_they_give() {
    let (budget, entries) = full();
    let small = budget.child("small", Bytes(20));
    let (cache, aside) = (Arc::clone(&entries), register(&small, 0, |_| Bytes::ZERO));
    let log = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&log);
    let reclaimer = register(&budget, 1, move |wanted| {
        notes.lock().unwrap().push(wanted.0);
        pop(&cache)
    });
    // No giving back helps where a limit is too small, so nobody loses anything for it.
    for (node, bytes) in [(&budget, 101), (&small, 21)] {
        match node.reserve(Bytes(bytes), &holder()) {
            Err(Error::OutOfMemory { needed, .. }) => assert_eq!(needed, Bytes(bytes)),
            other => panic!("expected a refusal, found {other:?}"),
        }
    }
    assert!(log.lock().unwrap().is_empty(), "asked in vain");
    // Each answer of 10 bytes is too little: it is asked until it is enough, for what is then missing.
    let taken = small.reserve(Bytes(20), &holder()).unwrap();
    assert_eq!(*log.lock().unwrap(), [20, 10]);
    drop((taken, reclaimer, aside));
}

#[test]
fn long_chains_of_children_are_dropped_one_by_one() {
    let root = Budget::unlimited("");
    let mut lowest = root.clone();
    for _ in 0..2000 {
        lowest = lowest.child("", Bytes::MAX);
    }
    let held = lowest.reserve(Bytes(1), &holder()).unwrap();
    drop(lowest);
    assert_eq!(root.usage().used, Bytes(1), "a reservation keeps the nodes above it");
    thread::Builder::new().stack_size(64 << 10).spawn(move || drop(held)).unwrap().join().unwrap();
    assert_eq!(root.usage().used, Bytes::ZERO);
}
