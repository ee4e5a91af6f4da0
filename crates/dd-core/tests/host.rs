//! [`HostBackend`] on shapes that no memory holds: a typed error or a right result, never a panic or an abort.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use dd_core::{Backend, Bytes, DType, Error, HostBackend, HostTensor, Linalg, TensorDesc, Tier};

const HUGE: usize = 1 << 30;

fn empty(backend: &HostBackend, shape: &[usize]) -> HostTensor {
    backend.allocate(&TensorDesc::new(shape, DType::F32).unwrap(), Tier::Host).unwrap()
}

#[test]
fn results_larger_than_memory_are_errors() {
    let host = HostBackend::default();
    let (tall, wide) = (empty(&host, &[HUGE, 0]), empty(&host, &[0, HUGE]));
    assert!(host.matmul(&tall, &wide).unwrap_err().is_out_of_memory());
    let longest = empty(&host, &[usize::MAX, 0]);
    assert!(matches!(host.concat(&[&longest, &longest], 0), Err(Error::SizeOverflow { .. })));
    assert_eq!(host.capacity(Tier::Host).unwrap().usage().used, Bytes::ZERO);
}

#[test]
fn empty_tensors_of_huge_dimensions_are_no_work() {
    let host = HostBackend::default();
    let stack = empty(&host, &[0, HUGE, HUGE]);
    let rows: [(HostTensor, Vec<usize>); 4] = [
        (host.concat(&[&empty(&host, &[HUGE, HUGE, 0]); 2], 2).unwrap(), vec![HUGE, HUGE, 0]),
        (host.narrow(&empty(&host, &[0, usize::MAX, 4]), 1, usize::MAX, 0).unwrap(), vec![0, 0, 4]),
        (host.transpose(&stack, 0, 2).unwrap(), vec![HUGE, HUGE, 0]),
        (host.matmul(&stack, &stack).unwrap(), vec![0, HUGE, HUGE]),
    ];
    for (tensor, shape) in rows {
        assert_eq!(tensor.desc().shape(), shape);
        assert!(tensor.bytes().is_empty());
    }
}
