//! `kill -9` while windows are written: what is there is whole, and what was answered is there.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dd_core::DType;
use dd_infinite::zarr::{Flush, ZarrOptions, ZarrTileStore};
use dd_infinite::{Manifest, TileStore};

use crate::{holds, indices, manifest, window};

/// Names the folder that the writer is to write to.
const WRITER: &str = "DD_ZARR_WRITER";

/// How many writers are killed.
const KILLS: u64 = 200;

fn made() -> Manifest {
    manifest(&[48, 48], DType::F32, 2)
}

fn open(place: &Path) -> ZarrTileStore {
    // A power cut is not what is tested, so nothing waits for the disk: more is written between two kills.
    let options = ZarrOptions { flush: Flush::OnSync, inner: Some(vec![24, 48]), ..ZarrOptions::default() };
    ZarrTileStore::open(place, options).unwrap()
}

/// No test by itself: the program that is killed. It writes windows from two threads until it ends, and says so of each
/// that is stored.
#[test]
#[allow(clippy::print_stdout, reason = "the parent reads it")]
fn writer() {
    let Some(place) = std::env::var_os(WRITER) else { return };
    let store = open(Path::new(&place));
    store.create("t", &made()).unwrap();
    let start = i64::from(std::process::id()) % 1000 * 1000;
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let store = &store;
            scope.spawn(move || {
                for n in 0..i64::MAX {
                    let index = [start + n / 3, if thread == 0 { n % 3 } else { -1 - n % 3 }];
                    store.put("t", &index, &window(&made(), &index)).unwrap();
                    println!("put {} {}", index[0], index[1]);
                }
            });
        }
    });
}

fn start(place: &Path) -> Child {
    let mut writer = Command::new(std::env::current_exe().unwrap());
    writer.args(["--exact", "kill::writer", "--nocapture", "--test-threads=1"]).env(WRITER, place);
    writer.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// Kills a writer after it said so many windows and then so many microseconds; what it had said by then.
fn kill(place: &Path, windows: u64, then: u64) -> Vec<[i64; 2]> {
    let mut child = start(place);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = Vec::new();
    let mut note = |line: String| {
        let numbers = line.split_once("put ").map(|(_, numbers)| numbers.split(' ').map(str::parse));
        let index: Option<Vec<i64>> = numbers.and_then(|numbers| numbers.collect::<Result<_, _>>().ok());
        if let Some(&[a, b]) = index.as_deref() {
            said.push([a, b]);
        }
        said.len() as u64
    };
    while note(lines.next().expect("the writer goes on until it is killed").unwrap()) < windows {}
    std::thread::sleep(Duration::from_micros(then)); // Only where it is killed depends on this.
    child.kill().unwrap();
    child.wait().unwrap();
    let mut rest: Vec<String> = lines.map_while(Result::ok).collect();
    rest.pop(); // It may be cut.
    rest.into_iter().for_each(|line| {
        note(line);
    });
    said
}

#[test]
fn a_killed_program_leaves_whole_windows_only() {
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let place = tempfile::tempdir().unwrap();
    let (mut all, mut drafts) = (0, 0);
    for round in 0..KILLS {
        let said = kill(place.path(), 1 + next(6), next(2000));
        drafts += drafts_in(place.path());
        let store = open(place.path());
        assert_eq!(drafts_in(place.path()), 0, "round {round}: the next start removes what was left");
        let stored = indices(&store, "t");
        assert!(stored.iter().all(|index| holds(&store, "t", &made(), index)), "round {round}");
        let kept = said.iter().all(|index| stored.binary_search(&index.to_vec()).is_ok());
        assert!(kept, "round {round}: a window that was answered is gone");
        all += stored.len();
        if round % 20 == 19 {
            assert!(store.remove_tensor("t").unwrap()); // Else every round reads more.
        }
    }
    assert!(
        all > 0 && drafts > 0,
        "no writer was killed in the middle of a window: {all} windows, {drafts} drafts"
    );
}

fn drafts_in(place: &Path) -> usize {
    let entries = std::fs::read_dir(place).unwrap().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(".new-")).count()
}
