//! `CandleBackend` where the shared suite does not look: dtypes and bits, views, absurd sizes, threads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use candle_core::{DType as Candle, Device as CandleDevice, Tensor};
use dd_candle::{CandleBackend, dtype};
use dd_core::{Backend, Bytes, DType, Device, Error, Linalg, TensorDesc, Tier};

fn cpu() -> CandleBackend {
    CandleBackend::new(Device::Cpu).unwrap()
}

fn desc(shape: &[usize], dtype: DType) -> TensorDesc {
    TensorDesc::new(shape, dtype).unwrap()
}

fn counting(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

#[test]
fn every_dtype_round_trips_bit_for_bit() {
    let backend = cpu();
    for (ours, theirs) in dtype::PAIRS {
        let desc = desc(&[3, 5], ours);
        let len = desc.len_in_memory().unwrap();
        for bytes in [vec![0xff; len], vec![0x7f; len], counting(len)] {
            let tensor = backend.upload(&desc, &bytes, Tier::Host).unwrap();
            assert_eq!(tensor.dtype(), theirs);
            assert_eq!(backend.describe(&tensor).unwrap(), desc);
            assert_eq!(backend.download(&tensor).unwrap(), bytes, "{ours}");
        }
    }
}

#[test]
fn payloads_of_nan_survive() {
    let backend = cpu();
    let f32s = [0x7fc0_0001u32, 0xffc1_2345, 0x7f80_0001, 0xff80_0001]; // Quiet and signalling, both signs.
    let bytes: Vec<u8> = f32s.iter().flat_map(|bits| bits.to_le_bytes()).collect();
    let tensor = backend.upload(&desc(&[2, 2], DType::F32), &bytes, Tier::Host).unwrap();
    for view in [tensor.clone(), tensor.t().unwrap().t().unwrap(), tensor.reshape(4).unwrap()] {
        assert_eq!(backend.download(&view).unwrap(), bytes);
    }
    for dtype in [DType::BF16, DType::F16] {
        let bytes: Vec<u8> =
            [0x7fc1u16, 0xffff, 0x7f81, 0x7c01].iter().flat_map(|b| b.to_le_bytes()).collect();
        let tensor = backend.upload(&desc(&[4], dtype), &bytes, Tier::Host).unwrap();
        assert_eq!(backend.download(&tensor).unwrap(), bytes, "{dtype}");
    }
}

#[test]
fn bytes_mean_what_candle_means() {
    let backend = cpu();
    let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let tensor = backend.upload(&desc(&[2, 3], DType::F32), &bytes, Tier::Host).unwrap();
    assert_eq!(tensor.to_vec2::<f32>().unwrap(), [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]);
    assert_eq!((backend.tier_of(&tensor), backend.tiers()), (Tier::Host, [Tier::Host].as_slice()));
}

/// Every view reads as its dense copy does, whole and in pieces that begin and end within elements.
#[test]
fn views_read_densely() {
    let backend = cpu();
    let whole =
        Tensor::arange(0i64, 2 * 3 * 4 * 5, &CandleDevice::Cpu).unwrap().reshape((2, 3, 4, 5)).unwrap();
    let views = [
        whole.clone(),
        whole.t().unwrap(),
        whole.transpose(0, 2).unwrap(),
        whole.permute((3, 1, 0, 2)).unwrap(),
        whole.narrow(0, 1, 1).unwrap(),
        whole.narrow(3, 1, 3).unwrap(),
        whole.narrow(2, 1, 2).unwrap().transpose(1, 3).unwrap(),
        whole.narrow(1, 0, 1).unwrap().broadcast_as((2, 3, 4, 5)).unwrap(),
        whole.narrow(3, 2, 0).unwrap(),
    ];
    for view in views {
        let name = format!("{:?} by {:?}", view.dims(), view.stride());
        let dense: Vec<i64> = view.contiguous().unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let expected: Vec<u8> = dense.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(backend.download(&view).unwrap(), expected, "{name}");
        for (offset, len) in [(0, 1), (3, 7), (13, 50), (100, 27)] {
            let Some(expected) = expected.get(offset..offset + len) else { continue };
            let mut out = vec![0; len];
            backend.read(&view, offset, &mut out).unwrap();
            assert_eq!(out, expected, "{len} B from {offset} of {name}");
        }
    }
}

#[test]
fn a_few_bytes_of_a_huge_expanded_view_cost_a_few_bytes() {
    let backend = cpu();
    let huge = Tensor::new(&[7u8], &CandleDevice::Cpu).unwrap().broadcast_as((1 << 30, 1 << 30)).unwrap();
    let mut out = [0; 3];
    backend.read(&huge, 1 << 59, &mut out).unwrap();
    assert_eq!(out, [7; 3]);
}

#[test]
fn absurd_sizes_are_errors() {
    let backend = cpu();
    let rows: [(&[usize], DType); 3] =
        [(&[1 << 30, 1 << 30], DType::F32), (&[1 << 62], DType::U8), (&[usize::MAX >> 3], DType::F64)];
    for (shape, dtype) in rows {
        let desc = desc(shape, dtype);
        match backend.allocate(&desc, Tier::Host) {
            Err(Error::OutOfMemory { place, needed, .. }) => {
                assert_eq!((place.as_str(), needed), ("host", desc.bytes()));
            }
            other => panic!("{desc}: {other:?}"),
        }
    }
    let empty_but_uncountable = desc(&[usize::MAX, usize::MAX, 0], DType::U8);
    let refused = backend.allocate(&empty_but_uncountable, Tier::Host);
    assert!(matches!(refused, Err(Error::SizeOverflow { .. })), "{refused:?}");
    assert_eq!(backend.allocate(&desc(&[0, 3], DType::F32), Tier::Host).unwrap().dims(), [0, 3]);
}

#[test]
fn absurd_results_are_errors() {
    let backend = cpu();
    let column = Tensor::zeros((1, 1), Candle::F32, &CandleDevice::Cpu).unwrap();
    let tall = column.broadcast_as((1 << 30, 1)).unwrap();
    let wide = column.broadcast_as((1, 1 << 30)).unwrap();
    let huge = column.broadcast_as((1 << 30, 1 << 30)).unwrap();
    let rows = [
        ("matmul", backend.matmul(&tall, &wide)),
        ("add", backend.add(&huge, &huge)),
        ("affine", backend.affine(&huge, 2.0, 1.0)),
        ("concat", backend.concat(&[&huge, &huge], 0)),
        ("reshape", backend.reshape(&huge, &[1 << 60])),
    ];
    for (name, result) in rows {
        assert!(matches!(result, Err(Error::OutOfMemory { .. })), "{name}: {result:?}");
    }
}

#[test]
fn dtypes_that_candle_lacks_are_named() {
    let backend = cpu();
    for dtype in [DType::Bool, DType::U64, DType::F4, DType::Q4K] {
        let refused = backend.allocate(&desc(&[1, 256], dtype), Tier::Host);
        assert!(matches!(refused, Err(Error::UnsupportedDType { dtype: d, .. }) if d == dtype), "{dtype}");
    }
    let ints = backend.allocate(&desc(&[2, 2], DType::U8), Tier::Host).unwrap();
    let rows = [backend.matmul(&ints, &ints), backend.add(&ints, &ints), backend.affine(&ints, 0.5, 0.0)];
    for result in rows {
        assert!(matches!(result, Err(Error::UnsupportedDType { dtype: DType::U8, .. })), "{result:?}");
    }
}

#[test]
fn tiers_that_it_lacks_are_named() {
    let backend = cpu();
    let desc = desc(&[1], DType::U8);
    for tier in [Tier::Device(0), Tier::PinnedHost, Tier::Disk] {
        assert!(matches!(backend.allocate(&desc, tier), Err(Error::UnsupportedTier { .. })), "{tier}");
        assert!(matches!(backend.memory(tier), Err(Error::UnsupportedTier { .. })), "{tier}");
        assert!(matches!(backend.synchronize(tier), Err(Error::UnsupportedTier { .. })), "{tier}");
        assert!(matches!(backend.trim(tier), Err(Error::UnsupportedTier { .. })), "{tier}");
    }
    assert_eq!(backend.memory(Tier::Host).unwrap().available, Bytes::MAX);
    backend.synchronize(Tier::Host).unwrap();
    backend.trim(Tier::Host).unwrap();
}

/// Who may be overwritten, and what an attempt on the others leaves behind.
#[test]
fn only_a_sole_owner_is_written_to() {
    let backend = cpu();
    let bytes = counting(24);
    let fresh = || backend.upload(&desc(&[2, 3], DType::F32), &bytes, Tier::Host).unwrap();
    let mut tensor = fresh();
    let others = [backend.share(&tensor), tensor.t().unwrap(), tensor.narrow(0, 0, 1).unwrap()];
    for other in others {
        assert!(!backend.is_unique(&mut tensor));
        assert!(matches!(backend.write(&mut tensor, 0, &[9]), Err(Error::InvalidArgument { .. })));
        assert_eq!(backend.download(&tensor).unwrap(), bytes);
        drop(other);
    }
    assert!(backend.is_unique(&mut tensor));
    backend.write(&mut tensor, 23, &[9]).unwrap();
    assert_eq!(backend.download(&tensor).unwrap().last(), Some(&9));
}

/// Views whose other handles are gone: alone, and yet not the whole storage.
#[test]
fn a_lone_view_is_written_where_dense_and_never_taken_for_whole() {
    let backend = cpu();
    let whole = || backend.upload(&desc(&[2, 3], DType::U8), &[0, 1, 2, 3, 4, 5], Tier::Host).unwrap();
    let mut row = whole().narrow(0, 1, 1).unwrap();
    assert!(!backend.is_unique(&mut row));
    backend.write(&mut row, 1, &[9]).unwrap();
    assert_eq!(backend.download(&row).unwrap(), [3, 9, 5]);
    let mut column = whole().narrow(1, 1, 1).unwrap();
    assert!(!backend.is_unique(&mut column));
    assert!(matches!(backend.write(&mut column, 0, &[9]), Err(Error::InvalidArgument { .. })));
    let mut same = whole().reshape(6).unwrap();
    assert!(backend.is_unique(&mut same));
}

/// Storage is filled where it lies: the address that candle computes on stays the same.
#[test]
fn writing_moves_nothing() {
    let backend = cpu();
    let mut tensor = backend.allocate(&desc(&[1024], DType::F32), Tier::Host).unwrap();
    let address = |tensor: &Tensor| match &*tensor.storage_and_layout().0 {
        candle_core::Storage::Cpu(candle_core::CpuStorage::F32(values)) => values.as_ptr() as usize,
        other => panic!("{other:?}"),
    };
    let before = address(&tensor);
    for round in 0..3u8 {
        backend.write(&mut tensor, 0, &[round; 4096]).unwrap();
        assert_eq!(address(&tensor), before);
    }
}

#[test]
fn ranges_are_checked() {
    let backend = cpu();
    let mut tensor = backend.allocate(&desc(&[2], DType::F32), Tier::Host).unwrap();
    for (offset, len) in [(0, 9), (8, 1), (usize::MAX, 1), (9, 0)] {
        let bytes = vec![1; len];
        let written = backend.write(&mut tensor, offset, &bytes);
        assert!(matches!(written, Err(Error::InvalidArgument { argument: "range", .. })), "{offset}+{len}");
        let read = backend.read(&tensor, offset, &mut vec![0; len]);
        assert!(matches!(read, Err(Error::InvalidArgument { argument: "range", .. })), "{offset}+{len}");
    }
    assert_eq!(backend.download(&tensor).unwrap(), [0; 8]);
    backend.write(&mut tensor, 8, &[]).unwrap();
}

#[test]
fn matrices_that_lie_transposed_or_narrowed_multiply() {
    let backend = cpu();
    let a = Tensor::arange(0f32, 24.0, &CandleDevice::Cpu).unwrap().reshape((2, 3, 4)).unwrap();
    let rows = [
        (a.clone(), a.t().unwrap()),
        (a.transpose(0, 1).unwrap(), a.permute((1, 2, 0)).unwrap()),
        (a.narrow(2, 1, 2).unwrap(), a.t().unwrap().narrow(1, 0, 2).unwrap()),
        (a.narrow(1, 0, 0).unwrap(), a.t().unwrap()),
        (a.narrow(2, 0, 0).unwrap(), a.t().unwrap().narrow(1, 0, 0).unwrap()),
    ];
    for (x, y) in rows {
        let name = format!("{:?} by {:?}", x.dims(), y.dims());
        let expected = x.contiguous().unwrap().matmul(&y.contiguous().unwrap()).unwrap();
        let product = backend.matmul(&x, &y).unwrap();
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!((product.dims(), values(&product)), (expected.dims(), values(&expected)), "{name}");
    }
}

#[test]
fn threads_share_and_refill_their_own() {
    let backend = cpu();
    let desc = desc(&[64, 16], DType::F32);
    let shared = backend.upload(&desc, &counting(4096), Tier::Host).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let (backend, shared, desc) = (backend.clone(), backend.share(&shared), desc.clone());
            scope.spawn(move || {
                let mut own = backend.allocate(&desc, Tier::Host).unwrap();
                for round in 0..50u8 {
                    assert!(backend.is_unique(&mut own));
                    backend.write(&mut own, 0, &[thread.wrapping_add(round); 4096]).unwrap();
                    let view = own.narrow(0, 1, 1).unwrap();
                    assert!(!backend.is_unique(&mut own));
                    assert!(
                        backend.download(&view).unwrap().iter().all(|b| *b == thread.wrapping_add(round))
                    );
                    drop(view);
                    assert_eq!(backend.download(&shared).unwrap(), counting(4096));
                }
            });
        }
    });
    let mut shared = shared;
    assert!(backend.is_unique(&mut shared));
}
