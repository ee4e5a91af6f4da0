//! Where buffers lie, and how a step gets at them.

use crate::arena::ArenaPlan;
use crate::error::{Error, Result};
use crate::program::{Access, BufferId, Op, Program, Role, Slot, Step};

use super::MOST_OPERANDS;

/// What stands behind a buffer in an arena.
const CANARY: f32 = f32::from_bits(0x7fc0_dead);

/// The memory of an executor.
#[derive(Debug)]
pub(super) struct Storage {
    /// Buffers of their own: resident ones, and all of them without an arena.
    own: Vec<Vec<f32>>,
    arena: Option<Arena>,
}

#[derive(Debug)]
struct Arena {
    memory: Vec<f32>,
    /// Per buffer, its range in elements, and how many canaries stand behind it; nothing for one that is not in the arena.
    ranges: Vec<Option<Range>>,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
struct Range {
    start: usize,
    end: usize,
    guard: usize,
    alive: bool,
}

/// A step's buffers, by what they are to it.
pub(super) struct Args<'m> {
    reads: [(Slot, &'m [f32]); MOST_OPERANDS],
    writes: [(Slot, &'m mut [f32]); MOST_OPERANDS],
}

impl<'m> Args<'m> {
    /// What is read; empty where the step has no such operand.
    pub(super) fn read(&self, slot: Slot) -> &'m [f32] {
        self.reads.iter().find(|(known, _)| *known == slot).map_or(&[], |(_, slice)| slice)
    }

    /// What is written; empty where the step has no such operand.
    pub(super) fn write(&mut self, slot: Slot) -> &'m mut [f32] {
        match self.writes.iter_mut().find(|(known, _)| *known == slot) {
            Some((_, slice)) => std::mem::take(slice),
            None => &mut [],
        }
    }
}

impl Storage {
    pub(super) fn new(program: &Program, plan: Option<ArenaPlan>) -> Result<Self> {
        let mut own = Vec::new();
        own.resize_with(program.buffers.len(), Vec::new);
        let arena = plan.map(|plan| Arena::new(program, &plan)).transpose()?;
        Ok(Self { own, arena })
    }

    pub(super) fn start(&mut self, program: &Program, seed: u64) -> Result<()> {
        for (id, buffer) in program.buffers.iter().enumerate().filter(|(_, buffer)| buffer.role.is_resident())
        {
            let values =
                |at: u64| value(buffer.role, buffer.dtype == dd_core::DType::U32, seed, id as u64, at);
            let slot = self.own.get_mut(id).map(std::mem::take).unwrap_or_default();
            drop(slot);
            let mut made = allocate(buffer.elements)?;
            made.extend((0..buffer.elements).map(values));
            if let Some(slot) = self.own.get_mut(id) {
                *slot = made;
            }
        }
        if let Some(arena) = &mut self.arena {
            arena.memory = allocate(arena.len as u64)?;
            arena.memory.resize(arena.len, f32::NAN);
        }
        Ok(())
    }

    pub(super) fn set(&mut self, id: usize, values: &[f32]) -> Result<()> {
        match self.own.get_mut(id) {
            Some(slot) if slot.len() == values.len() => {
                slot.copy_from_slice(values);
                Ok(())
            }
            other => {
                Err(absent(id, format!("{} values; it holds {}", values.len(), other.map_or(0, |s| s.len()))))
            }
        }
    }

    pub(super) fn read(&self, id: usize) -> Result<&[f32]> {
        if let Some(own) = self.own.get(id).filter(|own| !own.is_empty()) {
            return Ok(own);
        }
        let arena = self.arena.as_ref();
        let range =
            arena.and_then(|arena| arena.ranges.get(id).copied().flatten()).filter(|range| range.alive);
        let slice = range.and_then(|range| arena?.memory.get(range.start..range.end));
        slice.ok_or_else(|| absent(id, "reading it: keep it to read it after the run".to_owned()))
    }

    pub(super) fn give_birth(&mut self, program: &Program, id: usize) -> Result<()> {
        if let Some(arena) = &mut self.arena {
            return arena.give_birth(id);
        }
        let elements = program.buffers.get(id).map_or(0, |buffer| buffer.elements);
        let mut made = allocate(elements)?;
        made.extend((0..elements).map(|_| f32::NAN));
        if let Some(slot) = self.own.get_mut(id) {
            *slot = made;
        }
        Ok(())
    }

    pub(super) fn bury(&mut self, step: usize, id: usize, kept: bool) -> Result<()> {
        if let Some(arena) = &mut self.arena {
            return arena.bury(step, id, kept);
        }
        if let Some(slot) = self.own.get_mut(id).filter(|_| !kept) {
            *slot = Vec::new();
        }
        Ok(())
    }

    /// Runs `act` on a step's buffers. Nothing is allocated on the way.
    pub(super) fn with_operands(
        &mut self,
        at: usize,
        step: &Step,
        act: impl FnOnce(Args<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut distinct = [usize::MAX; MOST_OPERANDS];
        let mut count = 0;
        for operand in &step.operands {
            let id = operand.buffer.index();
            if !distinct.contains(&id)
                && let Some(slot) = distinct.get_mut(count)
            {
                *slot = id;
                count += 1;
            }
        }
        let mut owned: [Vec<f32>; MOST_OPERANDS] = std::array::from_fn(|_| Vec::new());
        let in_arena = |arena: &Option<Arena>, id: usize| arena.as_ref().is_some_and(|arena| arena.has(id));
        for (slot, id) in owned.iter_mut().zip(distinct).take(count) {
            if let Some(own) = self.own.get_mut(id).filter(|_| !in_arena(&self.arena, id)) {
                *slot = std::mem::take(own);
            }
        }
        let mut memory: [&mut [f32]; MOST_OPERANDS] = std::array::from_fn(|_| <&mut [f32]>::default());
        for (slice, own) in memory.iter_mut().zip(&mut owned) {
            *slice = own;
        }
        let split = match &mut self.arena {
            Some(arena) => arena.split(at, &distinct, count, &mut memory),
            None => Ok(()),
        };
        let done = split.and_then(|()| args_of(at, step, &distinct, memory)).and_then(act);
        for (own, id) in owned.into_iter().zip(distinct).take(count) {
            if let Some(slot) = self.own.get_mut(id).filter(|_| !in_arena(&self.arena, id)) {
                *slot = own;
            }
        }
        done
    }
}

fn args_of<'m>(
    at: usize,
    step: &Step,
    distinct: &[usize],
    mut memory: [&'m mut [f32]; MOST_OPERANDS],
) -> Result<Args<'m>> {
    let mut args = Args {
        reads: std::array::from_fn(|_| (Slot::None, <&[f32]>::default())),
        writes: std::array::from_fn(|_| (Slot::None, <&mut [f32]>::default())),
    };
    let zero = !matches!(step.op, Op::Forward(_) | Op::Update(_) | Op::Loss);
    let (mut reads, mut writes) = (args.reads.iter_mut(), args.writes.iter_mut());
    for (id, slice) in distinct.iter().zip(&mut memory) {
        let uses = || step.operands.iter().filter(|operand| operand.buffer == BufferId(*id));
        let slice = std::mem::take(slice);
        let Some(writer) = uses().find(|operand| operand.access != Access::Read) else {
            let shared: &'m [f32] = slice;
            for (operand, slot) in uses().zip(&mut reads) {
                *slot = (operand.slot, shared);
            }
            continue;
        };
        if uses().count() > 1 {
            return Err(Error::Plan {
                step: at,
                problem: format!("buffer {id} is written and read by one step"),
            });
        }
        if zero && writer.access == Access::Write {
            slice.fill(0.0);
        }
        if let Some(slot) = writes.next() {
            *slot = (writer.slot, slice);
        }
    }
    Ok(args)
}

impl Arena {
    fn new(program: &Program, plan: &ArenaPlan) -> Result<Self> {
        let mut ranges = Vec::with_capacity(program.buffers.len());
        let elements = |bytes: u64| usize::try_from(bytes / 4).unwrap_or(usize::MAX);
        let len = elements(plan.size.0);
        for (id, buffer) in program.buffers.iter().enumerate() {
            let Some(offset) = plan.offset(BufferId(id)) else {
                ranges.push(None);
                continue;
            };
            let (start, size) = (elements(offset), elements(buffer.bytes));
            let end = start.saturating_add(size);
            let guard = if size == 0 { 0 } else { elements(plan.guard) };
            if !offset.is_multiple_of(4) || end.saturating_add(guard) > len {
                let problem =
                    format!("buffer {id} at {offset} is not aligned to 4 or reaches beyond {}", plan.size);
                return Err(Error::Plan { step: 0, problem });
            }
            ranges.push(Some(Range { start, end, guard, alive: false }));
        }
        Ok(Self { memory: Vec::new(), ranges, len })
    }

    fn has(&self, id: usize) -> bool {
        self.ranges.get(id).is_some_and(Option::is_some)
    }

    fn give_birth(&mut self, id: usize) -> Result<()> {
        let Some(range) = self.ranges.get_mut(id).and_then(Option::as_mut) else {
            return Err(Error::Plan {
                step: 0,
                problem: format!("buffer {id} has no place; plan this program"),
            });
        };
        range.alive = true;
        if let Some(slice) = self.memory.get_mut(range.start..range.end) {
            slice.fill(f32::NAN);
        }
        if let Some(slice) = self.memory.get_mut(range.end..range.end + range.guard) {
            slice.fill(CANARY);
        }
        Ok(())
    }

    fn bury(&mut self, step: usize, id: usize, kept: bool) -> Result<()> {
        let Some(range) = self.ranges.get_mut(id).and_then(Option::as_mut) else { return Ok(()) };
        let guard = self.memory.get(range.end..range.end + range.guard).unwrap_or_default();
        if guard.iter().any(|canary| canary.to_bits() != CANARY.to_bits()) {
            let problem = format!("the canary behind buffer {id} was overwritten");
            return Err(Error::Plan { step, problem });
        }
        range.alive = kept;
        if let Some(slice) = self.memory.get_mut(range.start..range.end).filter(|_| !kept) {
            slice.fill(f32::NAN);
        }
        Ok(())
    }

    /// Splits the operands that lie in the arena off it.
    fn split<'m>(
        &'m mut self,
        step: usize,
        distinct: &[usize],
        count: usize,
        memory: &mut [&'m mut [f32]; MOST_OPERANDS],
    ) -> Result<()> {
        let mut order = [(usize::MAX, usize::MAX, usize::MAX); MOST_OPERANDS];
        for ((place, slot), id) in order.iter_mut().enumerate().zip(distinct).take(count) {
            let Some(range) = self.ranges.get(*id).copied().flatten() else { continue };
            if !range.alive {
                return Err(Error::Plan { step, problem: format!("buffer {id} is used out of its time") });
            }
            *slot = (range.start, range.end, place);
        }
        order.sort_unstable();
        let (mut rest, mut taken): (&mut [f32], usize) = (&mut self.memory, 0);
        for (start, end, place) in order.into_iter().filter(|(_, _, place)| *place != usize::MAX) {
            let overlap = || Error::Plan { step, problem: "two of its buffers share an address".to_owned() };
            let skip = start.checked_sub(taken).ok_or_else(overlap)?;
            let (_, tail) = rest.split_at_mut_checked(skip).ok_or_else(overlap)?;
            let (slice, tail) = tail.split_at_mut_checked(end - start).ok_or_else(overlap)?;
            (rest, taken) = (tail, end);
            if let Some(slot) = memory.get_mut(place) {
                *slot = slice;
            }
        }
        Ok(())
    }
}

fn allocate(elements: u64) -> Result<Vec<f32>> {
    let refused = || Error::overflow(format!("{elements} elements in memory"));
    let count = usize::try_from(elements).map_err(|_| refused())?;
    let mut made = Vec::new();
    made.try_reserve_exact(count).map_err(|_| refused())?;
    Ok(made)
}

fn absent(id: usize, what: String) -> Error {
    Error::Unsupported { what: format!("buffer {id} for {what}"), reason: "it is not there".to_owned() }
}

/// A value of what is resident.
fn value(role: Role, ids: bool, seed: u64, id: u64, at: u64) -> f32 {
    let mut bits =
        (seed ^ id.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(at.wrapping_mul(0xbf58_476d_1ce4_e5b9));
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    let high = u16::try_from((bits ^ bits >> 31) >> 48).unwrap_or_default();
    let unit = f32::from(high) / 65_536.0;
    match role {
        Role::Input if ids => f32::from(high % 8),
        Role::Input => 2.0 * unit - 1.0,
        Role::Parameter | Role::Master => 0.4 * unit - 0.15,
        _ => 0.0,
    }
}
