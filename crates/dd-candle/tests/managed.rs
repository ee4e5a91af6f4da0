//! Managed candle modules give what unmanaged ones give, bit for bit, at every budget and from every tier.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]
#![cfg(feature = "offload")]

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{LayerNorm, Linear, Module, VarBuilder, layer_norm, linear};
use dd_candle::CandleBackend;
use dd_candle::managed::{Error, ManagedModel, ManagedModule};
use dd_core::memory::FixedMemory;
use dd_core::{Backend as _, Bytes, MemorySample, Tier};
use dd_offload::MemoryConfig;
use dd_offload::manager::{Cleanup, MemoryManager};

const LAYERS: usize = 8;
const WIDTH: usize = 96;

struct Block {
    norm: LayerNorm,
    up: Linear,
    down: Linear,
}

impl Block {
    fn load(vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            norm: layer_norm(WIDTH, 1e-5, vb.pp("norm"))?,
            up: linear(WIDTH, 4 * WIDTH, vb.pp("mlp.up"))?,
            down: linear(4 * WIDTH, WIDTH, vb.pp("mlp.down"))?,
        })
    }
}

impl Module for Block {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x + self.norm.forward(x)?.apply(&self.up)?.gelu()?.apply(&self.down)?
    }
}

struct Fixture {
    _dir: tempfile::TempDir,
    path: PathBuf,
    tensors: HashMap<String, Tensor>,
}

fn fixture(dtype: DType) -> Fixture {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("model.safetensors");
    let random =
        |shape: &[usize]| Tensor::randn(0f32, 0.05, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
    let mut tensors = HashMap::from([("embed.weight".to_owned(), random(&[500, WIDTH]))]);
    for layer in 0..LAYERS {
        let shapes: [(&str, &[usize]); 6] = [
            ("norm.weight", &[WIDTH]),
            ("norm.bias", &[WIDTH]),
            ("mlp.up.weight", &[4 * WIDTH, WIDTH]),
            ("mlp.up.bias", &[4 * WIDTH]),
            ("mlp.down.weight", &[WIDTH, 4 * WIDTH]),
            ("mlp.down.bias", &[WIDTH]),
        ];
        tensors.extend(shapes.map(|(name, shape)| (format!("layers.{layer}.{name}"), random(shape))));
    }
    candle_core::safetensors::save(&tensors, &path).unwrap();
    Fixture { _dir: dir, path, tensors }
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let flat = tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap();
    flat.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

impl Fixture {
    fn ids(&self) -> Tensor {
        self.ids_on(&Device::Cpu)
    }

    fn ids_on(&self, device: &Device) -> Tensor {
        Tensor::new(&[[3u32, 499, 0, 3], [77, 78, 79, 80]], device).unwrap()
    }

    fn unmanaged(&self) -> Vec<u32> {
        self.unmanaged_on(&Device::Cpu)
    }

    fn unmanaged_on(&self, device: &Device) -> Vec<u32> {
        let dtype = self.tensors["embed.weight"].dtype();
        let there = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.to_device(device).unwrap());
        let vb = VarBuilder::from_tensors(self.tensors.iter().map(there).collect(), dtype, device);
        let embed = candle_nn::embedding(500, WIDTH, vb.pp("embed")).unwrap();
        let mut x = embed.forward(&self.ids_on(device)).unwrap();
        for layer in 0..LAYERS {
            x = Block::load(vb.pp(format!("layers.{layer}"))).unwrap().forward(&x).unwrap();
        }
        bits(&x)
    }

    fn weights(&self) -> Bytes {
        self.tensors.values().map(|t| Bytes::of(t.elem_count() * t.dtype().size_in_bytes())).sum()
    }
}

fn config(limit: Bytes) -> MemoryConfig {
    MemoryConfig::builder().memory_limit(limit).io_block(Bytes::kib(16)).io_depth(2usize).build().unwrap()
}

fn backend() -> CandleBackend {
    CandleBackend::new(dd_core::Device::Cpu).unwrap()
}

#[test]
fn output_is_bit_identical_at_every_budget() {
    for dtype in [DType::F32, DType::F16] {
        let fixture = fixture(dtype);
        let expected = fixture.unmanaged();
        for share in [0.2, 0.5, 2.0] {
            let budget = fixture.weights().scaled(share) + Bytes::kib(64);
            let model = ManagedModel::open(&fixture.path, backend(), config(budget)).unwrap();
            let embed = model.embedding("embed.weight").unwrap();
            let layers: Vec<_> =
                (0..LAYERS).map(|n| model.module(&format!("layers.{n}"), Block::load).unwrap()).collect();
            for pass in 0..4 {
                let mut x = embed.forward(&fixture.ids()).unwrap();
                for layer in &layers {
                    x = layer.forward(&x).unwrap();
                }
                assert!(bits(&x) == expected, "{dtype:?} within {budget}, pass {pass}");
            }
            assert!(model.manager().budget().usage().peak <= budget);
        }
    }
}

/// As above, on an NVIDIA device: the limit is the device's, and host memory has room for all.
#[test]
fn output_is_bit_identical_at_every_limit_of_a_device() {
    let backend = match CandleBackend::new(dd_core::Device::Cuda(0)) {
        Ok(backend) => backend,
        Err(error) => return dd_conformance::skipped!("managed modules: {error}"),
    };
    for dtype in [DType::F32, DType::F16] {
        let fixture = fixture(dtype);
        let expected = fixture.unmanaged_on(backend.device());
        assert!(fixture.unmanaged_on(backend.device()) == expected, "the device differs from itself");
        let room = fixture.weights().scaled(2.0) + Bytes::mib(1) + backend.transfer_memory();
        for share in [0.3, 0.5, 2.0] {
            let limit = fixture.weights().scaled(share);
            let config = config(limit + room).to_builder().device_limit(limit).build().unwrap();
            let model = ManagedModel::open(&fixture.path, backend.clone(), config).unwrap();
            let embed = model.embedding("embed.weight").unwrap();
            let layers: Vec<_> =
                (0..LAYERS).map(|n| model.module(&format!("layers.{n}"), Block::load).unwrap()).collect();
            for pass in 0..4 {
                let mut x = embed.forward(&fixture.ids_on(backend.device())).unwrap();
                for layer in &layers {
                    x = layer.forward(&x).unwrap();
                }
                assert!(bits(&x) == expected, "{dtype:?} within {limit} of the device, pass {pass}");
            }
            let near =
                model.manager().memory_summary().tiers.into_iter().find(|tier| tier.tier == Tier::Device(0));
            assert!(near.is_some_and(|near| near.used > Bytes::ZERO && near.used <= limit), "{limit}");
            assert!(model.manager().budget().usage().peak <= limit + room);
            assert!(backend.staging() <= backend.staging_limit());
        }
    }
}

#[test]
fn threads_share_managed_modules() {
    let fixture = fixture(DType::F32);
    let expected = fixture.unmanaged();
    let model = ManagedModel::open(&fixture.path, backend(), config(fixture.weights().scaled(0.6))).unwrap();
    let embed = model.embedding("embed.weight").unwrap();
    let layers: Vec<_> =
        (0..LAYERS).map(|n| model.module(&format!("layers.{n}"), Block::load).unwrap()).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let mut x = embed.forward(&fixture.ids()).unwrap();
                    for layer in &layers {
                        x = layer.forward(&x).unwrap();
                    }
                    assert!(bits(&x) == expected);
                }
            });
        }
    });
}

#[test]
fn tensors_of_the_user_are_taken_over() {
    let fixture = fixture(DType::F32);
    let expected = fixture.unmanaged();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for compress in [true, false] {
        let budget = fixture.weights().scaled(0.5) + Bytes::mib(4);
        let config = config(budget)
            .to_builder()
            .compress_disk_cache(compress)
            .spill_directory(dir.path().to_owned())
            .build()
            .unwrap();
        let manager = MemoryManager::new(backend(), config).unwrap();
        let layer = |n: usize| {
            let prefix = format!("layers.{n}.");
            let own = fixture.tensors.iter().filter_map(|(name, tensor)| {
                Some((name.strip_prefix(&prefix)?.to_owned(), tensor.copy().unwrap()))
            });
            ManagedModule::from_tensors(&manager, &format!("layer {n}"), own, Block::load).unwrap()
        };
        let layers: Vec<_> = (0..LAYERS).map(layer).collect();
        let embed = candle_nn::Embedding::new(fixture.tensors["embed.weight"].clone(), WIDTH);
        for _ in 0..3 {
            let mut x = embed.forward(&fixture.ids()).unwrap();
            for layer in &layers {
                x = layer.forward(&x).unwrap();
            }
            assert!(bits(&x) == expected);
        }
        manager.offload_all().unwrap();
        assert!(layers.iter().all(|layer| layer.handle().tier() > Tier::Host));
        manager.cleanup(Cleanup::Freed).unwrap();
    }
}

#[test]
fn a_result_that_is_a_view_of_a_weight_stays_true() {
    let fixture = fixture(DType::F32);
    let model = ManagedModel::open(&fixture.path, backend(), config(fixture.weights().scaled(0.45))).unwrap();
    let layers: Vec<_> =
        (0..LAYERS).map(|n| model.module(&format!("layers.{n}"), Block::load).unwrap()).collect();
    let views: Vec<Tensor> = layers[..2]
        .iter()
        .map(|layer| layer.with(|block| block.up.weight().narrow(0, 7, 50)?.t()).unwrap())
        .collect();
    let x = Tensor::ones((1, WIDTH), DType::F32, &Device::Cpu).unwrap();
    for _ in 0..3 {
        for layer in &layers {
            layer.forward(&x).unwrap();
        }
    }
    for (n, view) in views.iter().enumerate() {
        let whole = &fixture.tensors[&format!("layers.{n}.mlp.up.weight")];
        assert!(bits(view) == bits(&whole.narrow(0, 7, 50).unwrap().t().unwrap()), "layer {n}");
    }
}

#[test]
fn errors_say_what_is_wrong() {
    let fixture = fixture(DType::F32);
    let model = ManagedModel::open(&fixture.path, backend(), config(Bytes::kib(100))).unwrap();
    let missing = model.module("layer.0", Block::load).err().unwrap().to_string();
    assert!(missing.contains("layer.0") && missing.contains("model.safetensors"), "{missing}");
    let layer = model.module("layers.0", Block::load).unwrap();
    let x = Tensor::ones((1, WIDTH), DType::F32, &Device::Cpu).unwrap();
    match layer.with(|block| block.forward(&x)) {
        Err(Error::Offload(dd_offload::Error::BudgetTooSmall { least, .. })) => {
            assert!(least > Bytes::kib(290), "{least}")
        }
        other => panic!("{other:?}"),
    }
    assert!(layer.forward(&x).unwrap_err().to_string().contains("the least that would do is"));
    let wrong = ManagedModel::open(&fixture.path, backend(), config(Bytes::mib(4))).unwrap();
    let layer = wrong.module("layers.0", |vb| linear(WIDTH, WIDTH, vb.pp("mlp.up"))).unwrap();
    assert!(layer.forward(&x).unwrap_err().to_string().contains("shape mismatch"));
}

#[test]
fn automatic_management_takes_its_limit_from_the_provider() {
    let fixture = fixture(DType::F32);
    let available = fixture.weights();
    let sample = MemorySample { total: Bytes::gib(1), used: Bytes::ZERO, available };
    let model =
        ManagedModel::auto(&fixture.path, Arc::new(FixedMemory::new([(Tier::Host, sample)]))).unwrap();
    assert_eq!(model.manager().budget().limit(), available.scaled(0.9));
}
