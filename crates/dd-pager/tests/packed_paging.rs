//! Memory paged from packed weights holds their values, within its budget, and keeps the disk out of it where it can.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]
#![allow(unsafe_code, reason = "paged memory is read through its addresses, as tensor libraries do")]
#![allow(clippy::cast_possible_truncation, missing_docs, reason = "tests")]

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use dd_core::{Budget, Bytes, DType};
use dd_offload::checkpoint::Checkpoint;
use dd_offload::io::DirectFile;
use dd_pager::convert::{can_widen, widen, widened};
use dd_pager::packed::{Keep, PackOptions, PackedCheckpoint, PackedUse, Speeds, pack};
use dd_pager::{Error, Layout, Options, PackedSource, PagedMemory, Plan, Region, Stats};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};

/// Whether this kernel lets a program page; where it does not, the tests say so.
fn can_page() -> bool {
    match PagedMemory::new(&Budget::unlimited("probe"), Options::new("probe", Bytes(1))) {
        Ok(_) => true,
        Err(error @ Error::Unsupported { .. }) => {
            dd_conformance::skipped!("{error}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

/// Values much like weights: sums of uniform ones.
fn weights(count: usize, seed: u32) -> impl Iterator<Item = f32> {
    let mut state = seed | 1;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(move |_| (0..3).map(|_| uniform()).sum::<f32>() * 0.05)
}

fn bytes(dtype: Dtype, count: usize, seed: u32) -> Vec<u8> {
    let values = weights(count, seed);
    match dtype {
        Dtype::BF16 => values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect(),
        Dtype::F16 => values.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect(),
        Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
        _ => values.map(|value| value.to_bits() as u8).collect(), // Noise, stored as it was.
    }
}

struct Model {
    folder: tempfile::TempDir,
    source: Vec<(String, DType, Vec<u8>)>,
    packed: PackedCheckpoint,
}

/// A packed file of these tensors.
fn model(tensors: &[(Dtype, usize)], chunk: usize) -> Model {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain.safetensors");
    let data: Vec<_> =
        tensors.iter().zip(1..).map(|((dtype, count), seed)| bytes(*dtype, *count, seed)).collect();
    let views = tensors.iter().zip(&data).enumerate().map(|(index, ((dtype, count), data))| {
        (format!("t{index:03}"), TensorView::new(*dtype, vec![*count], data).unwrap())
    });
    safetensors::serialize_to_file(views, None, &plain).unwrap();
    let plain = Checkpoint::open(&plain).unwrap();
    let out = folder.path().join("packed.safetensors");
    pack(&plain, &out, &PackOptions { chunk, ..PackOptions::default() }, &mut |_| {}).unwrap();
    let dtype = |name: &str| plain.get(name).unwrap().desc.dtype();
    let named = data.into_iter().enumerate().map(|(index, data)| (format!("t{index:03}"), data));
    let source = named.map(|(name, data)| (name.clone(), dtype(&name), data)).collect();
    Model { folder, source, packed: PackedCheckpoint::open(&out).unwrap() }
}

impl Model {
    fn path(&self) -> PathBuf {
        self.folder.path().join("packed.safetensors")
    }

    /// What a tensor is in memory, where `to` is wanted of those that can be that.
    fn wanted(&self, index: usize, to: DType) -> (DType, Vec<u8>) {
        let (_, from, data) = &self.source[index];
        let to = if can_widen(*from, to) { to } else { *from };
        let mut out = vec![0; widened(*from, to, Bytes::of(data.len())).unwrap().to_usize().unwrap()];
        widen(*from, to, data, &mut out).unwrap();
        (to, out)
    }

    fn in_memory(&self, to: DType) -> Bytes {
        Bytes((0..self.source.len()).map(|index| self.wanted(index, to).1.len() as u64 + 65_536).sum())
    }

    fn options(&self, to: DType, keep: Keep) -> Options {
        let packed = PackedUse { keep, ..PackedUse::of(&self.packed, 2).unwrap() };
        Options { packed: Some(packed), ..Options::new("weights", self.in_memory(to)) }
    }

    fn register(&self, paged: &PagedMemory, to: DType) -> Vec<Region> {
        let file = DirectFile::open(&self.path()).unwrap();
        let region = |index: usize| {
            let (to, data) = self.wanted(index, to);
            let name = &self.source[index].0;
            let tensor = self.packed.tensor(name).unwrap().clone();
            let source = PackedSource::new(Arc::clone(&file), tensor, to, paged.kept()).unwrap();
            paged.register(name, data.len(), 0, Arc::new(source)).unwrap()
        };
        (0..self.source.len()).map(region).collect()
    }
}

fn data(region: &Region) -> &[u8] {
    // SAFETY: the region is alive while the slice is, and nothing writes to it.
    unsafe { std::slice::from_raw_parts(region.as_ptr(), region.len()) }
}

/// Passes over all tensors from some threads; what was read after each pass.
fn passes(
    model: &Model,
    to: DType,
    (limit, keep): (Bytes, Keep),
    count: usize,
    threads: usize,
) -> (Vec<u64>, Plan) {
    let budget = Budget::new("memory", limit);
    let paged = PagedMemory::new(&budget, model.options(to, keep)).unwrap();
    let regions = model.register(&paged, to);
    let expected: Vec<_> = (0..regions.len()).map(|index| model.wanted(index, to).1).collect();
    let pass = || {
        for (index, region) in regions.iter().enumerate() {
            assert!(data(region) == expected[index], "tensor {index} as {to} within {limit}, {keep:?}");
        }
    };
    let read = (0..count).map(|_| {
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(pass))));
        let Stats { bytes_read, copied, .. } = paged.stats();
        assert_eq!(copied, 0);
        bytes_read
    });
    let read = read.collect();
    let plan = paged.plan();
    assert!(budget.usage().peak <= limit && plan.memory <= limit, "{plan:?}");
    drop((regions, paged));
    assert_eq!(budget.usage().used, Bytes::ZERO);
    (read, plan)
}

/// Tensors of all kinds, whose chunks end with units and across them.
const MIXED: [(Dtype, usize); 9] = [
    (Dtype::BF16, 100_000),
    (Dtype::F32, 333),
    (Dtype::BF16, 5),
    (Dtype::F16, 123_457),
    (Dtype::BF16, 32_768),
    (Dtype::F32, 70_001),
    (Dtype::U8, 50_000),
    (Dtype::BF16, 8_192),
    (Dtype::BF16, 200_001),
];

#[test]
fn holds_what_was_packed() {
    if !can_page() {
        return;
    }
    for chunk in [4 << 10, 64 << 10] {
        let model = model(&MIXED, chunk);
        let least = Layout::least_for(Some(PackedUse::of(&model.packed, 2).unwrap().decoding));
        let speeds = Speeds { disk: 1e9, decode: 1e9, cores: 2, compute: None };
        for to in [DType::F32, DType::U8] {
            for memory in [least, least + Bytes::kib(200), least + Bytes::mib(1), Bytes::mib(8)] {
                for keep in [Keep::Measured, Keep::AtMost(Bytes::kib(300)), Keep::AtMost(Bytes::MAX)] {
                    let threads = if memory == least { 4 } else { 1 };
                    passes(&model, to, (memory, keep), 2, threads);
                }
            }
        }
        let options = model.options(DType::F32, Keep::Measured);
        let packed = options.packed.clone().map(|packed| PackedUse { speeds: Some(speeds), ..packed });
        let options = Options { packed, ..options };
        let paged = PagedMemory::new(&Budget::new("memory", least + Bytes::mib(1)), options).unwrap();
        let plan = paged.plan();
        assert!(plan.predicted_seconds_per_pass.is_some_and(|seconds| seconds > 0.0), "{plan:?}");
        assert!(plan.packed > Bytes::kib(900) && plan.memory <= least + Bytes::mib(1), "{plan:?}");
    }
}

/// 24 tensors of bf16, 16.8 MB in all, within 12 MB.
const LARGE: [(Dtype, usize); 24] = [(Dtype::BF16, 350_000); 24];
const LIMIT: Bytes = Bytes(12_000_000);

#[test]
fn what_is_kept_packed_is_not_read_again() {
    if !can_page() {
        return;
    }
    let model = model(&LARGE, 16 << 10);
    for (to, threads) in [(DType::BF16, 1), (DType::F32, 1), (DType::BF16, 4), (DType::F32, 4)] {
        let (read, plan) = passes(&model, to, (LIMIT, Keep::AtMost(Bytes::MAX)), 4, threads);
        assert!(plan.kept >= plan.packed && plan.kept < LIMIT, "{plan:?}");
        assert!(read[0] > 0 && read.iter().all(|later| *later == read[0]), "{to}: {read:?} {plan:?}");
    }
}

/// A table of which each pass uses another row: what no pass has used so far is read ahead too.
#[test]
fn a_table_that_is_kept_packed_is_read_once() {
    if !can_page() {
        return;
    }
    let mut tensors = LARGE[..12].to_vec();
    tensors.insert(0, (Dtype::BF16, 2_000_000));
    let model = model(&tensors, 16 << 10);
    let budget = Budget::new("memory", LIMIT);
    let paged = PagedMemory::new(&budget, model.options(DType::F32, Keep::AtMost(Bytes::MAX))).unwrap();
    let regions = model.register(&paged, DType::F32);
    let (table, layers) = regions.split_first().unwrap();
    let expected: Vec<_> = (0..regions.len()).map(|index| model.wanted(index, DType::F32).1).collect();
    let row = |pass: usize| pass * 500_000..pass * 500_000 + 4096;
    let pass = |pass: usize| {
        assert_eq!(data(table)[row(pass)], expected[0][row(pass)]);
        for (layer, expected) in layers.iter().zip(&expected[1..]) {
            assert!(data(layer) == expected);
        }
    };
    let all: u64 = model
        .packed
        .tensors()
        .values()
        .flat_map(|tensor| tensor.chunks(0..u64::MAX))
        .map(|c| c.len as u64)
        .sum();
    let mut passes = 0;
    let kept = paged.kept().unwrap();
    while kept.used() < Bytes(all) {
        pass(passes % 16); // Loaders read the rest while they have nothing else to do.
        passes += 1;
    }
    let before = paged.stats().bytes_read;
    (0..16).for_each(pass);
    assert_eq!(paged.stats().bytes_read, before, "after {passes} passes");
}

#[test]
fn a_part_that_is_kept_is_not_read_again() {
    if !can_page() {
        return;
    }
    let model = model(&LARGE, 16 << 10);
    let (none, plan) = passes(&model, DType::BF16, (LIMIT, Keep::Measured), 8, 1);
    assert_eq!((plan.kept, plan.predicted_seconds_per_pass), (Bytes::ZERO, None), "nothing was measured");
    let kept = Keep::AtMost(Bytes::mib(4));
    let (some, plan) = passes(&model, DType::BF16, (LIMIT, kept), 8, 1);
    assert_eq!(plan.kept, Bytes::mib(4));
    let later = |read: &[u64]| read[7] - read[3];
    println!("read in four passes: {} with nothing kept, {} with 4 MiB", later(&none), later(&some));
    assert!(later(&some) < later(&none), "{some:?} {none:?}");
}

#[test]
fn too_little_is_refused_with_what_would_do() {
    if !can_page() {
        return;
    }
    let model = model(&MIXED, 64 << 10);
    let options = model.options(DType::F32, Keep::AtMost(Bytes::MAX));
    let least = Layout::least_for(options.packed.as_ref().map(|packed| packed.decoding));
    assert!(
        least > Layout::least() + Bytes::kib(3 * 64),
        "decoder, chunk and its values come on top: {least}"
    );
    let budget = Budget::new("memory", least.saturating_sub(Bytes(1)));
    let refused = PagedMemory::new(&budget, options.clone());
    assert!(matches!(&refused, Err(Error::TooSmall { least: said, .. }) if *said == least), "{refused:?}");
    assert_eq!(budget.usage().used, Bytes::ZERO);
    assert!(PagedMemory::new(&Budget::new("memory", least), options).is_ok());
}

#[test]
fn sources_refuse_what_does_not_fit_them() {
    let model = model(&MIXED, 4 << 10);
    let file = DirectFile::open(&model.path()).unwrap();
    let tensor = |index: usize| model.packed.tensor(&model.source[index].0).unwrap().clone();
    let narrower = PackedSource::new(Arc::clone(&file), tensor(1), DType::BF16, None);
    assert!(matches!(narrower, Err(Error::Invalid { .. })), "{narrower:?}");
    let cut = std::fs::OpenOptions::new().write(true).open(model.path()).unwrap();
    cut.set_len(10_000).unwrap();
    let short = PackedSource::new(file, tensor(8), DType::F32, None);
    assert!(matches!(short, Err(Error::Read { .. })), "{short:?}");
}

/// What tells a child process its part.
const ROLE: &str = "DEEPDIM_TEST_DAMAGED";

#[test]
fn damage_ends_the_process_with_tensor_and_file() {
    if !can_page() {
        return;
    }
    if let Some(path) = std::env::var_os(ROLE) {
        return touch(Path::new(&path));
    }
    let model = model(&MIXED, 16 << 10);
    let chunk = model.packed.tensor("t003").unwrap().chunks(0..u64::MAX).nth(5).unwrap();
    let mut file = std::fs::OpenOptions::new().write(true).open(model.path()).unwrap();
    file.seek(SeekFrom::Start(chunk.offset + 500)).unwrap();
    file.write_all(&[0xA5; 8]).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["damage_ends_the_process_with_tensor_and_file", "--exact", "--nocapture"]);
    let ended = child.env(ROLE, model.path()).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(74), "{said}");
    for part in ["hook: packed tensor \"t003\"", "packed.safetensors", "checksum"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
}

/// In the child: touches a tensor with a damaged chunk.
#[allow(clippy::print_stderr, reason = "for the parent to read")]
fn touch(path: &Path) {
    let packed = PackedCheckpoint::open(path).unwrap();
    let on_fatal = Arc::new(|error: &Error| eprintln!("hook: {error}"));
    let options = Options {
        packed: Some(PackedUse::of(&packed, 2).unwrap()),
        on_fatal,
        ..Options::new("w", Bytes::mib(1))
    };
    let paged = PagedMemory::new(&Budget::new("memory", Bytes::mib(2)), options).unwrap();
    let tensor = packed.tensor("t003").unwrap().clone();
    let len = tensor.raw_bytes().to_usize().unwrap();
    let source =
        PackedSource::new(DirectFile::open(path).unwrap(), tensor, DType::F16, paged.kept()).unwrap();
    let region = paged.register("t003", len, 0, Arc::new(source)).unwrap();
    panic!("{} bytes were handed out", data(&region).iter().map(|byte| u64::from(*byte)).sum::<u64>());
}
