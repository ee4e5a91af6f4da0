//! The state as a machine: random touches, fills that end in any order, failures and drops, carried out on a model of
//! frames that knows what is in each.

use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;
use crate::error::Result;
use crate::scratch::Scratch;

struct Nothing {
    writable: bool,
}

impl Source for Nothing {
    fn fill(&self, _: u64, _: &mut [u8], _: &mut Scratch) -> Result<()> {
        Ok(())
    }

    fn is_writable(&self) -> bool {
        self.writable
    }
}

#[derive(Clone, Debug)]
enum Op {
    Touch(usize),
    /// The next of a group of touches in the order of registration.
    Next,
    Start {
        moves: bool,
    },
    Finish {
        which: usize,
        fine: bool,
    },
    Register {
        units: usize,
        writable: bool,
    },
    Release(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => any::<usize>().prop_map(Op::Touch),
        6 => Just(Op::Next),
        8 => (0..10).prop_map(|n| Op::Start { moves: n > 0 }),
        8 => (any::<usize>(), 0..10).prop_map(|(which, n)| Op::Finish { which, fine: n > 0 }),
        1 => (1usize..5, any::<bool>()).prop_map(|(units, writable)| Op::Register { units, writable }),
        1 => any::<usize>().prop_map(Op::Release),
    ]
}

/// What the engine would do, on frames that hold the number of the unit that they were filled for.
struct Model {
    state: State,
    frames: HashMap<Frame, Unit>,
    /// Jobs under way, with the unit that is being stored first.
    jobs: Vec<(Job, Option<Unit>)>,
    waiting: BTreeSet<Unit>,
    position: usize,
}

impl Model {
    fn new(frames: usize, loaders: usize, threads: usize) -> Self {
        let state = State::new(Layout { unit: 16 << 10, frames, loaders, decoding: None }, threads);
        let (jobs, waiting) = (Vec::new(), BTreeSet::new());
        let mut model = Self { state, frames: HashMap::new(), jobs, waiting, position: 0 };
        model.register(frames + 3, false);
        model
    }

    fn register(&mut self, units: usize, writable: bool) {
        let first = self.state.units.len();
        let region = first as u64;
        for index in 0..units {
            let source = Arc::new(Nothing { writable });
            let piece = Piece { region, source, at: index as u64, range: 0..16 << 10 };
            let kind = match (index, units) {
                (0, 1) => Kind::Small,
                (0, _) => Kind::Begins,
                _ => Kind::Goes,
            };
            self.state.add_piece(first + index, piece, kind);
        }
    }

    fn touch(&mut self, unit: Unit) {
        let place = self.state.units[unit].place;
        let gone = self.state.units[unit].pieces.is_empty();
        match self.state.fault(unit) {
            Answer::Wake => assert!(matches!(place, Place::Mapped(_))),
            Answer::MoveIn(frame) => self.map(unit, frame),
            Answer::Wait => assert!(self.waiting.insert(unit) || self.state.units[unit].wanted),
            Answer::Stray => assert!(gone),
        }
    }

    fn map(&mut self, unit: Unit, frame: Frame) {
        assert_eq!(self.frames.get(&frame), Some(&unit), "mapped before it was filled");
        self.state.mapped(unit, frame);
        self.waiting.remove(&unit);
    }

    fn start(&mut self, moves: bool) {
        if self.jobs.len() >= self.state.layout.loaders {
            return;
        }
        let Some(job) = self.state.next_job() else { return };
        let busy = self.jobs.iter().any(|(other, _)| other.frame == job.frame);
        assert!(!busy, "{job:?} has a frame that a loader has");
        let mut storing = None;
        if let From::Evict(victim) = job.from {
            assert_eq!(self.frames.get(&job.frame), Some(&victim), "evicted what is not there");
            assert!(!self.waiting.contains(&victim));
            if !moves {
                self.state.keep(victim, job.frame);
                return self.state.put_off(job.unit);
            }
            storing = matches!(self.state.units[victim].place, Place::Storing(_)).then_some(victim);
        }
        self.frames.remove(&job.frame);
        self.jobs.push((job, storing));
    }

    fn finish(&mut self, which: usize, fine: bool) {
        if self.jobs.is_empty() {
            return;
        }
        let which = which % self.jobs.len();
        if let Some(victim) = self.jobs[which].1.take() {
            return self.state.stored(victim);
        }
        let (Job { unit, frame, .. }, _) = self.jobs.swap_remove(which);
        if !fine {
            let wanted = self.state.abandon(unit, frame);
            assert_eq!(wanted, self.waiting.remove(&unit), "who waits is told");
            return;
        }
        self.frames.insert(frame, unit);
        let gone = self.state.units[unit].pieces.is_empty();
        let goes_in = self.state.filled(unit, frame);
        assert!(goes_in || !self.waiting.contains(&unit), "who waits is served");
        if goes_in {
            self.map(unit, frame);
        } else if gone {
            self.frames.remove(&frame);
        }
    }

    /// As `Engine::release`; a range that somebody waits for is not dropped.
    fn release(&mut self, region: u64) {
        let has = |entry: &Entry| entry.pieces.iter().any(|piece| piece.region == region);
        let units: Vec<Unit> = (0..self.state.units.len()).filter(|u| has(&self.state.units[*u])).collect();
        if units.iter().any(|unit| self.state.units[*unit].wanted) {
            return;
        }
        for unit in units {
            self.state.units[unit].pieces.clear();
            if let Place::Mapped(frame) | Place::Staged(frame) = self.state.units[unit].place {
                assert_eq!(self.frames.remove(&frame), Some(unit));
                self.state.abandon(unit, frame);
            }
        }
        self.state.order_changed();
    }

    fn apply(&mut self, op: &Op) {
        let units = self.state.units.len();
        match *op {
            Op::Touch(unit) => self.touch(unit % units),
            Op::Next => {
                self.position = (self.position + 1) % units;
                if !self.state.units[self.position].pieces.is_empty() {
                    self.touch(self.position);
                }
            }
            Op::Start { moves } => self.start(moves),
            Op::Finish { which, fine } => self.finish(which, fine),
            Op::Register { units, writable } => self.register(units, writable),
            Op::Release(unit) => {
                let region = self.state.units[unit % units].pieces.first().map(|piece| piece.region);
                region.into_iter().for_each(|region| self.release(region));
            }
        }
        self.check();
    }

    fn check(&mut self) {
        let mut held = HashMap::new();
        for (unit, entry) in self.state.units.iter().enumerate() {
            assert_eq!(entry.wanted, self.waiting.contains(&unit));
            match entry.place {
                Place::Absent => {}
                Place::Storing(frame) => assert!(
                    self.jobs.iter().any(|(job, storing)| { job.frame == frame && *storing == Some(unit) })
                ),
                Place::Filling(frame) | Place::Staged(frame) | Place::Mapped(frame) => {
                    assert_eq!(held.insert(frame, unit), None, "frame {frame} is held twice");
                    assert_eq!(self.state.holders[frame], Some(unit));
                    let filled = self.frames.get(&frame) == Some(&unit);
                    assert_eq!(filled, !matches!(entry.place, Place::Filling(_)));
                }
            }
        }
        let frames = self.state.layout.frames;
        assert!(held.len() <= frames && self.state.holders.len() <= frames);
        let free: BTreeSet<Frame> = self.state.free.iter().copied().collect();
        assert_eq!(free.len(), self.state.free.len());
        assert!(free.iter().all(|frame| !held.contains_key(frame)));
        assert_eq!(free.len() + held.len(), self.state.holders.len(), "no frame is lost");
        let cycle: BTreeSet<Group> = self.state.order.cycle().iter().copied().collect();
        assert_eq!(cycle.len(), self.state.order.cycle().len(), "a group is in the order twice");
        let (used, resident) = self.state.counts();
        let staging = self.state.layout.staging(used);
        assert!(
            resident <= used && resident <= frames - staging,
            "{resident} of {used} stay, {staging} staging"
        );
    }

    /// Every wanted unit is answered, if loaders go on.
    fn settle(&mut self) {
        for step in 0..self.state.units.len() * 20 {
            if self.waiting.is_empty() {
                return;
            }
            self.start(true);
            if step % 2 == 0 || self.jobs.len() >= self.state.layout.loaders {
                self.finish(step, true);
            }
            self.check();
        }
        panic!("{:?} are never answered", self.waiting);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn no_frame_is_held_twice_and_everybody_is_answered(
        frames in 8usize..40,
        loaders in 1usize..5,
        threads in 0usize..9,
        ops in proptest::collection::vec(op(), 0..400),
    ) {
        let mut model = Model::new(frames, loaders, threads);
        ops.iter().for_each(|op| model.apply(op));
        model.settle();
    }
}
