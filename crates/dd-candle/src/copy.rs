//! Copying weights past the caches.
//!
//! An ordinary store first reads the line that it overwrites. A block of weights is written once and read much later,
//! so that read, and the cache that the line takes, are in vain. Streaming stores spare both: into huge pages they copied
//! 11 GB/s where `memcpy` copied 6.5, beside a computation that wants the same memory.
#![allow(
    unsafe_code,
    reason = "streaming stores are processor instructions; every block says why it is sound"
)]

/// Copies the bytes of `from` over those of `to`.
///
/// # Panics
/// Where they are not as long as each other, as `copy_from_slice` does.
pub(crate) fn copy(to: &mut [u8], from: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    if to.len() == from.len() && from.len() >= SMALL && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { stream(to, from) };
    }
    to.copy_from_slice(from);
}

/// Below this, what is copied is as well left in the cache.
#[cfg(target_arch = "x86_64")]
const SMALL: usize = 64 << 10;

/// Copies with streaming stores, except for the ends that do not fill a line.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn stream(to: &mut [u8], from: &[u8]) {
    use std::arch::x86_64::{__m256i, _mm_sfence, _mm256_loadu_si256, _mm256_stream_si256};

    const LINE: usize = 64;
    let head = to.as_ptr().align_offset(LINE).min(from.len());
    let (Some((to_head, to)), Some((from_head, from))) =
        (to.split_at_mut_checked(head), from.split_at_checked(head))
    else {
        return;
    };
    to_head.copy_from_slice(from_head);
    let ((to_lines, to_tail), (from_lines, from_tail)) =
        (to.as_chunks_mut::<LINE>(), from.as_chunks::<LINE>());
    for (to, from) in to_lines.iter_mut().zip(from_lines) {
        let (to, from) = (to.as_mut_ptr().cast::<__m256i>(), from.as_ptr().cast::<__m256i>());
        // SAFETY: both are lines of 64 bytes, two vectors each; `to` begins at a multiple of 64, since the head ended
        // there; loads may be unaligned.
        unsafe {
            let (low, high) = (_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1)));
            _mm256_stream_si256(to, low);
            _mm256_stream_si256(to.add(1), high);
        }
    }
    for (to, from) in to_tail.iter_mut().zip(from_tail) {
        *to = *from;
    }
    _mm_sfence(); // Streaming stores are ordered with nothing: whoever is told of the copy must find it done.
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "any byte will do")]

    use super::*;

    #[test]
    fn every_alignment_and_length_is_copied_and_nothing_else() {
        let from: Vec<u8> = (0..300_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for offset in [0, 1, 31, 63, 64] {
            for start in [0, 1, 17, 63] {
                for len in [0, 1, 63, 64, 1000, 65_536, 65_537, 200_000, 299_000] {
                    let mut to = vec![7; 300_200];
                    copy(&mut to[offset..offset + len], &from[start..start + len]);
                    assert!(to[offset..offset + len] == from[start..start + len], "{offset} {start} {len}");
                    assert!(to[..offset].iter().chain(&to[offset + len..]).all(|byte| *byte == 7));
                }
            }
        }
    }
}
