//! [`MemoryProfiler`]: what one operation takes, its peak included.
//!
//! A profile has the figures before and after, and the *peak* between them, which a reading at either end cannot see.
//! Where each peak comes from:
//!
//! | figure | its peak |
//! |---|---|
//! | resident memory of the process | the kernel's own high-water mark, reset at the start; where the kernel refuses that, the mark if it rose, else samples at every millisecond |
//! | a budget | the budget's own mark, reset at the start |
//! | the heap | the mark of the [`CountingAllocator`](crate::CountingAllocator), where the program has it |
//! | devices | samples at every millisecond: drivers keep no mark |
//!
//! Scopes nest, and may overlap on several threads: resetting a mark for an inner one makes no outer one forget
//! ([`peak`](crate::peak)). The marks are the whole process's, so what other threads do meanwhile is in them too.

use std::cell::Cell;
use std::fmt;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dd_core::{Budget, Bytes, MemoryProvider, Tier};

use crate::allocator::{HEAP_PEAKS, heap_total, reset_total_peak};
use crate::error::{Error, Result};
use crate::gpu::Gpus;
use crate::lock;
use crate::peak::{PeakScopes, Scope};
use crate::process::{ProcessId, ProcessSampler, reset_peak};
use crate::root::Root;

const SAMPLING: Duration = Duration::from_millis(1);
/// The most finished profiles that are remembered.
const MOST_PROFILES: usize = 1024;

/// The scopes of the kernel's mark, of which a process has one.
static RESIDENT_PEAKS: PeakScopes = PeakScopes::new();

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// The memory of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeviceFootprint {
    /// The device's number.
    pub index: u32,
    /// What the tensor library has given to tensors, where a provider tells.
    pub allocated: Option<Bytes>,
    /// What the driver has given out, to this program and all others, where it tells.
    pub reserved: Option<Bytes>,
}

/// What is taken at one moment; what is not known is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Footprint {
    /// Resident memory of this process.
    pub resident: Option<Bytes>,
    /// What the budget counts.
    pub accounted: Option<Bytes>,
    /// What the counting allocator counts.
    pub heap: Option<Bytes>,
    /// Each device.
    pub devices: Vec<DeviceFootprint>,
}

impl Footprint {
    /// The larger of each figure.
    fn max(mut self, other: &Self) -> Self {
        self.resident = self.resident.max(other.resident);
        self.accounted = self.accounted.max(other.accounted);
        self.heap = self.heap.max(other.heap);
        for device in &other.devices {
            match self.devices.iter_mut().find(|known| known.index == device.index) {
                Some(known) => {
                    known.allocated = known.allocated.max(device.allocated);
                    known.reserved = known.reserved.max(device.reserved);
                }
                None => self.devices.push(*device),
            }
        }
        self
    }

    /// The figures with their names.
    fn named(&self) -> Vec<(String, Option<Bytes>)> {
        let process = [("resident", self.resident), ("accounted", self.accounted), ("heap", self.heap)];
        let process = process.map(|(name, figure)| (name.to_owned(), figure));
        let devices = self.devices.iter().flat_map(|device| {
            let named = |what: &str| format!("device:{} {what}", device.index);
            [(named("allocated"), device.allocated), (named("reserved"), device.reserved)]
        });
        process.into_iter().chain(devices).collect()
    }
}

/// Where the peak of resident memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PeakSource {
    /// The kernel's mark: nothing was missed.
    Kernel,
    /// Samples at every millisecond: a shorter spike may have been missed.
    Sampled,
}

/// What an operation took. Prints as a small table.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct MemoryProfile {
    /// The operation.
    pub name: String,
    /// How many other profiles were open around it on its thread.
    pub depth: usize,
    /// Before it.
    pub before: Footprint,
    /// After it.
    pub after: Footprint,
    /// The most of each figure from before until after; not all at the same moment.
    pub peak: Footprint,
    /// Where the peak of resident memory comes from.
    pub resident_peak: PeakSource,
    /// How long it took, with the sampling.
    #[serde(serialize_with = "crate::seconds")]
    pub elapsed: Duration,
}

/// What changed between two figures, in bytes; negative where memory was given back.
#[must_use]
pub fn change(before: Bytes, after: Bytes) -> i64 {
    let distance = i64::try_from(before.0.abs_diff(after.0)).unwrap_or(i64::MAX);
    if after >= before { distance } else { -distance }
}

impl MemoryProfile {
    /// After less before, by figure; only those that are known at both ends.
    #[must_use]
    pub fn differences(&self) -> Vec<(String, i64)> {
        let both = self.before.named().into_iter().zip(self.after.named());
        both.filter_map(|((name, before), (_, after))| Some((name, change(before?, after?)))).collect()
    }
}

/// Bytes with their sign.
fn signed(bytes: i64) -> String {
    let sign = if bytes < 0 { '-' } else { '+' };
    format!("{sign}{}", Bytes(bytes.unsigned_abs()))
}

impl fmt::Display for MemoryProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<24}{:>14}{:>14}{:>15}{:>14}", self.name, "before", "after", "difference", "peak")?;
        let rows = self.before.named().into_iter().zip(self.after.named()).zip(self.peak.named());
        for (((name, before), (_, after)), (_, peak)) in rows {
            let (Some(before), Some(after), Some(peak)) = (before, after, peak) else { continue };
            let difference = signed(change(before, after));
            let [before, after, peak] = [before, after, peak].map(|bytes| bytes.to_string());
            writeln!(f, "  {name:<22}{before:>14}{after:>14}{difference:>15}{peak:>14}")?;
        }
        Ok(())
    }
}

/// Measures operations. Clones share what they remember.
#[derive(Clone)]
pub struct MemoryProfiler {
    inner: Arc<Inner>,
}

struct Inner {
    root: Root,
    process: Option<ProcessSampler>,
    /// The scopes of a fixture tree's mark; the running system's are shared by the process.
    own_peaks: PeakScopes,
    budget: Option<Budget>,
    budget_peaks: PeakScopes,
    gpus: Option<Arc<Gpus>>,
    provider: Option<Arc<dyn MemoryProvider>>,
    finished: Mutex<Vec<MemoryProfile>>,
}

impl MemoryProfiler {
    /// Measures this process, whose files are below a root. A system that tells nothing of processes is no error: the
    /// resident figures are then missing.
    #[must_use]
    pub fn open(root: &Root) -> Self {
        Self { inner: Arc::new(Inner::empty(root)) }
    }

    /// Measures this budget too. Its recorded peak is reset at the start of every scope; give each budget to one
    /// profiler (and its clones) only.
    #[must_use]
    pub fn with_budget(self, budget: &Budget) -> Self {
        self.with(|inner| inner.budget = Some(budget.clone()))
    }

    /// Measures what the driver has given out of each of these devices.
    #[must_use]
    pub fn with_gpus(self, gpus: Arc<Gpus>) -> Self {
        self.with(|inner| inner.gpus = Some(gpus))
    }

    /// Measures what the device tiers of this provider (a tensor library's own figures) say is used.
    #[must_use]
    pub fn with_provider(self, provider: Arc<dyn MemoryProvider>) -> Self {
        self.with(|inner| inner.provider = Some(provider))
    }

    /// Changes a profiler that nobody shares yet; a shared one begins anew with the same settings.
    fn with(self, change: impl FnOnce(&mut Inner)) -> Self {
        let mut inner = Arc::try_unwrap(self.inner).unwrap_or_else(|shared| Inner {
            budget: shared.budget.clone(),
            gpus: shared.gpus.clone(),
            provider: shared.provider.clone(),
            ..Inner::empty(&shared.root)
        });
        change(&mut inner);
        Self { inner: Arc::new(inner) }
    }

    /// Runs an operation and says what it took, beside what it returned.
    pub fn profile_operation<T>(
        &self,
        name: impl Into<String>,
        operation: impl FnOnce() -> T,
    ) -> (T, MemoryProfile) {
        let scope = self.scope(name);
        let value = operation();
        (value, scope.finish())
    }

    /// Begins a profile that ends with [`ProfileScope::finish`].
    #[must_use = "a profile ends when its scope is finished"]
    pub fn scope(&self, name: impl Into<String>) -> ProfileScope {
        ProfileScope::open(Arc::clone(&self.inner), name.into())
    }

    /// The finished profiles, in the order in which they were finished; the last 1024.
    #[must_use]
    pub fn profiles(&self) -> Vec<MemoryProfile> {
        lock(&self.inner.finished).clone()
    }
}

impl fmt::Debug for MemoryProfiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let finished = lock(&self.inner.finished).len();
        f.debug_struct("MemoryProfiler").field("finished", &finished).finish_non_exhaustive()
    }
}

impl Inner {
    fn empty(root: &Root) -> Self {
        let process = ProcessSampler::open(root, ProcessId::Own);
        Self {
            root: root.clone(),
            process: process.inspect_err(|error| tracing::debug!(%error, "no resident figures")).ok(),
            own_peaks: PeakScopes::new(),
            budget: None,
            budget_peaks: PeakScopes::new(),
            gpus: None,
            provider: None,
            finished: Mutex::default(),
        }
    }

    fn resident_peaks(&self) -> &PeakScopes {
        if self.root.is_system() { &RESIDENT_PEAKS } else { &self.own_peaks }
    }

    /// The kernel's mark.
    fn mark(&self) -> Result<Bytes> {
        let missing = || Error::Malformed {
            path: self.root.join("/proc/self/status"),
            expected: "a line `VmHWM: N kB`",
        };
        let process = self.process.as_ref().ok_or_else(missing)?;
        process.sample_with_peak()?.peak_resident.ok_or_else(missing)
    }

    fn devices(&self) -> Vec<DeviceFootprint> {
        let tiers = self.provider.iter().flat_map(|provider| provider.tiers());
        let told = tiers.filter_map(|tier| if let Tier::Device(index) = tier { Some(*index) } else { None });
        let counted = 0..self.gpus.as_ref().map_or(0, |gpus| gpus.count());
        let mut numbers: Vec<u32> = told.chain(counted).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let device = |index| DeviceFootprint {
            index,
            allocated: self.provider.as_ref().and_then(|it| Some(it.sample(Tier::Device(index)).ok()?.used)),
            reserved: self.gpus.as_ref().and_then(|gpus| Some(gpus.sample(index).ok()?.used)),
        };
        numbers.into_iter().map(device).collect()
    }

    /// The figures that only samples know the peak of.
    fn sampled(&self) -> Footprint {
        let resident = self.process.as_ref().and_then(|process| Some(process.sample().ok()?.resident));
        Footprint { resident, devices: self.devices(), ..Footprint::default() }
    }

    fn footprint(&self) -> Footprint {
        let accounted = self.budget.as_ref().map(|budget| budget.usage().used);
        Footprint { accounted, heap: heap_total().map(|counts| counts.held), ..self.sampled() }
    }
}

/// The marks that a scope has reset, where they could be.
struct Marks {
    resident: Option<Scope>,
    accounted: Option<Scope>,
    heap: Option<Scope>,
}

impl Marks {
    fn open(inner: &Inner) -> Self {
        let resident = inner.resident_peaks().open(|| inner.mark(), || reset_peak(&inner.root));
        let resident =
            resident.inspect_err(|error| tracing::debug!(%error, "the resident peak is sampled")).ok();
        let accounted = inner.budget.as_ref().and_then(|budget| {
            let reset = || {
                budget.reset_peak();
                Ok::<(), Error>(())
            };
            inner.budget_peaks.open(|| Ok(budget.usage().peak), reset).ok()
        });
        let heap = heap_total().and_then(|_| {
            let reset = || {
                reset_total_peak();
                Ok::<(), Error>(())
            };
            HEAP_PEAKS.open(|| Ok(heap_peak()), reset).ok()
        });
        Self { resident, accounted, heap }
    }

    /// The peaks of the marks that were reset.
    fn close(&mut self, inner: &Inner) -> Footprint {
        let resident = self.resident.take();
        let resident = resident.and_then(|scope| inner.resident_peaks().close(scope, || inner.mark()).ok());
        let budget = self.accounted.take().zip(inner.budget.as_ref());
        let accounted = budget.and_then(|(scope, budget)| {
            inner.budget_peaks.close(scope, || Ok::<_, Error>(budget.usage().peak)).ok()
        });
        let heap =
            self.heap.take().and_then(|scope| HEAP_PEAKS.close(scope, || Ok::<_, Error>(heap_peak())).ok());
        Footprint { resident, accounted, heap, devices: Vec::new() }
    }
}

fn heap_peak() -> Bytes {
    heap_total().map(|counts| counts.peak).unwrap_or_default()
}

/// Samples on a thread of its own until it is dropped.
struct Sampling {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<Footprint>>,
}

impl Sampling {
    /// Starts where something has no mark; without a thread there is nothing but the two ends.
    fn start(inner: &Arc<Inner>, needed: bool) -> Self {
        let (stop, stopped) = channel::<()>();
        let inner = Arc::clone(inner);
        let run = move || {
            let mut peak = Footprint::default();
            while matches!(stopped.recv_timeout(SAMPLING), Err(RecvTimeoutError::Timeout)) {
                peak = peak.max(&inner.sampled());
            }
            peak
        };
        let builder = std::thread::Builder::new().name("memory-profile".to_owned()).stack_size(256 << 10);
        let thread = if needed { builder.spawn(run).ok() } else { None };
        Self { stop: Some(stop), thread }
    }

    fn stop(&mut self) -> Footprint {
        drop(self.stop.take());
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

/// An open profile. Dropping it instead of finishing it leaves no profile.
pub struct ProfileScope {
    inner: Arc<Inner>,
    name: String,
    depth: usize,
    marks: Marks,
    sampling: Sampling,
    before: Footprint,
    mark_before: Option<Bytes>,
    began: Instant,
}

impl ProfileScope {
    fn open(inner: Arc<Inner>, name: String) -> Self {
        let depth = DEPTH.replace(DEPTH.get() + 1);
        let mark_before = inner.mark().ok();
        let marks = Marks::open(&inner);
        let before = inner.footprint();
        let sampling = Sampling::start(&inner, marks.resident.is_none() || !before.devices.is_empty());
        Self { inner, name, depth, marks, sampling, before, mark_before, began: Instant::now() }
    }

    /// Ends the profile.
    #[must_use]
    pub fn finish(mut self) -> MemoryProfile {
        let elapsed = self.began.elapsed();
        let sampled = self.sampling.stop();
        let after = self.inner.footprint();
        // Without a reset, the mark still tells the peak where it rose.
        let risen =
            self.inner.mark().ok().filter(|mark| self.mark_before.is_some_and(|before| *mark > before));
        let mut marked = self.marks.close(&self.inner);
        marked.resident = marked.resident.or(risen);
        let resident_peak = if marked.resident.is_some() { PeakSource::Kernel } else { PeakSource::Sampled };
        let peak = sampled.max(&marked).max(&self.before).max(&after);
        let (name, before, depth) =
            (std::mem::take(&mut self.name), std::mem::take(&mut self.before), self.depth);
        let profile = MemoryProfile { name, depth, before, after, peak, resident_peak, elapsed };
        let mut finished = lock(&self.inner.finished);
        if finished.len() >= MOST_PROFILES {
            finished.remove(0);
        }
        finished.push(profile.clone());
        drop(finished);
        profile
    }
}

impl Drop for ProfileScope {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get().saturating_sub(1));
        self.marks.close(&self.inner);
        self.sampling.stop();
    }
}

impl fmt::Debug for ProfileScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProfileScope")
            .field("name", &self.name)
            .field("depth", &self.depth)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use dd_core::memory::FixedMemory;
    use dd_core::{Holder, MemorySample};

    use super::*;

    /// A process of 20 pages whose mark is 1 MiB and cannot be reset.
    fn fixture() -> (tempfile::TempDir, MemoryProfiler) {
        let folder = tempfile::tempdir().unwrap();
        let process = folder.path().join("proc/self");
        std::fs::create_dir_all(&process).unwrap();
        std::fs::write(process.join("statm"), "900 20 0 0 0 0 0\n").unwrap();
        std::fs::write(process.join("status"), "VmHWM: 1024 kB\n").unwrap();
        let profiler = MemoryProfiler::open(&Root::new(folder.path()));
        (folder, profiler)
    }

    #[test]
    fn a_mark_that_cannot_be_reset_still_tells_where_it_rose() {
        let (folder, profiler) = fixture();
        let pages = Bytes(20 * crate::sys::page_size());
        let (_, flat) = profiler.profile_operation("flat", || ());
        assert_eq!((flat.peak.resident, flat.resident_peak), (Some(pages), PeakSource::Sampled));
        let status = folder.path().join("proc/self/status");
        let (_, risen) =
            profiler.profile_operation("risen", || std::fs::write(&status, "VmHWM: 8192 kB\n").unwrap());
        assert_eq!((risen.peak.resident, risen.resident_peak), (Some(Bytes::mib(8)), PeakSource::Kernel));
        assert_eq!(risen.differences(), [("resident".to_owned(), 0)]);
    }

    #[test]
    fn budgets_and_devices_have_peaks_of_their_own() {
        let (_folder, profiler) = fixture();
        let device = MemorySample { total: Bytes(100), used: Bytes(30), available: Bytes(70) };
        let provider = FixedMemory::new([(Tier::Device(2), device), (Tier::Host, device)]);
        let budget = Budget::new("job", Bytes::mib(100));
        let profiler = profiler.with_budget(&budget).with_provider(Arc::new(provider));
        let reserve = |mib| budget.reserve(Bytes::mib(mib), &Holder::new("x")).unwrap();
        drop(reserve(90));
        let (kept, outer) = profiler.profile_operation("outer", || {
            drop(reserve(40));
            let (_, inner) = profiler.profile_operation("inner", || drop(reserve(7)));
            assert_eq!((inner.peak.accounted, inner.depth), (Some(Bytes::mib(7)), 1));
            reserve(5)
        });
        assert_eq!((outer.before.accounted, outer.after.accounted), (Some(Bytes::ZERO), Some(kept.bytes())));
        assert_eq!((outer.peak.accounted, outer.depth), (Some(Bytes::mib(40)), 0));
        let expected = DeviceFootprint { index: 2, allocated: Some(Bytes(30)), reserved: None };
        assert_eq!((outer.peak.devices.as_slice(), outer.heap_is_absent()), ([expected].as_slice(), true));
        let names: Vec<String> = profiler.profiles().into_iter().map(|profile| profile.name).collect();
        assert_eq!(names, ["inner", "outer"]);
        let text = outer.to_string();
        assert!(
            text.contains(
                "  accounted                        0 B      5.00 MiB      +5.00 MiB     40.00 MiB"
            ),
            "{text}"
        );
        assert!(text.contains("device:2 allocated"), "{text}");
    }

    impl MemoryProfile {
        fn heap_is_absent(&self) -> bool {
            self.before.heap.is_none() && self.peak.heap.is_none() && self.after.heap.is_none()
        }
    }

    #[test]
    fn a_panic_leaves_no_scope_open() {
        let (_folder, profiler) = fixture();
        let operation = || profiler.profile_operation("fails", || panic!("on purpose"));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(operation));
        assert!(outcome.is_err());
        let (_, next) = profiler.profile_operation("next", || ());
        assert_eq!((next.depth, profiler.profiles().len()), (0, 1));
    }

    #[test]
    fn changes_have_a_sign() {
        let rows = [(5, 8, 3, "+3 B"), (8, 5, -3, "-3 B"), (7, 7, 0, "+0 B"), (0, 2048, 2048, "+2.00 KiB")];
        for (before, after, expected, text) in rows {
            let found = change(Bytes(before), Bytes(after));
            assert_eq!((found, signed(found).as_str()), (expected, text));
        }
        assert_eq!(change(Bytes::MAX, Bytes::ZERO), -i64::MAX);
    }
}
