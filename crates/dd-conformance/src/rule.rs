//! What the suites share: the message of a breach, and bytes to test with.

use std::fmt::Display;
use std::panic::resume_unwind;
use std::thread;

use dd_core::{DType, Result, TensorDesc};

/// The value of a call that must succeed; `what` says which.
#[track_caller]
pub(crate) fn done<T>(result: Result<T>, what: impl Display) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{what}: expected success, found the error: {error}"),
    }
}

/// Checks that a call failed with one kind of error: `refused!(call, Error::NotFound { .. }, "read of {name:?}")`.
macro_rules! refused {
    ($result:expr, $pattern:pat, $($what:tt)+) => {
        match $result {
            Err($pattern) => {}
            Err(other) => {
                panic!("{}: expected {}, found {other:?}", format_args!($($what)+), stringify!($pattern))
            }
            Ok(_) => panic!("{}: expected {}, found success", format_args!($($what)+), stringify!($pattern)),
        }
    };
}
pub(crate) use refused;

/// A description that the suite itself needs, and that exists.
#[track_caller]
pub(crate) fn desc(shape: &[usize], dtype: DType) -> TensorDesc {
    done(TensorDesc::new(shape, dtype), format_args!("the suite's own tensor {shape:?} {dtype}"))
}

/// Its length in memory.
#[track_caller]
pub(crate) fn len(desc: &TensorDesc) -> usize {
    done(desc.len_in_memory(), format_args!("the suite's own tensor {desc}"))
}

/// Bytes that do not compress, the same for the same seed: SplitMix64 ([Steele, Lea, Flood
/// 2014](https://doi.org/10.1145/2660193.2660195)).
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0xA076_1D64_78BD_642F);
    let mut word = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)).to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| word()).collect();
    bytes.truncate(len);
    bytes
}

/// Valid contents for a tensor: any bytes, but zeros and ones for booleans.
pub(crate) fn contents(desc: &TensorDesc, seed: u64) -> Vec<u8> {
    let mut bytes = noise(seed, len(desc));
    if desc.dtype() == DType::Bool {
        bytes.iter_mut().for_each(|byte| *byte &= 1);
    }
    bytes
}

/// Runs the same work on four threads, numbered from zero; a panic of one is passed on with its message.
pub(crate) fn on_threads<T: Send>(work: impl Fn(u8) -> T + Sync) -> Vec<T> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|number| scope.spawn(move || work(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

/// Where two byte strings first differ, for a message.
pub(crate) fn difference(found: &[u8], expected: &[u8]) -> String {
    if found.len() != expected.len() {
        return format!("{} B instead of {} B", found.len(), expected.len());
    }
    match found.iter().zip(expected).position(|(a, b)| a != b) {
        Some(at) => format!("byte {at} is {:#04x} instead of {:#04x}", found[at], expected[at]),
        None => "no difference".to_owned(),
    }
}
