//! [`Executor`]: runs a program, its buffers on the heap or in a planned arena.
//!
//! It computes in `F32` with plain loops: its purpose is to prove plans and peaks, not speed. On the heap each buffer is
//! allocated before its first step and freed after its last, so that a counting allocator sees the live peak. In an arena
//! there is one allocation; a step's operands are split off it, which fails where two of them overlap; what has not been
//! written is NaN; and behind every buffer stand canaries, if the plan has room for them, which are checked when the
//! buffer's time is over. Both ways give the same results, bit by bit.

mod kernels;
mod storage;

use dd_core::{Budget, Bytes, DType, Holder, Reservation};

use crate::arena::ArenaPlan;
use crate::error::{Error, Result};
use crate::liveness::Liveness;
use crate::program::{BufferId, Op, Optimizer, Program};
use storage::Storage;

/// The most operands of a step.
pub(crate) const MOST_OPERANDS: usize = 24;

/// A program that is ready to run.
///
/// ```
/// use dd_core::{Budget, Bytes};
/// use dd_inspect::arena::{ArenaPlan, PlanOptions};
/// use dd_inspect::exec::Executor;
/// use dd_inspect::graph::{Axis, GraphBuilder, Sizes};
/// use dd_inspect::program::Inference;
///
/// let mut b = GraphBuilder::new("layer");
/// let x = b.input("x", [Axis::Batch, Axis::Fixed(3)]);
/// let y = b.linear(x, 2)?;
/// let program = b.finish([y])?.inference(Sizes::batch(4), &Inference::default())?;
/// let budget = Budget::new("run", Bytes::kib(1));
/// let plan = ArenaPlan::of_program(&program, &PlanOptions { guard: 16, ..PlanOptions::default() })?;
/// let mut executor = Executor::in_arena(&program, plan, &budget)?;
/// executor.start(1)?;
/// executor.run()?;
/// assert_eq!(executor.read(program.outputs()[0])?.len(), 4 * 2);
/// # Ok::<(), dd_inspect::Error>(())
/// ```
#[derive(Debug)]
pub struct Executor<'p> {
    program: &'p Program,
    storage: Storage,
    /// Per step, what is born before it and what dies after it.
    births: Vec<Vec<usize>>,
    deaths: Vec<Vec<usize>>,
    reservation: Reservation,
}

impl<'p> Executor<'p> {
    /// With each buffer allocated for its time. The live peak is reserved from `budget`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for buffers that are not of four bytes per element, or steps that it does not know; out of
    /// memory where the budget refuses.
    pub fn on_heap(program: &'p Program, budget: &Budget) -> Result<Self> {
        Self::new(program, None, budget)
    }

    /// With all buffers that are not resident in one allocation, where the plan says. The arena and what is resident are
    /// reserved from `budget`.
    ///
    /// # Errors
    /// As [`on_heap`](Self::on_heap); [`Error::Plan`] for a plan of another program.
    pub fn in_arena(program: &'p Program, plan: ArenaPlan, budget: &Budget) -> Result<Self> {
        Self::new(program, Some(plan), budget)
    }

    fn new(program: &'p Program, plan: Option<ArenaPlan>, budget: &Budget) -> Result<Self> {
        check(program)?;
        let live = Liveness::of(program);
        let needed = plan.as_ref().map_or(live.peak, |plan| live.resident + plan.size);
        let reservation = budget.reserve(needed, &Holder::new("executor"))?;
        let mut births = vec![Vec::new(); program.steps.len()];
        let mut deaths = vec![Vec::new(); program.steps.len()];
        for (id, span) in live.spans.iter().enumerate() {
            let Some(span) = span else { continue };
            if let (Some(born), Some(dead)) = (births.get_mut(span.first), deaths.get_mut(span.last)) {
                born.push(id);
                dead.push(id);
            }
        }
        let storage = Storage::new(program, plan)?;
        Ok(Self { program, storage, births, deaths, reservation })
    }

    /// Allocates what is resident and fills it with values that depend on `seed` alone: parameters small, inputs between −1
    /// and 1, ids below 8, states zero.
    ///
    /// # Errors
    /// [`Error::Core`] where the machine refuses the memory.
    pub fn start(&mut self, seed: u64) -> Result<()> {
        self.storage.start(self.program, seed)
    }

    /// Replaces what a resident buffer holds.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where it is not resident or has another length, or before [`start`](Self::start).
    pub fn set(&mut self, buffer: BufferId, values: &[f32]) -> Result<()> {
        self.storage.set(buffer.index(), values)
    }

    /// What a resident buffer or a kept one holds, after [`run`](Self::run).
    ///
    /// # Errors
    /// [`Error::Unsupported`] where it is not there.
    pub fn read(&self, buffer: BufferId) -> Result<&[f32]> {
        self.storage.read(buffer.index())
    }

    /// Runs all steps.
    ///
    /// # Errors
    /// [`Error::Plan`] where operands overlap, a canary was overwritten or a buffer is used out of its time;
    /// [`Error::Unsupported`] for a step that it does not know.
    pub fn run(&mut self) -> Result<()> {
        let last = self.program.steps.len().saturating_sub(1);
        for (at, step) in self.program.steps.iter().enumerate() {
            for id in self.births.get(at).into_iter().flatten() {
                self.storage.give_birth(self.program, *id)?;
            }
            self.storage.with_operands(at, step, |args| kernels::run(&step.op, args))?;
            for id in self.deaths.get(at).into_iter().flatten() {
                let kept = at == last && self.program.buffers.get(*id).is_some_and(|buffer| buffer.kept);
                self.storage.bury(at, *id, kept)?;
            }
        }
        Ok(())
    }

    /// How many bytes the program's memory takes: the live peak, or what is resident and the arena.
    #[must_use]
    pub const fn size(&self) -> Bytes {
        self.reservation.bytes()
    }
}

/// Refuses what the kernels do not do.
fn check(program: &Program) -> Result<()> {
    for buffer in &program.buffers {
        let plain = matches!(buffer.dtype, DType::F32 | DType::U32)
            && buffer.bytes == buffer.elements.saturating_mul(4);
        if !plain {
            let what = format!("{} of {}", buffer.role, buffer.dtype);
            return Err(Error::Unsupported {
                what,
                reason: "it computes in F32; plan in F32 to run".to_owned(),
            });
        }
    }
    for step in &program.steps {
        let known = match &step.op {
            Op::Update(optimizer) => !matches!(optimizer, Optimizer::AdamW8Bit | Optimizer::Momentum8Bit),
            _ => true,
        };
        if !known || step.operands.len() > MOST_OPERANDS {
            let what = format!("a step with {} operands: {:?}", step.operands.len(), step.op);
            return Err(Error::Unsupported { what, reason: "see the documentation of Executor".to_owned() });
        }
    }
    Ok(())
}
