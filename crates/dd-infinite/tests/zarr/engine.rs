//! The engine over a store on disk: what is there is not computed again, whoever wrote it, also when that was killed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use dd_core::{Backend as _, Budget, Bytes, DType, HostBackend, HostTensor, TensorDesc, Tier};
use dd_infinite::zarr::{Flush, ZarrOptions, ZarrTileStore};
use dd_infinite::{
    Context, Engine, Error, FunctionError, InfiniteTensor, TensorSpec, TensorWindow, TileStore, Tiles,
};

use crate::{indices, mix};

/// Names the folder that the program that is killed is to compute into.
const COMPUTER: &str = "DD_ZARR_COMPUTER";

/// The side of the region that is read.
const SIDE: i64 = 160;

type Tensor = InfiniteTensor<HostBackend>;

fn upload(at: &Context, value: impl Fn(usize) -> f32) -> Result<HostTensor, FunctionError> {
    let desc = TensorDesc::new(at.region().shape()?.as_slice(), DType::F32)?;
    let count = desc.elements() as usize;
    let bytes: Vec<u8> = (0..count).flat_map(|n| value(n).to_le_bytes()).collect();
    Ok(HostBackend::default().upload(&desc, &bytes, Tier::Host)?)
}

/// Overlapping windows, and a layer of sums of neighbours on top of them.
fn pipeline(store: Option<Arc<dyn TileStore>>, version: &str) -> Result<(Tensor, Tensor), Error> {
    let engine = Engine::new(HostBackend::default(), 2)?;
    let budget = Budget::new("test", Bytes::mib(8));
    let tiles = match store {
        None => Tiles::in_memory(&engine, budget),
        Some(store) => Tiles::with_store(&engine, budget, store),
    };
    let window = TensorWindow::new([24, 24])?.with_stride([16, 16])?.with_offset([-4, 4])?;
    let spec = TensorSpec::new("below", [None, None], window).version(version);
    let below = tiles.get_or_create(spec, |at, _| {
        let salt = at.index().iter().fold(1, |salt, i| mix(salt ^ i.cast_unsigned()));
        upload(at, |n| (mix(salt.wrapping_add(n as u64)) >> 40) as f32)
    })?;
    let around = TensorWindow::new([18, 18])?.with_stride([16, 16])?.with_offset([-1, -1])?;
    let spec = TensorSpec::new("above", [None, None], TensorWindow::new([16, 16])?).arg(&below, around);
    let above = tiles.get_or_create(spec, |at, args| {
        let source: Vec<f32> =
            args[0].bytes().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        upload(at, |n| {
            let (y, x) = (n / 16 + 1, n % 16 + 1);
            source[y * 18 + x] + source[(y - 1) * 18 + x] + source[y * 18 + x + 1]
        })
    })?;
    Ok((below, above))
}

fn open(place: &Path) -> Arc<dyn TileStore> {
    let options = ZarrOptions { flush: Flush::OnSync, ..ZarrOptions::default() };
    Arc::new(ZarrTileStore::open(place, options).unwrap())
}

fn read(tensor: &Tensor) -> Vec<u8> {
    tensor.read(&[(-SIDE / 2..SIDE / 2).into(), (-SIDE / 2..SIDE / 2).into()]).unwrap().bytes
}

#[test]
fn a_reopened_store_gives_the_same_bits_and_computes_nothing() {
    let place = tempfile::tempdir().unwrap();
    let expected = read(&pipeline(None, "1").unwrap().1);
    let (below, above) = pipeline(Some(open(place.path())), "1").unwrap();
    assert_eq!(read(&above), expected);
    assert_eq!((below.computed(), above.computed()), (132, 100));
    let (below, above) = pipeline(Some(open(place.path())), "1").unwrap();
    assert_eq!(read(&above), expected);
    assert_eq!((below.computed(), above.computed()), (0, 0));
    // One window of each is taken away: these two are computed again, and nothing else is.
    let store = open(place.path());
    assert!(store.remove("above", &[0, -2]).unwrap() && store.remove("below", &[0, -2]).unwrap());
    let (below, above) = pipeline(Some(store), "1").unwrap();
    assert_eq!(read(&above), expected);
    assert_eq!((below.computed(), above.computed()), (1, 1));
}

#[test]
fn another_configuration_is_refused_by_name() {
    let place = tempfile::tempdir().unwrap();
    pipeline(Some(open(place.path())), "1").unwrap();
    let error = pipeline(Some(open(place.path())), "2").map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Conflict { field, .. } if field == "version"), "{error}");
}

#[test]
fn a_corrupt_window_reaches_the_reader_and_its_removal_heals_it() {
    let place = tempfile::tempdir().unwrap();
    let (_, above) = pipeline(Some(open(place.path())), "1").unwrap();
    let expected = read(&above);
    let chunk = place.path().join("above/c.2.3.0.0");
    let good = std::fs::read(&chunk).unwrap();
    std::fs::write(&chunk, &good[..good.len() / 2]).unwrap();
    let store = open(place.path());
    let (_, above) = pipeline(Some(Arc::clone(&store)), "1").unwrap();
    let error = above.read(&[(0..32).into(), (-32..0).into()]).unwrap_err();
    assert!(matches!(&error, Error::Corrupt { index, .. } if *index == [1, -2]), "{error}");
    assert!(store.remove("above", &[1, -2]).unwrap());
    assert_eq!(read(&above), expected);
    assert_eq!(std::fs::read(&chunk).unwrap(), good);
}

/// No test by itself: the program that is killed while it computes.
#[test]
fn computer() {
    let Some(place) = std::env::var_os(COMPUTER) else { return };
    let (_, above) = pipeline(Some(open(Path::new(&place))), "1").unwrap();
    read(&above);
}

#[test]
fn what_a_killed_program_stored_is_not_computed_again() {
    let expected = read(&pipeline(None, "1").unwrap().1);
    for after in [1, 3, 40, 120, 180] {
        let place = tempfile::tempdir().unwrap();
        let mut computer = Command::new(std::env::current_exe().unwrap());
        computer.args(["--exact", "engine::computer"]).env(COMPUTER, place.path());
        let mut computer = computer.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while computer.try_wait().unwrap().is_none() && chunks(place.path()) < after {
            std::thread::yield_now();
        }
        let _it_may_have_ended = computer.kill();
        computer.wait().unwrap();
        let store = open(place.path());
        let count = |id: &str| indices(&*store, id).len() as u64;
        let (there_below, there_above) = (count("below"), count("above"));
        assert!(there_below + there_above >= after as u64);
        let (below, above) = pipeline(Some(Arc::clone(&store)), "1").unwrap();
        assert_eq!(read(&above), expected, "after {after} windows");
        assert_eq!(above.computed(), 100 - there_above, "after {after} windows");
        assert!(below.computed() <= 132 - there_below, "after {after} windows");
    }
}

fn chunks(place: &Path) -> usize {
    let of = |id: &str| {
        let entries = std::fs::read_dir(place.join(id)).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("c.")).count()
    };
    of("below") + of("above")
}
