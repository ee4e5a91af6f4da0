//! The same loop, compiled for wider vectors where the processor has them.
//!
//! Code for any x86-64 processor uses vectors of 16 bytes. Taking floats apart and putting them together is only
//! shifts and masks over arrays, and gains from 32. A closure given to [`wide`] is inlined into a function that may use
//! them, and gives the same result either way.
#![allow(
    unsafe_code,
    reason = "calling code compiled for a processor's extension is unsafe unless it is there"
)]

/// Runs `work`, which should be a loop over bytes that is always inlined, in the widest vectors there are.
#[inline]
pub(crate) fn wide<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which is all that the function asks for.
        return unsafe { avx2(work) };
    }
    work()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2<R>(work: impl FnOnce() -> R) -> R {
    work()
}
