//! [`Liveness`]: how much memory a program holds at each of its steps.
//!
//! A buffer lives from the first step that uses it to the last, both included; what is resident, or kept, lives to the end.
//! The largest sum over the steps is the *live peak*: no placement of the buffers can take less.

use dd_core::Bytes;

use crate::program::{BufferId, Program, Role};

/// When a buffer lives: the first and the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// The first step that uses it.
    pub first: usize,
    /// The last.
    pub last: usize,
}

/// How much memory a program holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// What is there all the time: parameters, inputs, optimizer state, caches.
    pub resident: Bytes,
    /// Per step, everything that is there while it runs.
    pub steps: Vec<Bytes>,
    /// The largest.
    pub peak: Bytes,
    /// The step at which it is reached first; without meaning where there are no steps.
    pub peak_step: usize,
    /// Per buffer, when it lives; nothing for what is resident or never used.
    pub spans: Vec<Option<Span>>,
}

impl Liveness {
    /// Of a program, its buffers as large as they are.
    #[must_use]
    pub fn of(program: &Program) -> Self {
        Self::with_granularity(program, 1)
    }

    /// Of a program under an allocator that hands out multiples of so many bytes. Sums saturate: what does not fit 64 bits
    /// stays larger than every limit.
    #[must_use]
    pub fn with_granularity(program: &Program, granularity: u64) -> Self {
        let size = |bytes: u64| Bytes(bytes).round_up(granularity);
        let spans = spans(program);
        let buffers = || program.buffers().iter().zip(&spans);
        let resident = buffers().filter(|(buffer, _)| buffer.role.is_resident());
        let resident: Bytes = resident.map(|(buffer, _)| size(buffer.bytes)).sum();
        let count = program.steps().len();
        let (mut born, mut dead) = (vec![Bytes::ZERO; count], vec![Bytes::ZERO; count]);
        for (buffer, span) in buffers() {
            let Some(span) = span else { continue };
            if let Some(slot) = born.get_mut(span.first) {
                *slot += size(buffer.bytes);
            }
            if let Some(slot) = dead.get_mut(span.last) {
                *slot += size(buffer.bytes);
            }
        }
        // Where all buffers together do not fit 64 bits, differences mean nothing: everything is said to live all the time.
        let total: Bytes = resident + born.iter().copied().sum();
        let mut live = resident;
        let mut steps = Vec::with_capacity(count);
        for (born, dead) in born.iter().zip(&dead) {
            live += *born;
            steps.push(if total == Bytes::MAX { total } else { live });
            live = live.saturating_sub(*dead);
        }
        let peak = steps.iter().copied().max().unwrap_or(resident).max(resident);
        let peak_step = steps.iter().position(|bytes| *bytes == peak).unwrap_or_default();
        Self { resident, steps, peak, peak_step, spans }
    }

    /// What each role holds at a step, largest roles not first but in the order of [`Role::ALL`]; none that is empty.
    #[must_use]
    pub fn by_role(&self, program: &Program, step: usize) -> Vec<(Role, Bytes)> {
        let at = |role: Role| -> Bytes {
            let buffers = program.buffers().iter().zip(&self.spans).filter(|(buffer, _)| buffer.role == role);
            let lives = |span: &Option<Span>| span.is_some_and(|s| s.first <= step && step <= s.last);
            buffers.filter(|(b, span)| b.role.is_resident() || lives(span)).map(|(b, _)| Bytes(b.bytes)).sum()
        };
        Role::ALL.into_iter().map(|role| (role, at(role))).filter(|(_, bytes)| *bytes > Bytes::ZERO).collect()
    }

    /// When a buffer lives.
    #[must_use]
    pub fn span(&self, buffer: BufferId) -> Option<Span> {
        self.spans.get(buffer.index()).copied().flatten()
    }
}

fn spans(program: &Program) -> Vec<Option<Span>> {
    let mut spans: Vec<Option<Span>> = vec![None; program.buffers().len()];
    for (at, step) in program.steps().iter().enumerate() {
        for operand in &step.operands {
            let Some(slot) = spans.get_mut(operand.buffer.index()) else { continue };
            let first = slot.map_or(at, |span| span.first);
            *slot = Some(Span { first, last: at });
        }
    }
    let end = program.steps().len().saturating_sub(1);
    for (span, buffer) in spans.iter_mut().zip(program.buffers()) {
        if buffer.role.is_resident() {
            *span = None;
        } else if buffer.kept
            && let Some(span) = span
        {
            span.last = end;
        }
    }
    spans
}
