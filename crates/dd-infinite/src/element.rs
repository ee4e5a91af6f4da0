//! Elements of each dtype that can be folded: how they are read from bytes, combined, and written.

use half::{bf16, f16};

/// An element in a little-endian buffer.
pub(crate) trait Element: Copy {
    /// Its bytes.
    const SIZE: usize;

    fn load(bytes: &[u8]) -> Self;
    fn store(self, bytes: &mut [u8]);
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    fn add(self, other: Self) -> Self;
    /// Whether this is to replace `other` as the largest.
    fn above(self, other: Self) -> bool;
    /// Whether this is to replace `other` as the smallest.
    fn below(self, other: Self) -> bool;
}

macro_rules! bytes {
    () => {
        #[inline(always)]
        fn load(bytes: &[u8]) -> Self {
            bytes
                .first_chunk()
                .map_or_else(|| Self::from_le_bytes([0; Self::SIZE]), |b| Self::from_le_bytes(*b))
        }

        #[inline(always)]
        fn store(self, bytes: &mut [u8]) {
            if let Some(place) = bytes.first_chunk_mut() {
                *place = self.to_le_bytes();
            }
        }
    };
}

macro_rules! integers {
    ($($t:ty),*) => { $(
        impl Element for $t {
            const SIZE: usize = size_of::<$t>();
            bytes!();

            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate")]
            fn from_f64(value: f64) -> Self {
                value.round() as $t
            }

            #[allow(trivial_numeric_casts, reason = "one body for all types")]
            fn to_f64(self) -> f64 {
                self as f64
            }

            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            #[inline(always)]
            fn above(self, other: Self) -> bool {
                self > other
            }

            #[inline(always)]
            fn below(self, other: Self) -> bool {
                self < other
            }
        }
    )* };
}

macro_rules! floats {
    ($($t:ty, $from:expr, $to:expr, $add:expr;)*) => { $(
        impl Element for $t {
            const SIZE: usize = size_of::<$t>();
            bytes!();

            fn from_f64(value: f64) -> Self {
                $from(value)
            }

            fn to_f64(self) -> f64 {
                $to(self)
            }

            #[inline(always)]
            fn add(self, other: Self) -> Self {
                $add(self, other)
            }

            #[inline(always)]
            fn above(self, other: Self) -> bool {
                self > other || self.is_nan()
            }

            #[inline(always)]
            fn below(self, other: Self) -> bool {
                self < other || self.is_nan()
            }
        }
    )* };
}

integers!(i8, i16, i32, i64, u8, u16, u32, u64);

#[allow(clippy::cast_possible_truncation, reason = "rounding to the narrower float is meant")]
const fn narrow(value: f64) -> f32 {
    value as f32
}

floats! {
    f64, (|v| v), (|v| v), (|a, b| a + b);
    f32, narrow, f64::from, (|a, b| a + b);
    f16, f16::from_f64, f64::from, (|a: f16, b: f16| f16::from_f32(a.to_f32() + b.to_f32()));
    bf16, bf16::from_f64, f64::from, (|a: bf16, b: bf16| bf16::from_f32(a.to_f32() + b.to_f32()));
}
