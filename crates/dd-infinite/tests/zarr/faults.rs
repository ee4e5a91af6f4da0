//! What happens when things break: corrupt chunks, foreign files, a full disk. Typed errors, and nothing else lost.

use std::fs;
use std::path::Path;
use std::process::Command;

use dd_core::DType;
use dd_infinite::zarr::{ZarrOptions, ZarrTileStore};
use dd_infinite::{Error, TileStore};

use crate::{holds, indices, manifest, window};

fn open(place: &Path) -> ZarrTileStore {
    ZarrTileStore::open(place, ZarrOptions::default()).unwrap()
}

fn is_corrupt(error: &Error, index: &[i64]) -> bool {
    matches!(error, Error::Corrupt { tensor, index: found, .. } if tensor == "t" && found == index)
}

#[test]
fn a_corrupt_chunk_is_told_and_costs_nothing_else() {
    for inner in [None, Some(vec![8, 16])] {
        let place = tempfile::tempdir().unwrap();
        let store =
            ZarrTileStore::open(place.path(), ZarrOptions { inner, ..ZarrOptions::default() }).unwrap();
        let made = manifest(&[16, 16], DType::F32, 2);
        store.create("t", &made).unwrap();
        for index in [[0, 0], [1, -1]] {
            store.put("t", &index, &window(&made, &index)).unwrap();
        }
        let chunk = place.path().join("t/c.2.1.0.0");
        let good = fs::read(&chunk).unwrap();
        let mut out = vec![0; 1024];
        let mut refused = |bytes: &[u8], what: &str| {
            fs::write(&chunk, bytes).unwrap();
            let error = store.get("t", &[1, -1], &mut out).expect_err(what);
            assert!(is_corrupt(&error, &[1, -1]), "{what}: {error}");
        };
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            refused(&bad, &format!("bit {at} flipped"));
        }
        for length in [0, 1, 3, 4, 5, good.len() / 2, good.len() - 1] {
            refused(&good[..length], &format!("cut to {length}"));
        }
        refused(&[good.as_slice(), &good].concat(), "twice");
        refused(&vec![7; 1 << 20], "longer than any chunk");
        // A frame that says it holds a terabyte, with a checksum that is right.
        let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
        bomb.extend_from_slice(&(1u64 << 40).to_le_bytes());
        bomb.extend_from_slice(&[1, 0, 0]);
        bomb.extend_from_slice(&crc32c(&bomb).to_le_bytes());
        refused(&bomb, "a promise of a terabyte");

        assert!(holds(&store, "t", &made, &[0, 0]), "the other window is as it was");
        assert!(store.verify().unwrap().tensors[0].corrupt.iter().map(|found| &found.0).eq([&[1, -1]]));
        assert!(store.remove("t", &[1, -1]).unwrap());
        store.put("t", &[1, -1], &window(&made, &[1, -1])).unwrap();
        assert!(holds(&store, "t", &made, &[1, -1]));
        assert!(store.verify().unwrap().tensors[0].corrupt.is_empty());
    }
}

/// The checksum of RFC 3720, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[test]
fn a_corrupt_description_is_told_by_who_asks_for_it() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let made = manifest(&[4], DType::F32, 1);
    for id in ["t", "u"] {
        store.create(id, &made).unwrap();
        store.put(id, &[3], &window(&made, &[3])).unwrap();
    }
    drop(store);
    let file = place.path().join("t/zarr.json");
    let good = fs::read_to_string(&file).unwrap();
    let bad = [
        "".to_owned(),
        "{}".to_owned(),
        good.replace("\"seed\":-7", "\"seed\":-8"),
        good.replace("\"shape\":[4]", "\"shape\":[1152921504606846976]"),
        good.replace("float32", "float64"),
        "[".repeat(100_000),
    ];
    for text in bad {
        assert_ne!(text, good);
        fs::write(&file, &text).unwrap();
        let store = open(place.path());
        let errors = [
            store.manifest("t").unwrap_err(),
            store.create("t", &made).unwrap_err(),
            store.get("t", &[3], &mut [0; 16]).unwrap_err(),
            store.put("t", &[4], &[0; 16]).unwrap_err(),
        ];
        assert!(errors.iter().all(|error| is_corrupt(error, &[])), "{errors:?}");
        assert_eq!(store.tensors().unwrap(), ["u"]);
        assert!(holds(&store, "u", &made, &[3]));
    }
    fs::write(&file, good).unwrap();
    assert!(holds(&open(place.path()), "t", &made, &[3]));
}

#[test]
fn what_is_not_the_stores_stays() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let made = manifest(&[4], DType::F32, 1);
    store.create("t", &made).unwrap();
    store.put("t", &[3], &window(&made, &[3])).unwrap();
    let foreign = ["notes.txt", "t/c.x", "t/c.1.0.0", "t/c.01.0", "other/zarr.json", "t/sub/c.0.0"];
    for name in foreign {
        let path = place.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "theirs").unwrap();
    }
    let store = open(place.path());
    assert_eq!(store.tensors().unwrap(), ["t"]);
    assert_eq!(indices(&store, "t"), [[3]]);
    assert!(store.remove_tensor("t").unwrap());
    for name in foreign {
        assert_eq!(fs::read_to_string(place.path().join(name)).unwrap(), "theirs", "{name}");
    }
    assert!(!place.path().join("t/zarr.json").exists());
    assert!(store.create("t", &made).unwrap().is_none());
}

#[test]
fn chunks_that_lost_their_description_are_never_taken_for_another_tensors() {
    let place = tempfile::tempdir().unwrap();
    let (old, new) = (manifest(&[4], DType::F32, 1), manifest(&[4], DType::I32, 1));
    let store = open(place.path());
    store.create("t", &old).unwrap();
    store.put("t", &[3], &window(&old, &[3])).unwrap();
    fs::remove_file(place.path().join("t/zarr.json")).unwrap();
    let store = open(place.path());
    assert!(store.manifest("t").unwrap().is_none());
    assert!(store.create("t", &new).unwrap().is_none());
    assert!(indices(&store, "t").is_empty());
}

#[test]
fn folders_that_are_no_store_are_refused_untouched() {
    let place = tempfile::tempdir().unwrap();
    let rows = [
        (Some(("notes.txt", "mine")), "lacks zarr.json"),
        (Some(("zarr.json", "{\"zarr_format\":3,\"node_type\":\"group\"}")), "not a tile store"),
        (Some(("zarr.json", "no json")), "no JSON"),
    ];
    for (n, (file, says)) in rows.into_iter().enumerate() {
        let folder = place.path().join(n.to_string());
        fs::create_dir(&folder).unwrap();
        let (name, text) = file.unwrap();
        fs::write(folder.join(name), text).unwrap();
        let error = ZarrTileStore::open(&folder, ZarrOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }) && error.to_string().contains(says), "{error}");
        assert_eq!(fs::read_to_string(folder.join(name)).unwrap(), text);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
    let absent = place.path().join("absent");
    assert!(ZarrTileStore::open_existing(&absent, ZarrOptions::default()).is_err() && !absent.exists());
    for level in [0, 10, -1] {
        let options = ZarrOptions { level, ..ZarrOptions::default() };
        assert!(ZarrTileStore::open(&absent, options).unwrap_err().to_string().contains("level"));
    }
}

#[test]
fn windows_that_cannot_be_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let error = store.create("t", &manifest(&[2, 0], DType::F32, 1)).unwrap_err();
    assert!(matches!(error, Error::Spec { .. }), "{error}");
    store.create("t", &manifest(&[2], DType::F32, 1)).unwrap();
    for index in [&[][..], &[1, 2]] {
        assert!(matches!(store.put("t", index, &[0; 8]).unwrap_err(), Error::Spec { .. }));
        assert!(matches!(store.get("t", index, &mut [0; 8]).unwrap_err(), Error::Spec { .. }));
    }
}

/// A file system of 512 KiB, for as long as this lives.
struct Tiny(tempfile::TempDir);

impl Tiny {
    fn mount() -> Result<Self, String> {
        let place = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=512k", "tmpfs"]).arg(place.path());
        let output = mount.output().map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(Self(place)) } else { Err(said) }
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _said = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_loses_nothing() {
    let tiny = match Tiny::mount() {
        Ok(tiny) => tiny,
        Err(reason) => {
            dd_conformance::skipped!("no small file system can be mounted to fill it with tiles: {reason}");
            return;
        }
    };
    let store = open(tiny.0.path());
    let made = manifest(&[128, 128], DType::F32, 1);
    store.create("t", &made).unwrap();
    let put = |n: i64| store.put("t", &[n], &window(&made, &[n]));
    let stored = (0..64).take_while(|n| put(*n).is_ok()).count() as i64;
    assert!((2..20).contains(&stored), "{stored}");
    for _ in 0..3 {
        let error = put(stored).unwrap_err();
        assert!(matches!(&error, Error::Full { tensor, .. } if tensor == "t"), "{error}");
        assert!(!store.contains("t", &[stored]).unwrap());
    }
    let drafts = fs::read_dir(tiny.0.path()).unwrap().flatten();
    assert_eq!(drafts.filter(|entry| entry.file_name().to_string_lossy().starts_with(".new-")).count(), 0);
    assert!((0..stored).all(|n| holds(&store, "t", &made, &[n])), "what was there is there");
    assert!(store.remove("t", &[0]).unwrap());
    put(stored).unwrap();
    assert!(holds(&store, "t", &made, &[stored]));
}
