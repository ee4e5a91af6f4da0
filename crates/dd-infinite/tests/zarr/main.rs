//! Tile stores in the format Zarr: the contract of `TileStore` on every medium, what happens when things break, what a killed
//! program leaves, and what other programs read.
#![cfg(feature = "zarr")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::type_complexity,
    reason = "tests"
)]

mod contract;
mod engine;
mod faults;
mod kill;
mod python;

use std::collections::BTreeMap;

use dd_core::{DType, TensorDesc};
use dd_infinite::{Manifest, TileStore};
use serde_json::json;

/// A manifest of such windows.
fn manifest(shape: &[usize], dtype: DType, index_rank: usize) -> Manifest {
    let fields = BTreeMap::from([("version".to_owned(), json!("1")), ("seed".to_owned(), json!(-7))]);
    Manifest { window: TensorDesc::new(shape, dtype).unwrap(), index_rank, fields }
}

/// Bytes that depend on a window's index alone. Nothing compresses them, but for each fourth block of 256.
fn window(manifest: &Manifest, index: &[i64]) -> Vec<u8> {
    let salt = index.iter().fold(17, |salt, i| mix(salt ^ i.cast_unsigned()));
    let top = |n: u64| (mix(salt.wrapping_add(n)) >> 56) as u8;
    let byte = |n: u64| match (manifest.window.dtype(), n / 256 % 4) {
        (DType::Bool, _) => top(n) & 1,
        (_, 3) => top(0),
        _ => top(n),
    };
    (0..manifest.window.bytes().0).map(byte).collect()
}

/// Sebastiano Vigna's SplitMix64.
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The indices of all windows stored, in order.
fn indices(store: &dyn TileStore, tensor: &str) -> Vec<Vec<i64>> {
    let mut found = Vec::new();
    store
        .for_each_window(tensor, &mut |index| {
            found.push(index.to_vec());
            true
        })
        .unwrap();
    found.sort_unstable();
    found
}

/// Whether a window is there, and is what was put.
fn holds(store: &dyn TileStore, tensor: &str, manifest: &Manifest, index: &[i64]) -> bool {
    let mut out = vec![0xaa; manifest.window.len_in_memory().unwrap()];
    let there = store.get(tensor, index, &mut out).unwrap();
    assert_eq!(there, store.contains(tensor, index).unwrap(), "{index:?}");
    assert!(!there || out == window(manifest, index), "window {index:?} of {tensor} is not what was put");
    there
}
