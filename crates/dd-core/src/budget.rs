//! [`Budget`]: a shared ceiling in bytes, with named children, that is kept.
//!
//! A budget is a tree of named nodes, each with a limit. A [`Reservation`] taken at a node counts there and at every
//! node above it, and gives itself back when dropped. The invariant, under any interleaving of threads: at no node do
//! the reservations ever exceed the limit.
//!
//! Where a reservation does not fit, the budget asks those who registered that they can give back ([`Reclaim`]), the
//! lowest priority value first, each until it has nothing left, and only then refuses. Nobody is asked where no giving
//! back can help, because a limit is itself too small. Reclaimers run on the thread that asked, with no lock of the
//! budget held: they may drop reservations, reserve, or register. A reservation made *inside* a reclaimer asks nobody,
//! so reclaiming never recurses. Do not hold a lock of your own that your reclaimer takes while you reserve.
//!
//! ```
//! use dd_core::{Budget, Bytes, Holder};
//!
//! let budget = Budget::new("job", Bytes::mib(64));
//! let weights = budget.child("weights", Bytes::mib(48));
//! let layer = weights.reserve(Bytes::mib(40), &Holder::new("layer 0"))?;
//! assert!(budget.reserve(Bytes::mib(32), &Holder::new("batch")).unwrap_err().is_out_of_memory());
//! drop(layer);
//! assert_eq!(budget.usage().used, Bytes::ZERO);
//! assert_eq!(budget.usage().peak, Bytes::mib(40));
//! # Ok::<(), dd_core::Error>(())
//! ```

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};

use crate::bytes::Bytes;
use crate::error::{Error, Result};
use crate::primitive::{Mutex, lock, thread_local};

/// Who holds a reservation: a name under which usage is added up. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder(Arc<str>);

impl Holder {
    /// A holder of this name; two of one name are the same holder.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// Someone who can give memory back when others need it.
pub trait Reclaim: Send + Sync {
    /// Gives back about `wanted` bytes if it can, by dropping reservations; says how many. Zero means: nothing left.
    /// Called on the thread of whoever needs the memory, by several threads at once if they all do; called again
    /// while it gives something and more is needed (what it gave may be too little, or another thread may take it).
    fn reclaim(&self, wanted: Bytes) -> Bytes;
}

/// What a node holds, now and at its highest.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Usage {
    /// The node's path, as `job/weights`.
    pub name: String,
    /// The ceiling.
    pub limit: Bytes,
    /// Reserved now.
    pub used: Bytes,
    /// The most that was ever reserved at once.
    pub peak: Bytes,
    /// By holder, children's holders included, in the order of their names; holders that gave everything back stay
    /// listed for their peak.
    pub holders: Vec<HolderUsage>,
}

/// What one holder holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HolderUsage {
    /// The holder's name.
    pub name: String,
    /// Reserved now.
    pub used: Bytes,
    /// The most it ever held at once.
    pub peak: Bytes,
}

/// A shared ceiling: one node of a tree of limits. Clones are the same node.
#[derive(Clone)]
pub struct Budget {
    node: Arc<Node>,
}

struct Node {
    tree: Arc<Mutex<Tree>>,
    id: u64,
    path: String,
    parent: Option<Arc<Node>>, // Keeps the ancestors' entries alive.
}

#[derive(Default)]
struct Tree {
    nodes: BTreeMap<u64, NodeState>,
    next: u64,
}

struct NodeState {
    parent: Option<u64>,
    path: String,
    limit: Bytes,
    used: Bytes,
    peak: Bytes,
    holders: BTreeMap<Holder, (Bytes, Bytes)>, // used, peak
    reclaimers: Vec<Registered>,
}

#[derive(Clone)]
struct Registered {
    priority: u8,
    order: u64,
    reclaimer: Weak<dyn Reclaim>,
}

impl Budget {
    /// The root of a new tree.
    #[must_use]
    pub fn new(name: &str, limit: Bytes) -> Self {
        let tree = Arc::new(Mutex::new(Tree::default()));
        let id = lock(&tree).insert(None, name.to_owned(), limit);
        Self { node: Arc::new(Node { tree, id, path: name.to_owned(), parent: None }) }
    }

    /// A budget without a limit, for callers that only want to count.
    #[must_use]
    pub fn unlimited(name: &str) -> Self {
        Self::new(name, Bytes::MAX)
    }

    /// A new node below this one. What it reserves counts here too; its limit may be above what is left here.
    #[must_use]
    pub fn child(&self, name: &str, limit: Bytes) -> Self {
        let path = format!("{}/{name}", self.node.path);
        let id = lock(&self.node.tree).insert(Some(self.node.id), path.clone(), limit);
        let tree = Arc::clone(&self.node.tree);
        Self { node: Arc::new(Node { tree, id, path, parent: Some(Arc::clone(&self.node)) }) }
    }

    /// The node's path, as `job/weights`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.node.path
    }

    /// The ceiling of this node alone.
    #[must_use]
    pub fn limit(&self) -> Bytes {
        lock(&self.node.tree).nodes.get(&self.node.id).map_or(Bytes::ZERO, |node| node.limit)
    }

    /// What could be reserved here now without asking anyone: the least of what is left here and above.
    #[must_use]
    pub fn available(&self) -> Bytes {
        lock(&self.node.tree).available(self.node.id)
    }

    /// Takes bytes, asking reclaimers where they do not fit at once.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with the bytes needed and available at the node that refused; nothing is left behind.
    pub fn reserve(&self, bytes: Bytes, holder: &Holder) -> Result<Reservation> {
        self.acquire(bytes, holder)?;
        Ok(Reservation { budget: self.clone(), bytes, holder: holder.clone() })
    }

    /// Takes bytes only if they fit at once.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve), without having asked anyone.
    pub fn try_reserve(&self, bytes: Bytes, holder: &Holder) -> Result<Reservation> {
        lock(&self.node.tree).take(self.node.id, bytes, holder)?;
        Ok(Reservation { budget: self.clone(), bytes, holder: holder.clone() })
    }

    /// Registers someone who can give back bytes held at or below this node. The lowest `priority` is asked first,
    /// among equals the one registered first. A dropped reclaimer is forgotten.
    pub fn register(&self, priority: u8, reclaimer: Weak<dyn Reclaim>) {
        let mut tree = lock(&self.node.tree);
        let order = tree.next;
        tree.next += 1;
        if let Some(node) = tree.nodes.get_mut(&self.node.id) {
            node.reclaimers.retain(|registered| registered.reclaimer.strong_count() > 0);
            node.reclaimers.push(Registered { priority, order, reclaimer });
        }
    }

    /// Changes the ceiling, asking reclaimers where more than the new one is held.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where more stays reserved than the new ceiling; the old one then remains.
    pub fn set_limit(&self, limit: Bytes) -> Result<()> {
        let mut asked = Asked::default();
        loop {
            let over = {
                let mut tree = lock(&self.node.tree);
                let Some(node) = tree.nodes.get_mut(&self.node.id) else { return Ok(()) };
                if node.used <= limit {
                    node.limit = limit;
                    return Ok(());
                }
                node.used
            };
            let next = lock(&self.node.tree).next_reclaimer(self.node.id, &asked);
            let Some(next) = next else { return Err(self.refusal(over, limit)) };
            asked.note(&next, ask(&next, over.saturating_sub(limit)));
        }
    }

    /// What is held here, now and at most, by holder.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let tree = lock(&self.node.tree);
        let Some(node) = tree.nodes.get(&self.node.id) else {
            return Usage {
                name: self.node.path.clone(),
                limit: Bytes::ZERO,
                used: Bytes::ZERO,
                peak: Bytes::ZERO,
                holders: Vec::new(),
            };
        };
        let row = |(holder, (used, peak)): (&Holder, &(Bytes, Bytes))| HolderUsage {
            name: holder.name().to_owned(),
            used: *used,
            peak: *peak,
        };
        let holders = node.holders.iter().map(row).collect();
        Usage { name: node.path.clone(), limit: node.limit, used: node.used, peak: node.peak, holders }
    }

    /// Lowers the recorded peaks of this node to what is held now, so that a phase can be measured by itself.
    pub fn reset_peak(&self) {
        if let Some(node) = lock(&self.node.tree).nodes.get_mut(&self.node.id) {
            node.peak = node.used;
            node.holders.retain(|_, (used, _)| *used > Bytes::ZERO);
            node.holders.values_mut().for_each(|(used, peak)| *peak = *used);
        }
    }

    fn refusal(&self, needed: Bytes, available: Bytes) -> Error {
        Error::OutOfMemory { place: format!("budget {:?}", self.node.path), needed, available }
    }

    /// Takes bytes, asking the reclaimers that could help while they give something.
    fn acquire(&self, bytes: Bytes, holder: &Holder) -> Result<()> {
        let mut asked = Asked::default();
        loop {
            let (next, missing) = {
                let mut tree = lock(&self.node.tree);
                let refused = match tree.take(self.node.id, bytes, holder) {
                    Ok(()) => return Ok(()),
                    Err(error) => error,
                };
                let shortage = tree.reclaimable_shortage(self.node.id, bytes);
                let found =
                    shortage.and_then(|(at, missing)| Some((tree.next_reclaimer(at, &asked)?, missing)));
                match found {
                    Some(found) if !is_reclaiming() => found,
                    _ => return Err(refused),
                }
            };
            asked.note(&next, ask(&next, missing));
        }
    }
}

impl Tree {
    fn insert(&mut self, parent: Option<u64>, path: String, limit: Bytes) -> u64 {
        let id = self.next;
        self.next += 1;
        let state = NodeState {
            parent,
            path,
            limit,
            used: Bytes::ZERO,
            peak: Bytes::ZERO,
            holders: BTreeMap::new(),
            reclaimers: Vec::new(),
        };
        self.nodes.insert(id, state);
        id
    }

    /// The node and its ancestors, lowest first.
    fn path(&self, id: u64) -> impl Iterator<Item = (u64, &NodeState)> {
        let first = self.nodes.get(&id).map(|node| (id, node));
        std::iter::successors(first, |(_, node)| {
            let parent = node.parent?;
            self.nodes.get(&parent).map(|node| (parent, node))
        })
    }

    fn available(&self, id: u64) -> Bytes {
        let left = self.path(id).map(|(_, node)| node.limit.saturating_sub(node.used));
        left.min().unwrap_or(Bytes::ZERO)
    }

    /// Counts bytes at the node and all its ancestors, or nowhere.
    fn take(&mut self, id: u64, bytes: Bytes, holder: &Holder) -> Result<()> {
        for (_, node) in self.path(id) {
            let available = node.limit.saturating_sub(node.used);
            if bytes > available {
                return Err(Error::OutOfMemory {
                    place: format!("budget {:?}", node.path),
                    needed: bytes,
                    available,
                });
            }
        }
        self.for_path(id, |node| {
            node.used += bytes;
            node.peak = node.peak.max(node.used);
            let (used, peak) = node.holders.entry(holder.clone()).or_default();
            *used += bytes;
            *peak = (*peak).max(*used);
        });
        Ok(())
    }

    fn give_back(&mut self, id: u64, bytes: Bytes, holder: &Holder) {
        self.for_path(id, |node| {
            node.used = node.used.saturating_sub(bytes);
            if let Some((used, _)) = node.holders.get_mut(holder) {
                *used = used.saturating_sub(bytes);
            }
        });
    }

    fn rename(&mut self, id: u64, bytes: Bytes, from: &Holder, to: &Holder) {
        self.for_path(id, |node| {
            if let Some((used, _)) = node.holders.get_mut(from) {
                *used = used.saturating_sub(bytes);
            }
            let (used, peak) = node.holders.entry(to.clone()).or_default();
            *used += bytes;
            *peak = (*peak).max(*used);
        });
    }

    fn for_path(&mut self, id: u64, mut change: impl FnMut(&mut NodeState)) {
        let mut at = Some(id);
        while let Some(node) = at.and_then(|id| self.nodes.get_mut(&id)) {
            change(node);
            at = node.parent;
        }
    }

    /// The lowest node that is short of room for `bytes`, and by how much; nothing where giving back cannot help,
    /// because some limit on the path is itself too small.
    fn reclaimable_shortage(&self, id: u64, bytes: Bytes) -> Option<(u64, Bytes)> {
        if self.path(id).any(|(_, node)| bytes > node.limit) {
            return None;
        }
        self.path(id)
            .map(|(id, node)| (id, (node.used + bytes).saturating_sub(node.limit)))
            .find(|(_, missing)| *missing > Bytes::ZERO)
    }

    /// The first reclaimer at or below node `at`, by priority and order, that may still have something.
    fn next_reclaimer(&self, at: u64, asked: &Asked) -> Option<Registered> {
        let below = |id: u64| self.path(id).any(|(ancestor, _)| ancestor == at);
        let all = self.nodes.iter().filter(|(id, _)| below(**id)).flat_map(|(_, node)| &node.reclaimers);
        let open = all.filter(|r| !asked.is_done(r) && r.reclaimer.strong_count() > 0);
        open.min_by_key(|r| (r.priority, r.order)).cloned()
    }
}

/// Whom one request has asked, and how often.
#[derive(Default)]
struct Asked {
    times: BTreeMap<u64, u32>,
}

impl Asked {
    /// After so many times a reclaimer counts as done whatever it says: one that claims to have given and has not, or
    /// whose bytes others take each time, must not keep a request going for ever.
    const MOST: u32 = 64;

    fn is_done(&self, registered: &Registered) -> bool {
        self.times.get(&registered.order).is_some_and(|times| *times >= Self::MOST)
    }

    fn note(&mut self, registered: &Registered, given: Bytes) {
        let times = self.times.entry(registered.order).or_default();
        *times = if given == Bytes::ZERO { Self::MOST } else { *times + 1 };
    }
}

thread_local! {
    static RECLAIMING: Cell<bool> = const { Cell::new(false) };
}

fn is_reclaiming() -> bool {
    RECLAIMING.with(Cell::get)
}

/// Runs one reclaimer, with no lock held, marked so that it cannot start another; says what it said that it gave.
fn ask(registered: &Registered, missing: Bytes) -> Bytes {
    struct Mark;
    impl Drop for Mark {
        fn drop(&mut self) {
            RECLAIMING.with(|flag| flag.set(false));
        }
    }
    if is_reclaiming() {
        return Bytes::ZERO;
    }
    RECLAIMING.with(|flag| flag.set(true));
    let _mark = Mark; // Outlives the handle below, whose drop may be the reclaimer's last.
    registered.reclaimer.upgrade().map_or(Bytes::ZERO, |reclaimer| reclaimer.reclaim(missing))
}

impl Drop for Node {
    fn drop(&mut self) {
        let removed = lock(&self.tree).nodes.remove(&self.id);
        drop(removed);
        // One ancestor after the other, not one inside the other: a long chain must not exhaust the stack.
        let mut parent = self.parent.take();
        while let Some(last) = parent.and_then(Arc::into_inner) {
            parent = { last }.parent.take();
        }
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usage = self.usage();
        write!(f, "Budget({:?}: {} of {}, peak {})", usage.name, usage.used, usage.limit, usage.peak)
    }
}

/// Bytes taken from a [`Budget`]; dropping it gives them back.
pub struct Reservation {
    budget: Budget,
    bytes: Bytes,
    holder: Holder,
}

impl Reservation {
    /// How much is held.
    #[must_use]
    pub const fn bytes(&self) -> Bytes {
        self.bytes
    }

    /// Who holds it.
    #[must_use]
    pub const fn holder(&self) -> &Holder {
        &self.holder
    }

    /// Takes more, as [`Budget::reserve`] would.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; this reservation is then unchanged.
    pub fn grow(&mut self, more: Bytes) -> Result<()> {
        self.budget.acquire(more, &self.holder)?;
        self.bytes += more;
        Ok(())
    }

    /// Takes more only if it fits at once, as [`Budget::try_reserve`] would.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], without having asked anyone; this reservation is then unchanged.
    pub fn try_grow(&mut self, more: Bytes) -> Result<()> {
        lock(&self.budget.node.tree).take(self.budget.node.id, more, &self.holder)?;
        self.bytes += more;
        Ok(())
    }

    /// Gives back all but `keep`; keeps what it has where that is less.
    pub fn shrink_to(&mut self, keep: Bytes) {
        let surplus = self.bytes.saturating_sub(keep);
        self.bytes = self.bytes.saturating_sub(surplus);
        lock(&self.budget.node.tree).give_back(self.budget.node.id, surplus, &self.holder);
    }

    /// Moves `bytes` of it (all, where it has less) into a reservation of their own. The total stays the same.
    #[must_use]
    pub fn split(&mut self, bytes: Bytes) -> Self {
        let part = bytes.min(self.bytes);
        self.bytes = self.bytes.saturating_sub(part);
        Self { budget: self.budget.clone(), bytes: part, holder: self.holder.clone() }
    }

    /// Puts the bytes under another holder's name.
    pub fn assign_to(&mut self, holder: &Holder) {
        lock(&self.budget.node.tree).rename(self.budget.node.id, self.bytes, &self.holder, holder);
        self.holder = holder.clone();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        lock(&self.budget.node.tree).give_back(self.budget.node.id, self.bytes, &self.holder);
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reservation({} for {:?} of {:?})", self.bytes, self.holder.name(), self.budget.name())
    }
}
