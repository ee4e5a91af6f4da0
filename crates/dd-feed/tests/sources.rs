//! The sources: right bytes for every identity, and an error that names the file for everything that is wrong with it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs, reason = "tests")]

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use dd_core::{Backend, Bytes, DType, HostBackend, TensorDesc, Tier};
use dd_feed::{Convert, Error, FeedConfig, Feeder, FeederBuilder, FolderSource, MappedRows, Shuffle, Stream};
use safetensors::tensor::{Dtype, TensorView};

const LEN: usize = 50;

/// Sample `n` is [n, n + 1, n + 2], its label [2 n].
fn row(n: usize) -> [u8; 3] {
    [n, n + 1, n + 2].map(|value| u8::try_from(value).unwrap())
}

fn label(n: usize) -> [u8; 1] {
    [u8::try_from(2 * n).unwrap()]
}

fn u8s(shape: &[usize]) -> TensorDesc {
    TensorDesc::new(shape, DType::U8).unwrap()
}

fn builder(input: DType) -> FeederBuilder {
    let config = FeedConfig::builder()
        .cpu_memory_limit(Bytes::kib(4))
        .total_sample_count(LEN as u64)
        .input([3], input)
        .output([1], DType::U8)
        .preferred_batch_size(8);
    Feeder::builder(&config.build().unwrap()).shuffle(Shuffle::Full, 6)
}

/// Two epochs of these inputs and outputs are what they should be.
fn check(what: &str, inputs: impl Stream + 'static, outputs: impl Stream + 'static) {
    let feeder = builder(DType::U8).inputs(inputs).outputs(outputs).build().unwrap();
    for epoch in feeder.generate_epochs(2).unwrap() {
        let number = epoch.number();
        let mut seen = 0;
        for batch in epoch {
            let batch = batch.unwrap();
            let positions = batch.positions.clone();
            for ((position, x), y) in positions.zip(batch.input.bytes().chunks(3)).zip(batch.output.bytes()) {
                let n = usize::try_from(feeder.order(number).at(position)).unwrap();
                assert_eq!((x, [*y]), (row(n).as_slice(), label(n)), "{what}: sample {n}");
                seen += 1;
            }
        }
        assert_eq!(seen, LEN, "{what}");
    }
}

fn npy(path: &Path, descr: &str, shape: &str, body: &[u8]) {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let length = u16::try_from(header.len()).unwrap().to_le_bytes();
    fs::write(path, [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), body].concat()).unwrap();
}

#[test]
fn every_source_gives_the_same_samples() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (rows, labels): (Vec<u8>, Vec<u8>) =
        ((0..LEN).flat_map(row).collect(), (0..LEN).flat_map(label).collect());

    fs::write(at("x.bin"), [&[9; 7], rows.as_slice()].concat()).unwrap();
    fs::write(at("y.bin"), &labels).unwrap();
    let records = |name, shape: &[usize], header| MappedRows::records(at(name), u8s(shape), header).unwrap();
    check("records", records("x.bin", &[3], 7), records("y.bin", &[1], 0));

    npy(&at("x.npy"), "|u1", "(50, 3)", &rows);
    npy(&at("y.npy"), "|u1", "(50, 1)", &labels);
    check("npy", MappedRows::npy(at("x.npy")).unwrap(), MappedRows::npy(at("y.npy")).unwrap());

    let tensors = HashMap::from([
        ("x", TensorView::new(Dtype::U8, vec![LEN, 3], &rows).unwrap()),
        ("y", TensorView::new(Dtype::U8, vec![LEN, 1], &labels).unwrap()),
    ]);
    safetensors::serialize_to_file(tensors, None, &at("both.safetensors")).unwrap();
    let tensor = |name| MappedRows::safetensors(at("both.safetensors"), name).unwrap();
    check("safetensors", tensor("x"), tensor("y"));

    let files = at("files");
    fs::create_dir(&files).unwrap();
    fs::create_dir(files.join("not a file.raw")).unwrap();
    for n in 0..LEN {
        fs::write(files.join(format!("{n:03}.raw")), row(n)).unwrap();
        fs::write(files.join(format!("{n:03}.txt")), (2 * n).to_string()).unwrap();
    }
    let texts = FolderSource::open(&files, "txt", u8s(&[1])).unwrap().decode_with(|path, samples| {
        let number: u8 = fs::read_to_string(path)?.parse()?;
        samples.push(&[number])
    });
    assert_eq!(texts.names().next(), Some("000.txt"));
    check("folder", FolderSource::open(&files, "raw", u8s(&[3])).unwrap(), texts);
}

#[test]
fn what_is_wrong_with_a_file_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("records"), [0; 10]).unwrap();
    npy(&at("short.npy"), "<f4", "(50, 3)", &[0; 599]);
    npy(&at("huge.npy"), "<f4", "(18446744073709551615, 2)", &[0; 600]);
    npy(&at("wide.npy"), "<f4", "(3, 18446744073709551615, 16)", &[0; 600]);
    npy(&at("scalar.npy"), "<f4", "()", &[0; 4]);
    npy(&at("none.npy"), "<f4", "(5, 0)", &[]);
    fs::write(at("no.npy"), b"PK").unwrap();
    fs::write(at("no.safetensors"), [255; 100]).unwrap();
    let tensors = HashMap::from([("x", TensorView::new(Dtype::U8, vec![4], &[0; 4]).unwrap())]);
    safetensors::serialize_to_file(tensors, None, &at("x.safetensors")).unwrap();
    let whole = fs::read(at("x.safetensors")).unwrap();
    fs::write(at("cut.safetensors"), &whole[..whole.len() - 1]).unwrap();
    let errors = [
        ("records", MappedRows::records(at("records"), u8s(&[3]), 0).err()),
        ("records", MappedRows::records(at("records"), u8s(&[3]), 11).err()),
        ("short.npy", MappedRows::npy(at("short.npy")).err()),
        ("huge.npy", MappedRows::npy(at("huge.npy")).err()),
        ("scalar.npy", MappedRows::npy(at("scalar.npy")).err()),
        ("none.npy", MappedRows::npy(at("none.npy")).err()),
        ("no.npy", MappedRows::npy(at("no.npy")).err()),
        ("absent.npy", MappedRows::npy(at("absent.npy")).err()),
        ("no.safetensors", MappedRows::safetensors(at("no.safetensors"), "x").err()),
        ("cut.safetensors", MappedRows::safetensors(at("cut.safetensors"), "x").err()),
        ("x.safetensors", MappedRows::safetensors(at("x.safetensors"), "y").err()),
        ("absent", FolderSource::open(at("absent"), "", u8s(&[1])).err()),
        (".", FolderSource::open(folder.path(), "jpg", u8s(&[1])).err()),
    ];
    for (name, error) in errors {
        let error = error.unwrap_or_else(|| panic!("{name} was taken"));
        assert!(matches!(error, Error::File { .. } | Error::Io { .. }), "{name}: {error}");
        assert!(name == "." || error.to_string().contains(name), "{name}: {error}");
    }
    assert!(MappedRows::npy(at("wide.npy")).is_err());
    assert!(MappedRows::records(at("records"), u8s(&[0]), 0).is_err());
}

/// A file that changed its length after it was listed fails by its name, and alone.
#[test]
fn a_file_of_another_length_is_an_error_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    for n in 0..LEN {
        let long = if n == 20 { 4 } else { 3 };
        fs::write(folder.path().join(format!("{n:03}")), vec![0; if n == 10 { 2 } else { long }]).unwrap();
    }
    let open = |len: usize| FolderSource::open(folder.path(), "", u8s(&[len])).unwrap();
    let labels = |samples: &mut dd_feed::Samples<'_>| samples.push(&[0]);
    let feeder = builder(DType::U8)
        .inputs(open(3))
        .output_list((0..LEN).map(|n| n.to_string()))
        .get_output(move |_, samples| labels(samples))
        .on_error(dd_feed::ErrorPolicy::Skip { at_most: 2 })
        .build()
        .unwrap();
    let delivered: usize =
        feeder.generate_epochs(1).unwrap().flatten().map(|batch| batch.unwrap().samples).sum();
    assert_eq!((delivered, feeder.stats().skipped), (LEN - 2, 2));
}

/// What a stream stores and what the configuration delivers must meet.
#[test]
fn shapes_and_types_have_to_meet() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    fs::write(&path, vec![1; 3 * LEN]).unwrap();
    let inputs = |shape: &[usize]| MappedRows::records(&path, u8s(shape), 0).unwrap();
    let outputs = || MappedRows::records(&path, u8s(&[3]), 0).unwrap();
    let with = |builder: FeederBuilder, shape: &[usize]| {
        builder
            .inputs(inputs(shape))
            .output_list((0..LEN).map(|n| n.to_string()))
            .get_output(|_, s| s.push(&[0]))
    };
    assert!(with(builder(DType::U8), &[3]).build().is_ok());
    assert!(
        with(builder(DType::U8), &[1]).build().is_err(),
        "another number of identities, and another shape"
    );
    assert!(with(builder(DType::F32), &[3]).build().is_err(), "no conversion asked for");
    assert!(with(builder(DType::F32), &[3]).convert_input(Convert::UNIT).build().is_ok());
    assert!(builder(DType::U8).inputs(inputs(&[3])).outputs(outputs()).build().is_err(), "outputs of three");
    assert!(builder(DType::U8).inputs(inputs(&[3])).build().is_err(), "no outputs");
}

/// A device whose storage cannot be lent: the batch goes there in one write, and comes out the same.
#[test]
fn devices_get_batches_too() {
    struct Far(HostBackend);
    impl Backend for Far {
        type Tensor = dd_core::HostTensor;
        fn name(&self) -> &str {
            "far"
        }
        fn tiers(&self) -> &[Tier] {
            self.0.tiers()
        }
        fn describe(&self, tensor: &Self::Tensor) -> dd_core::Result<TensorDesc> {
            self.0.describe(tensor)
        }
        fn tier_of(&self, tensor: &Self::Tensor) -> Tier {
            self.0.tier_of(tensor)
        }
        fn allocate(&self, desc: &TensorDesc, tier: Tier) -> dd_core::Result<Self::Tensor> {
            self.0.allocate(desc, tier)
        }
        fn write(&self, tensor: &mut Self::Tensor, offset: usize, bytes: &[u8]) -> dd_core::Result<()> {
            self.0.write(tensor, offset, bytes)
        }
        fn read(&self, tensor: &Self::Tensor, offset: usize, out: &mut [u8]) -> dd_core::Result<()> {
            self.0.read(tensor, offset, out)
        }
        fn share(&self, tensor: &Self::Tensor) -> Self::Tensor {
            self.0.share(tensor)
        }
        fn is_unique(&self, _: &mut Self::Tensor) -> bool {
            false
        }
        fn can_tell_unique(&self) -> bool {
            false
        }
        fn memory(&self, tier: Tier) -> dd_core::Result<dd_core::MemorySample> {
            self.0.memory(tier)
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let (x, y) = (folder.path().join("x"), folder.path().join("y"));
    fs::write(&x, (0..LEN).flat_map(row).collect::<Vec<u8>>()).unwrap();
    fs::write(&y, (0..LEN).flat_map(label).collect::<Vec<u8>>()).unwrap();
    let device = Tier::Device(0);
    let backend = Far(HostBackend::with_tiers([(device, Bytes::mib(1))]));
    let feeder = builder(DType::U8)
        .inputs(MappedRows::records(&x, u8s(&[3]), 0).unwrap())
        .outputs(MappedRows::records(&y, u8s(&[1]), 0).unwrap());
    assert!(builder(DType::U8).build_on(HostBackend::default(), device).is_err(), "no such tier");
    let feeder = feeder.build_on(backend, device).unwrap();
    let mut seen = Vec::new();
    for batch in feeder.generate_epochs(1).unwrap().flatten() {
        let batch = batch.unwrap();
        for (x, y) in batch.input.bytes().chunks(3).zip(batch.output.bytes()) {
            assert_eq!([*y], label(usize::from(x[0])));
            seen.push(x[0]);
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..50).collect::<Vec<u8>>());
}
