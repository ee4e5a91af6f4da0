//! The table at the start of a packed tensor: how long each of its chunks is.
//!
//! ```text
//! per chunk u32: its length
//! xxh3 u64 of that, seeded with the tensor's key
//! ```

use dd_core::{Bytes, TensorDesc};
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use super::codec::{MIN_PACKED, max_packed};
use super::header::ALIGN;

const CHECKSUM: u64 = 8;

/// The key of a tensor: a hash of its name, its dtype's name and its shape (each dimension as u64), each followed by a
/// zero byte. Its chunks have this key plus their number.
pub(super) fn key(name: &str, desc: &TensorDesc) -> u64 {
    let mut hash = Xxh3::new();
    for text in [name, desc.dtype().as_str()] {
        hash.update(text.as_bytes());
        hash.update(&[0]);
    }
    desc.shape().iter().for_each(|dim| hash.update(&Bytes::of(*dim).0.to_le_bytes()));
    hash.update(&[0]);
    hash.digest()
}

/// How many bytes the table of a tensor takes; nothing past 64 bits.
pub(super) fn table_bytes(raw: u64, chunk: usize) -> Option<u64> {
    raw.div_ceil(Bytes::of(chunk).0).checked_mul(4)?.checked_add(CHECKSUM)
}

/// What follows the last chunk, so that the tensor's length is the raw one modulo [`ALIGN`].
pub(super) fn padding(raw: u64, stored: u64) -> u64 {
    (raw % ALIGN + ALIGN - stored % ALIGN) % ALIGN
}

/// The table of chunks of these lengths.
pub(super) fn encode(key: u64, lengths: &[u32]) -> Vec<u8> {
    let mut table: Vec<u8> = lengths.iter().flat_map(|length| length.to_le_bytes()).collect();
    table.extend(xxh3_64_with_seed(&table, key).to_le_bytes());
    table
}

/// Where each chunk starts and the last one ends, counted from the tensor's start; what is wrong, in words.
pub(super) fn decode(
    key: u64,
    table: &[u8],
    raw: u64,
    chunk: usize,
    stored: u64,
) -> Result<Box<[u64]>, String> {
    let (lengths, checksum) =
        table.split_last_chunk().ok_or_else(|| "its table of chunks is too short".to_owned())?;
    let (expected, found) = (u64::from_le_bytes(*checksum), xxh3_64_with_seed(lengths, key));
    if expected != found {
        return Err(format!("checksum {expected:016x} of its table expected, {found:016x} found"));
    }
    let mut starts = Vec::with_capacity(lengths.len() / 4 + 1);
    let (mut at, mut left) = (Bytes::of(table.len()).0, raw);
    for length in lengths.as_chunks().0 {
        starts.push(at);
        let length = u64::from(u32::from_le_bytes(*length));
        let holds = left.min(Bytes::of(chunk).0);
        let most = Bytes::of(max_packed(0)).0 + holds;
        if !(Bytes::of(MIN_PACKED).0..=most).contains(&length) {
            return Err(format!("{length} B cannot be a chunk of {holds} B"));
        }
        at += length; // At most a chunk each, of as many as fit the file.
        left -= holds;
    }
    starts.push(at);
    let end = at + padding(raw, at);
    if left > 0 || end != stored {
        return Err(format!("its chunks end at {end}, expected {stored}"));
    }
    Ok(starts.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_do_not_add_up_are_refused() {
        let (raw, chunk, key) = (10_000, 4096, 5);
        let sum = |lengths: &[u32]| 20 + lengths.iter().map(|length| u64::from(*length)).sum::<u64>();
        let padded = |lengths: &[u32]| sum(lengths) + padding(raw, sum(lengths));
        let rows: [(&[u32], u64, bool); 9] = [
            (&[100, 4105, 9], 0, true),
            (&[100, 4105, 9], 1, false),
            (&[100, 4105, 9], 64, false),
            (&[100, 4106, 9], 0, false),
            (&[100, 4105, 8], 0, false),
            (&[100, 4105, 1818], 0, false),
            (&[u32::MAX, 100, 9], 0, false),
            (&[100, 100], 0, false),
            (&[100, 100, 100, 100], 0, false),
        ];
        for (lengths, more, fine) in rows {
            let found = decode(key, &encode(key, lengths), raw, chunk, padded(lengths) + more);
            assert_eq!(found.is_ok(), fine, "{lengths:?} + {more}: {found:?}");
        }
        assert!(
            decode(key + 1, &encode(key, &[100, 100, 100]), raw, chunk, padded(&[100, 100, 100])).is_err()
        );
        assert_eq!(table_bytes(u64::MAX, 4096), Some((u64::MAX / 4096 + 1) * 4 + 8));
    }

    #[test]
    fn keys_tell_tensors_apart() {
        let desc = |shape: &[usize], dtype| TensorDesc::new(shape, dtype).expect("small");
        let keys = [
            key("a", &desc(&[2, 3], dd_core::DType::BF16)),
            key("a", &desc(&[3, 2], dd_core::DType::BF16)),
            key("a", &desc(&[6], dd_core::DType::BF16)),
            key("a", &desc(&[2, 3], dd_core::DType::F16)),
            key("b", &desc(&[2, 3], dd_core::DType::BF16)),
        ];
        let distinct: std::collections::BTreeSet<u64> = keys.into_iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }
}
