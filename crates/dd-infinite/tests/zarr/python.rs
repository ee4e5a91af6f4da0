//! What other programs read: every window through zarr-python and through tensorstore, bit by bit. Runs where
//! `cargo xtask bench --peers` or `cargo xtask peers` has made their environment, or where `python3` has zarr.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use dd_core::DType;
use dd_infinite::TileStore;
use dd_infinite::zarr::{ZarrOptions, ZarrTileStore};

use crate::{indices, manifest, window};

/// Writes each window of the list as the raw bytes of what it reads, once with each library.
const READER: &str = r#"
import json, sys, numpy, zarr
root, out = sys.argv[1], sys.argv[2]
group = zarr.open_group(root, mode="r")
try:
    import tensorstore
except ImportError:
    tensorstore = None
for n, (folder, position) in enumerate(json.load(sys.stdin)):
    at = tuple(position)
    window = numpy.asarray(group[folder][at])
    open(f"{out}/{n}.zarr", "wb").write(numpy.ascontiguousarray(window).tobytes())
    if tensorstore:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{root}/{folder}"}}
        window = tensorstore.open(spec, read=True).result()[at].read().result()
        open(f"{out}/{n}.tensorstore", "wb").write(numpy.ascontiguousarray(window).tobytes())
print(zarr.__version__, tensorstore.__version__ if hasattr(tensorstore, "__version__") else tensorstore is not None)
"#;

/// An interpreter that has zarr.
fn python() -> Option<PathBuf> {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let ours = ["peers-zarr", "peers"].map(|name| target.with_file_name(name).join("bin/python"));
    let named = std::env::var_os("DD_PEERS_PYTHON").map(PathBuf::from);
    let mut candidates = named.into_iter().chain(ours).chain([PathBuf::from("python3")]);
    candidates.find(|python| {
        let found = Command::new(python).args(["-c", "import zarr; assert zarr.__version__ >= '3'"]).output();
        found.is_ok_and(|output| output.status.success())
    })
}

/// The scheme of the module's documentation, written again from its words.
fn place(id: &str, index: &[i64]) -> (String, Vec<u64>) {
    let z = |i: &i64| if *i >= 0 { 2 * (*i as u64) } else { (-2 * i128::from(*i) - 1) as u64 };
    if index.iter().all(|i| (-(1 << 51)..1 << 51).contains(i)) {
        return (id.to_owned(), index.iter().map(z).collect());
    }
    (format!("{id}=far"), index.iter().map(z).flat_map(|z| [z >> 32, z & 0xffff_ffff]).collect())
}

#[test]
fn every_window_reads_back_through_zarr_python_and_tensorstore() {
    let Some(python) = python() else {
        dd_conformance::skipped!(
            "no Python with zarr (`cargo xtask peers` makes one): that stored windows read back through zarr-python"
        );
        return;
    };
    let place_of_store = tempfile::tempdir().unwrap();
    let root = place_of_store.path().join("store");
    let mut expected = Vec::new();
    let kinds: [(&str, &[usize], DType, usize, Option<Vec<usize>>); 8] = [
        ("plain", &[32, 48], DType::F32, 2, None),
        ("sharded", &[32, 48], DType::F32, 2, Some(vec![8, 24])),
        ("channels", &[3, 16, 16], DType::U8, 2, Some(vec![1, 16, 16])),
        ("bf16", &[8, 8], DType::BF16, 2, None),
        ("f16", &[8, 8], DType::F16, 1, None),
        ("bool", &[40], DType::Bool, 1, None),
        ("quantised", &[2, 256], DType::Q4K, 1, None),
        ("wide", &[4, 4], DType::I64, 3, Some(vec![2, 4])),
    ];
    for (id, shape, dtype, rank, inner) in kinds {
        let store = ZarrTileStore::open(&root, ZarrOptions { inner, ..ZarrOptions::default() }).unwrap();
        let made = manifest(shape, dtype, rank);
        store.create(id, &made).unwrap();
        for n in -3i64..4 {
            let index: Vec<i64> = (0..rank).map(|dim| n * (7 - 4 * dim as i64)).collect();
            store.put(id, &index, &window(&made, &index)).unwrap();
        }
        store.put(id, &vec![i64::MIN; rank], &window(&made, &vec![i64::MIN; rank])).unwrap();
        for index in indices(&store, id) {
            expected.push((place(id, &index), window(&made, &index)));
        }
    }
    let out = place_of_store.path().join("out");
    fs::create_dir(&out).unwrap();
    let list: Vec<_> = expected.iter().map(|(place, _)| place).collect();
    let input = place_of_store.path().join("list.json");
    fs::write(&input, serde_json::to_vec(&list).unwrap()).unwrap();
    let mut reader = Command::new(&python);
    reader.args(["-W", "ignore", "-c", READER]).args([&root, &out]).stdin(fs::File::open(&input).unwrap());
    let output = reader.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tensorstore = !String::from_utf8_lossy(&output.stdout).trim().ends_with("False");
    if !tensorstore {
        dd_conformance::skipped!(
            "this Python has zarr and no tensorstore: that windows read back through it"
        );
    }
    for (n, ((folder, at), bytes)) in expected.iter().enumerate() {
        let read = |library: &str| fs::read(out.join(format!("{n}.{library}"))).unwrap();
        assert!(read("zarr") == *bytes, "zarr-python reads {folder}{at:?} differently");
        assert!(
            !tensorstore || read("tensorstore") == *bytes,
            "tensorstore reads {folder}{at:?} differently"
        );
    }
}
