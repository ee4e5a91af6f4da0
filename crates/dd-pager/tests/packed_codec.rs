//! Chunks: packed and unpacked without loss, whatever is in them; and damage, which is always found.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use dd_core::{Bytes, DType};
use dd_pager::convert;
use dd_pager::packed::codec::{CHUNK_RANGE, max_packed};
use dd_pager::packed::{Decoder, Encoder};
use half::{bf16, f16};
use proptest::prelude::*;

const CHUNK: usize = 64 << 10;
const KEY: u64 = 7;
const FLOATS: [DType; 3] = [DType::BF16, DType::F16, DType::F32];

/// Packs, unpacks and widens; gives the packed bytes.
fn round_trip(dtype: DType, raw: &[u8]) -> Vec<u8> {
    let (mut encoder, mut decoder) = (Encoder::new(CHUNK).unwrap(), Decoder::new(CHUNK).unwrap());
    let memory = (encoder.memory(), decoder.memory());
    let mut packed = vec![9; 3]; // What is there is replaced.
    encoder.encode(KEY, dtype, raw, &mut packed).unwrap();
    assert!(packed.len() <= max_packed(raw.len()), "{dtype}: {} B from {} B", packed.len(), raw.len());
    let mut back = vec![0xa5; raw.len()];
    decoder.decode(KEY, &packed, &mut back).unwrap();
    assert!(back == raw, "{dtype}: {} B are not what they were", raw.len());
    if let Ok(len) = convert::widened(dtype, DType::F32, Bytes::of(raw.len())) {
        let (mut direct, mut stepwise) = (vec![1; len.to_usize().unwrap()], vec![2; len.to_usize().unwrap()]);
        decoder.decode_widened(KEY, (dtype, DType::F32), &packed, &mut direct).unwrap();
        convert::widen(dtype, DType::F32, raw, &mut stepwise).unwrap();
        assert!(direct == stepwise, "{dtype}: {} B widen otherwise", raw.len());
    }
    assert_eq!((encoder.memory(), decoder.memory()), memory, "they hold what they said");
    packed
}

/// Weights as an initialiser makes them: normal, with a deviation of 0.02.
fn normal(count: usize) -> impl Iterator<Item = f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 + f32::MIN_POSITIVE
    };
    (0..count).map(move |_| (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos() * 0.02)
}

fn weights(dtype: DType, bytes: usize) -> Vec<u8> {
    match dtype {
        DType::BF16 => normal(bytes / 2).flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect(),
        DType::F16 => normal(bytes / 2).flat_map(|value| f16::from_f32(value).to_le_bytes()).collect(),
        _ => normal(bytes / 4).flat_map(f32::to_le_bytes).collect(),
    }
}

#[test]
fn weights_shrink_by_what_their_exponents_hold() {
    let rows = [(DType::BF16, 1.48, 1.55), (DType::F16, 1.15, 1.25), (DType::F32, 1.18, 1.25)];
    for (dtype, least, most) in rows {
        let raw = weights(dtype, CHUNK);
        let ratio = raw.len() as f64 / round_trip(dtype, &raw).len() as f64;
        assert!((least..most).contains(&ratio), "{dtype}: {ratio}");
    }
    // An f32 that was a bf16 once gains what that gains, and its empty halves too.
    let once = normal(CHUNK / 4).flat_map(|value| bf16::from_f32(value).to_f32().to_le_bytes());
    let once: Vec<u8> = once.collect();
    let ratio = once.len() as f64 / round_trip(DType::F32, &once).len() as f64;
    assert!(ratio > 2.9, "{ratio}");
}

#[test]
fn what_is_special_comes_back_to_the_bit() {
    let patterns: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let values = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, f32::MIN_POSITIVE, f32::MAX, 1e-45];
    let rows = [
        patterns[..CHUNK].to_vec(),
        patterns[CHUNK..].to_vec(),
        values.iter().cycle().take(999).flat_map(|value| value.to_le_bytes()).collect(),
        vec![0; CHUNK],
        vec![0xff; CHUNK],
        [0x01, 0x00, 0x80, 0x7f].repeat(500), // A signalling NaN.
    ];
    for raw in rows {
        FLOATS.iter().for_each(|dtype| drop(round_trip(*dtype, &raw)));
    }
    assert!(round_trip(DType::BF16, &[0; CHUNK]).len() < 100);
}

#[test]
fn lengths_of_all_kinds() {
    let raw = weights(DType::BF16, CHUNK);
    for dtype in FLOATS.into_iter().chain([DType::U8, DType::I64, DType::Q4K, DType::F64]) {
        for len in (0..20).chain([127, 128, 129, 4095, 4097, CHUNK - 1, CHUNK]) {
            round_trip(dtype, &raw[..len]);
        }
    }
}

#[test]
fn what_gains_nothing_is_stored_as_it_is() {
    for dtype in [DType::U8, DType::F64, DType::I32, DType::F8E4M3, DType::Q8_0] {
        let raw = weights(DType::F32, 4096);
        assert_eq!(round_trip(dtype, &raw).len(), max_packed(raw.len()), "{dtype}");
    }
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    for chunk in [0, 1, 4095, 4097, 3 << 12, CHUNK_RANGE.end() + 1, usize::MAX] {
        assert!(Encoder::new(chunk).is_err() && Decoder::new(chunk).is_err(), "{chunk}");
    }
    let (mut encoder, mut decoder) = (Encoder::new(4096).unwrap(), Decoder::new(4096).unwrap());
    let mut packed = Vec::new();
    assert!(encoder.encode(KEY, DType::F32, &[0; 4097], &mut packed).is_err());
    encoder.encode(KEY, DType::BF16, &[0; 4096], &mut packed).unwrap();
    for len in [0, 1, 4094, 4095, 4097, 8192] {
        assert!(decoder.decode(KEY, &packed, &mut vec![0; len]).is_err(), "{len}");
    }
    for len in [0, 1, 4096, 8191, 8193, 8194, 16384] {
        let pair = (DType::BF16, DType::F32);
        assert!(decoder.decode_widened(KEY, pair, &packed, &mut vec![0; len]).is_err(), "{len}");
    }
    for pair in [(DType::F32, DType::BF16), (DType::I16, DType::F32), (DType::BF16, DType::F16)] {
        assert!(decoder.decode_widened(KEY, pair, &packed, &mut [0; 8192]).is_err(), "{pair:?}");
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_found() {
    for dtype in FLOATS {
        let raw = weights(dtype, 4096);
        let mut packed = round_trip(dtype, &raw);
        let mut decoder = Decoder::new(CHUNK).unwrap();
        let mut out = vec![0; raw.len()];
        for bit in (0..packed.len() * 8).step_by(3) {
            packed[bit / 8] ^= 1 << (bit % 8);
            let error = decoder.decode(KEY, &packed, &mut out).unwrap_err();
            assert!(error.to_string().contains("does not decode"), "{dtype} bit {bit}: {error}");
            packed[bit / 8] ^= 1 << (bit % 8);
        }
        for len in (0..packed.len()).step_by(7) {
            assert!(decoder.decode(KEY, &packed[..len], &mut out).is_err(), "{dtype} cut to {len}");
        }
        assert!(decoder.decode(KEY + 1, &packed, &mut out).is_err(), "{dtype}: a chunk in place of another");
        decoder.decode(KEY, &packed, &mut out).unwrap(); // The decoder is none the worse.
        assert!(out == raw);
    }
}

/// With a right checksum, since whoever makes a hostile file can compute it too.
fn sealed(body: &[u8]) -> Vec<u8> {
    let mut packed = xxhash_rust::xxh3::xxh3_64_with_seed(body, KEY).to_le_bytes().to_vec();
    packed.extend(body);
    packed
}

#[test]
fn hostile_chunks_with_right_checksums() {
    let zeros = zstd::bulk::compress(&vec![0; 16 << 20], 1).unwrap(); // Would unpack to 16 MiB.
    let length =
        |len: usize, coded: bool| (u32::try_from(len).unwrap() | u32::from(coded) << 31).to_le_bytes();
    let bomb = [&[2][..], &length(zeros.len(), true), &length(zeros.len(), true), &zeros, &zeros].concat();
    let endless = [&[2][..], &length((1 << 31) - 1, true), &length((1 << 31) - 1, false), &[1; 100]].concat();
    let short = [&[2][..], &length(3, false), &length(3, false), &[1; 6]].concat();
    let rows: [&[u8]; 8] = [&bomb, &endless, &short, &[1], &[3, 0, 0, 0, 0], &[255], &[4, 0, 0], &[2]];
    let mut decoder = Decoder::new(CHUNK).unwrap();
    for body in rows {
        for len in [1, 2, 100, CHUNK] {
            assert!(decoder.decode(KEY, &sealed(body), &mut vec![0; len]).is_err(), "{len} B");
            let pair = (DType::F16, DType::F32);
            assert!(decoder.decode_widened(KEY, pair, &sealed(body), &mut vec![0; len]).is_err(), "{len} B");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_bits_round_trip(raw in proptest::collection::vec(any::<u8>(), 0..5000), few in 1u8..=255) {
        let few: Vec<u8> = raw.iter().map(|byte| byte % few).collect();
        for dtype in FLOATS {
            round_trip(dtype, &raw);
            round_trip(dtype, &few);
        }
    }

    #[test]
    fn random_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..300), len in 0usize..300) {
        let mut decoder = Decoder::new(4096).unwrap();
        for first in [0, 2, 4] {
            let body = [&[first][..], &body].concat();
            let _any = decoder.decode(KEY, &sealed(&body), &mut vec![0; len]);
            let _any = decoder.decode_widened(KEY, (DType::BF16, DType::F32), &sealed(&body), &mut vec![0; len]);
        }
        prop_assert!(decoder.decode(KEY, &body, &mut vec![0; len]).is_err());
    }

    #[test]
    fn random_damage_under_a_right_checksum_never_panics(at in 0usize..2000, with: u8) {
        let raw = weights(DType::BF16, 4096);
        let mut body = round_trip(DType::BF16, &raw).split_off(8);
        let at = at % body.len();
        body[at] = with;
        let _any = Decoder::new(4096).unwrap().decode(KEY, &sealed(&body), &mut vec![0; raw.len()]);
    }
}
