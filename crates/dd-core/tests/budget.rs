//! [`Budget`] against a naive model: random trees and random operations, and after each of them every figure of every
//! node is exactly the model's, no limit is exceeded, and the reclaimers were asked as the model would have asked.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use dd_core::{Budget, Bytes, Error, Holder, Reclaim, Reservation};
use proptest::prelude::*;

const HOLDERS: [&str; 3] = ["weights", "batch", "cache"];

/// One operation. Indices are taken modulo what there is.
#[derive(Clone, Debug)]
enum Op {
    Child { parent: usize, limit: u64 },
    DropChild(usize),
    Reserve { node: usize, bytes: u64, holder: usize },
    TryReserve { node: usize, bytes: u64, holder: usize },
    Drop(usize),
    Split { held: usize, bytes: u64 },
    Grow { held: usize, more: u64 },
    Shrink { held: usize, keep: u64 },
    Assign { held: usize, holder: usize },
    SetLimit { node: usize, limit: u64 },
    ResetPeak(usize),
    Register { node: usize, priority: u8 },
    Fill { cache: usize, bytes: u64 },
    DropCache(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let (i, bytes) = (0..100usize, 0..60u64);
    let limit = prop_oneof![4 => 0..200u64, 1 => Just(u64::MAX)];
    let reserve = (i.clone(), bytes.clone(), i.clone());
    prop_oneof![
        2 => (i.clone(), limit.clone()).prop_map(|(parent, limit)| Op::Child { parent, limit }),
        1 => i.clone().prop_map(Op::DropChild),
        8 => reserve.clone().prop_map(|(node, bytes, holder)| Op::Reserve { node, bytes, holder }),
        3 => reserve.prop_map(|(node, bytes, holder)| Op::TryReserve { node, bytes, holder }),
        4 => i.clone().prop_map(Op::Drop),
        2 => (i.clone(), bytes.clone()).prop_map(|(held, bytes)| Op::Split { held, bytes }),
        4 => (i.clone(), bytes.clone()).prop_map(|(held, more)| Op::Grow { held, more }),
        2 => (i.clone(), bytes.clone()).prop_map(|(held, keep)| Op::Shrink { held, keep }),
        2 => (i.clone(), i.clone()).prop_map(|(held, holder)| Op::Assign { held, holder }),
        3 => (i.clone(), limit).prop_map(|(node, limit)| Op::SetLimit { node, limit }),
        1 => i.clone().prop_map(Op::ResetPeak),
        3 => (i.clone(), 0..3u8).prop_map(|(node, priority)| Op::Register { node, priority }),
        6 => (i.clone(), bytes).prop_map(|(cache, bytes)| Op::Fill { cache, bytes }),
        1 => i.prop_map(Op::DropCache),
    ]
}

/// A real reclaimer: gives back whole entries, the last first, and notes that it was asked.
struct Cache {
    id: usize,
    entries: Mutex<Vec<Reservation>>,
    log: Arc<Mutex<Vec<usize>>>,
}

impl Reclaim for Cache {
    fn reclaim(&self, wanted: Bytes) -> Bytes {
        self.log.lock().unwrap().push(self.id);
        let mut entries = self.entries.lock().unwrap();
        let mut given = Bytes::ZERO;
        while given < wanted {
            let Some(entry) = entries.pop() else { break };
            given += entry.bytes();
        }
        given
    }
}

/// The model of a node: its own figures, and nothing shared.
struct Node {
    parent: Option<usize>,
    limit: u64,
    used: u64,
    peak: u64,
    holders: BTreeMap<&'static str, (u64, u64)>,
    budget: Option<Budget>,
}

struct Held {
    node: usize,
    holder: &'static str,
    bytes: u64,
    reservation: Reservation,
}

struct CacheModel {
    node: usize,
    priority: u8,
    entries: Vec<u64>,
    real: Option<Arc<Cache>>,
}

/// What a refusal must name.
#[derive(Debug, PartialEq)]
struct Refused {
    needed: u64,
    available: u64,
    node: usize,
}

#[derive(Default)]
struct World {
    nodes: Vec<Node>,
    held: Vec<Held>,
    caches: Vec<CacheModel>,
    asked: Vec<usize>,
    log: Arc<Mutex<Vec<usize>>>,
}

impl World {
    fn new() -> Self {
        let mut world = Self::default();
        let budget = Some(Budget::new("0", Bytes(300)));
        world.nodes.push(Node {
            parent: None,
            limit: 300,
            used: 0,
            peak: 0,
            holders: BTreeMap::new(),
            budget,
        });
        world
    }

    /// The node and its ancestors, lowest first.
    fn path(&self, node: usize) -> Vec<usize> {
        std::iter::successors(Some(node), |at| self.nodes[*at].parent).collect()
    }

    /// A node is there while its handle, a reservation at it, or a node below it is.
    fn is_there(&self, node: usize) -> bool {
        let holds = |other: usize| {
            let here = self.held.iter().any(|held| held.node == other);
            let cached = self.caches.iter().any(|cache| cache.node == other && !cache.entries.is_empty());
            self.nodes[other].budget.is_some() || here || cached
        };
        (0..self.nodes.len()).any(|other| holds(other) && self.path(other).contains(&node))
    }

    fn handle(&self, index: usize) -> (usize, Budget) {
        let there: Vec<usize> = (0..self.nodes.len()).filter(|n| self.nodes[*n].budget.is_some()).collect();
        let node = there[index % there.len()];
        (node, self.nodes[node].budget.clone().unwrap())
    }

    fn count(&mut self, node: usize, bytes: u64, holder: &'static str) {
        for at in self.path(node) {
            let node = &mut self.nodes[at];
            node.used += bytes;
            node.peak = node.peak.max(node.used);
            let (used, peak) = node.holders.entry(holder).or_default();
            *used += bytes;
            *peak = (*peak).max(*used);
        }
    }

    fn uncount(&mut self, node: usize, bytes: u64, holder: &'static str) {
        for at in self.path(node) {
            self.nodes[at].used -= bytes;
            // A holder of nothing may have been forgotten by `reset_peak`.
            if let Some((used, _)) = self.nodes[at].holders.get_mut(holder) {
                *used -= bytes;
            }
        }
    }

    /// The lowest node without room.
    fn full(&self, node: usize, bytes: u64) -> Option<usize> {
        self.path(node).into_iter().find(|at| self.nodes[*at].limit - self.nodes[*at].used < bytes)
    }

    /// Asks the first cache at or below a node that has not said zero; says whether there was one.
    fn ask(&mut self, at: usize, wanted: u64, done: &mut Vec<usize>) -> bool {
        let may = |id: &usize| {
            let cache = &self.caches[*id];
            let below = self.path(cache.node).contains(&at) && self.is_there(cache.node);
            cache.real.is_some() && below && !done.contains(id)
        };
        let Some(id) = (0..self.caches.len()).filter(may).min_by_key(|id| (self.caches[*id].priority, *id))
        else {
            return false;
        };
        self.asked.push(id);
        let mut given = 0;
        while given < wanted {
            let Some(bytes) = self.caches[id].entries.pop() else { break };
            self.uncount(self.caches[id].node, bytes, "cache");
            given += bytes;
        }
        if given == 0 {
            done.push(id);
        }
        true
    }

    fn take(&mut self, node: usize, bytes: u64, holder: &'static str, asks: bool) -> Result<(), Refused> {
        let mut done = Vec::new();
        while let Some(full) = self.full(node, bytes) {
            let hopeless = self.path(node).iter().any(|at| self.nodes[*at].limit < bytes);
            let missing = bytes - (self.nodes[full].limit - self.nodes[full].used);
            if !asks || hopeless || !self.ask(full, missing, &mut done) {
                let available = self.nodes[full].limit - self.nodes[full].used;
                return Err(Refused { needed: bytes, available, node: full });
            }
        }
        self.count(node, bytes, holder);
        Ok(())
    }

    fn set_limit(&mut self, node: usize, limit: u64) -> Result<(), Refused> {
        let mut done = Vec::new();
        while self.nodes[node].used > limit {
            let used = self.nodes[node].used;
            if !self.ask(node, used - limit, &mut done) {
                return Err(Refused { needed: used, available: limit, node });
            }
        }
        self.nodes[node].limit = limit;
        Ok(())
    }

    fn name(&self, node: usize) -> String {
        let mut path = self.path(node);
        path.reverse();
        path.iter().map(usize::to_string).collect::<Vec<_>>().join("/")
    }

    /// Checks that reality answered as the model.
    fn same<T>(&self, real: Result<T, Error>, model: Result<(), Refused>) -> Option<T> {
        match (real, model) {
            (Ok(value), Ok(())) => Some(value),
            (Err(Error::OutOfMemory { place, needed, available }), Err(refused)) => {
                assert_eq!(
                    (needed.0, available.0),
                    (refused.needed, refused.available),
                    "figures of a refusal"
                );
                assert_eq!(place, format!("budget {:?}", self.name(refused.node)), "the node that refused");
                None
            }
            (real, model) => panic!("the budget says {:?}, the model {model:?}", real.err()),
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Child { parent, limit } => {
                let (parent, budget) = self.handle(parent);
                let child = budget.child(&self.nodes.len().to_string(), Bytes(limit));
                let (parent, budget) = (Some(parent), Some(child));
                self.nodes.push(Node { parent, limit, used: 0, peak: 0, holders: BTreeMap::new(), budget });
            }
            Op::DropChild(index) => match index % self.nodes.len() {
                0 => {} // The root stays, to be looked at.
                node => self.nodes[node].budget = None,
            },
            Op::Reserve { node, bytes, holder } => self.reserve(node, bytes, HOLDERS[holder % 3], true),
            Op::TryReserve { node, bytes, holder } => self.reserve(node, bytes, HOLDERS[holder % 3], false),
            Op::SetLimit { node, limit } => {
                let (node, budget) = self.handle(node);
                let real = budget.set_limit(Bytes(limit));
                let model = self.set_limit(node, limit);
                self.same(real, model);
            }
            Op::ResetPeak(node) => {
                let (node, budget) = self.handle(node);
                budget.reset_peak();
                let node = &mut self.nodes[node];
                node.peak = node.used;
                node.holders.retain(|_, (used, _)| *used > 0);
                node.holders.values_mut().for_each(|(used, peak)| *peak = *used);
            }
            Op::Register { node, priority } => self.register(node, priority),
            Op::Fill { cache, bytes } => self.fill(cache, bytes),
            Op::DropCache(index) if !self.caches.is_empty() => {
                let index = index % self.caches.len();
                let (node, entries) =
                    (self.caches[index].node, std::mem::take(&mut self.caches[index].entries));
                self.caches[index].real = None;
                entries.into_iter().for_each(|bytes| self.uncount(node, bytes, "cache"));
            }
            _ if !self.held.is_empty() => self.change(op),
            _ => {}
        }
    }

    fn reserve(&mut self, node: usize, bytes: u64, holder: &'static str, asks: bool) {
        let (node, budget) = self.handle(node);
        let name = Holder::new(holder);
        let real =
            if asks { budget.reserve(Bytes(bytes), &name) } else { budget.try_reserve(Bytes(bytes), &name) };
        drop(budget);
        let model = self.take(node, bytes, holder, asks);
        if let Some(reservation) = self.same(real, model) {
            self.held.push(Held { node, holder, bytes, reservation });
        }
    }

    fn register(&mut self, node: usize, priority: u8) {
        let (node, budget) = self.handle(node);
        let cache = Cache { id: self.caches.len(), entries: Mutex::default(), log: Arc::clone(&self.log) };
        let real = Arc::new(cache);
        let shared: Arc<dyn Reclaim> = real.clone();
        budget.register(priority, Arc::downgrade(&shared));
        self.caches.push(CacheModel { node, priority, entries: Vec::new(), real: Some(real) });
    }

    fn fill(&mut self, index: usize, bytes: u64) {
        let open = |cache: &&mut CacheModel| cache.real.is_some();
        let count = self.caches.iter().filter(|cache| cache.real.is_some()).count().max(1);
        let Some(cache) = self.caches.iter_mut().filter(open).nth(index % count) else { return };
        let (node, Some(cache)) = (cache.node, cache.real.clone()) else { return };
        let Some(budget) = self.nodes[node].budget.clone() else { return };
        let real = budget.try_reserve(Bytes(bytes), &Holder::new("cache"));
        drop(budget);
        let model = self.take(node, bytes, "cache", false);
        if let Some(entry) = self.same(real, model) {
            cache.entries.lock().unwrap().push(entry);
            self.caches[cache.id].entries.push(bytes);
        }
    }

    /// The operations on a reservation; there is one.
    fn change(&mut self, op: Op) {
        let (Op::Drop(index)
        | Op::Split { held: index, .. }
        | Op::Grow { held: index, .. }
        | Op::Shrink { held: index, .. }
        | Op::Assign { held: index, .. }) = op
        else {
            return;
        };
        let index = index % self.held.len();
        let mut held = self.held.swap_remove(index);
        match op {
            Op::Drop(_) => {
                drop(held.reservation);
                return self.uncount(held.node, held.bytes, held.holder);
            }
            Op::Split { bytes, .. } => {
                let reservation = held.reservation.split(Bytes(bytes));
                let bytes = bytes.min(held.bytes);
                held.bytes -= bytes;
                self.held.push(Held { node: held.node, holder: held.holder, bytes, reservation });
            }
            Op::Grow { more, .. } => {
                let real = held.reservation.grow(Bytes(more));
                // The model must know the node as there while it asks.
                let (node, holder) = (held.node, held.holder);
                self.held.push(held);
                let model = self.take(node, more, holder, true);
                held = self.held.pop().unwrap();
                held.bytes += self.same(real, model).map_or(0, |()| more);
            }
            Op::Shrink { keep, .. } => {
                held.reservation.shrink_to(Bytes(keep));
                let surplus = held.bytes.saturating_sub(keep);
                self.uncount(held.node, surplus, held.holder);
                held.bytes -= surplus;
            }
            Op::Assign { holder, .. } => {
                let holder = HOLDERS[holder % 3];
                held.reservation.assign_to(&Holder::new(holder));
                for at in self.path(held.node) {
                    let holders = &mut self.nodes[at].holders;
                    if let Some((used, _)) = holders.get_mut(held.holder) {
                        *used -= held.bytes;
                    }
                    let (used, peak) = holders.entry(holder).or_default();
                    *used += held.bytes;
                    *peak = (*peak).max(*used);
                }
                held.holder = holder;
            }
            _ => {}
        }
        assert_eq!(held.reservation.bytes(), Bytes(held.bytes), "bytes of a reservation");
        assert_eq!(held.reservation.holder().name(), held.holder, "holder of a reservation");
        self.held.push(held);
    }

    /// Compares every figure of every node.
    fn check(&self) {
        for (index, node) in self.nodes.iter().enumerate() {
            let Some(budget) = &node.budget else { continue };
            let usage = budget.usage();
            assert_eq!(usage.name, self.name(index));
            let figures = (usage.limit.0, usage.used.0, usage.peak.0);
            assert_eq!(figures, (node.limit, node.used, node.peak), "limit, used and peak of {}", usage.name);
            assert!(usage.used <= usage.limit, "{} holds more than its limit", usage.name);
            let left =
                self.path(index).into_iter().map(|at| self.nodes[at].limit - self.nodes[at].used).min();
            assert_eq!(Some(budget.available().0), left, "available at {}", usage.name);
            let found: Vec<_> =
                usage.holders.iter().map(|row| (row.name.as_str(), (row.used.0, row.peak.0))).collect();
            let expected: Vec<_> = node.holders.iter().map(|(name, figures)| (*name, *figures)).collect();
            assert_eq!(found, expected, "holders of {}", usage.name);
        }
        assert_eq!(*self.log.lock().unwrap(), self.asked, "who was asked, in order");
    }

    /// Gives everything back, in an order of its own, and finds every node empty.
    fn end(mut self) {
        self.caches.clear();
        self.held.clear();
        for budget in self.nodes.iter().filter_map(|node| node.budget.as_ref()) {
            let usage = budget.usage();
            assert_eq!(usage.used, Bytes::ZERO, "{} holds bytes at the end", usage.name);
            assert!(
                usage.holders.iter().all(|row| row.used == Bytes::ZERO),
                "holders of {} at the end",
                usage.name
            );
            assert_eq!(budget.limit(), usage.limit);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn is_what_the_model_is(ops in proptest::collection::vec(op(), 1..80)) {
        let mut world = World::new();
        for op in ops {
            world.apply(op);
            world.check();
        }
        world.end();
    }
}
