//! Beginnings and ends: who may outlive whom, what a panic leaves behind, who is told when there is nothing to wait
//! for, and what others who share the budget can get.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

#[path = "support/watchdog.rs"]
mod watchdog;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, Weak};

use dd_core::{
    Backend, Budget, Bytes, DType, Event, Holder, HostBackend, HostTensor, MemorySample, Observer, Reclaim,
    Reservation, TensorDesc, Tier,
};
use dd_offload::manager::{Cleanup, ModuleHandle, ModuleSpec, Parameter, Source};
use dd_offload::{Error, MemoryConfig, MemoryManager};

const PART: Bytes = Bytes::kib(64);

/// The reference backend, whose writes can be held up or made to panic.
#[derive(Clone, Default)]
struct Gated {
    host: HostBackend,
    shut: Arc<(Mutex<bool>, Condvar)>,
    broken: Arc<AtomicBool>,
}

impl Gated {
    fn shut(&self, shut: bool) {
        *self.shut.0.lock().unwrap() = shut;
        self.shut.1.notify_all();
    }
}

impl Backend for Gated {
    type Tensor = HostTensor;

    fn name(&self) -> &str {
        "gated"
    }

    fn tiers(&self) -> &[Tier] {
        self.host.tiers()
    }

    fn describe(&self, tensor: &HostTensor) -> dd_core::Result<TensorDesc> {
        self.host.describe(tensor)
    }

    fn tier_of(&self, tensor: &HostTensor) -> Tier {
        self.host.tier_of(tensor)
    }

    fn allocate(&self, desc: &TensorDesc, tier: Tier) -> dd_core::Result<HostTensor> {
        self.host.allocate(desc, tier)
    }

    fn write(&self, tensor: &mut HostTensor, offset: usize, bytes: &[u8]) -> dd_core::Result<()> {
        assert!(!self.broken.load(Ordering::SeqCst), "this backend is broken");
        let (shut, opened) = &*self.shut;
        drop(opened.wait_while(shut.lock().unwrap(), |shut| *shut).unwrap());
        self.host.write(tensor, offset, bytes)
    }

    fn read(&self, tensor: &HostTensor, offset: usize, out: &mut [u8]) -> dd_core::Result<()> {
        self.host.read(tensor, offset, out)
    }

    fn share(&self, tensor: &HostTensor) -> HostTensor {
        self.host.share(tensor)
    }

    fn is_unique(&self, tensor: &mut HostTensor) -> bool {
        self.host.is_unique(tensor)
    }

    fn memory(&self, tier: Tier) -> dd_core::Result<MemorySample> {
        self.host.memory(tier)
    }
}

fn values(n: u8) -> Vec<u8> {
    vec![n; usize::try_from(PART.0).unwrap()]
}

fn desc() -> TensorDesc {
    TensorDesc::new([usize::try_from(PART.0 / 256).unwrap(), 64], DType::F32).unwrap()
}

fn config(dir: &tempfile::TempDir) -> dd_offload::config::MemoryConfigBuilder {
    MemoryConfig::builder()
        .compress_disk_cache(false)
        .io_block(Bytes::kib(4))
        .io_depth(1_usize)
        .spill_directory(dir.path().to_owned())
}

fn spec<B: Backend<Tensor = HostTensor>>(backend: &B, name: &str, parameter: &str, n: u8) -> ModuleSpec<B> {
    let tensor = backend.upload(&desc(), &values(n), Tier::Host).unwrap();
    let parameters = vec![Parameter { name: parameter.to_owned(), source: Source::Tensor(tensor) }];
    ModuleSpec { name: name.to_owned(), kind: "Linear".to_owned(), parameters, pinned: false }
}

type Managed = (tempfile::TempDir, Budget, MemoryManager<Gated>, Vec<ModuleHandle<Gated>>);

/// Spilled modules 0..count, with room for `room` of them beside the scratch of 1 MiB.
fn managed(backend: &Gated, count: u8, room: u64) -> Managed {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let budget = Budget::new("test", Bytes::mib(1) + Bytes::kib(4) + Bytes(PART.0 * room));
    let manager =
        MemoryManager::with_budget(backend.clone(), config(&dir).build().unwrap(), &budget).unwrap();
    let wrap = |n: u8| manager.wrap_module(spec(backend, &n.to_string(), "weight", n)).unwrap();
    let modules = (0..count).map(wrap).collect();
    (dir, budget, manager, modules)
}

fn check<B: Backend<Tensor = HostTensor>>(module: &ModuleHandle<B>, parameter: &str, n: u8) {
    let guard = module.acquire().unwrap();
    assert!(guard.tensor(parameter).unwrap().bytes() == values(n), "{}", module.name());
}

fn check_all(modules: &[ModuleHandle<Gated>]) {
    for (n, module) in modules.iter().enumerate() {
        check(module, "weight", u8::try_from(n).unwrap());
    }
}

#[test]
fn who_waits_when_all_is_freed_is_told() {
    let _watchdog = watchdog::watch("freed while waiting");
    let backend = Gated::default();
    let (_dir, budget, manager, modules) = managed(&backend, 4, 2);
    backend.shut(true);
    std::thread::scope(|scope| {
        let waiting: Vec<_> =
            modules.iter().map(|module| scope.spawn(move || module.acquire().map(drop))).collect();
        while manager
            .memory_summary()
            .budget
            .holders
            .iter()
            .all(|h| h.name != "weights" || h.used == Bytes::ZERO)
        {
            std::thread::yield_now(); // Until the first of them is being filled.
        }
        let cleanup = scope.spawn(|| manager.cleanup(Cleanup::Freed));
        while !matches!(manager.start(), Ok(()) | Err(Error::Stopped { .. })) {}
        backend.shut(false);
        let results: Vec<_> = waiting.into_iter().map(|thread| thread.join().unwrap()).collect();
        match cleanup.join().unwrap() {
            Ok(()) => {}
            Err(error) => assert!(matches!(error, Error::AllInUse { .. }), "{error}"), // One was quicker and used it.
        }
        assert!(results.iter().all(|r| matches!(r, Ok(()) | Err(Error::Stopped { .. }))), "{results:?}");
    });
    manager.cleanup(Cleanup::Freed).unwrap();
    assert_eq!(budget.usage().used, Bytes::ZERO, "{:?}", budget.usage());
    assert!(matches!(modules[0].acquire(), Err(Error::Stopped { .. })));
}

#[test]
fn a_guard_outlives_everything_and_holds_its_own_bytes_only() {
    let _watchdog = watchdog::watch("guard outlives");
    let (dir, budget, manager, modules) = managed(&Gated::default(), 6, 4);
    check_all(&modules);
    let guard = modules[2].acquire().unwrap();
    drop(manager);
    check_all(&modules); // Handles outlive the manager.
    std::thread::spawn(move || drop(modules)).join().unwrap();
    assert!(guard.tensor("weight").unwrap().bytes() == values(2));
    assert_eq!(budget.usage().used, PART, "{:?}", budget.usage());
    let bases = std::fs::read_dir(dir.path()).unwrap().flatten();
    let left: usize = bases.map(|base| std::fs::read_dir(base.path()).unwrap().count()).sum();
    assert_eq!(left, 0, "the spilled files are gone with the last handle");
    drop(guard);
    assert_eq!(budget.usage().used, Bytes::ZERO);
}

/// Asks back whatever it hears, or panics.
struct Rude {
    manager: OnceLock<MemoryManager<Gated>>,
    panics: AtomicBool,
}

impl Observer for Rude {
    fn on_event(&self, _event: &Event<'_>) {
        if let Some(manager) = self.manager.get() {
            assert!(manager.memory_summary().modules.len() <= 6);
            drop(manager.plan());
        }
        assert!(!self.panics.load(Ordering::SeqCst), "this observer panics");
    }
}

#[test]
fn observers_may_ask_back_and_panic() {
    let _watchdog = watchdog::watch("rude observers");
    let backend = Gated::default();
    let (_dir, _budget, manager, modules) = managed(&backend, 6, 3);
    let rude = Arc::new(Rude { manager: OnceLock::new(), panics: AtomicBool::new(false) });
    assert!(rude.manager.set(manager.clone()).is_ok());
    manager.observe(rude.clone());
    for _ in 0..3 {
        check_all(&modules);
    }
    rude.panics.store(true, Ordering::SeqCst);
    check_all(&modules);
    rude.panics.store(false, Ordering::SeqCst);
    check_all(&modules);
}

#[test]
fn a_panic_while_loading_or_computing_leaves_the_manager_usable() {
    let _watchdog = watchdog::watch("panics");
    let backend = Gated::default();
    let (_dir, budget, manager, modules) = managed(&backend, 6, 3);
    check_all(&modules);
    backend.broken.store(true, Ordering::SeqCst);
    manager.offload_all().unwrap();
    for module in &modules[..2] {
        let error = module.acquire().unwrap_err().to_string();
        assert!(error.contains("panicked"), "{error}");
    }
    backend.broken.store(false, Ordering::SeqCst);
    let user = std::thread::spawn({
        let module = modules[1].clone();
        move || {
            let _guard = module.acquire().unwrap();
            panic!("the user's code fails while it holds a guard");
        }
    });
    assert!(user.join().is_err());
    for _ in 0..2 {
        check_all(&modules);
    }
    manager.offload_all().unwrap();
    manager.cleanup(Cleanup::Freed).unwrap();
    assert_eq!(budget.usage().used, Bytes::ZERO);
}

#[test]
fn what_was_left_whole_stays_whole() {
    let (_dir, budget, manager, modules) = managed(&Gated::default(), 4, 5);
    manager.cleanup(Cleanup::Whole).unwrap();
    assert!(budget.reserve(Bytes::mib(2), &Holder::new("other")).is_err());
    assert!(matches!(manager.offload_all(), Err(Error::Stopped { .. })));
    assert!(matches!(modules[0].offload_all(), Err(Error::Stopped { .. })));
    check_all(&modules);
    manager.cleanup(Cleanup::Freed).unwrap();
    assert_eq!(budget.usage().used, Bytes::ZERO);
}

/// Another user of the budget, who gives back when asked.
struct Cache(Mutex<Option<Reservation>>);

impl Reclaim for Cache {
    fn reclaim(&self, _wanted: Bytes) -> Bytes {
        self.0.lock().unwrap().take().map_or(Bytes::ZERO, |held| held.bytes())
    }
}

#[test]
fn others_are_asked_before_a_nested_use_fails() {
    let _watchdog = watchdog::watch("nested");
    let (_dir, budget, _manager, modules) = managed(&Gated::default(), 4, 3);
    let first = modules[0].acquire().unwrap();
    let rest = budget.reserve(budget.limit().saturating_sub(budget.usage().used), &Holder::new("cache"));
    let cache = Arc::new(Cache(Mutex::new(None)));
    if let Ok(rest) = rest {
        *cache.0.lock().unwrap() = Some(rest);
    } else {
        let part = budget.reserve(PART, &Holder::new("cache")).unwrap();
        *cache.0.lock().unwrap() = Some(part);
    }
    let weak: Weak<dyn Reclaim> = Arc::downgrade(&cache) as Weak<dyn Reclaim>;
    budget.register(200, weak);
    check(&modules[1], "weight", 1);
    check(&modules[2], "weight", 2);
    drop(first);
    check_all(&modules);
}

#[test]
fn others_get_all_that_is_not_in_use() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let device = Tier::Device(0);
    let backend = HostBackend::with_tiers([(device, Bytes(PART.0 * 4)), (Tier::Host, Bytes::MAX)]);
    let budget = Budget::new("test", Bytes::mib(4));
    let manager =
        MemoryManager::with_budget(backend.clone(), config(&dir).build().unwrap(), &budget).unwrap();
    let wrap = |n: u8| manager.wrap_module(spec(&backend, &n.to_string(), "weight", n)).unwrap();
    let modules: Vec<_> = (0..8).map(wrap).collect();
    (0..3).for_each(|_| (0..8).for_each(|n| check(&modules[usize::from(n)], "weight", n)));
    let copies = |name: &str| {
        let usage = budget.usage();
        usage.holders.iter().filter(|holder| holder.name == name).map(|holder| holder.used).sum::<Bytes>()
    };
    assert!(copies("host copies") >= Bytes(PART.0 * 7), "{:?}", budget.usage());
    let fixed = copies("read blocks") + copies("transfer scratch");
    let all = budget.limit().saturating_sub(fixed);
    let other = budget.reserve(all, &Holder::new("other")).unwrap();
    assert!(modules.iter().all(|module| module.tier() == Tier::Disk));
    drop(other);
    (0..8).for_each(|n| check(&modules[usize::from(n)], "weight", n));
}

#[test]
fn names_do_not_run_into_each_other() {
    let backend = Gated::default();
    let (_dir, _budget, manager, _modules) = managed(&backend, 0, 3);
    let a = manager.wrap_module(spec(&backend, "a", "b/c", 1)).unwrap();
    let b = manager.wrap_module(spec(&backend, "a/b", "c", 2)).unwrap();
    check(&a, "b/c", 1);
    check(&b, "c", 2);
    let mut twice = spec(&backend, "twice", "weight", 1);
    twice.parameters.extend(spec(&backend, "twice", "weight", 2).parameters);
    let error = manager.wrap_module(twice).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("twice") && error.contains("weight"), "{error}");
    std::thread::scope(|scope| {
        let wrap = |n: u8| (n, manager.wrap_module(spec(&backend, "race", "weight", n)));
        let threads: Vec<_> = (0..4).map(|n| scope.spawn(move || wrap(n))).collect();
        let made: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let won: Vec<_> = made.into_iter().filter_map(|(n, result)| Some((n, result.ok()?))).collect();
        let [(n, module)] = won.as_slice() else { panic!("{} wrapped one name", won.len()) };
        check(module, "weight", *n);
    });
}

#[test]
fn a_change_that_fails_changes_nothing() {
    let backend = Gated::default();
    let (_dir, _budget, _manager, modules) = managed(&backend, 3, 3);
    let new = || backend.upload(&desc(), &values(9), Tier::Host).unwrap();
    let guard = modules[0].acquire().unwrap();
    let error = modules[0].update("weight", new()).unwrap_err().to_string();
    assert!(error.contains("in use"), "{error}");
    drop(guard);
    modules[0].offload_all().unwrap();
    check(&modules[0], "weight", 0);
    modules[0].update("weight", new()).unwrap();
    check(&modules[0], "weight", 9);
    assert!(modules[0].update("bias", new()).unwrap_err().to_string().contains("bias"));
}

#[test]
fn what_was_let_go_is_room_again_within_a_tiers_own_limit() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let backend = HostBackend::with_tiers([(Tier::Device(0), Bytes::mib(1)), (Tier::Host, Bytes::MAX)]);
    let config = config(&dir).memory_limit(Bytes::mib(4)).device_limit(PART).build().unwrap();
    let manager = MemoryManager::new(backend.clone(), config).unwrap();
    let wrap = |n: u8| manager.wrap_module(spec(&backend, &n.to_string(), "weight", n)).unwrap();
    let modules: Vec<_> = (0..2).map(wrap).collect();
    let seen = modules[0].acquire().unwrap().tensor("weight").unwrap().clone();
    manager.offload_all().unwrap();
    assert!(modules[1].acquire().unwrap_err().is_out_of_memory(), "somebody still sees what was there");
    drop(seen);
    check(&modules[1], "weight", 1);
}
