//! The spill store under everything that happens to disks and processes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dd_core::{Bytes, DType, TensorDesc, TensorStore, TensorStoreExt, Tier};
use dd_offload::Error;
use dd_offload::store::{SpillConfig, SpillStore};

const CHUNK: usize = SpillStore::CHUNK;
const ROLE: &str = "DD_TEST_SPILL_ROLE";
const PLACE: &str = "DD_TEST_SPILL_PLACE";

fn open(directory: &Path, limit: Bytes, compression: Option<i32>) -> SpillStore {
    SpillStore::open(&SpillConfig { directory: Some(directory.to_owned()), limit, compression }).unwrap()
}

fn desc(len: usize) -> TensorDesc {
    TensorDesc::new([len], DType::U8).unwrap()
}

/// Bytes that zstd can halve, different for each seed.
fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0] & 15
    };
    (0..len).map(|_| next()).collect()
}

fn files_in(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| !path.ends_with("lock"));
    files.sort();
    files
}

fn length_of_files(directory: &Path) -> Bytes {
    files_in(directory).iter().map(|path| Bytes(fs::metadata(path).unwrap().len())).sum()
}

// --- What is stored comes back ---------------------------------------------------------------------------------

#[test]
fn tensors_come_back_and_are_counted_exactly() {
    for compression in [None, Some(1)] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), Bytes::MAX, compression);
        assert_eq!(store.tier(), Tier::Disk);
        let lens = [0, 1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7];
        for (i, len) in lens.into_iter().enumerate() {
            let name = format!("../layer/{i} ü");
            store.put(&name, &desc(len), &bytes(len, 1)).unwrap();
            store.put(&name, &desc(len), &bytes(len, i as u64)).unwrap();
            assert_eq!(store.get(&name).unwrap(), (desc(len), bytes(len, i as u64)), "{len} {compression:?}");
            assert_eq!(store.used(), length_of_files(store.directory()));
        }
        assert_eq!(files_in(store.directory()).len(), lens.len());
        let raw: usize = lens.iter().sum();
        assert_eq!(store.used() < Bytes::of(raw * 3 / 4), compression.is_some(), "{}", store.used());
        for i in 0..lens.len() {
            assert!(store.remove(&format!("../layer/{i} ü")).unwrap());
        }
        assert!(!store.remove("../layer/0 ü").unwrap());
        assert_eq!((store.used(), files_in(store.directory()).len()), (Bytes::ZERO, 0));
        store.close().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn keeps_the_contract_of_stores() {
    for compression in [None, Some(1)] {
        let folder = tempfile::tempdir().unwrap();
        dd_conformance::tensor_store(|capacity| open(folder.path(), capacity, compression));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn tensors_stream_through_one_chunk() {
    for compression in [None, Some(3)] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), Bytes::MAX, compression);
        let (len, whole) = (2 * CHUNK + 9, bytes(2 * CHUNK + 9, 5));
        let mut fill = |offset: usize, piece: &mut [u8]| {
            assert!(piece.len() <= CHUNK);
            piece.copy_from_slice(&whole[offset..offset + piece.len()]);
            Ok(())
        };
        store.write_from("a", &desc(len), &mut fill).unwrap();
        let mut seen = Vec::new();
        let mut take = |offset: usize, piece: &[u8]| {
            assert_eq!(offset, seen.len());
            seen.extend_from_slice(piece);
            Ok(())
        };
        store.read_chunks("a", &mut take).unwrap();
        assert!(seen == whole, "{compression:?}");
        let least = if compression.is_some() { 2 * CHUNK } else { CHUNK };
        assert!(store.working_bytes() >= Bytes::of(least) && store.working_bytes() < Bytes::mib(8));
    }
}

#[test]
fn misuse_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Bytes::MAX, None);
    store.put("a", &desc(2), &[1, 2]).unwrap();
    assert!(matches!(store.put("a", &desc(2), &[1]), Err(dd_core::Error::Mismatch { .. })));
    assert!(matches!(store.read_into("a", &mut [0; 3]), Err(dd_core::Error::Mismatch { .. })));
    assert!(matches!(store.read_into("b", &mut []), Err(dd_core::Error::NotFound { .. })));
    assert_eq!(store.get("a").unwrap().1, [1, 2]);
    let config = SpillConfig { compression: Some(1000), ..SpillConfig::default() };
    assert!(matches!(SpillStore::open(&config), Err(Error::InvalidConfig { option: "compression", .. })));
    let config = SpillConfig { directory: Some("/proc/none".into()), ..SpillConfig::default() };
    assert!(matches!(SpillStore::open(&config), Err(Error::Io { .. })));
}

// --- Damage ----------------------------------------------------------------------------------------------------

/// A read of a damaged file: the right bytes or an error that names the tensor; says whether it was the error.
fn is_named_or_right(store: &SpillStore, expected: &[u8], what: &str) -> bool {
    let mut out = vec![0xEE; expected.len()];
    match store.read_into("a", &mut out) {
        Ok(()) => {
            assert!(out == expected, "{what}: wrong data");
            false
        }
        Err(dd_core::Error::Corrupt { name, place, .. }) => {
            assert!(name == "a" && place.contains("deepdim-spill"), "{what}: {name} in {place}");
            let streamed = store.read_chunks("a", &mut |_, _| Ok(()));
            assert!(matches!(streamed, Err(Error::Corrupt { .. })), "{what}: {streamed:?}");
            true
        }
        Err(other) => panic!("{what}: {other}"),
    }
}

#[test]
fn damage_is_found_in_every_region() {
    for compression in [None, Some(1)] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), Bytes::MAX, compression);
        let whole = bytes(CHUNK + 3000, 3);
        store.put("a", &desc(whole.len()), &whole).unwrap();
        let path = files_in(store.directory()).pop().unwrap();
        let content = fs::read(&path).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let body = u32::from_le_bytes(content[12..16].try_into().unwrap()) as usize;
        let head = 16 + body + 8;
        let stored = u32::from_le_bytes(content[head..head + 4].try_into().unwrap()) & !(1 << 31);
        let second = head + 12 + stored as usize;
        // Every bit of the head and of both chunks' heads; some bits in the chunks.
        let heads = (0..head + 12).chain(second..second + 12);
        let inside = [head + 12, head + 40, second - 1, second + 12, second + 500, content.len() - 1];
        for (at, strict) in heads.map(|at| (at, true)).chain(inside.map(|at| (at, compression.is_none()))) {
            for bit in 0..8 {
                file.write_all_at(&[content[at] ^ (1 << bit)], at as u64).unwrap();
                let named = is_named_or_right(&store, &whole, &format!("bit {bit} of byte {at}"));
                // A packed chunk has bits that mean nothing: there the right bytes may come back.
                assert!(named || !strict, "bit {bit} of byte {at} {compression:?} was not noticed");
            }
            file.write_all_at(&content[at..=at], at as u64).unwrap();
        }
        for len in [0, 7, head - 1, head, head + 5, second, second + 12, content.len() - 1] {
            file.set_len(len as u64).unwrap();
            assert!(is_named_or_right(&store, &whole, &format!("cut to {len}")));
            file.set_len(content.len() as u64).unwrap();
            let differs = fs::read(&path).unwrap() != content; // The last byte may be a zero anyway.
            let named = is_named_or_right(&store, &whole, &format!("cut to {len}, then filled with zeros"));
            assert_eq!(named, differs, "cut to {len}, then filled with zeros");
            file.write_all_at(&content, 0).unwrap();
        }
        file.write_all_at(&[0], content.len() as u64).unwrap();
        assert!(is_named_or_right(&store, &whole, "one byte more"));
        file.set_len(content.len() as u64).unwrap();
        assert!(!is_named_or_right(&store, &whole, "restored"));
    }
}

#[test]
fn files_that_change_places_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Bytes::MAX, None);
    let whole = [vec![1; CHUNK], vec![2; CHUNK]].concat();
    store.put("a", &desc(whole.len()), &whole).unwrap();
    store.put("b", &desc(whole.len()), &bytes(whole.len(), 1)).unwrap();
    let files = files_in(store.directory());
    let original = fs::read(&files[0]).unwrap();
    fs::copy(&files[1], &files[0]).unwrap();
    assert!(is_named_or_right(&store, &whole, "another tensor's file"));
    let chunk = CHUNK + 12;
    let head = original.len() - 2 * chunk;
    let swapped = [&original[..head], &original[head + chunk..], &original[head..head + chunk]].concat();
    fs::write(&files[0], swapped).unwrap();
    assert!(is_named_or_right(&store, &whole, "two chunks in each other's place"));
    fs::remove_file(&files[0]).unwrap();
    assert!(matches!(store.read_into("a", &mut vec![0; whole.len()]), Err(dd_core::Error::Io { .. })));
    assert!(store.remove("a").unwrap());
}

// --- No room ---------------------------------------------------------------------------------------------------

/// Refused for want of room, with everything as it was before.
fn is_refused_without_trace(store: &SpillStore, len: usize) {
    let before = (store.used(), files_in(store.directory()));
    let mut fill = |_: usize, piece: &mut [u8]| {
        piece.copy_from_slice(&bytes(piece.len(), 77));
        Ok(())
    };
    match store.write_from("a", &desc(len), &mut fill) {
        Err(Error::DiskFull { tensor, needed, available, path, .. }) => {
            assert!(tensor == "a" && needed > available && path == store.directory(), "{needed} {available}");
        }
        other => panic!("{other:?}"),
    }
    let put = store.put("a", &desc(len), &bytes(len, 77));
    assert!(put.as_ref().is_err_and(dd_core::Error::is_out_of_memory), "{put:?}");
    assert_eq!(store.get("a").unwrap().1, b"old");
    assert_eq!((store.used(), files_in(store.directory())), before);
}

#[test]
fn the_limit_is_kept() {
    for compression in [None, Some(1)] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), Bytes::of(CHUNK), compression);
        store.put("a", &desc(3), b"old").unwrap();
        is_refused_without_trace(&store, 4 * CHUNK);
        assert!(store.used() <= store.limit());
    }
    // Exactly the limit fits, one byte less does not.
    let folder = tempfile::tempdir().unwrap();
    let probe = open(folder.path(), Bytes::MAX, None);
    probe.put("a", &desc(5000), &bytes(5000, 1)).unwrap();
    let exact = probe.used();
    for (limit, fits) in [(exact, true), (exact.saturating_sub(Bytes(1)), false), (Bytes::ZERO, false)] {
        let store = open(folder.path(), limit, None);
        assert_eq!(store.put("a", &desc(5000), &bytes(5000, 1)).is_ok(), fits, "{limit}");
        assert_eq!(store.used(), if fits { exact } else { Bytes::ZERO });
    }
}

/// A file system of two mebibytes; unmounted when dropped.
struct Tiny(tempfile::TempDir);

impl Tiny {
    fn mount() -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(folder.path());
        let output = command.output().map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(Self(folder)) } else { Err(said) }
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _best_effort = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_leaves_the_old_state() {
    let tiny = match Tiny::mount() {
        Ok(tiny) => tiny,
        Err(reason) => {
            dd_conformance::skipped!("no small file system can be mounted here: {reason}");
            return;
        }
    };
    for compression in [None, Some(1)] {
        let store = open(tiny.0.path(), Bytes::MAX, compression);
        store.put("a", &desc(3), b"old").unwrap();
        is_refused_without_trace(&store, 8 * CHUNK);
        drop(store);
        assert_eq!(fs::read_dir(tiny.0.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_source_that_fails_leaves_the_old_state() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Bytes::MAX, None);
    store.put("a", &desc(3), b"old").unwrap();
    let before = (store.used(), files_in(store.directory()));
    let mut fill = |offset: usize, _: &mut [u8]| match offset {
        0 => Ok(()),
        _ => Err(Error::Stopped { what: "this test".to_owned() }),
    };
    assert!(matches!(store.write_from("a", &desc(3 * CHUNK), &mut fill), Err(Error::Stopped { .. })));
    assert_eq!((store.used(), files_in(store.directory())), before);
    assert_eq!(store.get("a").unwrap().1, b"old");
}

// --- Threads and processes -------------------------------------------------------------------------------------

#[test]
fn threads_share_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Bytes::MAX, None);
    let versions: Vec<Vec<u8>> = (0..4).map(|seed| bytes(CHUNK + 100, seed)).collect();
    store.put("shared", &desc(CHUNK + 100), &versions[0]).unwrap();
    std::thread::scope(|scope| {
        for (i, version) in versions.iter().enumerate() {
            let (store, versions) = (&store, &versions);
            scope.spawn(move || {
                for round in 0..8 {
                    let own = format!("own {i}");
                    store.put(&own, &desc(round), &vec![7; round]).unwrap();
                    assert_eq!(store.get(&own).unwrap().1.len(), round);
                    store.put("shared", &desc(version.len()), version).unwrap();
                    let found = store.get("shared").unwrap().1;
                    assert!(versions.contains(&found), "a mixture of two versions");
                    assert!(store.remove(&own).unwrap());
                }
            });
        }
    });
    assert_eq!(store.used(), length_of_files(store.directory()));
    assert_eq!(files_in(store.directory()).len(), 1);
}

/// Starts this very test in another process, in this role.
fn spawn(test: &str, role: &str, place: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(ROLE, role).env(PLACE, place);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The role of this process and where it plays, if it is a child.
fn role() -> Option<(String, PathBuf)> {
    Some((std::env::var(ROLE).ok()?, std::env::var_os(PLACE)?.into()))
}

fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "the other process never made {}", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// In the child: stores one tensor, stops in the middle of the next and waits for its end.
fn spill_and_hang(role: &str, place: &Path) {
    let store = open(place, Bytes::MAX, None);
    store.put("done", &desc(CHUNK), &bytes(CHUNK, 1)).unwrap();
    let mut fill = |offset: usize, _: &mut [u8]| {
        if offset > 0 {
            let (draft, ready) = (place.join(format!("{role}.draft")), place.join(role));
            fs::write(&draft, store.directory().to_str().unwrap()).unwrap();
            fs::rename(draft, ready).unwrap();
            std::thread::sleep(Duration::from_secs(60)); // Until it is killed.
            panic!("nobody killed this process");
        }
        Ok(())
    };
    store.write_from("half", &desc(3 * CHUNK), &mut fill).unwrap();
}

#[test]
fn a_killed_process_leaves_nothing_that_the_next_start_keeps() {
    if let Some((role, place)) = role() {
        return spill_and_hang(&role, &place);
    }
    let test = "a_killed_process_leaves_nothing_that_the_next_start_keeps";
    let folder = tempfile::tempdir().unwrap();
    let ours = open(folder.path(), Bytes::MAX, None);
    ours.put("ours", &desc(3), b"abc").unwrap();
    let mut children = ["killed", "sibling"].map(|role| spawn(test, role, folder.path()));
    let directories = ["killed", "sibling"].map(|role| {
        wait_for(&folder.path().join(role));
        PathBuf::from(fs::read_to_string(folder.path().join(role)).unwrap())
    });
    children[0].kill().unwrap(); // SIGKILL.
    children[0].wait().unwrap();
    let left = files_in(&directories[0]);
    assert_eq!(left.len(), 2, "one whole, one torn: {left:?}");
    assert!(left.iter().any(|path| path.extension().is_some_and(|end| end == "part")));
    let sibling = files_in(&directories[1]);

    let next = open(folder.path(), Bytes::MAX, None);
    assert!(!directories[0].exists(), "the leftovers are still there");
    assert_eq!(files_in(&directories[1]), sibling, "the living one's files were touched");
    assert_eq!(ours.get("ours").unwrap().1, b"abc");
    assert_eq!(next.used(), Bytes::ZERO);

    children[1].kill().unwrap();
    children[1].wait().unwrap();
}

/// In the child: opens, fills, checks and closes a store again and again.
fn open_and_close(role: &str, place: &Path) {
    let seed = role.len() as u64;
    for round in 0..40 {
        let store = open(place, Bytes::MAX, None);
        store.put("mine", &desc(5000), &bytes(5000, seed + round)).unwrap();
        std::thread::yield_now();
        assert_eq!(store.get("mine").unwrap().1, bytes(5000, seed + round));
        assert_eq!(store.used(), length_of_files(store.directory()));
        store.close().unwrap();
    }
}

#[test]
fn processes_share_a_directory() {
    if let Some((role, place)) = role() {
        return open_and_close(&role, &place);
    }
    let folder = tempfile::tempdir().unwrap();
    let children =
        ["x", "xx", "xxx", "xxxx"].map(|role| spawn("processes_share_a_directory", role, folder.path()));
    open_and_close("", folder.path());
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "something stays behind");
}
