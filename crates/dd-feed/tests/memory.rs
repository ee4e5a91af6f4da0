//! What the allocator says is never more than the budget and a twentieth, over 1,000 random configurations. One test, because the
//! allocator's counters belong to the whole process.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs, reason = "tests")]

use std::borrow::Cow;
use std::sync::atomic::Ordering;

use dd_core::error::Cause;
use dd_core::{Bytes, DType, TensorDesc};
use dd_feed::{
    Convert, ErrorPolicy, FeedConfig, Feeder, ForwardSource, Permutation, Samples, Shuffle, Stream,
    sample_seed,
};

mod counting {
    #![allow(unsafe_code, reason = "an allocator that counts is unsafe by its trait")]

    use std::alloc::{GlobalAlloc, Layout, System};
    use std::sync::atomic::{AtomicI64, Ordering};

    pub(super) static LIVE: AtomicI64 = AtomicI64::new(0);
    pub(super) static PEAK: AtomicI64 = AtomicI64::new(0);

    struct Counting;

    fn size(layout: Layout) -> i64 {
        i64::try_from(layout.size()).unwrap_or(i64::MAX)
    }

    fn grow(size: i64) {
        PEAK.fetch_max(LIVE.fetch_add(size, Ordering::SeqCst) + size, Ordering::SeqCst);
    }

    // SAFETY: every call goes to the system's allocator unchanged; only sizes are counted. `realloc` is the trait's own, by way of
    // these: then old and new count together.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            grow(size(layout));
            // SAFETY: the caller's promise, passed on.
            unsafe { System.alloc(layout) }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            grow(size(layout));
            // SAFETY: the caller's promise, passed on.
            unsafe { System.alloc_zeroed(layout) }
        }

        unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
            LIVE.fetch_sub(size(layout), Ordering::SeqCst);
            // SAFETY: the caller's promise, passed on.
            unsafe { System.dealloc(start, layout) }
        }
    }

    #[global_allocator]
    static ALLOCATOR: Counting = Counting;
}

/// Samples out of nothing: each byte is the identity's.
struct Made {
    len: u64,
    desc: TensorDesc,
    /// Fails for each identity that is a multiple of it.
    failing: Option<u64>,
    seeded: bool,
}

impl Stream for Made {
    fn len(&self) -> u64 {
        self.len
    }

    fn desc(&self) -> &TensorDesc {
        &self.desc
    }

    fn identity(&self, index: u64) -> Cow<'_, str> {
        index.to_string().into()
    }

    fn read(&self, index: u64, samples: &mut Samples<'_>) -> Result<(), Cause> {
        if self.failing.is_some_and(|every| index.is_multiple_of(every)) {
            return Err("unreadable".into());
        }
        if self.seeded {
            samples.seed();
        }
        let byte = byte_of(index);
        (0..samples.expected()).try_for_each(|_| samples.next_slot().map(|slot| slot.fill(byte)))
    }
}

fn byte_of(index: u64) -> u8 {
    u8::try_from(index % 251).unwrap()
}

/// Numbers by chance, the same in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 += 1;
        sample_seed(self.0, 0, 0, 0) % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// One random configuration, run: what the allocator held at most, and the limit.
fn run(case: u64) -> (u64, u64, String) {
    let mut chance = Chance(case << 20);
    let limit = (512 << 10) << chance.below(2);
    let limit = limit + chance.below(limit);
    let most = 1 << (2 + chance.below(11));
    let elements = 1 + chance.below(most);
    let (reads, workers) = (1 + chance.below(3), chance.below(17));
    let convert = chance.one_in(3);
    let dtype = if convert { [DType::F32, DType::F16][usize::from(chance.one_in(2))] } else { DType::U8 };
    let row = dtype.bytes_for(elements).unwrap().0 + 4;
    // From a tenth of what fits to two and a half times as much.
    let identities = 2 + limit / row / reads * (1 + chance.below(25)) / 10;
    let identities = identities.min(10_000);
    let forward = reads == 1 && chance.one_in(4);
    // A source that reads forward needs room for a window beside the batch.
    let preferred = 1 + chance.below(1 << (1 + case % 9));
    let preferred = if forward { preferred.min((limit / 4 / row).max(1)) } else { preferred };
    let config = FeedConfig::builder()
        .cpu_memory_limit(Bytes(limit))
        .total_sample_count(identities)
        .input([usize::try_from(elements).unwrap()], dtype)
        .output([1], DType::F32)
        .one_read_count(reads)
        .preferred_batch_size(reads.max(preferred));
    let config = config.build().unwrap();
    let stored = if convert { DType::U8 } else { dtype };
    let input = TensorDesc::new([usize::try_from(elements).unwrap()], stored).unwrap();
    let output = TensorDesc::new([1], DType::F32).unwrap();
    let shuffle = match (forward, chance.below(3)) {
        (false, 0) => Shuffle::None,
        (false, _) => Shuffle::Full,
        (true, _) => {
            Shuffle::Blocks { block: 1 + (limit / 16 / row).min(identities), window: 1 + chance.below(2) }
        }
    };
    let ordered = !chance.one_in(3);
    let failing = chance.one_in(4).then(|| 10 + chance.below(50));
    let what = format!(
        "case {case}: limit {limit}, {identities} × {reads} of {row} B, {workers} workers, {shuffle:?}"
    );

    let (leave, hold) = (chance.one_in(4), chance.one_in(4));
    let plan;
    let mut held = Vec::with_capacity(4096); // The caller's own list, and not the feed's.
    counting::PEAK.store(counting::LIVE.load(Ordering::SeqCst), Ordering::SeqCst);
    let before = counting::LIVE.load(Ordering::SeqCst);
    {
        let mut builder = Feeder::builder(&config)
            .workers(usize::try_from(workers).unwrap())
            .ordered(ordered)
            .shuffle(shuffle, case)
            .on_error(ErrorPolicy::Skip { at_most: u64::MAX })
            .batches_in_memory(if chance.one_in(3) { 1000 } else { 8 });
        if convert {
            builder = builder.convert_input(Convert::UNIT);
        }
        builder = match shuffle {
            Shuffle::Blocks { block, .. } => {
                let len = usize::try_from(elements).unwrap();
                builder.forward(ForwardSource::from_blocks(identities, block, input, output, move |number| {
                    let numbers = number * block..((number + 1) * block).min(identities);
                    Ok(numbers.map(move |n| Ok((vec![byte_of(n); len], [byte_of(n); 4]))))
                }))
            }
            _ => {
                let seeded = chance.one_in(4);
                let made = |desc, failing| Made { len: identities, desc, failing, seeded };
                builder.inputs(made(input, failing)).outputs(made(output, None))
            }
        };
        let feeder = builder.build().unwrap();
        plan = format!("batches of {}", feeder.plan().batch_size);
        let mut delivered = 0;
        for epoch in feeder.generate_epochs(2).unwrap() {
            held.clear();
            for batch in epoch {
                match batch {
                    Ok(batch) => {
                        delivered += batch.samples as u64;
                        assert!(batch.samples > 0);
                        if hold && held.len() < 4096 {
                            held.push(batch);
                        }
                    }
                    Err(error) if error.is_out_of_memory() && hold => held.clear(),
                    Err(error) => panic!("{what}: {error}"),
                }
                if leave && delivered > identities / 2 {
                    break;
                }
            }
        }
        held.clear();
        let unreadable = failing.filter(|_| !forward).map_or(0, |every| identities.div_ceil(every));
        if !leave {
            assert_eq!(delivered, 2 * (identities - unreadable) * reads, "{what}");
        }
        assert!(feeder.budget().usage().peak <= Bytes(limit), "{what}");
        assert_eq!(feeder.budget().usage().used, Bytes::ZERO, "{what}");
    }
    let what =
        format!("{what}, ordered {ordered}, failing {failing:?}, left early {leave}, held {hold}, {plan}");
    let peak = u64::try_from(counting::PEAK.load(Ordering::SeqCst) - before).unwrap();
    (peak, limit, what)
}

#[test]
fn memory_stays_within_the_budget_and_a_twentieth() {
    let (mut worst, mut total) = ((0.0, String::new()), 0.0);
    // In an order of its own, so that a trend of the process does not look like one of the cases.
    let order = Permutation::new(1000, 1);
    for case in (0..1000).map(|position| order.at(position)) {
        let (peak, limit, what) = run(case);
        let share = peak as f64 / limit as f64;
        assert!(share <= 1.05, "{what}: {peak} B of {limit} B, {share:.3}");
        total += share;
        if share > worst.0 {
            worst = (share, what);
        }
    }
    println!("highest {:.4} of the budget, on average {:.3}: {}", worst.0, total / 1000.0, worst.1);
    assert!(worst.0 > 0.9, "no case filled its budget: this test shows nothing");
}
