//! Stock layers over paged weights: the same bits as in memory, and everything given back.
#![cfg(feature = "pager")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]
#![allow(missing_docs, reason = "tests")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Linear, Module as _, VarBuilder, layer_norm, linear};
use dd_candle::paged::{Error, PagedWeights, least_memory, paged_var_builder};
use dd_core::{Budget, Bytes};
use dd_offload::checkpoint::Checkpoint;
use dd_offload::io::DirectFile;
use dd_pager::Options;
use dd_pager::packed::{Keep, PackOptions, pack};

const WIDTH: usize = 256;
const LAYERS: usize = 24;

/// 24 layers of 256 × 256, some 6.3 MB as F32.
fn write(folder: &Path, dtype: DType) -> PathBuf {
    let mut tensors = HashMap::new();
    for layer in 0..LAYERS {
        let w = Tensor::randn(0f32, 0.1, (WIDTH, WIDTH), &Device::Cpu).unwrap();
        let b = Tensor::randn(0f32, 0.1, WIDTH, &Device::Cpu).unwrap();
        for (name, tensor) in [("l.weight", w), ("l.bias", b.clone()), ("n.weight", b.clone()), ("n.bias", b)]
        {
            tensors.insert(format!("{layer}.{name}"), tensor.to_dtype(dtype).unwrap());
        }
    }
    tensors.insert("ids".to_owned(), Tensor::arange(0i64, 5, &Device::Cpu).unwrap());
    tensors.insert("none".to_owned(), Tensor::zeros((0, 4), dtype, &Device::Cpu).unwrap());
    let path = folder.join("model.safetensors");
    candle_core::safetensors::save(&tensors, &path).unwrap();
    path
}

struct Model(Vec<(Linear, candle_nn::LayerNorm)>);

impl Model {
    fn new(vb: &VarBuilder<'_>) -> Self {
        let layer = |index: usize| {
            let vb = vb.pp(index.to_string());
            let norm = layer_norm(WIDTH, 1e-5, vb.pp("n")).unwrap();
            (linear(WIDTH, WIDTH, vb.pp("l")).unwrap(), norm)
        };
        Self((0..LAYERS).map(layer).collect())
    }

    fn run(&self, x: &Tensor) -> Vec<Vec<f32>> {
        let layer =
            |x: Tensor, (l, n): &(Linear, candle_nn::LayerNorm)| n.forward(&l.forward(&x).unwrap()).unwrap();
        self.0.iter().fold(x.clone(), layer).to_dtype(DType::F32).unwrap().to_vec2().unwrap()
    }
}

/// Whether this kernel lets a program page; where it does not, the tests say so.
fn opened(path: &Path, dtype: DType, budget: &Budget) -> Option<PagedWeights> {
    match PagedWeights::open(&[path.to_owned()], dtype, budget) {
        Ok(weights) => Some(weights),
        Err(Error::Pager(error @ dd_pager::Error::Unsupported { .. })) => {
            dd_conformance::skipped!("{error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_same_bits_within_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    for stored in [DType::F32, DType::BF16, DType::F16] {
        let path = write(folder.path(), stored);
        let plain = VarBuilder::from_tensors(
            candle_core::safetensors::load(&path, &Device::Cpu).unwrap(),
            DType::F32,
            &Device::Cpu,
        );
        let plain = Model::new(&plain);
        for limit in [dd_pager::Layout::least(), Bytes::kib(1500), Bytes::mib(3), Bytes::mib(16)] {
            let budget = Budget::new("memory", limit);
            let Some(weights) = opened(&path, DType::F32, &budget) else { return };
            let model = Model::new(&weights.var_builder());
            assert_eq!(weights.stats().filled, 0, "nothing is read to build a model");
            for rows in [1, 3, 40, 1] {
                let x = Tensor::randn(0f32, 1.0, (rows, WIDTH), &Device::Cpu).unwrap();
                assert!(model.run(&x) == plain.run(&x), "{stored:?} in {limit}");
            }
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let x = Tensor::randn(0f32, 1.0, (2, WIDTH), &Device::Cpu).unwrap();
                        (0..3).for_each(|_| assert!(model.run(&x) == plain.run(&x), "{stored:?} in {limit}"));
                    });
                }
            });
            assert!(budget.usage().peak <= limit);
            drop((model, weights));
            assert_eq!(budget.usage().used, Bytes::ZERO);
        }
    }
}

#[test]
fn memory_is_given_back_when_the_last_tensor_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), DType::F32);
    let budget = Budget::new("memory", Bytes::mib(2));
    if opened(&path, DType::F32, &budget).is_none() {
        return;
    }
    let vb = paged_var_builder(&[path], DType::F32, &budget).unwrap();
    let layer = linear(WIDTH, WIDTH, vb.pp("3.l")).unwrap();
    let view = layer.weight().narrow(0, 7, 1).unwrap();
    let before = view.to_vec2::<f32>().unwrap();
    drop((vb, layer));
    assert!(budget.usage().used > Bytes::ZERO, "a view is still there");
    assert_eq!(view.to_vec2::<f32>().unwrap(), before);
    drop(view);
    let gone = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        budget.usage().used == Bytes::ZERO
    });
    assert!(gone, "the memory is given back soon after the last view has gone");
}

#[test]
fn asks_that_cannot_be_answered_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), DType::F32);
    let Some(weights) = opened(&path, DType::F32, &Budget::new("memory", Bytes::mib(2))) else { return };
    let vb = weights.var_builder();
    let rows = [
        (vb.get((WIDTH, 3), "1.l.weight"), "shape mismatch"),
        (vb.get(WIDTH, "no.such"), "no.such"),
        (vb.get_with_hints_dtype(WIDTH, "1.l.bias", candle_nn::Init::Const(0.), DType::BF16), "BF16"),
    ];
    for (result, said) in rows {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    assert_eq!(vb.get((0, 4), "none").unwrap().dims(), [0, 4]);
    let ids = vb.get_with_hints_dtype(5, "ids", candle_nn::Init::Const(0.), DType::I64).unwrap();
    assert_eq!(ids.to_vec1::<i64>().unwrap(), [0, 1, 2, 3, 4]);
    let budget = Budget::new("memory", Bytes::kib(10));
    let refused = PagedWeights::open(&[path], DType::F32, &budget);
    assert!(matches!(refused, Err(Error::Pager(dd_pager::Error::TooSmall { .. }))));
}

/// Packs a file, in chunks small enough for a small model to have many.
fn packed(path: &Path) -> PathBuf {
    let out = path.with_file_name("packed.safetensors");
    let options = PackOptions { chunk: 16 << 10, ..PackOptions::default() };
    pack(&Checkpoint::open(path).unwrap(), &out, &options, &mut |_| {}).unwrap();
    out
}

#[test]
fn packed_weights_are_the_same_weights() {
    for (stored, dtype) in [(DType::BF16, DType::F32), (DType::F32, DType::F32), (DType::BF16, DType::BF16)] {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), stored);
        let plain = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        let plain = Model::new(&VarBuilder::from_tensors(plain, dtype, &Device::Cpu));
        let path = packed(&path);
        let least = least_memory(Checkpoint::open(&path).unwrap()).unwrap();
        let input =
            |rows| Tensor::randn(0f32, 1.0, (rows, WIDTH), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        for limit in [least, least + Bytes::kib(500), Bytes::mib(3), Bytes::mib(16)] {
            let budget = Budget::new("memory", limit);
            let Some(weights) = opened(&path, dtype, &budget) else { return };
            let model = Model::new(&weights.var_builder());
            let check = |rows| {
                let x = input(rows);
                assert!(model.run(&x) == plain.run(&x), "{stored:?} as {dtype:?} in {limit}");
            };
            [1, 3, 1].into_iter().for_each(check);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| (0..2).for_each(|_| check(2)));
                }
            });
            let plan = weights.plan();
            assert!(plan.memory <= limit && budget.usage().peak <= limit, "{plan:?}");
            let measured = limit == Bytes::mib(3) && DirectFile::open(&path).unwrap().is_direct();
            assert!(
                !measured || plan.predicted_seconds_per_pass.is_some_and(|seconds| seconds > 0.0),
                "{plan:?}"
            );
            assert_eq!(weights.desc("0.l.weight").unwrap().shape(), [WIDTH, WIDTH]);
            drop((model, weights));
            assert_eq!(budget.usage().used, Bytes::ZERO);
        }
        let budget = Budget::new("memory", least.saturating_sub(Bytes(1)));
        let refused = PagedWeights::open(&[path], dtype, &budget);
        let said = |error: &Error| matches!(error, Error::Pager(dd_pager::Error::TooSmall { least: said, .. }) if *said == least);
        assert!(refused.as_ref().err().is_some_and(said), "{:?}", refused.err());
    }
}

/// A layer of 3.1 MB in bf16, many times over: 1.4 times a budget of 16 MB in all.
fn write_large(folder: &Path) -> PathBuf {
    let layer = |index: usize| {
        let weight =
            Tensor::randn(0f32, 0.02, (1250, 1250), &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
        (format!("{index}.weight"), weight)
    };
    let path = folder.join("model.safetensors");
    candle_core::safetensors::save(&(0..7).map(layer).collect::<HashMap<_, _>>(), &path).unwrap();
    packed(&path)
}

#[test]
fn weights_kept_packed_are_read_once() {
    let folder = tempfile::tempdir().unwrap();
    let (path, limit) = (write_large(folder.path()), Bytes(15_650_000));
    for dtype in [DType::BF16, DType::F32] {
        let budget = Budget::new("memory", limit);
        let keep = |mut options: Options| {
            options.packed.as_mut().unwrap().keep = Keep::AtMost(Bytes::MAX);
            options
        };
        let checkpoint = Checkpoint::open(&path).unwrap();
        let weights = match PagedWeights::with_options(checkpoint, dtype, &budget, keep) {
            Ok(weights) => weights,
            Err(Error::Pager(error @ dd_pager::Error::Unsupported { .. })) => {
                dd_conformance::skipped!("{error}");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let vb = weights.var_builder();
        let layers: Vec<_> =
            (0..7).map(|index| vb.get((1250, 1250), &format!("{index}.weight")).unwrap()).collect();
        let plan = weights.plan();
        assert!(plan.registered.0 as f64 >= 1.4 * limit.0 as f64, "{plan:?}");
        assert!(plan.kept >= plan.packed && plan.memory <= limit, "{plan:?}");
        let pass = || {
            let x = Tensor::ones((1, 1250), dtype, &Device::Cpu).unwrap();
            let y = layers.iter().fold(x, |x, w| x.matmul(w).unwrap());
            y.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap()
        };
        let first = pass();
        let read = weights.stats().bytes_read;
        assert!(read > 0);
        for _ in 0..4 {
            assert!(pass() == first);
        }
        assert_eq!(weights.stats().bytes_read, read, "{dtype:?}: {plan:?}");
        assert!(budget.usage().peak <= limit);
    }
}
