//! The suite of [`TensorStore`].

use std::collections::BTreeSet;

use dd_core::{Bytes, DType, Error, TensorDesc, TensorStore, TensorStoreExt};

use crate::rule::{contents, desc, difference, done, len, noise, on_threads, refused};

/// What the stores of this suite must be able to hold, but for those that are made to be full.
const ROOM: Bytes = Bytes::mib(16);

/// Checks a [`TensorStore`].
///
/// `make` gives an empty store, each time another, that can hold at least so many bytes, and no more where its
/// capacity can be limited (the contents of the suite do not compress). Checked:
///
/// - what was put is read back, for every dtype and for scalars, empty tensors and odd shapes, with its description;
/// - replacing with another shape, dtype and length; removing; [`Error::NotFound`] for what is not there;
/// - wrong lengths on `put` and `read_into` are [`Error::Mismatch`]; a failed `put`, also for want of room, leaves what
///   was there;
/// - names are only names: empty, `..`, absolute paths, very long, differing in case, with control characters;
/// - `used` is nothing when empty, counts what is held, does not count replaced bytes, and returns to nothing;
/// - four threads, each with names of its own and one in common, whose value is never seen half replaced.
///
/// ```
/// use dd_core::{Budget, MemoryStore};
/// dd_conformance::tensor_store(|capacity| MemoryStore::new(Budget::new("store", capacity)));
/// ```
///
/// # Panics
/// Where the store breaks the contract.
pub fn tensor_store<S: TensorStore>(make: impl Fn(Bytes) -> S) {
    round_trips(&make(ROOM));
    replaces_and_removes(&make(ROOM));
    refuses_what_is_not_there(&make(ROOM));
    refuses_wrong_lengths(&make(ROOM));
    keeps_the_old_when_full(&make(Bytes::kib(64)));
    takes_any_name(&make(ROOM));
    counts_what_it_holds(&make(ROOM));
    serves_threads(&make(ROOM));
}

#[track_caller]
fn put(store: &dyn TensorStore, name: &str, desc: &TensorDesc, bytes: &[u8]) {
    done(store.put(name, desc, bytes), format_args!("put of {name:?} ({desc})"));
}

/// Checks that a store has exactly this under that name.
#[track_caller]
fn holds(store: &dyn TensorStore, name: &str, desc: &TensorDesc, bytes: &[u8], rule: &str) {
    let found = done(store.describe(name), format_args!("{rule}: describe of {name:?}"));
    assert_eq!(found.as_ref(), Some(desc), "{rule}: description of {name:?}");
    let mut out = vec![0xA5; bytes.len()];
    done(store.read_into(name, &mut out), format_args!("{rule}: read of {name:?}"));
    assert!(out == bytes, "{rule}: contents of {name:?} ({desc}): {}", difference(&out, bytes));
}

#[track_caller]
fn holds_nothing(store: &dyn TensorStore, name: &str, rule: &str) {
    let found = done(store.describe(name), format_args!("{rule}: describe of {name:?}"));
    assert_eq!(found, None, "{rule}: {name:?} is still described");
    refused!(store.read_into(name, &mut []), Error::NotFound { .. }, "{rule}: read of {name:?}");
}

fn round_trips(store: &dyn TensorStore) {
    let mut stored = Vec::new();
    for dtype in DType::ALL {
        let row = usize::try_from(dtype.block_elements()).unwrap_or(1);
        for shape in [vec![row], vec![3, row], vec![2, 1, 3 * row], vec![0, row], vec![0], vec![1, 0, 2]] {
            stored.push(desc(&shape, *dtype));
        }
    }
    stored.extend([desc(&[], DType::F32), desc(&[], DType::U8), desc(&[1_000_003], DType::U8)]);
    for (seed, desc) in (1..).zip(&stored) {
        put(store, &desc.to_string(), desc, &contents(desc, seed));
    }
    for (seed, desc) in (1..).zip(&stored) {
        let (name, bytes) = (desc.to_string(), contents(desc, seed));
        holds(store, &name, desc, &bytes, "round trip");
        let (found, out) = done(store.get(&name), format_args!("get of {name:?}"));
        assert!(found == *desc && out == bytes, "get of {name:?} differs from describe and read_into");
        assert!(done(store.contains(&name), "contains"), "contains({name:?}) is false for a stored tensor");
    }
}

fn replaces_and_removes(store: &dyn TensorStore) {
    let shapes: [(&[usize], DType); 5] = [
        (&[100], DType::F32),
        (&[7, 3], DType::U8),
        (&[0], DType::BF16),
        (&[50, 2, 4], DType::F64),
        (&[], DType::I64),
    ];
    let other = desc(&[9], DType::I16);
    put(store, "other", &other, &contents(&other, 99));
    for (seed, (shape, dtype)) in (1..).zip(shapes) {
        let desc = desc(shape, dtype);
        put(store, "name", &desc, &contents(&desc, seed));
        holds(store, "name", &desc, &contents(&desc, seed), "replace");
    }
    assert!(done(store.remove("name"), "remove"), "remove of a stored tensor says that there was none");
    holds_nothing(store, "name", "remove");
    assert!(
        !done(store.remove("name"), "second remove"),
        "remove of a removed tensor says that there was one"
    );
    holds(store, "other", &other, &contents(&other, 99), "remove of another tensor");
    put(store, "name", &other, &contents(&other, 7));
    holds(store, "name", &other, &contents(&other, 7), "put after remove");
}

fn refuses_what_is_not_there(store: &dyn TensorStore) {
    holds_nothing(store, "absent", "empty store");
    refused!(store.read_into("absent", &mut [0; 8]), Error::NotFound { .. }, "read of an absent tensor");
    refused!(store.get("absent"), Error::NotFound { .. }, "get of an absent tensor");
    assert!(
        !done(store.remove("absent"), "remove of an absent tensor"),
        "remove of an absent tensor says true"
    );
    assert!(!done(store.contains("absent"), "contains"), "contains of an absent tensor says true");
    assert_eq!(store.used(), Bytes::ZERO, "an empty store uses bytes");
}

fn refuses_wrong_lengths(store: &dyn TensorStore) {
    let desc = desc(&[4, 4], DType::F32);
    let bytes = contents(&desc, 1);
    put(store, "name", &desc, &bytes);
    for wrong in [0, 1, 63, 65, 128] {
        for name in ["name", "new"] {
            let result = store.put(name, &desc, &noise(2, wrong));
            refused!(result, Error::Mismatch { .. }, "put of {wrong} B as {desc}");
        }
        holds(store, "name", &desc, &bytes, "a refused put leaves the old");
        holds_nothing(store, "new", "a refused put leaves nothing");
        let mut out = vec![0; wrong];
        refused!(store.read_into("name", &mut out), Error::Mismatch { .. }, "read of {desc} into {wrong} B");
        holds(store, "name", &desc, &bytes, "after a refused read");
    }
}

fn keeps_the_old_when_full(store: &dyn TensorStore) {
    let (small, large) = (desc(&[1024], DType::U8), desc(&[256 * 1024], DType::U8));
    let (old, new) = (contents(&small, 1), contents(&large, 2));
    put(store, "name", &small, &old);
    let before = store.used();
    match store.put("name", &large, &new) {
        Ok(()) => holds(store, "name", &large, &new, "replace in a store whose capacity is not limited"),
        Err(Error::OutOfMemory { .. }) => {
            holds(store, "name", &small, &old, "a failed put leaves the old");
            assert_eq!(store.used(), before, "used after a failed put");
            refused!(store.put("new", &large, &new), Error::OutOfMemory { .. }, "put in a full store");
            holds_nothing(store, "new", "after a failed put");
            put(store, "fits", &small, &old);
        }
        Err(other) => panic!("put of 256 KiB in a store of 64 KiB: expected OutOfMemory, found {other:?}"),
    }
}

fn takes_any_name(store: &dyn TensorStore) {
    let long = "x".repeat(5000);
    let longer = format!("{long}y");
    let names = [
        "",
        " ",
        ".",
        "..",
        "../..",
        "../../etc/passwd",
        "/",
        "/absolute",
        "a",
        "a/",
        "a//b",
        "a/b",
        "a\\b",
        "a_b",
        "a%2Fb",
        "a.b",
        "a.b.weight",
        "A",
        "A.B.weight",
        "layer.0",
        "layer.00",
        "CON",
        "nul\0byte",
        "line\nbreak",
        "tab\t",
        "gewicht.größe",
        "gewicht.gro\u{308}ße",
        "重み/バイアス",
        "🦀",
        "%2e%2e",
        "%2F",
        "-rf",
        "~",
        "$HOME",
        "*",
        "a:b",
        "\"quoted\"",
        "\u{202e}reversed",
        "index.json",
        ".tmp",
        &long,
        &longer,
    ];
    let distinct: BTreeSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len(), "the suite's own names repeat");
    let desc = desc(&[33], DType::U8);
    for (seed, name) in (1..).zip(names) {
        put(store, name, &desc, &contents(&desc, seed));
    }
    for (seed, name) in (1..).zip(names) {
        holds(store, name, &desc, &contents(&desc, seed), "odd names");
    }
    for (index, name) in names.iter().enumerate().step_by(2) {
        assert!(
            done(store.remove(name), format_args!("remove of {name:?}")),
            "nothing removed as {name:?} [{index}]"
        );
    }
    for (seed, (index, name)) in (1..).zip(names.iter().enumerate()) {
        match index % 2 {
            0 => holds_nothing(store, name, "removed odd name"),
            _ => holds(store, name, &desc, &contents(&desc, seed), "odd name beside removed ones"),
        }
    }
}

fn counts_what_it_holds(store: &dyn TensorStore) {
    assert_eq!(store.tier(), store.tier(), "tier() changes its mind");
    let desc = desc(&[100_000], DType::U8);
    put(store, "a", &desc, &contents(&desc, 1));
    let one = store.used();
    assert!(one >= Bytes(90_000), "used is {one} with 100,000 B of noise, which does not compress");
    assert!(one <= Bytes(200_000), "used is {one} with 100,000 B held");
    put(store, "a", &desc, &contents(&desc, 1));
    assert_eq!(store.used(), one, "used after replacing a tensor by itself");
    put(store, "b", &desc, &contents(&desc, 2));
    assert!(store.used() >= one + Bytes(90_000), "used is {} with two tensors, {one} with one", store.used());
    done(store.remove("b"), "remove");
    assert_eq!(store.used(), one, "used after removing the second tensor");
    let empty = crate::rule::desc(&[0], DType::U8);
    put(store, "a", &empty, &[]);
    assert!(store.used() < one, "used does not fall when a tensor is replaced by an empty one");
    done(store.remove("a"), "remove");
    assert_eq!(store.used(), Bytes::ZERO, "used after removing all");
}

fn serves_threads(store: &dyn TensorStore) {
    const ROUNDS: u8 = 25;
    let common = desc(&[4096], DType::U8);
    put(store, "common", &common, &vec![0xFF; len(&common)]);
    on_threads(|thread| {
        for round in 0..ROUNDS {
            let own = desc(&[64 + usize::from(round)], DType::U8);
            let (name, bytes) = (format!("own {thread} {}", round % 3), contents(&own, u64::from(round)));
            put(store, &name, &own, &bytes);
            holds(store, &name, &own, &bytes, "from several threads");
            if round % 3 == 2 {
                assert!(done(store.remove(&name), "remove"), "another thread removed {name:?}");
            }
            if thread < 2 {
                put(store, "common", &common, &vec![thread; len(&common)]);
            }
            for _ in 0..4 {
                let (_, seen) = done(store.get("common"), "get of a tensor that other threads replace");
                let whole = seen.iter().all(|byte| Some(byte) == seen.first());
                assert!(whole, "a tensor was seen half replaced");
            }
        }
    });
    holds_nothing(store, "own 0 2", "removed by its thread");
}
