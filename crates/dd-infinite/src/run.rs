//! Steps: picked when their inputs are there, run without any lock, and completed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use dd_core::Backend;
use smallvec::SmallVec;

use crate::cache::crop;
use crate::def::{Context, Def};
use crate::engine::inside;
use crate::error::{Error, Result};
use crate::fold::{Part, copy_box};
use crate::plan::{Kind, Status};
use crate::region::{Index, Region, Span};
use crate::state::{Data, State};

/// One window, or one cell, to be done.
pub(crate) struct Step {
    pub(crate) request: usize,
    pub(crate) node: usize,
    kind: Kind,
    index: Index,
    /// What the step's windows are, in the order of its inputs.
    inputs: SmallVec<[(Index, Arc<Data>); 4]>,
}

/// Steps of one tensor that are done together.
pub(crate) struct Task<B: Backend> {
    pub(crate) def: Arc<Def<B>>,
    pub(crate) steps: SmallVec<[Step; 1]>,
}

/// What came of a task.
pub(crate) struct Outcome<B: Backend> {
    def: Arc<Def<B>>,
    steps: SmallVec<[(usize, usize); 1]>,
    result: Result<SmallVec<[Option<Data>; 1]>>,
    called: u64,
}

impl<B: Backend> State<B> {
    /// The next cell of a request whose windows are all there.
    pub(crate) fn pick_cell(&mut self, request: usize) -> Option<(Region, Task<B>)> {
        let there = self.requests.get(request)?;
        let end = there.low.saturating_add(there.lookahead).min(there.plan.order.len());
        let steps = there.plan.order.get(there.low..end)?;
        let ready = |node: &&usize| {
            there.plan.nodes.get(**node).is_some_and(|n| n.kind == Kind::Cell)
                && self.can_start(request, **node)
        };
        let node = *steps.iter().find(ready)?;
        let number = usize::try_from(*there.plan.nodes.get(node)?.index.first()?).ok()?;
        let cell = there.plan.cells.get(number)?.clone();
        let (def, step) = self.start(request, node)?;
        Some((cell, Task { def, steps: SmallVec::from_iter([step]) }))
    }

    /// The next window to compute: of this request; or of any, those without a caller last. Where the function takes
    /// several windows at once, further ones of the same tensor are gathered, from every request.
    pub(crate) fn pick(&mut self, request: Option<usize>) -> Option<Task<B>> {
        let (request, node) = match request {
            Some(request) => (request, self.startable(request, None)?),
            None => self.any_startable()?,
        };
        let (def, step) = self.start(request, node)?;
        let mut task = Task { def, steps: SmallVec::from_iter([step]) };
        if task.def.batch > 1 && task.steps.iter().all(|step| step.kind == Kind::Compute) {
            self.gather(&mut task, request);
        }
        Some(task)
    }

    fn gather(&mut self, task: &mut Task<B>, first: usize) {
        let mut others: SmallVec<[usize; 8]> = SmallVec::from_iter([first]);
        others.extend(self.requests.iter().map(|(id, _)| id).filter(|id| *id != first));
        for request in others {
            while task.steps.len() < task.def.batch {
                let Some(node) = self.startable(request, Some(task.def.slot)) else { break };
                let Some((_, step)) = self.start(request, node) else { break };
                task.steps.push(step);
            }
        }
    }

    fn any_startable(&self) -> Option<(usize, usize)> {
        let mut open: SmallVec<[(bool, usize); 8]> =
            self.requests.iter().map(|(id, request)| (request.background, id)).collect();
        open.sort_unstable();
        open.into_iter().find_map(|(_, id)| Some((id, self.startable(id, None)?)))
    }

    /// A window of a request that can be computed now, of one tensor or any.
    fn startable(&self, request: usize, tensor: Option<usize>) -> Option<usize> {
        let there = self.requests.get(request)?;
        if there.is_ending() {
            return None;
        }
        let end = there.low.saturating_add(there.lookahead).min(there.plan.order.len());
        let right = |node: &usize| {
            let Some(found) = there.plan.nodes.get(*node) else { return false };
            let of =
                tensor.is_none_or(|slot| there.plan.def(*node).slot == slot && found.kind == Kind::Compute);
            found.kind != Kind::Cell && of && self.can_start(request, *node)
        };
        there.plan.order.get(there.low..end)?.iter().copied().find(right)
    }

    fn can_start(&self, request: usize, node: usize) -> bool {
        let Some(there) = self.requests.get(request) else { return false };
        let done = |input: &usize| there.plan.nodes.get(*input).is_some_and(|n| n.status == Status::Done);
        there.plan.nodes.get(node).is_some_and(|n| n.status == Status::Waiting)
            && there.plan.inputs_of(node).iter().all(done)
    }

    /// How many windows could be computed now, up to `most`.
    pub(crate) fn ready(&self, most: usize) -> usize {
        let mut count = 0;
        for (id, request) in &self.requests {
            if request.is_ending() {
                continue;
            }
            let end = request.low.saturating_add(request.lookahead).min(request.plan.order.len());
            for node in request.plan.order.get(request.low..end).unwrap_or_default() {
                let computed = request.plan.nodes.get(*node).is_some_and(|n| n.kind != Kind::Cell);
                count += usize::from(computed && self.can_start(id, *node));
                if count >= most {
                    return count;
                }
            }
        }
        count
    }

    /// Marks a step as running, and takes hold of its inputs.
    fn start(&mut self, request: usize, node: usize) -> Option<(Arc<Def<B>>, Step)> {
        let there = self.requests.get(request)?;
        let mut inputs = SmallVec::new();
        for input in there.plan.inputs_of(node) {
            let input = there.plan.nodes.get(*input)?;
            inputs.push((input.index.clone(), Arc::clone(self.entries.get(input.entry)?.data.as_ref()?)));
        }
        let def = Arc::clone(there.plan.def(node));
        let there = self.requests.get_mut(request)?;
        there.running += 1;
        let at = there.plan.nodes.get_mut(node)?;
        at.status = Status::Running;
        Some((def, Step { request, node, kind: at.kind, index: at.index.clone(), inputs }))
    }

    pub(crate) fn cell_done(&mut self, request: usize, task: Task<B>) {
        let nodes: SmallVec<[usize; 1]> = task.steps.iter().map(|step| step.node).collect();
        drop(task); // Its hold on the data goes before the pins.
        for node in nodes {
            self.step_done(request, node, Status::Done);
        }
    }

    /// Puts what a task gave in its place, and tells who waits.
    pub(crate) fn complete(&mut self, outcome: Outcome<B>) {
        let Outcome { def, steps, result, called } = outcome;
        if let Some(windows) = self.tensors.get_mut(def.slot) {
            windows.computed += called;
        }
        match result {
            Ok(windows) => {
                for ((request, node), data) in steps.into_iter().zip(windows) {
                    match data {
                        Some(data) => self.deliver(&def, request, node, data),
                        None => self.vanished(request, node),
                    }
                }
            }
            Err(error) => {
                for (request, node) in steps {
                    if let Some(there) = self.requests.get_mut(request) {
                        there.fail(error.clone());
                    }
                    self.step_done(request, node, Status::Failed);
                }
            }
        }
    }

    /// A window that the store had, and has no more.
    fn vanished(&mut self, request: usize, node: usize) {
        if let Some(there) = self.requests.get_mut(request) {
            there.replan = true;
            there.running = there.running.saturating_sub(1);
            if let Some(node) = there.plan.nodes.get_mut(node) {
                node.status = Status::Waiting;
            }
        }
    }

    fn deliver(&mut self, def: &Arc<Def<B>>, request: usize, node: usize, data: Data) {
        let Some(there) = self.requests.get(request) else { return };
        let Some(at) = there.plan.nodes.get(node) else { return };
        let (id, unused) = (at.entry, at.uses == 0);
        let passing = there.passing && there.plan.defs.first().is_some_and(|top| top.slot == def.slot);
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.data = Some(Arc::new(data));
        entry.passed = passing;
        for (waiter, number) in std::mem::take(&mut entry.waiters) {
            let waiting = self.requests.get_mut(waiter).and_then(|r| r.plan.nodes.get_mut(number));
            if let Some(waiting) = waiting {
                waiting.status = Status::Done;
            }
        }
        self.arrived(def, id);
        self.step_done(request, node, Status::Done);
        if unused {
            self.release(request, node);
        }
    }

    /// A step has ended: its inputs are needed once less.
    fn step_done(&mut self, request: usize, node: usize, status: Status) {
        let Some(there) = self.requests.get_mut(request) else { return };
        there.running = there.running.saturating_sub(1);
        if let Some(at) = there.plan.nodes.get_mut(node) {
            at.status = status;
        }
        let mut last: SmallVec<[usize; 16]> = SmallVec::new();
        if status == Status::Done {
            let range = there.plan.nodes.get(node).map(|at| at.first..at.first + at.count);
            for input in range.and_then(|range| there.plan.inputs.get(range)).unwrap_or_default() {
                let Some(input_node) = there.plan.nodes.get_mut(*input) else { continue };
                input_node.uses = input_node.uses.saturating_sub(1);
                if input_node.uses == 0 {
                    last.push(*input);
                }
            }
        }
        let done = |request: &crate::state::Request<B>| {
            let step = request.plan.order.get(request.low).and_then(|node| request.plan.nodes.get(*node));
            step.is_some_and(|node| matches!(node.status, Status::Done | Status::Released))
        };
        while done(there) {
            there.low += 1;
        }
        for input in last {
            self.release(request, input);
        }
    }

    fn release(&mut self, request: usize, node: usize) {
        let Some(at) = self.requests.get_mut(request).and_then(|r| r.plan.nodes.get_mut(node)) else {
            return;
        };
        at.status = Status::Released;
        let entry = at.entry;
        self.unpin(entry, request);
    }

    /// Ends requests without a caller that have nothing left to do; says whether there was one.
    pub(crate) fn end_background(&mut self) -> bool {
        let over = |request: &crate::state::Request<B>| {
            request.background && request.running == 0 && (request.is_done() || request.is_ending())
        };
        let ended: SmallVec<[usize; 4]> =
            self.requests.iter().filter(|(_, request)| over(request)).map(|(id, _)| id).collect();
        for request in &ended {
            drop(self.finish(*request));
        }
        !ended.is_empty()
    }
}

impl<B: Backend> Task<B> {
    /// Shows the inputs of the only step.
    pub(crate) fn with_inputs(&self, see: impl FnOnce(&[(Index, Arc<Data>)])) {
        see(self.steps.first().map(|step| step.inputs.as_slice()).unwrap_or_default());
    }

    pub(crate) fn run(self, backend: &B) -> Outcome<B> {
        let steps = self.steps.iter().map(|step| (step.request, step.node)).collect();
        let def = Arc::clone(&self.def);
        let loads = self.steps.iter().any(|step| step.kind == Kind::Load);
        let called = if loads { 0 } else { self.steps.len() as u64 };
        let result = if loads { self.load() } else { self.compute(backend) };
        Outcome { def, steps, result, called }
    }

    fn load(self) -> Result<SmallVec<[Option<Data>; 1]>> {
        self.steps.iter().map(|step| load(&self.def, &step.index)).collect()
    }

    fn compute(mut self, backend: &B) -> Result<SmallVec<[Option<Data>; 1]>> {
        let def = Arc::clone(&self.def);
        let mut contexts = Vec::with_capacity(self.steps.len());
        let mut args = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let (context, tensors) = prepare(&def, backend, step)?;
            contexts.push(context);
            args.push(tensors);
        }
        self.steps.iter_mut().for_each(|step| step.inputs.clear());
        let index: Vec<i64> = contexts.first().map(|context| context.index.to_vec()).unwrap_or_default();
        let called = catch_unwind(AssertUnwindSafe(|| inside(|| (def.function)(&contexts, &args))));
        drop(args);
        let outputs = match called {
            Ok(Ok(outputs)) => outputs,
            Ok(Err(source)) => {
                return Err(Error::Function { tensor: def.id.to_string(), index, source: source.into() });
            }
            Err(panic) => {
                return Err(Error::Panicked { tensor: def.id.to_string(), index, message: message(&*panic) });
            }
        };
        if outputs.len() != contexts.len() {
            return Err(Error::Output {
                tensor: def.id.to_string(),
                index,
                expected: format!("{} tensors, one per window of the batch", contexts.len()),
                found: format!("{} tensors", outputs.len()),
            });
        }
        let keep =
            |(context, output): (&Context, B::Tensor)| accept(&def, backend, context, &output).map(Some);
        contexts.iter().zip(outputs).map(keep).collect()
    }
}

/// A window's context and its arguments, folded and handed to the backend.
fn prepare<B: Backend>(def: &Def<B>, backend: &B, step: &Step) -> Result<(Context, Vec<B::Tensor>)> {
    let mut regions: SmallVec<[Region; 2]> = SmallVec::new();
    let mut tensors = Vec::with_capacity(def.args.len());
    let mut inputs = step.inputs.as_slice();
    for arg in &def.args {
        let region = def.arg_region(arg, &step.index)?;
        let count = windows_of(&arg.def, &region)?;
        let (mine, rest) = inputs.split_at_checked(count).unwrap_or((inputs, &[]));
        inputs = rest;
        let desc = arg.def.describe(&region)?;
        let mut bytes = vec![0u8; desc.len_in_memory()?];
        fold_inputs(&arg.def, mine, &region, &region, &mut bytes)?;
        tensors.push(backend.upload(&desc, &bytes, def.tier)?);
        regions.push(region);
    }
    let context = Context {
        tensor: Arc::clone(&def.id),
        index: step.index.clone(),
        region: def.asked(&step.index)?,
        args: regions,
        seed: def.seed,
    };
    Ok((context, tensors))
}

/// How many windows have something of a region: those that the plan listed.
fn windows_of<B: Backend>(def: &Def<B>, region: &Region) -> Result<usize> {
    let mut count = 0;
    for index in def.windows(region).points() {
        count += usize::from(!def.output(&index)?.meet(region).is_empty());
    }
    Ok(count)
}

pub(crate) fn fold_inputs<B: Backend>(
    def: &Def<B>,
    inputs: &[(Index, Arc<Data>)],
    target: &Region,
    view: &Region,
    out: &mut [u8],
) -> Result<()> {
    let wholes: Result<SmallVec<[Region; 4]>> =
        inputs.iter().map(|(index, _)| def.window.bounds(index)).collect();
    let wholes = wholes?;
    let parts: SmallVec<[Part<'_>; 4]> = inputs
        .iter()
        .zip(&wholes)
        .map(|((_, data), whole)| Part { held: &data.region, bytes: &data.bytes, whole })
        .collect();
    def.fold.fold(target, &parts, view, out);
    Ok(())
}

/// Checks what a function gave, takes its bytes, and stores them.
fn accept<B: Backend>(def: &Def<B>, backend: &B, context: &Context, output: &B::Tensor) -> Result<Data> {
    let expected = def.describe(&context.region)?;
    let found = backend.describe(output)?;
    let tier = backend.tier_of(output);
    if found != expected || tier != def.tier {
        return Err(Error::Output {
            tensor: def.id.to_string(),
            index: context.index.to_vec(),
            expected: format!("{expected} on {}", def.tier),
            found: format!("{found} on {tier}"),
        });
    }
    let mut bytes = vec![0u8; expected.len_in_memory()?];
    backend.read(output, 0, &mut bytes)?;
    let mut data = Data { region: context.region.clone(), bytes };
    let kept = def.output(&context.index)?;
    if kept != data.region {
        crop(&mut data, &kept, def.element);
    }
    if let Some(store) = &def.store {
        let whole = def.window.bounds(&context.index)?;
        if data.region == whole {
            store.put(&def.id, &context.index, &data.bytes)?;
        } else {
            let mut padded = vec![0u8; def.stored.len_in_memory()?];
            let shifted = at_start(&whole, &data.region);
            copy_box(&data.region, def.element, (&data.region, &data.bytes), (&shifted, &mut padded));
            store.put(&def.id, &context.index, &padded)?;
        }
    }
    Ok(data)
}

/// A window read from the store; nothing where it is not there.
fn load<B: Backend>(def: &Def<B>, index: &Index) -> Result<Option<Data>> {
    let Some(store) = &def.store else { return Ok(None) };
    let (whole, region) = (def.window.bounds(index)?, def.output(index)?);
    let mut bytes = vec![0u8; def.stored.len_in_memory()?];
    if !store.get(&def.id, index, &mut bytes)? {
        return Ok(None);
    }
    if region == whole {
        return Ok(Some(Data { region, bytes }));
    }
    let mut clipped = vec![0u8; usize::try_from(def.bytes(&region)?).unwrap_or(0)];
    let shifted = at_start(&whole, &region);
    copy_box(&region, def.element, (&shifted, &bytes), (&region, &mut clipped));
    Ok(Some(Data { region, bytes: clipped }))
}

/// The stored box of a clipped window: of the whole window's size, beginning where the clipped one begins, since padding is
/// at the end.
fn at_start(whole: &Region, region: &Region) -> Region {
    let spans = whole.spans().iter().zip(region.spans());
    Region::new(spans.map(|(whole, part)| {
        Span::clamped(part.start().into(), i128::from(part.start()) + i128::from(whole.len()))
    }))
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
