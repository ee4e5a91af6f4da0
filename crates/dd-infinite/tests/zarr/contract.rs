//! The contract of `TileStore`, word for word, on every store.

use dd_core::{Budget, Bytes, DType};
use dd_infinite::zarr::{Flush, ZarrOptions, ZarrTileStore};
use dd_infinite::{Error, MemoryTileStore, TileStore};

use crate::{holds, indices, manifest, window};

/// Opens the same place again.
type Open<'a> = &'a dyn Fn() -> Box<dyn TileStore>;

fn check(store: &dyn TileStore) {
    let made = manifest(&[3, 4], DType::F32, 2);
    assert!(store.manifest("t").unwrap().is_none() && store.tensors().unwrap().is_empty());
    assert!(!store.get("t", &[0, 0], &mut [0; 48]).unwrap() && !store.contains("t", &[0, 0]).unwrap());
    assert!(matches!(store.put("t", &[0, 0], &[0; 48]).unwrap_err(), Error::Store { .. }));
    assert!(indices(store, "t").is_empty() && !store.remove("t", &[0, 0]).unwrap());

    assert!(store.create("t", &made).unwrap().is_none());
    let other = manifest(&[3, 5], DType::F64, 1);
    assert_eq!(store.create("t", &other).unwrap(), Some(made.clone()), "the first one stays");
    assert_eq!(store.manifest("t").unwrap(), Some(made.clone()));

    let all =
        [[0, 0], [-1, 0], [0, -1], [5, -7], [i64::MAX, i64::MIN], [1 << 51, 0], [(1 << 51) - 1, -(1 << 51)]];
    for index in &all {
        assert!(!holds(store, "t", &made, index));
        store.put("t", index, &window(&made, index)).unwrap();
        assert!(holds(store, "t", &made, index));
        store.put("t", index, &window(&made, index)).unwrap();
    }
    let mut sorted: Vec<Vec<i64>> = all.iter().map(|index| index.to_vec()).collect();
    sorted.sort_unstable();
    assert_eq!(indices(store, "t"), sorted);
    let mut visited = 0;
    store
        .for_each_window("t", &mut |_| {
            visited += 1;
            visited < 2
        })
        .unwrap();
    assert_eq!(visited, 2);

    for length in [0, 47, 49] {
        assert!(matches!(store.put("t", &[9, 9], &vec![0; length]).unwrap_err(), Error::Buffer { .. }));
        assert!(matches!(store.get("t", &[0, 0], &mut vec![0; length]).unwrap_err(), Error::Buffer { .. }));
    }
    assert!(!store.contains("t", &[9, 9]).unwrap());
    assert!(store.remove("t", &[0, 0]).unwrap() && !store.remove("t", &[0, 0]).unwrap());
    assert!(!holds(store, "t", &made, &[0, 0]) && holds(store, "t", &made, &[-1, 0]));
    store.sync().unwrap();
}

fn check_ids(store: &dyn TileStore) {
    let made = manifest(&[2], DType::U8, 1);
    let long = "ä".repeat(256);
    let ids = ["a", "A/b", "..", "a=far", "_x", "c.0", "zarr.json", "with space", long.as_str(), "\u{1f5fa}"];
    for (n, id) in ids.into_iter().enumerate() {
        assert!(store.create(id, &made).unwrap().is_none(), "{id}");
        store.put(id, &[n as i64], &window(&made, &[n as i64])).unwrap();
    }
    for (n, id) in ids.into_iter().enumerate() {
        assert_eq!(indices(store, id), [[n as i64]], "{id}");
        assert!(holds(store, id, &made, &[n as i64]));
    }
    for id in ids {
        assert!(store.tensors().unwrap().iter().any(|found| found == id), "{id}");
        assert!(store.remove_tensor(id).unwrap() && !store.remove_tensor(id).unwrap(), "{id}");
        assert!(store.manifest(id).unwrap().is_none() && indices(store, id).is_empty());
    }
    for id in ["", "x".repeat(513).as_str()] {
        assert!(matches!(store.create(id, &made).unwrap_err(), Error::Spec { field: "id", .. }));
    }
    // Of another shape, under a name that was used before.
    assert!(store.create("a", &manifest(&[4, 2], DType::I16, 2)).unwrap().is_none());
    assert!(indices(store, "a").is_empty());
    assert!(store.remove_tensor("a").unwrap());
}

fn check_dtypes(store: &dyn TileStore) {
    let rows: [(&[usize], DType, usize); 9] = [
        (&[], DType::F32, 1),
        (&[3], DType::F64, 0),
        (&[2, 3, 4], DType::BF16, 1),
        (&[5], DType::Bool, 3),
        (&[4, 6], DType::F4, 2),
        (&[2, 512], DType::Q4K, 2),
        (&[4, 4], DType::F8E4M3, 2),
        (&[8, 8], DType::I64, 2),
        (&[64, 64], DType::F16, 2),
    ];
    for (shape, dtype, rank) in rows {
        let made = manifest(shape, dtype, rank);
        let id = format!("{dtype} {rank}");
        store.create(&id, &made).unwrap();
        let index = vec![-3; rank];
        store.put(&id, &index, &window(&made, &index)).unwrap();
        assert!(holds(store, &id, &made, &index), "{id}");
        assert_eq!(indices(store, &id), [index]);
    }
    // Every bit counts: minus zero is not zero, and a NaN keeps its payload.
    let made = manifest(&[4, 4], DType::F32, 1);
    store.create("bits", &made).unwrap();
    for (index, pattern) in [(0, 0x8000_0000u32), (1, 0), (2, 0x7fc0_1234)] {
        let bytes: Vec<u8> = pattern.to_le_bytes().repeat(16);
        store.put("bits", &[index], &bytes).unwrap();
        let mut out = vec![1; 64];
        assert!(store.get("bits", &[index], &mut out).unwrap() && out == bytes, "{pattern:x}");
    }
    assert_eq!(indices(store, "bits").len(), 3, "a window of zeros is a window too");
}

fn check_threads(store: &dyn TileStore) {
    let made = manifest(&[32, 32], DType::F32, 2);
    std::thread::scope(|scope| {
        for thread in 0..4i64 {
            let made = &made;
            scope.spawn(move || {
                store.create("shared", made).unwrap();
                for n in 0..24i64 {
                    let index = [(n + thread * 6) % 24 - 12, n % 3];
                    store.put("shared", &index, &window(made, &index)).unwrap();
                    assert!(holds(store, "shared", made, &index));
                }
            });
        }
    });
    assert!(indices(store, "shared").iter().all(|index| holds(store, "shared", &made, index)));
}

/// Everything outlives the store that wrote it.
fn check_reopened(open: Open) {
    let made = manifest(&[16, 16], DType::F32, 2);
    let store = open();
    store.create("kept", &made).unwrap();
    store.put("kept", &[-4, 2], &window(&made, &[-4, 2])).unwrap();
    store.put("kept", &[i64::MIN, 2], &window(&made, &[i64::MIN, 2])).unwrap();
    drop(store);
    let store = open();
    assert_eq!(store.manifest("kept").unwrap(), Some(made.clone()));
    assert_eq!(indices(&*store, "kept"), [[i64::MIN, 2], [-4, 2]]);
    assert!(holds(&*store, "kept", &made, &[-4, 2]) && holds(&*store, "kept", &made, &[i64::MIN, 2]));
    assert!(store.remove_tensor("kept").unwrap());
    assert!(open().tensors().unwrap().iter().all(|id| id != "kept"));
}

fn check_all(open: Open) {
    let store = open();
    check(&*store);
    check_ids(&*store);
    check_dtypes(&*store);
    check_threads(&*store);
    drop(store);
    check_reopened(open);
}

#[test]
fn the_memory_store_keeps_the_contract() {
    let store = MemoryTileStore::new(Budget::new("test", Bytes::mib(64)));
    check(&store);
    check_ids(&store);
    check_dtypes(&store);
    check_threads(&store);
}

#[test]
fn a_folder_keeps_the_contract() {
    for (inner, flush, level) in [
        (None, Flush::EachWindow, 1),
        (Some(vec![16, 16]), Flush::OnSync, 9),
        (Some(vec![8, 8]), Flush::OnSync, 3),
    ] {
        let place = tempfile::tempdir().unwrap();
        let options = ZarrOptions { level, inner, flush };
        check_all(&|| Box::new(ZarrTileStore::open(place.path(), options.clone()).unwrap()));
        let drafts = std::fs::read_dir(place.path()).unwrap().flatten();
        assert_eq!(
            drafts.filter(|entry| entry.file_name().to_string_lossy().starts_with(".new-")).count(),
            0
        );
    }
}

#[cfg(feature = "object-store")]
#[test]
fn object_stores_keep_the_contract() {
    use object_store::{ObjectStore, local::LocalFileSystem, memory::InMemory};
    use std::sync::Arc;

    let place = tempfile::tempdir().unwrap();
    let stores: [(Arc<dyn ObjectStore>, &str); 3] = [
        (Arc::new(InMemory::new()), ""),
        (Arc::new(InMemory::new()), "maps/terrain/"),
        (Arc::new(LocalFileSystem::new_with_prefix(place.path()).unwrap()), "here"),
    ];
    for (objects, prefix) in stores {
        check_all(&|| {
            let objects = Arc::clone(&objects);
            Box::new(ZarrTileStore::over_objects(objects, prefix, ZarrOptions::default()).unwrap())
        });
    }
    // The same names: what one wrote, the other reads.
    let store = ZarrTileStore::open(place.path().join("here"), ZarrOptions::default()).unwrap();
    let (made, index) = (manifest(&[4, 4], DType::F32, 1), [1]);
    assert!(store.tensors().unwrap().iter().any(|id| id == "bits"));
    store.create("both/ways", &made).unwrap();
    store.put("both/ways", &index, &window(&made, &index)).unwrap();
    let objects = Arc::new(LocalFileSystem::new_with_prefix(place.path()).unwrap());
    let objects = ZarrTileStore::over_objects(objects, "here", ZarrOptions::default()).unwrap();
    assert!(holds(&objects, "both/ways", &made, &index));
}

#[cfg(feature = "object-store")]
#[test]
fn an_object_store_may_be_used_and_dropped_inside_a_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let objects = std::sync::Arc::new(object_store::memory::InMemory::new());
        let store = ZarrTileStore::over_objects(objects, "", ZarrOptions::default()).unwrap();
        check(&store);
    });
}

#[test]
fn what_a_window_takes_is_within_what_is_announced() {
    // Windows that nothing compresses: the longest chunks there are.
    for (level, inner) in [(1, None), (9, None), (1, Some(vec![64, 64]))] {
        let place = tempfile::tempdir().unwrap();
        let store =
            ZarrTileStore::open(place.path(), ZarrOptions { level, inner, flush: Flush::OnSync }).unwrap();
        let made = manifest(&[256, 256], DType::F32, 1);
        store.create("t", &made).unwrap();
        let noise: Vec<u8> = (0..made.window.bytes().0).map(|n| (crate::mix(n) >> 56) as u8).collect();
        store.put("t", &[0], &noise).unwrap();
        let stored = store.summary().unwrap().tensors[0].stored;
        assert!(stored > made.window.bytes() && stored < made.window.bytes() + Bytes::kib(16), "{stored}");
        assert!(store.scratch(&made.window) > made.window.bytes() + stored + stored);
    }
}
