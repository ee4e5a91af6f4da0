//! Packed files: what went in comes out to the byte; where chunks are; what hostile files and full disks do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dd_core::{Budget, Bytes, DType};
use dd_offload::checkpoint::Checkpoint;
use dd_pager::convert;
use dd_pager::packed::{Decoder, Encoder, PackOptions, PackReport, PackedCheckpoint, pack, unpack};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};

const CHUNK: usize = 4096;

type Tensor = (&'static str, Dtype, Vec<usize>, Vec<u8>);

/// Reproducible bits.
fn bits(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

/// Values much like weights: sums of uniform ones.
fn weights(count: usize, seed: u64) -> Vec<f32> {
    let mut next = bits(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut uniform = move || (next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
    (0..count).map(|_| (0..6).map(|_| uniform()).sum::<f32>() * 0.03).collect()
}

fn bf16s(count: usize) -> Vec<u8> {
    weights(count, 3).into_iter().flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect()
}

/// A model with a tensor of every kind; the packed ones end within a chunk, with it, and just after it.
fn model() -> Vec<Tensor> {
    let f16s = weights(9000, 4).into_iter().flat_map(|value| f16::from_f32(value).to_le_bytes()).collect();
    let f32s = weights(5001, 5).into_iter().flat_map(f32::to_le_bytes).collect();
    let mut next = bits(9);
    let noise = (0..2048).flat_map(|_| next().to_le_bytes()).collect();
    vec![
        ("a.long.bf16", Dtype::BF16, vec![100, 123], bf16s(12_300)),
        ("b.whole.bf16", Dtype::BF16, vec![2, CHUNK], bf16s(2 * CHUNK)),
        ("c.one.over", Dtype::BF16, vec![1, CHUNK / 2 + 1], bf16s(CHUNK / 2 + 1)),
        ("d.tiny.bf16", Dtype::BF16, vec![3], bf16s(3)),
        ("e.f16", Dtype::F16, vec![9000], f16s),
        ("f.f32", Dtype::F32, vec![3, 1667], f32s),
        ("g.noise", Dtype::BF16, vec![8192], noise),
        ("h.ids", Dtype::I64, vec![512], (0..512i64).flat_map(i64::to_le_bytes).collect()),
        ("i.bytes", Dtype::U8, vec![777], vec![5; 777]),
        ("j.scalar", Dtype::F32, vec![], 1.5f32.to_le_bytes().to_vec()),
        ("k.empty", Dtype::F32, vec![0, 5], vec![]),
        ("k.f8", Dtype::F8_E4M3, vec![5, 5], vec![9; 25]),
        ("k.f8s", Dtype::F8_E8M0, vec![5], vec![9; 5]),
        ("k.f4", Dtype::F4, vec![6], vec![9; 3]),
        ("k.bool", Dtype::BOOL, vec![2], vec![0, 1]),
        ("k.u16", Dtype::U16, vec![1], vec![7, 1]),
        ("k.f64", Dtype::F64, vec![1], vec![1; 8]),
        ("l.zero", Dtype::F32, vec![4000], vec![0; 16_000]),
    ]
}

fn write(path: &Path, tensors: &[Tensor], metadata: &[(&str, &str)]) {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let metadata: HashMap<_, _> = metadata.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    let metadata = (!metadata.is_empty()).then_some(metadata);
    safetensors::serialize_to_file(views, metadata, path).unwrap();
}

fn options() -> PackOptions {
    PackOptions { chunk: CHUNK, ..PackOptions::default() }
}

fn packed(source: &Path, out: &Path) -> (PackReport, PackedCheckpoint) {
    let mut told = 0;
    let source = Checkpoint::open(source).unwrap();
    let report = pack(&source, out, &options(), &mut |bytes| told += bytes).unwrap();
    assert_eq!(Bytes(told), source.total_bytes(), "progress");
    (report, PackedCheckpoint::open(out).unwrap())
}

/// Every tensor of the packed model, as it is and widened, against the source.
fn holds_the_same(source: &Path, packed: &PackedCheckpoint) {
    let source = Checkpoint::open(source).unwrap();
    let mut decoder = Decoder::new(packed.chunk()).unwrap();
    let mut scratch = Vec::new();
    assert_eq!(packed.tensors().len(), source.len());
    for (name, location) in source.tensors() {
        assert_eq!(packed.tensor(name).unwrap().desc(), &location.desc, "{name}");
        let mut raw = vec![0; location.desc.len_in_memory().unwrap()];
        source.read_into(name, &mut raw).unwrap();
        let from = location.desc.dtype();
        for to in [from, DType::F32] {
            let Ok(len) = convert::widened(from, to, Bytes::of(raw.len())) else { continue };
            let (mut out, mut expected) =
                (vec![1; len.to_usize().unwrap()], vec![2; len.to_usize().unwrap()]);
            packed.read_into(name, to, &mut decoder, &mut scratch, &mut out).unwrap();
            convert::widen(from, to, &raw, &mut expected).unwrap();
            assert!(out == expected, "{name} as {to}");
        }
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[test]
fn one_file_comes_back_to_the_byte() {
    let folder = tempfile::tempdir().unwrap();
    let [source, out, back] =
        ["source.safetensors", "packed.safetensors", "back.safetensors"].map(|name| folder.path().join(name));
    write(&source, &model(), &[("format", "pt"), ("note", "\"quoted\" ÿ\n")]);
    let (report, packed) = packed(&source, &out);
    assert_eq!(report.file_bytes.0, fs::metadata(&out).unwrap().len());
    assert!(report.ratio() > 1.2 && report.encode_speed().is_some() && report.decode_speed().is_some());
    let kinds: Vec<_> =
        report.tensors.iter().filter(|tensor| tensor.packed).map(|t| t.name.as_str()).collect();
    let mut expected = vec!["a.long.bf16", "b.whole.bf16", "c.one.over", "e.f16", "f.f32", "l.zero"];
    expected.sort_by_key(|name| report.tensors.iter().position(|tensor| tensor.name == *name));
    assert_eq!(kinds, expected);
    for tensor in &report.tensors {
        let found = packed.tensor(&tensor.name).unwrap();
        assert_eq!(
            (found.stored_bytes(), found.is_packed()),
            (tensor.stored, tensor.packed),
            "{}",
            tensor.name
        );
        assert_eq!(tensor.stored.0 % 64, tensor.desc.bytes().0 % 64, "{}: alignment", tensor.name);
    }
    holds_the_same(&source, &packed);
    for (to, measured) in [(None, true), (Some(DType::F32), true), (Some(DType::I64), false)] {
        let speed = packed.decode_speed(to).unwrap();
        assert_eq!(speed.is_some_and(|speed| speed > 0.0), measured, "{to:?}: {speed:?}");
    }
    let mut told = 0;
    let total = unpack(&packed, &back, &Budget::unlimited("test"), &mut |bytes| told += bytes).unwrap();
    assert_eq!((total, told), (report.raw(), report.raw().0));
    assert!(fs::read(&back).unwrap() == fs::read(&source).unwrap());
    assert_eq!(entries(folder.path()), ["back.safetensors", "packed.safetensors", "source.safetensors"]);
}

#[test]
fn several_files_come_back_to_the_byte() {
    let folder = tempfile::tempdir().unwrap();
    let [source, out, back] = ["source", "packed", "back"].map(|name| folder.path().join(name));
    fs::create_dir(&source).unwrap();
    fs::create_dir(&out).unwrap(); // An empty folder is as good as none.
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let (first, second) = (model(), model().split_off(5));
    let second: Vec<Tensor> =
        second.into_iter().map(|(name, d, s, b)| (&*format!("z{name}").leak(), d, s, b)).collect();
    write(&source.join(names[0]), &first, &[]);
    write(&source.join(names[1]), &second, &[("format", "pt")]);
    let map: HashMap<&str, &str> = first
        .iter()
        .map(|tensor| (tensor.0, names[0]))
        .chain(second.iter().map(|tensor| (tensor.0, names[1])))
        .collect();
    let index = serde_json::json!({ "weight_map": map }).to_string();
    fs::write(source.join("model.safetensors.index.json"), index).unwrap();
    let (_, packed) = packed(&source, &out);
    holds_the_same(&source, &packed);
    unpack(&packed, &back, &Budget::unlimited("test"), &mut |_| {}).unwrap();
    for name in names {
        assert!(fs::read(back.join(name)).unwrap() == fs::read(source.join(name)).unwrap(), "{name}");
    }
    assert_eq!(Checkpoint::open(&back).unwrap().len(), first.len() + second.len());
    assert_eq!(entries(folder.path()), ["back", "packed", "source"]);
}

#[test]
fn an_empty_model_and_a_folder_for_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source.safetensors");
    write(&source, &[], &[]);
    let (report, packed) = packed(&source, &folder.path().join("packed"));
    assert_eq!((report.raw(), report.ratio(), report.decode_speed()), (Bytes::ZERO, 1.0, None));
    let back = folder.path().join("back.safetensors");
    unpack(&packed, &back, &Budget::unlimited("test"), &mut |_| {}).unwrap();
    assert!(fs::read(&back).unwrap() == fs::read(&source).unwrap());
    assert_eq!(entries(&folder.path().join("packed")), ["source.safetensors"]);
}

#[test]
fn chunks_cover_any_range_without_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source.safetensors");
    write(&source, &model(), &[]);
    let (_, packed) = packed(&source, &folder.path().join("packed.safetensors"));
    let size = CHUNK as u64;
    for (name, tensor) in packed.tensors() {
        let raw = tensor.raw_bytes().0;
        let ranges =
            [0..raw, 0..1, 1..2, size..2 * size, size - 1..size + 1, raw..raw + 1, 5..5, 9..u64::MAX];
        for range in ranges {
            let chunks: Vec<_> = tensor.chunks(range.clone()).collect();
            let wanted = range.start..range.end.min(raw);
            if wanted.is_empty() {
                assert!(chunks.is_empty(), "{name} {range:?}");
                continue;
            }
            assert_eq!(chunks[0].raw.start, wanted.start / size * size, "{name} {range:?}");
            assert!(chunks[chunks.len() - 1].raw.end >= wanted.end, "{name} {range:?}");
            for pair in chunks.windows(2) {
                assert_eq!(pair[0].raw.end, pair[1].raw.start, "{name} {range:?}");
                assert_eq!(pair[0].offset + pair[0].len as u64, pair[1].offset, "{name} {range:?}");
            }
            assert!(chunks.iter().all(|chunk| chunk.key.is_some() == tensor.is_packed()), "{name}");
        }
    }
}

#[test]
fn requests_that_cannot_be_meant_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write(&at("one.safetensors"), &model(), &[]);
    write(&at("two.safetensors"), &[("other", Dtype::U8, vec![1], vec![1])], &[]);
    fs::create_dir(at("full")).unwrap();
    fs::write(at("full/file"), "x").unwrap();
    let one = Checkpoint::open(at("one.safetensors")).unwrap();
    let both = Checkpoint::from_files(&[at("one.safetensors"), at("two.safetensors")]).unwrap();
    packed(&at("one.safetensors"), &at("packed.safetensors"));
    let packed = Checkpoint::open(at("packed.safetensors")).unwrap();
    let before = entries(folder.path());
    let small = PackOptions { budget: Budget::new("small", Bytes::kib(100)), ..options() };
    let odd = PackOptions { chunk: 5000, ..options() };
    let rows: [(&Checkpoint, PathBuf, PackOptions, &str); 8] = [
        (&both, at("out.safetensors"), options(), "folder"),
        (&one, at("two.safetensors"), options(), "nothing is yet"),
        (&one, at("full"), options(), "nothing is yet"),
        (&one, at(".."), options(), "without one"),
        (&one, at("no/such/folder.safetensors"), options(), "no/such"),
        (&packed, at("out.safetensors"), options(), "not packed yet"),
        (&one, at("out.safetensors"), small, "out of memory"),
        (&one, at("out"), odd, "power of two"),
    ];
    for (source, out, options, says) in rows {
        let error = pack(source, &out, &options, &mut |_| {}).expect_err(says).to_string();
        assert!(error.contains(says), "{says}: {error}");
        assert_eq!(entries(folder.path()), before, "{says}");
    }
    assert!(!PackedCheckpoint::is_packed(&one).unwrap() && PackedCheckpoint::is_packed(&packed).unwrap());
    let error = PackedCheckpoint::of(one).unwrap_err().to_string();
    assert!(error.contains("no packed file"), "{error}");
}

#[test]
fn a_flipped_bit_anywhere_is_found_or_does_nothing() {
    const STEP: usize = 11; // Every bit of a byte has its turn.
    let folder = tempfile::tempdir().unwrap();
    let [source, out, changed] =
        ["source.safetensors", "packed.safetensors", "changed.safetensors"].map(|n| folder.path().join(n));
    let tensors = [
        ("weight", Dtype::BF16, vec![3, 1025], bf16s(3075)),
        ("zero", Dtype::F32, vec![4096], vec![0; 16384]),
    ];
    write(&source, &tensors, &[("format", "pt")]);
    packed(&source, &out);
    let mut bytes = fs::read(&out).unwrap();
    let reads = |path: &Path| -> dd_pager::Result<Vec<u8>> {
        let packed = PackedCheckpoint::open(path)?;
        let (mut decoder, mut scratch) = (Decoder::new(packed.chunk())?, Vec::new());
        let mut weight = vec![0; 6150];
        packed.read_into("weight", DType::BF16, &mut decoder, &mut scratch, &mut weight)?;
        let mut zero = vec![1; 16384];
        packed.read_into("zero", DType::F32, &mut decoder, &mut scratch, &mut zero)?;
        Ok([weight, zero].concat())
    };
    let (expected, mut found) = (reads(&out).unwrap(), 0);
    for at in (0..bytes.len()).step_by(STEP) {
        bytes[at] ^= 1 << (at % 8);
        fs::write(&changed, &bytes).unwrap();
        match reads(&changed) {
            Ok(read) => assert!(read == expected, "byte {at} changed what is read, unnoticed"),
            Err(_) => found += 1,
        }
        bytes[at] ^= 1 << (at % 8);
    }
    assert!(found * STEP > bytes.len() * 3 / 4, "{found} of {}", bytes.len() / STEP); // The rest is padding.
    for len in (0..bytes.len()).step_by(97) {
        fs::write(&changed, &bytes[..len]).unwrap();
        assert!(reads(&changed).is_err(), "cut to {len}");
    }
}

/// One tensor `w` of bytes, and what the metadata says that it was.
#[test]
fn hostile_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile.safetensors");
    let header = |shape: &str, end: u64| {
        format!(r#"{{"w":{{"dtype":"BF16","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
    };
    let fine = header("[2048]", 4096);
    let twice = format!("{},{}", fine.trim_end_matches('}').to_owned() + "}", &fine[1..]);
    let huge = header("[1099511627776]", 1 << 41);
    let rows: [(&str, &str, &str, usize, &str); 12] = [
        ("1", "4096", "", 100, "header"),
        ("2", "4096", &fine, 100, "version"),
        ("1", "0", &fine, 100, "no number"),
        ("1", "4097", &fine, 100, "no number"),
        ("1", "99999999999999999999", &fine, 100, "no number"),
        ("1", "4096", "[]", 100, "header"),
        ("1", "4096", "{}", 100, "had 0 tensors"),
        ("1", "4096", &twice, 100, "span"),
        ("1", "4096", &huge, 100, "cannot hold"),
        ("1", "4096", &header("[18446744073709551615,9]", 4096), 100, "span"),
        ("1", "4096", &fine.replace("\"w\"", "\"v\""), 100, "lacks tensor"),
        ("1", "4096", &fine, 100, "checksum"),
    ];
    for (version, chunk, source, len, says) in rows {
        let checksum = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(source.as_bytes()));
        let metadata = [
            ("format", "deepdim-packed"),
            ("version", version),
            ("chunk_bytes", chunk),
            ("source_header", source),
            ("source_checksum", &checksum),
        ];
        write(&path, &[("w", Dtype::U8, vec![len], vec![1; len])], &metadata);
        let error = PackedCheckpoint::open(&path).expect_err(says).to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
}

#[test]
fn a_source_that_changes_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source.safetensors");
    write(&source, &model(), &[]);
    let checkpoint = Checkpoint::open(&source).unwrap();
    let changes = |_| {
        let file = fs::OpenOptions::new().append(true).open(&source).unwrap();
        file.set_len(fs::metadata(&source).unwrap().len() + 1).unwrap();
    };
    let out = folder.path().join("out.safetensors");
    let error = pack(&checkpoint, &out, &options(), &mut { changes }).unwrap_err().to_string();
    assert!(error.contains("changed"), "{error}");
    assert_eq!(entries(folder.path()), ["source.safetensors"]);
}

/// A file system of one mebibyte; unmounted when dropped.
struct Tiny(tempfile::TempDir);

impl Tiny {
    fn mount() -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(folder.path());
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
fn a_full_disk_leaves_nothing() {
    let tiny = match Tiny::mount() {
        Ok(tiny) => tiny,
        Err(reason) => {
            dd_conformance::skipped!("no small file system can be mounted here: {reason}");
            return;
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let [source, small] = ["source.safetensors", "packed.safetensors"].map(|name| folder.path().join(name));
    write(&source, &[("w", Dtype::BF16, vec![1 << 20], bf16s(1 << 20))], &[]);
    let (_, packed) = packed(&source, &small);
    let checkpoint = Checkpoint::open(&source).unwrap();
    for name in ["out.safetensors", "out"] {
        let out = tiny.0.path().join(name);
        let error = pack(&checkpoint, &out, &options(), &mut |_| {}).expect_err(name).to_string();
        assert!(error.contains("No space left") && error.contains("\"w\""), "{error}");
        let error =
            unpack(&packed, &out, &Budget::unlimited("test"), &mut |_| {}).expect_err(name).to_string();
        assert!(error.contains("No space left"), "{error}");
        assert_eq!(entries(tiny.0.path()), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn a_chunk_is_decoded_by_its_place_alone() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source.safetensors");
    write(&source, &model(), &[]);
    let (_, packed) = packed(&source, &folder.path().join("packed.safetensors"));
    let tensor = packed.tensor("b.whole.bf16").unwrap();
    let shard = packed.checkpoint().shard(tensor.shard()).unwrap();
    let chunks: Vec<_> = tensor.chunks(0..tensor.raw_bytes().0).collect();
    let mut decoder = Decoder::new(packed.chunk()).unwrap();
    let read = |index: usize| {
        let mut stored = vec![0; chunks[index].len];
        shard.read_exact_at(chunks[index].offset, &mut stored, "b").unwrap();
        stored
    };
    let mut out = vec![0; CHUNK];
    tensor.decode(&chunks[2], DType::BF16, &mut decoder, &read(2), &mut out).unwrap();
    let mut raw = vec![0; 4 * CHUNK];
    Checkpoint::open(&source).unwrap().read_into("b.whole.bf16", &mut raw).unwrap();
    assert!(out == raw[2 * CHUNK..3 * CHUNK]);
    let error =
        tensor.decode(&chunks[1], DType::BF16, &mut decoder, &read(2), &mut out).unwrap_err().to_string();
    assert!(error.contains("b.whole.bf16") && error.contains("4096..8192"), "{error}");
    let mut other = Vec::new();
    Encoder::new(CHUNK).unwrap().encode(1, DType::BF16, &raw[..CHUNK], &mut other).unwrap();
    assert!(tensor.decode(&chunks[0], DType::BF16, &mut decoder, &other, &mut out).is_err());
}
