//! What a feed delivers: every sample exactly once, whatever the threads, ranks, orders and errors; and where it stands.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use dd_core::{Budget, Bytes, DType, Event, Holder, HostTensor, Observer, TensorDesc};
use dd_feed::{
    Batch, Convert, Epochs, Error, ErrorPolicy, FeedConfig, FeedState, Feeder, FeederBuilder, ForwardSource,
    Shuffle, sample_seed,
};
use proptest::prelude::*;

/// Samples of 16 bytes: the identity's number and the variation, as inputs; the number alone as outputs.
fn config(identities: u64, reads: u64, batch: u64, samples_in_memory: u64) -> FeedConfig {
    FeedConfig::builder()
        .cpu_memory_limit(Bytes(24 * samples_in_memory))
        .total_sample_count(identities)
        .input([2], DType::U64)
        .output([1], DType::U64)
        .one_read_count(reads)
        .preferred_batch_size(batch)
        .build()
        .unwrap()
}

fn numbers(identities: u64, reads: u64, batch: u64, samples_in_memory: u64) -> FeederBuilder {
    let names = (0..identities).map(|n| n.to_string());
    Feeder::builder(&config(identities, reads, batch, samples_in_memory))
        .input_list(names)
        .read_input(|name, samples| {
            let number: u64 = name.parse()?;
            for variation in 0..samples.expected() as u64 {
                samples.push(&[number.to_le_bytes(), variation.to_le_bytes()].concat())?;
            }
            Ok(())
        })
        .get_output(|name, samples| {
            let number: u64 = name.parse()?;
            (0..samples.expected()).try_for_each(|_| samples.push(&number.to_le_bytes()))
        })
}

fn u64s(tensor: &HostTensor) -> Vec<u64> {
    tensor.bytes().chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// Identity and variation of each sample of a batch, checked against the batch's own figures.
fn contents(batch: &Batch<HostTensor, HostTensor>) -> Vec<(u64, u64)> {
    let (x, y) = (u64s(&batch.input), u64s(&batch.output));
    assert_eq!(batch.input.desc().shape(), [batch.samples, 2]);
    assert_eq!(batch.output.desc().shape(), [batch.samples, 1]);
    assert!(batch.samples > 0, "an empty batch");
    let pairs: Vec<(u64, u64)> = x.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
    assert_eq!(pairs.iter().map(|pair| pair.0).collect::<Vec<_>>(), y, "inputs and outputs belong together");
    pairs
}

type Plain = Epochs<dd_core::HostBackend, HostTensor, HostTensor>;

/// All samples of an epoch, in the order of delivery, and the sizes of the batches.
type Run = (Vec<(u64, u64)>, Vec<usize>);

fn run(epochs: Plain) -> Vec<Run> {
    epochs
        .map(|epoch| {
            let (mut all, mut sizes) = (Vec::new(), Vec::new());
            for batch in epoch {
                let batch = batch.unwrap();
                all.extend(contents(&batch));
                sizes.push(batch.samples);
            }
            (all, sizes)
        })
        .collect()
}

fn counted(samples: &[(u64, u64)]) -> BTreeMap<(u64, u64), u32> {
    let mut counts = BTreeMap::new();
    samples.iter().for_each(|sample| *counts.entry(*sample).or_default() += 1);
    counts
}

fn all_once(samples: &[(u64, u64)], identities: u64, reads: u64) {
    let counts = counted(samples);
    assert_eq!(counts.len() as u64, identities * reads, "all are there");
    assert!(counts.values().all(|count| *count == 1), "each once");
}

#[test]
fn every_sample_once_under_any_number_of_workers() {
    for workers in 0..=16 {
        for (identities, reads, batch, memory) in
            [(100, 1, 8, 1000), (37, 3, 6, 6), (1, 1, 4, 1), (50, 2, 7, 30)]
        {
            for ordered in [true, false] {
                let feeder = numbers(identities, reads, batch, memory)
                    .workers(workers)
                    .ordered(ordered)
                    .shuffle(Shuffle::Full, 5)
                    .build()
                    .unwrap();
                let epochs = run(feeder.generate_epochs(3).unwrap());
                assert_eq!(epochs.len(), 3);
                for (samples, sizes) in &epochs {
                    all_once(samples, identities, reads);
                    let full = usize::try_from(feeder.plan().batch_size).unwrap();
                    assert!(sizes.iter().filter(|size| **size != full).count() <= 1, "{sizes:?}");
                    assert_eq!(sizes.len() as u64, feeder.plan().batches_per_epoch);
                }
                assert_eq!(feeder.stats().samples, 3 * identities * reads);
                assert_eq!(feeder.budget().usage().used, Bytes::ZERO, "all memory was given back");
            }
        }
    }
}

#[test]
fn orders_do_not_depend_on_workers_or_memory() {
    let of = |workers, memory| {
        let feeder = numbers(90, 2, 8, memory).workers(workers).shuffle(Shuffle::Full, 1).build().unwrap();
        run(feeder.generate_epochs(2).unwrap())
    };
    let expected = of(0, 1000);
    assert_ne!(expected[0].0, expected[1].0, "epochs differ");
    for (workers, memory) in [(0, 8), (1, 100), (4, 24), (16, 1000)] {
        assert_eq!(of(workers, memory), expected, "{workers} workers");
    }
    let listed = run(numbers(20, 1, 8, 99).build().unwrap().generate_epochs(1).unwrap());
    assert_eq!(listed[0].0, (0..20).map(|n| (n, 0)).collect::<Vec<_>>());
}

/// The configuration of the seed's README. The reader touches only the first bytes of each sample, so that it is quick.
#[test]
fn the_readme_configuration() {
    let config = FeedConfig::builder()
        .cpu_memory_limit(Bytes::gib(2))
        .gpu_memory_limit("1.5GiB".parse().unwrap())
        .total_sample_count(2048)
        .input([3, 1024, 1024], DType::F32)
        .output([256], DType::F32)
        .one_read_count(2)
        .preferred_batch_size(16)
        .build()
        .unwrap();
    let put = |name: &str, samples: &mut dd_feed::Samples<'_>| {
        for variation in 0..2u32 {
            let slot = samples.next_slot()?;
            slot[..4].copy_from_slice(&name.parse::<u32>()?.to_le_bytes());
            slot[4..8].copy_from_slice(&variation.to_le_bytes());
        }
        Ok(())
    };
    let names = (0..2048).map(|n| n.to_string());
    let feeder = Feeder::builder(&config).input_list(names).read_input(put).get_output(put).cache(false);
    let feeder = feeder.build().unwrap();
    let (mut seen, mut batches) = (Vec::new(), 0);
    for batch in feeder.generate_epochs(1).unwrap().flatten() {
        let batch = batch.unwrap();
        assert_eq!(batch.input.desc().shape(), [16, 3, 1024, 1024]);
        for row in batch.input.bytes().chunks_exact(12 << 20) {
            let number = |at: usize| u64::from(u32::from_le_bytes(row[at..at + 4].try_into().unwrap()));
            seen.push((number(0), number(4)));
        }
        batches += 1;
    }
    assert_eq!((seen.len(), batches), (4096, 256));
    all_once(&seen, 2048, 2);
    assert!(feeder.budget().usage().peak <= Bytes::gib(2));
    assert!(feeder.plan().device.unwrap().used <= feeder.plan().device.unwrap().limit);
}

#[test]
fn streams_of_unequal_length_are_an_error() {
    let builder = |inputs: u64, outputs: u64| {
        numbers(10, 1, 4, 99)
            .input_list((0..inputs).map(|n| n.to_string()))
            .output_list((0..outputs).map(|n| n.to_string()))
    };
    assert!(builder(10, 10).build().is_ok());
    for (inputs, outputs) in [(9, 10), (10, 11), (0, 10)] {
        let error = builder(inputs, outputs).build().err().unwrap();
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    }
    // A reader that gives too few, or too many, or the wrong size.
    for (given, bytes) in [(1, 16), (3, 16), (2, 15)] {
        let feeder = numbers(10, 2, 4, 99)
            .read_input(move |_, samples| (0..given).try_for_each(|_| samples.push(&vec![0; bytes])))
            .build()
            .unwrap();
        let error = feeder.generate_epochs(1).unwrap().flatten().find_map(Result::err).unwrap();
        assert!(matches!(&error, Error::Read { identity, .. } if identity == "0"), "{error}");
    }
}

/// Readers that fail, by policy: the identity is named, and what can be read comes exactly once.
#[test]
fn errors_follow_the_policy() {
    let failing = |policy, workers| {
        let tries = Arc::new(Mutex::new(BTreeMap::<String, u32>::new()));
        numbers(60, 1, 8, 80)
            .workers(workers)
            .on_error(policy)
            .read_input(move |name, samples| {
                let number: u64 = name.parse()?;
                let tried = {
                    let mut tries = tries.lock().unwrap();
                    let tried = tries.entry(name.to_owned()).or_default();
                    *tried += 1;
                    *tried
                };
                match number {
                    // A whole batch, and single ones, for ever; one that works the third time; one that panics.
                    8..16 | 30 | 59 => Err("unreadable".into()),
                    40 if tried < 3 => Err("busy".into()),
                    50 => panic!("broken decoder"),
                    _ => samples.push(&[number.to_le_bytes(), [0; 8]].concat()),
                }
            })
            .build()
            .unwrap()
    };
    let unreadable = |n: &u64| (8..16).contains(n) || [30, 59, 50].contains(n);
    for workers in [0, 1, 3, 16] {
        let feeder = failing(ErrorPolicy::RetryThenSkip { times: 2, at_most: 11 }, workers);
        let (samples, sizes) = run(feeder.generate_epochs(1).unwrap()).remove(0);
        let expected: Vec<(u64, u64)> = (0..60).filter(|n| !unreadable(n)).map(|n| (n, 0)).collect();
        assert_eq!(samples, expected, "{workers} workers");
        assert_eq!(sizes, [8, 8, 7, 8, 8, 7, 3]);
        assert_eq!(feeder.stats().skipped, 11);
        assert!(feeder.stats().retried >= 24);

        for policy in [ErrorPolicy::Stop, ErrorPolicy::Retry { times: 2 }] {
            let feeder = failing(policy, workers);
            let mut epochs = feeder.generate_epochs(2).unwrap();
            let results: Vec<_> = epochs.next().unwrap().map(|batch| batch.map(drop)).collect();
            assert_eq!(results.len(), 2, "a batch, the error, and the end");
            let error = results.into_iter().find_map(Result::err).unwrap();
            assert!(matches!(&error, Error::Read { identity, index: 8, .. } if identity == "8"), "{error}");
            assert!(epochs.next().is_none());
        }

        let feeder = failing(ErrorPolicy::Skip { at_most: 7 }, workers);
        let error = feeder.generate_epochs(1).unwrap().flatten().find_map(Result::err).unwrap();
        assert!(matches!(error, Error::TooManySkipped { at_most: 7, .. }), "{error}");
        assert_eq!(feeder.budget().usage().used, Bytes::ZERO);
    }
}

#[test]
fn a_panic_outside_of_readers_is_an_error_too() {
    for workers in [0, 2] {
        let feeder = numbers(20, 1, 4, 99).workers(workers).augment_input(|row, _| assert!(row[0] != 13));
        let feeder = feeder.build().unwrap();
        let error = feeder.generate_epochs(1).unwrap().flatten().find_map(Result::err).unwrap();
        assert!(matches!(error, Error::Threads { .. }), "{error}");
    }
}

#[test]
fn epochs_can_be_left_early() {
    for workers in [0, 1, 4, 16] {
        for ordered in [true, false] {
            let feeder = numbers(50, 1, 4, 40)
                .workers(workers)
                .ordered(ordered)
                .shuffle(Shuffle::Full, 2)
                .build()
                .unwrap();
            for (number, epoch) in feeder.generate_epochs(6).unwrap().enumerate() {
                let take = [13, 0, 1, 13, 5, 13][number];
                let samples: Vec<(u64, u64)> =
                    epoch.take(take).flat_map(|batch| contents(&batch.unwrap())).collect();
                assert!(counted(&samples).values().all(|count| *count == 1));
                assert_eq!(samples.len(), (take * 4).min(50), "epoch {number}, {workers} workers");
            }
            // All of it dropped at once, with batches in flight, and one still held.
            let held = feeder.generate_epochs(6).unwrap().next().unwrap().next().unwrap().unwrap();
            assert_eq!(held.samples, 4);
            drop(held);
            assert_eq!(feeder.budget().usage().used, Bytes::ZERO);
        }
    }
}

#[test]
fn an_epoch_waits_for_the_one_before() {
    let feeder = numbers(12, 1, 4, 40).build().unwrap();
    let mut epochs = feeder.generate_epochs(3).unwrap();
    let (mut first, mut second, third) =
        (epochs.next().unwrap(), epochs.next().unwrap(), epochs.next().unwrap());
    assert!(first.next().unwrap().is_ok());
    let error = second.next().unwrap().unwrap_err();
    assert!(matches!(error, Error::EpochOrder { asked: 1, current: 0 }), "{error}");
    drop(third); // Before its turn.
    assert_eq!(first.by_ref().map(|batch| batch.unwrap().samples).sum::<usize>(), 8);
    assert_eq!(second.by_ref().map(|batch| batch.unwrap().samples).sum::<usize>(), 12);
    assert!(second.next().is_none() && first.next().is_none() && epochs.next().is_none());
}

/// Whoever holds every batch gets an error instead of waiting for itself; after letting go, nothing is missing.
#[test]
fn holding_all_batches_is_an_error_that_passes() {
    for workers in [0, 1, 4] {
        // Three of 96 B, and two times what handles take.
        let feeder = numbers(40, 1, 4, 183).workers(workers).cache(false).build().unwrap();
        let (mut held, mut all, mut refused) = (Vec::new(), Vec::new(), 0);
        for batch in feeder.generate_epochs(1).unwrap().flatten() {
            match batch {
                Ok(batch) => {
                    all.extend(contents(&batch));
                    held.push(batch);
                }
                Err(error) => {
                    assert!(matches!(error, Error::BatchesHeld { held: 3, .. }), "{error}");
                    assert!(error.is_out_of_memory());
                    refused += 1;
                    held.clear();
                }
            }
            assert!(feeder.budget().usage().used <= Bytes(24 * 183));
        }
        assert_eq!(refused, 3);
        all_once(&all, 40, 1);
        // Collected, it ends with the error; and goes on when there is room.
        let mut epoch = feeder.generate_epochs(1).unwrap().next().unwrap();
        let collected: Vec<_> = epoch.by_ref().collect();
        assert!(collected.len() == 4 && collected[3].is_err());
        assert!(epoch.next().is_none());
        drop(collected);
        assert_eq!(epoch.map(|batch| batch.unwrap().samples).sum::<usize>(), 28);
    }
}

#[test]
fn one_sample_of_memory_is_enough_and_less_is_an_error() {
    for workers in [0, 1, 16] {
        let feeder = numbers(20, 1, 8, 1).workers(workers).build().unwrap();
        assert_eq!(feeder.plan().batch_size, 1);
        all_once(&run(feeder.generate_epochs(2).unwrap())[1].0, 20, 1);
    }
    let small =
        FeedConfig::builder().cpu_memory_limit(Bytes(23)).total_sample_count(5).input([2], DType::U64);
    let error = small.output([1], DType::U64).build().unwrap().plan().unwrap_err();
    assert!(matches!(error, Error::Limit { least: Bytes(24), .. }), "{error}");
    // The shared budget is what is short.
    let budget = Budget::new("job", Bytes(100));
    let other = budget.reserve(Bytes(90), &Holder::new("other")).unwrap();
    let feeder = numbers(20, 1, 1, 1).budget(&budget).build().unwrap();
    assert!(feeder.generate_epochs(1).err().unwrap().is_out_of_memory());
    drop(other);
    all_once(&run(feeder.generate_epochs(1).unwrap())[0].0, 20, 1);
}

#[test]
fn the_cache_spares_reads_and_gives_way() {
    let reads = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&reads);
    let budget = Budget::unlimited("job");
    let feeder = numbers(100, 1, 10, 3000)
        .budget(&budget)
        .workers(0) // Several may begin an epoch before all of the one before is in memory.
        .shuffle(Shuffle::Full, 3)
        .read_input(move |name, samples| {
            counter.fetch_add(1, Ordering::Relaxed);
            samples.push(&[name.parse::<u64>()?.to_le_bytes(), [0; 8]].concat())
        })
        .build()
        .unwrap();
    for (samples, _) in run(feeder.generate_epochs(4).unwrap()) {
        all_once(&samples, 100, 1);
    }
    assert_eq!(reads.load(Ordering::Relaxed), 100, "all fits: each is read once");
    assert_eq!((feeder.stats().cache_hits, feeder.stats().cache_misses), (600, 200));
    // Left early, epochs still find what was kept.
    reads.store(0, Ordering::Relaxed);
    for (number, epoch) in feeder.generate_epochs(5).unwrap().enumerate() {
        let all: Vec<(u64, u64)> = epoch
            .take(if number == 1 { 3 } else { 10 })
            .flat_map(|batch| contents(&batch.unwrap()))
            .collect();
        assert!(counted(&all).values().all(|count| *count == 1));
    }
    assert_eq!(reads.load(Ordering::Relaxed), 100);
    // What asks for its seed is another sample in each epoch, and is never kept.
    let feeder = numbers(20, 2, 4, 1000)
        .shuffle(Shuffle::Full, 9)
        .read_input(|name, samples| {
            let number: u64 = name.parse()?;
            (0..2).try_for_each(|_| {
                let seed = samples.seed();
                samples.push(&[number.to_le_bytes(), seed.to_le_bytes()].concat())
            })
        })
        .build()
        .unwrap();
    for (epoch, (samples, _)) in (0..).zip(run(feeder.generate_epochs(3).unwrap())) {
        let expected = |sample: &(u64, u64)| (0..2).any(|v| sample.1 == sample_seed(9, epoch, sample.0, v));
        assert!(samples.iter().all(expected));
        assert_eq!(counted(&samples).len(), 40);
    }
}

/// Goes on from every state that a run gives, with other workers, and finds the rest of the run.
#[test]
fn resuming_is_bit_identical() {
    for shuffle in [Shuffle::None, Shuffle::Full, Shuffle::Blocks { block: 5, window: 3 }] {
        let builder = || numbers(43, 2, 8, 64).shuffle(shuffle, 77);
        let feeder = builder().workers(3).build().unwrap();
        let epochs = feeder.generate_epochs(2).unwrap();
        let (mut states, mut sequence) = (vec![epochs.state().unwrap()], Vec::new());
        for mut epoch in epochs {
            while let Some(batch) = epoch.next() {
                sequence.push(contents(&batch.unwrap()));
                states.push(epoch.state().unwrap());
            }
        }
        for (done, state) in states.iter().enumerate() {
            let bytes = state.to_bytes();
            assert!(bytes.len() <= 64);
            let state = FeedState::from_bytes(&bytes).unwrap();
            let feeder = builder().workers(done % 3).resume(state).build().unwrap();
            let left = 2 - state.epoch;
            let rest: Vec<_> = feeder
                .generate_epochs(left)
                .unwrap()
                .flatten()
                .map(|batch| contents(&batch.unwrap()))
                .collect();
            assert_eq!(rest, sequence[done..], "{shuffle:?} after {done} batches");
        }
        // At any sample, also within a batch: the same samples, other batches.
        let flat = sequence.concat();
        for position in 0..43 {
            let state = FeedState { position, ..states[0] };
            let feeder = builder().resume(state).build().unwrap();
            let rest = run(feeder.generate_epochs(1).unwrap()).remove(0).0;
            assert_eq!(rest, flat[usize::try_from(position).unwrap() * 2..86], "{shuffle:?} at {position}");
        }
    }
}

#[test]
fn states_of_other_feeds_are_refused() {
    let state = {
        let feeder = numbers(40, 1, 8, 64).shuffle(Shuffle::Full, 7).build().unwrap();
        let mut epoch = feeder.generate_epochs(1).unwrap().next().unwrap();
        epoch.next().unwrap().unwrap();
        epoch.state().unwrap()
    };
    assert_eq!((state.epoch, state.position), (0, 8));
    let rows = [
        ("the same", numbers(40, 1, 4, 99).shuffle(Shuffle::Full, 7), true),
        ("another seed", numbers(40, 1, 8, 64).shuffle(Shuffle::Full, 8), false),
        ("another shuffle", numbers(40, 1, 8, 64).shuffle(Shuffle::None, 7), false),
        ("more identities", numbers(41, 1, 8, 64).shuffle(Shuffle::Full, 7), false),
        ("variations", numbers(40, 2, 8, 64).shuffle(Shuffle::Full, 7), false),
    ];
    for (what, builder, fine) in rows {
        let result = builder.resume(state).build();
        assert_eq!(result.is_ok(), fine, "{what}");
        if let Err(error) = result {
            assert!(matches!(error, Error::State { .. }), "{what}: {error}");
        }
    }
}

/// The union of all ranks is the sequence of one rank, step by step, seeds included; all make the same number of steps.
#[test]
fn ranks_share_the_sequence() {
    let builder = |rank, ranks, batch| {
        numbers(103, 1, batch, 400).shuffle(Shuffle::Full, 11).rank(rank, ranks).augment_input(|row, seed| {
            row[8..].copy_from_slice(&seed.to_le_bytes());
        })
    };
    let alone: Vec<(u64, u64)> = run(builder(0, 1, 12).build().unwrap().generate_epochs(2).unwrap())
        .into_iter()
        .flat_map(|epoch| epoch.0)
        .collect();
    for (ranks, batch) in [(2, 6), (3, 4), (4, 3), (6, 2), (5, 7)] {
        let all: Vec<Vec<Vec<(u64, u64)>>> = (0..ranks)
            .map(|rank| {
                let feeder = builder(rank, ranks, batch).workers(2).build().unwrap();
                feeder.generate_epochs(2).unwrap().flatten().map(|b| contents(&b.unwrap())).collect()
            })
            .collect();
        let steps = all[0].len();
        assert!(all.iter().all(|rank| rank.len() == steps), "{ranks} ranks make the same number of steps");
        let joined: Vec<(u64, u64)> =
            (0..steps).flat_map(|step| all.iter().flat_map(move |rank| rank[step].clone())).collect();
        assert_eq!(joined, alone, "{ranks} ranks");
    }
    let error = builder(0, 2, 1).build().unwrap().generate_epochs(1).err().unwrap();
    assert!(matches!(error, Error::Setting { option: "ranks", .. }), "{error}");
}

#[test]
fn batches_become_what_is_applied() {
    let feeder = numbers(10, 1, 4, 99)
        .build()
        .unwrap()
        .apply_on_input_batch(|x| Ok(u64s(&x).iter().sum::<u64>()))
        .apply_on_output_batch(|y| match u64s(&y).contains(&9) {
            true => Err("nine".into()),
            false => Ok(y.desc().shape()[0]),
        });
    let mut results = feeder.generate_epochs(1).unwrap().next().unwrap();
    assert_eq!(results.next().unwrap().unwrap().into_pair(), (6, 4));
    assert_eq!(results.next().unwrap().unwrap().into_pair(), (22, 4));
    let error = results.next().unwrap().unwrap_err();
    assert!(matches!(error, Error::Apply { side: "output", position: 8, .. }), "{error}");
}

#[test]
fn bytes_are_converted_where_they_were_read() {
    let config = FeedConfig::builder()
        .cpu_memory_limit(Bytes::kib(64))
        .total_sample_count(30)
        .input([5], DType::F32)
        .output([1], DType::F16)
        .one_read_count(2)
        .build()
        .unwrap();
    let feeder = Feeder::builder(&config)
        .input_list((0..30).map(|n| n.to_string()))
        .read_input(|name, samples| {
            let n: u8 = name.parse()?;
            samples.push(&[n; 5])?;
            samples.push(&[n + 100; 5])
        })
        .get_output(|name, samples| (0..2).try_for_each(|_| samples.push(&[name.parse()?])))
        .convert_input(Convert { scale: 0.5, offset: 1.0 })
        .convert_output(Convert { scale: 2.0, offset: 0.0 })
        .workers(0) // Several may begin the second epoch before the first is in memory.
        .build()
        .unwrap();
    for epoch in feeder.generate_epochs(2).unwrap() {
        let mut next = 0u8;
        for batch in epoch {
            let (x, y) = batch.unwrap().into_pair();
            for (row, y) in x.bytes().chunks_exact(40).zip(y.bytes().chunks_exact(4)) {
                let value = |n: u8| (f32::from(n) * 0.5 + 1.0).to_le_bytes();
                assert_eq!(row, [[value(next); 5], [value(next + 100); 5]].concat().concat());
                assert_eq!(y, [half::f16::from_f32(f32::from(next) * 2.0).to_le_bytes(); 2].concat());
                next += 1;
            }
        }
        assert_eq!(next, 30);
    }
    assert_eq!(feeder.stats().cache_hits, 60, "the second epoch came from memory");
}

fn forward(len: u64, block: u64) -> ForwardSource {
    let desc = |n: usize| TensorDesc::new([n], DType::U64).unwrap();
    ForwardSource::from_blocks(len, block, desc(2), desc(1), move |number| {
        let range = number * block..((number + 1) * block).min(len);
        Ok(range.map(|n| Ok(([n.to_le_bytes(), [0; 8]].concat(), n.to_le_bytes()))))
    })
}

#[test]
fn forward_sources_are_shuffled_by_block() {
    for workers in [0, 1, 3, 16] {
        for (len, block, window, batch) in [(200, 10, 3, 8), (97, 10, 2, 50), (10, 3, 1, 10), (5, 9, 1, 2)] {
            let shuffle = Shuffle::Blocks { block, window };
            let feeder = Feeder::builder(&config(len, 1, batch, 400))
                .forward(forward(len, block))
                .shuffle(shuffle, 4)
                .workers(workers)
                .build()
                .unwrap();
            for (number, (samples, _)) in (0..).zip(run(feeder.generate_epochs(3).unwrap())) {
                let order = feeder.order(number);
                let expected: Vec<(u64, u64)> = (0..len).map(|position| (order.at(position), 0)).collect();
                assert_eq!(samples, expected, "{workers} workers, {len} in blocks of {block}");
            }
            // Left early, and in the middle.
            let mut epochs = feeder.generate_epochs(2).unwrap();
            epochs.next().unwrap().next().unwrap().unwrap();
            all_once(&run(epochs)[0].0, len, 1);
            assert_eq!(feeder.budget().usage().used, Bytes::ZERO);
        }
    }
}

#[test]
fn iterators_that_end_early_or_late_are_an_error() {
    let desc = |n: usize| TensorDesc::new([n], DType::U64).unwrap();
    for (items, fine) in [(50, true), (49, false), (51, false), (0, false)] {
        let source = ForwardSource::from_iterator(50, desc(2), desc(1), move || {
            Ok((0..items).map(|n: u64| match n {
                60.. => Err("never".into()),
                _ => Ok(([n.to_le_bytes(), [0; 8]].concat(), n.to_le_bytes())),
            }))
        });
        let builder = Feeder::builder(&config(50, 1, 8, 100)).forward(source);
        let feeder = builder.shuffle(Shuffle::Window { samples: 12 }, 1).workers(2).build().unwrap();
        let batches = feeder.generate_epochs(2).unwrap().flatten();
        let results: Result<Vec<_>, Error> =
            batches.map(|batch| batch.map(|batch| contents(&batch))).collect();
        match results {
            Ok(batches) => {
                assert!(fine, "{items} items");
                let all = batches.concat();
                all_once(&all[..50], 50, 1);
                all_once(&all[50..], 50, 1);
            }
            Err(error) => {
                assert!(!fine && matches!(error, Error::Mismatch { .. }), "{items} items: {error}");
            }
        }
    }
    let source = ForwardSource::from_iterator(50, desc(2), desc(1), || {
        Ok((0u64..50).map(|n| if n == 20 { Err("torn".into()) } else { Ok((vec![0; 16], vec![0; 8])) }))
    });
    let builder =
        Feeder::builder(&config(50, 1, 8, 100)).forward(source).shuffle(Shuffle::Window { samples: 12 }, 1);
    let feeder = builder.on_error(ErrorPolicy::Skip { at_most: 9 }).build().unwrap();
    let error = feeder.generate_epochs(1).unwrap().flatten().find_map(Result::err).unwrap();
    assert!(matches!(error, Error::Read { index: 20, .. }), "{error}");
    let feeder = Feeder::builder(&config(50, 1, 8, 100)).forward(forward(50, 5)).shuffle(Shuffle::Full, 1);
    assert!(feeder.build().unwrap().generate_epochs(1).is_err(), "what reads forward cannot be permuted");
}

#[test]
fn observers_are_told() {
    #[derive(Default)]
    struct Last(AtomicU32, Mutex<Vec<(u64, u64)>>);
    impl Observer for Last {
        fn on_event(&self, event: &Event<'_>) {
            if let Event::Progress { done, total, .. } = event {
                self.0.fetch_add(1, Ordering::Relaxed);
                self.1.lock().unwrap().push((*done, *total));
            }
        }
    }
    let last = Arc::new(Last::default());
    let observer: Arc<dyn Observer> = last.clone();
    let feeder = numbers(10, 1, 4, 99).observer(observer).build().unwrap();
    run(feeder.generate_epochs(2).unwrap());
    assert_eq!(*last.1.lock().unwrap(), [(1, 3), (2, 3), (3, 3), (1, 3), (2, 3), (3, 3)]);
    assert_eq!(last.0.load(Ordering::Relaxed), 6);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn anything_is_delivered_once(
        identities in 1u64..80, reads in 1u64..4, batch in 4u64..20, memory in 4u64..200, workers in 0usize..6,
        ordered: bool, seed: u64, block in 1u64..20, window in 1u64..5, kind in 0u8..3, cache: bool,
    ) {
        let shuffle = match kind {
            0 => Shuffle::None,
            1 => Shuffle::Full,
            _ => Shuffle::Blocks { block, window },
        };
        let feeder = numbers(identities, reads, batch, memory)
            .workers(workers).ordered(ordered).shuffle(shuffle, seed).cache(cache).build().unwrap();
        for (samples, _) in run(feeder.generate_epochs(2).unwrap()) {
            all_once(&samples, identities, reads);
        }
        prop_assert!(feeder.budget().usage().peak <= feeder.budget().limit());
    }
}
