//! One chunk of floats, packed and unpacked without loss.
//!
//! A chunk stands for itself: decoding needs nothing but the chunk, its raw length and its key. All numbers are
//! little-endian.
//!
//! ```text
//! xxh3 u64, seeded with the chunk's key, of all that follows
//! planes u8: 0 for a chunk stored as it is, else 2 or 4
//! per plane u32: its stored length, top bit set where it is a zstd frame and clear where it is as it was
//! the planes' stored bytes, one after the other
//! the raw bytes after the last whole value (of a chunk stored as it is: all of them)
//! ```
//!
//! What the planes are is said in the `planes` module. Their frames hold literals only: the encoder is told to look
//! for no repetitions, since weights have none, and what is left of zstd is its Huffman coder, among the fastest there
//! are. A plane whose frame is not at least [`LEAST_GAIN`] shorter is stored as it is and costs nothing to read.
//!
//! The checksum is of the stored bytes, so that a flipped bit is found before anything is made of it, and its seed is
//! a key that the caller chooses: a chunk that is read in place of another is found too.

use dd_core::{Bytes, DType};
use xxhash_rust::xxh3::xxh3_64_with_seed;
use zstd::zstd_safe::{CCtx, CParameter, DCtx, ParamSwitch, Strategy, get_error_name};

use super::planes::{self, MAX_PLANES};
use crate::convert;
use crate::error::{Error, Result};

/// The bytes before a chunk's planes: checksum and number of planes.
const HEAD: usize = 9;

/// The top bit of a plane's stored length.
const CODED: u32 = 1 << 31;

/// The gain from which packed bytes are worth their decoding, as a share of the raw bytes.
pub const LEAST_GAIN: f64 = 0.03;

/// The least and the most raw bytes of a chunk.
pub const CHUNK_RANGE: std::ops::RangeInclusive<usize> = 4 << 10..=16 << 20;

/// The most bytes that a chunk of so many raw bytes takes when packed.
#[must_use]
pub const fn max_packed(raw: usize) -> usize {
    raw.saturating_add(HEAD)
}

/// The fewest bytes that any chunk takes when packed.
pub(super) const MIN_PACKED: usize = HEAD;

/// Packs chunk after chunk, with the library's state and one chunk of scratch memory for all of them.
pub struct Encoder {
    zstd: CCtx<'static>,
    planes: Vec<u8>,
    frame: Vec<u8>,
}

impl Encoder {
    /// An encoder for chunks of at most `chunk` raw bytes.
    ///
    /// # Errors
    /// [`Error::Invalid`] where `chunk` is not in [`CHUNK_RANGE`]; [`Error::Core`] where zstd cannot be set up.
    pub fn new(chunk: usize) -> Result<Self> {
        check_chunk(chunk)?;
        let mut zstd = CCtx::try_create().ok_or_else(|| library("make a compressor", "no memory"))?;
        // A search that steps 128 KiB at a time finds nothing, which is what it is for: the few matches that chance
        // makes cost more to decode, and even to store, than the literals. Such a step would turn the Huffman coder off
        // as well, hence the explicit mode. A window of 128 KiB is what makes blocks as large as they can be.
        let parameters = [
            CParameter::CompressionLevel(1),
            CParameter::Strategy(Strategy::ZSTD_fast),
            CParameter::WindowLog(17),
            CParameter::HashLog(6),
            CParameter::MinMatch(7),
            CParameter::TargetLength(1 << 17),
            CParameter::LiteralCompressionMode(ParamSwitch::Enable),
            CParameter::ContentSizeFlag(false),
        ];
        for parameter in parameters {
            zstd.set_parameter(parameter)
                .map_err(|code| library("set up a compressor", get_error_name(code)))?;
        }
        let mut encoder = Self { zstd, planes: vec![0; chunk], frame: Vec::with_capacity(chunk) };
        let (largest, _) = encoder.planes.split_at(chunk / 2);
        shorter(&mut encoder.zstd, largest, &mut encoder.frame); // The library takes its memory now, not later.
        Ok(encoder)
    }

    /// What it holds: scratch memory and the library's state.
    #[must_use]
    pub fn memory(&self) -> Bytes {
        Bytes::of(self.zstd.sizeof()) + Bytes::of(self.planes.len()) + Bytes::of(self.frame.capacity())
    }

    /// Packs `src` into `out`, replacing what is there, in at most [`max_packed`] bytes. Types other than bf16, f16 and
    /// f32, and chunks that do not shrink, are stored as they are. Any length will do, half a value at the end too.
    ///
    /// # Errors
    /// [`Error::Invalid`] where `src` is longer than the encoder's chunks.
    pub fn encode(&mut self, key: u64, dtype: DType, src: &[u8], out: &mut Vec<u8>) -> Result<()> {
        check_raw(src.len(), self.planes.len())?;
        out.clear();
        out.extend([0; HEAD]);
        let gained = self.encode_planes(dtype, src, out);
        if gained.is_none() {
            out.truncate(HEAD);
            out.extend_from_slice(src);
        }
        let planes = if gained.is_some() { planes::of(dtype) } else { 0 };
        if let Some(head) = out.first_chunk_mut::<HEAD>() {
            head[8] = u8::try_from(planes).unwrap_or_default(); // At most four.
        }
        let checksum = checksum(key, out).to_le_bytes();
        if let Some(head) = out.first_chunk_mut() {
            *head = checksum;
        }
        Ok(())
    }

    /// Appends lengths, planes and tail; nothing where that is not shorter than `src`.
    fn encode_planes(&mut self, dtype: DType, src: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let count = planes::of(dtype);
        let values = src.len().checked_div(count).filter(|values| *values > 0)?;
        let (src, tail) = src.split_at_checked(values * count)?;
        split(&mut self.planes, values, count, src)?;
        let mut lengths_at = out.len();
        out.resize(lengths_at + 4 * count, 0);
        for plane in self.planes.chunks(values).take(count) {
            let (stored, coded) = shorter(&mut self.zstd, plane, &mut self.frame);
            let length = u32::try_from(stored.len()).ok()? | if coded { CODED } else { 0 };
            if out.len() + stored.len() >= HEAD + src.len() + tail.len() {
                return None; // Before `out` grows past what was promised.
            }
            out.extend_from_slice(stored);
            *out.get_mut(lengths_at..)?.first_chunk_mut()? = length.to_le_bytes();
            lengths_at += 4;
        }
        out.extend_from_slice(tail);
        (out.len() < HEAD + src.len() + tail.len()).then_some(())
    }
}

/// Takes the values apart into the first `count * values` bytes of `scratch`.
fn split(scratch: &mut [u8], values: usize, count: usize, src: &[u8]) -> Option<()> {
    let mut parts = scratch.get_mut(..values * count)?.chunks_mut(values);
    if count == 2 {
        planes::split_two(src.as_chunks().0, [parts.next()?, parts.next()?]);
    } else {
        planes::split_four(src.as_chunks().0, [parts.next()?, parts.next()?, parts.next()?, parts.next()?]);
    }
    Some(())
}

/// A plane's frame where that is short enough, else the plane; and which.
fn shorter<'a>(zstd: &mut CCtx<'_>, plane: &'a [u8], frame: &'a mut Vec<u8>) -> (&'a [u8], bool) {
    frame.clear();
    let most = Bytes::of(plane.len()).scaled(1.0 - LEAST_GAIN).0;
    match zstd.compress2(frame, plane) {
        Ok(len) if Bytes::of(len).0 <= most => (frame.as_slice(), true),
        _ => (plane, false), // Longer, or longer than the room for it.
    }
}

/// Unpacks chunk after chunk, with the library's state and one chunk of scratch memory for all of them.
pub struct Decoder {
    zstd: DCtx<'static>,
    planes: Vec<u8>,
}

impl Decoder {
    /// A decoder for chunks of at most `chunk` raw bytes.
    ///
    /// # Errors
    /// As [`Encoder::new`].
    pub fn new(chunk: usize) -> Result<Self> {
        check_chunk(chunk)?;
        let zstd = DCtx::try_create().ok_or_else(|| library("make a decompressor", "no memory"))?;
        Ok(Self { zstd, planes: vec![0; chunk] })
    }

    /// What it holds, from its making to its end: scratch memory and the library's state.
    #[must_use]
    pub fn memory(&self) -> Bytes {
        Bytes::of(self.zstd.sizeof()) + Bytes::of(self.planes.len())
    }

    /// Fills `out`, which is as long as the chunk was raw. On an error `out` holds anything.
    ///
    /// # Errors
    /// [`Error::Damaged`] where `packed` is not the chunk of this key and length; [`Error::Invalid`] where `out` is
    /// longer than the decoder's chunks.
    pub fn decode(&mut self, key: u64, packed: &[u8], out: &mut [u8]) -> Result<()> {
        check_raw(out.len(), self.planes.len())?;
        let body = Body::read(key, packed)?;
        if body.planes == 0 {
            return copy(body.rest, out);
        }
        let values = out.len() / body.planes;
        let (whole, tail) = out.split_at_mut(values * body.planes);
        let rest = self.unpack(&body, values, |planes| merge(planes, whole))?;
        copy(rest, tail)
    }

    /// Fills memory of another type, with no whole copy of the raw values in between: what [`decode`](Self::decode) and
    /// [`widen`](convert::widen) would give. `out` is as long as the widened values.
    ///
    /// # Errors
    /// As [`decode`](Self::decode) and [`widened`](convert::widened).
    pub fn decode_widened(
        &mut self,
        key: u64,
        (from, to): (DType, DType),
        packed: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        if from == to {
            return self.decode(key, packed, out);
        }
        let stored = Bytes::of(out.len() / 2); // Only 16-bit floats widen, to twice their size.
        check_raw(stored.to_usize()?, self.planes.len())?;
        if convert::widened(from, to, stored)? != Bytes::of(out.len()) {
            return Err(lengths(out.len() / 2 * 2, out.len()));
        }
        let body = Body::read(key, packed)?;
        if body.planes == 0 {
            return match stored == Bytes::of(body.rest.len()) {
                true => convert::widen(from, to, body.rest, out),
                false => Err(lengths(out.len() / 2, body.rest.len())),
            };
        }
        let out = out.as_chunks_mut().0;
        let rest = self.unpack(&body, out.len(), |planes| merge_widened(planes, from, out))?;
        if rest.is_empty() { Ok(()) } else { Err(lengths(0, rest.len())) }
    }

    /// Hands the planes, of so many values each, to `merge` (nothing: not that many planes); gives what follows them.
    fn unpack<'a>(
        &mut self,
        body: &Body<'a>,
        values: usize,
        merge: impl FnOnce(&[&[u8]]) -> Option<()>,
    ) -> Result<&'a [u8]> {
        let (lengths, mut stored) = cut(body.rest, 4 * body.planes)?;
        let mut scratch = self.planes.as_mut_slice();
        let mut found = [&[][..]; MAX_PLANES];
        for (plane, length) in found.iter_mut().zip(lengths.as_chunks().0) {
            let length = u32::from_le_bytes(*length);
            let bytes = usize::try_from(length & !CODED).unwrap_or(usize::MAX);
            let (source, after) = cut(stored, bytes)?;
            stored = after;
            *plane = source;
            if length & CODED != 0 {
                let (room, left) =
                    scratch.split_at_mut_checked(values).ok_or_else(|| too_many(body.planes))?;
                scratch = left;
                inflate(&mut self.zstd, source, room)?;
                *plane = room;
            } else if source.len() != values {
                return Err(self::lengths(values, source.len()));
            }
        }
        let planes = found.get(..body.planes).unwrap_or_default();
        merge(planes).ok_or_else(|| too_many(body.planes))?;
        Ok(stored)
    }
}

/// A chunk whose checksum is right.
struct Body<'a> {
    planes: usize,
    rest: &'a [u8],
}

impl<'a> Body<'a> {
    fn read(key: u64, packed: &'a [u8]) -> Result<Self> {
        let Some((head, rest)) = packed.split_first_chunk::<HEAD>() else {
            return Err(damaged(format!("expected at least {HEAD} B, found {} B", packed.len())));
        };
        let [expected @ .., planes] = *head;
        let (expected, found) = (u64::from_le_bytes(expected), checksum(key, packed));
        if expected != found {
            return Err(damaged(format!("checksum {expected:016x} expected, {found:016x} found")));
        }
        match usize::from(planes) {
            planes @ (0 | 2 | MAX_PLANES) => Ok(Self { planes, rest }),
            other => Err(too_many(other)),
        }
    }
}

fn merge(planes: &[&[u8]], out: &mut [u8]) -> Option<()> {
    match *planes {
        [exponents, rests] => planes::merge_two([exponents, rests], out.as_chunks_mut().0),
        [exponents, rests, uppers, lowers] => {
            planes::merge_four([exponents, rests, uppers, lowers], out.as_chunks_mut().0);
        }
        _ => return None,
    }
    Some(())
}

/// Only two planes widen: those of a 16-bit float.
fn merge_widened(planes: &[&[u8]], from: DType, out: &mut [[u8; 4]]) -> Option<()> {
    let [exponents, rests] = *planes else { return None };
    match from {
        DType::BF16 => planes::merge_bf16([exponents, rests], out),
        _ => planes::merge_f16([exponents, rests], out),
    }
    Some(())
}

fn copy(stored: &[u8], out: &mut [u8]) -> Result<()> {
    if stored.len() != out.len() {
        return Err(lengths(out.len(), stored.len()));
    }
    out.copy_from_slice(stored);
    Ok(())
}

fn inflate(zstd: &mut DCtx<'_>, frame: &[u8], out: &mut [u8]) -> Result<()> {
    let expected = out.len();
    match zstd.decompress(out, frame) {
        Ok(found) if found == expected => Ok(()),
        Ok(found) => Err(lengths(expected, found)),
        Err(code) => Err(damaged(format!("a plane of {expected} B: {}", get_error_name(code)))),
    }
}

/// The checksum of all that follows its place.
fn checksum(key: u64, packed: &[u8]) -> u64 {
    xxh3_64_with_seed(packed.get(8..).unwrap_or_default(), key)
}

fn cut(rest: &[u8], len: usize) -> Result<(&[u8], &[u8])> {
    let found = rest.len();
    rest.split_at_checked(len).ok_or_else(|| lengths(len, found))
}

/// Whether a chunk can have so many raw bytes: a power of two in [`CHUNK_RANGE`].
pub(super) fn is_chunk(chunk: usize) -> bool {
    CHUNK_RANGE.contains(&chunk) && chunk.is_power_of_two()
}

fn check_chunk(chunk: usize) -> Result<()> {
    if is_chunk(chunk) {
        return Ok(());
    }
    Err(Error::Invalid {
        what: "bytes per chunk".to_owned(),
        expected: format!("a power of two from {} to {}", CHUNK_RANGE.start(), CHUNK_RANGE.end()),
        found: chunk.to_string(),
    })
}

fn check_raw(len: usize, most: usize) -> Result<()> {
    if len <= most {
        return Ok(());
    }
    Err(Error::Invalid {
        what: "a chunk's raw bytes".to_owned(),
        expected: format!("at most {most}"),
        found: len.to_string(),
    })
}

fn too_many(planes: usize) -> Error {
    damaged(format!("{planes} planes are not what its type has"))
}

fn lengths(expected: usize, found: usize) -> Error {
    damaged(format!("expected {expected} B, found {found} B"))
}

fn damaged(reason: String) -> Error {
    Error::Damaged { what: "a packed chunk".to_owned(), reason }
}

fn library(operation: &'static str, reason: &'static str) -> Error {
    Error::Core(dd_core::Error::library("zstd", operation, std::io::Error::other(reason)))
}
