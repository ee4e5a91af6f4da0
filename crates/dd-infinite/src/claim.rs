//! A plan becomes a request: memory for its peak, pins on what it needs, claims on what it will compute; and the way back.

use dd_core::Backend;
use smallvec::SmallVec;

use crate::error::Error;
use crate::plan::{Kind, Plan, Status};
use crate::state::{Charge, Entry, Request, State};

/// Why a plan could not be admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Other requests hold the memory, and will give it back.
    Wait,
    /// This store has too little, whoever gives back.
    TooLarge { tiles: usize, needed: u64 },
}

impl<B: Backend> State<B> {
    /// Takes memory for a plan's peak, with the largest lookahead up to `most` that fits, and makes it a request.
    pub(crate) fn admit(
        &mut self,
        plan: Plan<B>,
        most: usize,
        (background, passing): (bool, bool),
    ) -> Result<usize, Refusal> {
        let cached: SmallVec<[usize; 8]> = plan
            .nodes
            .iter()
            .filter(|node| matches!(node.kind, Kind::Cached | Kind::Elsewhere))
            .map(|node| node.entry)
            .collect();
        cached.iter().for_each(|id| self.pin(*id));
        let mut lookahead = most.max(1);
        let allotted = loop {
            let peak = plan.peak(lookahead);
            match self.allot(&peak) {
                Ok(()) => break peak,
                Err(_) if lookahead > 1 => lookahead /= 2,
                Err(refusal) => {
                    cached.iter().for_each(|id| self.unpin_only(*id));
                    return Err(refusal);
                }
            }
        };
        drop(cached);
        let request = Request {
            plan,
            lookahead,
            low: 0,
            running: 0,
            failed: None,
            replan: false,
            allotted,
            background,
            passing,
        };
        let id = self.requests.insert(Box::new(request));
        self.claim(id);
        Ok(id)
    }

    fn pin(&mut self, id: usize) {
        let clock = self.tick();
        if let Some(entry) = self.entries.get_mut(id) {
            entry.pins += 1;
            entry.used = clock;
        }
    }

    fn unpin_only(&mut self, id: usize) {
        self.unpin(id, usize::MAX);
    }

    fn allot(&mut self, peak: &[(usize, u64)]) -> Result<(), Refusal> {
        for (at, (tiles, bytes)) in peak.iter().enumerate() {
            if self.make_room(*tiles, *bytes) {
                if let Some(store) = self.tiles.get_mut(*tiles) {
                    store.used += bytes;
                    store.active += 1;
                }
                continue;
            }
            let busy = self.tiles.get(*tiles).is_some_and(|store| store.active > 0);
            self.give_back(peak.get(..at).unwrap_or_default());
            return Err(if busy {
                Refusal::Wait
            } else {
                Refusal::TooLarge { tiles: *tiles, needed: *bytes }
            });
        }
        Ok(())
    }

    fn give_back(&mut self, allotted: &[(usize, u64)]) {
        for (tiles, bytes) in allotted {
            if let Some(store) = self.tiles.get_mut(*tiles) {
                store.used = store.used.saturating_sub(*bytes);
                store.active = store.active.saturating_sub(1);
                store.settle();
            }
        }
    }

    /// Claims what is to be computed, and joins those who compute the rest.
    fn claim(&mut self, request: usize) {
        let count = self.requests.get(request).map_or(0, |r| r.plan.nodes.len());
        for number in 0..count {
            let Some(node) = self.requests.get(request).and_then(|r| r.plan.nodes.get(number)) else {
                continue;
            };
            let (kind, status, entry) = (node.kind, node.status, node.entry);
            match kind {
                Kind::Cell | Kind::Cached => {}
                Kind::Elsewhere => self.join(request, number, entry, status),
                Kind::Compute | Kind::Load => self.claim_one(request, number),
            }
        }
    }

    fn join(&mut self, request: usize, number: usize, entry: usize, status: Status) {
        let Some(entry) = self.entries.get_mut(entry) else { return };
        entry.sharers.push(request);
        if status == Status::Waiting {
            entry.waiters.push((request, number));
        }
    }

    fn claim_one(&mut self, request: usize, number: usize) {
        let Some(node) = self.requests.get(request).and_then(|r| r.plan.nodes.get(number)) else { return };
        let Some(def) = self.requests.get(request).and_then(|r| r.plan.defs.get(node.def)) else { return };
        let (tensor, index) = (def.slot, node.index.clone());
        if let Some(old) = self.find(tensor, &index) {
            self.orphan(old); // Only a part of it was left.
        }
        let entry = Entry {
            tensor,
            index: index.clone(),
            data: None,
            pins: 1,
            charge: Charge::Request(request),
            sharers: SmallVec::new(),
            waiters: SmallVec::new(),
            orphan: false,
            overhead: self.entry_cost(tensor),
            passed: false,
            used: 0,
            live_key: None,
            dead_key: None,
            pending: SmallVec::new(),
        };
        let id = self.entries.insert(Box::new(entry));
        if let Some(windows) = self.tensors.get_mut(tensor) {
            windows.map.insert(index, id);
        }
        if let Some(node) = self.requests.get_mut(request).and_then(|r| r.plan.nodes.get_mut(number)) {
            node.entry = id;
        }
    }

    /// Ends a request: what it still holds is given up, who waited for what it did not compute is told.
    pub(crate) fn finish(&mut self, request: usize) -> Option<Box<Request<B>>> {
        let nodes = self.requests.get(request)?.plan.nodes.len();
        let mut failed = vec![false; if self.requests.get(request)?.is_ending() { nodes } else { 0 }];
        for number in 0..nodes {
            let Some(node) = self.requests.get(request).and_then(|r| r.plan.nodes.get(number)) else {
                continue;
            };
            let (kind, status, entry) = (node.kind, node.status, node.entry);
            let pinned = kind != Kind::Cell && status != Status::Released;
            let computed = matches!(kind, Kind::Compute | Kind::Load);
            if computed && matches!(status, Status::Waiting | Status::Running | Status::Failed) {
                let below = self.requests.get(request).is_some_and(|r| {
                    r.plan.inputs_of(number).iter().any(|input| failed.get(*input).copied().unwrap_or(false))
                });
                let here = status == Status::Failed || below;
                if let Some(flag) = failed.get_mut(number) {
                    *flag = here;
                }
                self.abandon(request, entry, here);
            }
            if kind == Kind::Elsewhere && status == Status::Waiting {
                self.leave(request, number, entry);
            }
            if pinned {
                self.unpin(entry, request);
            }
        }
        let ended = self.requests.try_remove(request)?;
        self.give_back(&ended.allotted);
        Some(ended)
    }

    fn leave(&mut self, request: usize, number: usize, entry: usize) {
        if let Some(entry) = self.entries.get_mut(entry) {
            entry.waiters.retain(|waiter| *waiter != (request, number));
        }
    }

    /// A claimed window will not be computed: the key is free again, and everybody who waits gets the error or plans anew.
    fn abandon(&mut self, request: usize, id: usize, failed: bool) {
        let error = self.requests.get(request).and_then(|r| r.failed.clone()).filter(|_| failed);
        let Some(entry) = self.entries.get_mut(id) else { return };
        let waiters = std::mem::take(&mut entry.waiters);
        self.orphan(id);
        for (waiter, _) in waiters {
            let Some(waiting) = self.requests.get_mut(waiter) else { continue };
            match &error {
                Some(error) => waiting.fail(error.clone()),
                None => waiting.replan = true,
            }
        }
    }
}

impl<B: Backend> Request<B> {
    /// Notes the first error.
    pub(crate) fn fail(&mut self, error: Error) {
        self.failed.get_or_insert(error);
    }
}
