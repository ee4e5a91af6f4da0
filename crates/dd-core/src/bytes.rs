//! [`Bytes`]: the only unit of memory.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};
use std::str::FromStr;

use crate::error::{Error, Result};

/// A number of bytes.
///
/// Parses binary units (`"1.5GiB"`, `"32 MiB"`, `"512K"`: a bare letter is binary too), decimal ones (`"2GB"`) and
/// plain numbers (`"4096"`); prints two decimals of the largest binary unit that fits (`1.50 GiB`). Addition
/// saturates: a sum that does not fit 64 bits does not fit any memory either, and stays larger than every limit.
///
/// ```
/// use dd_core::Bytes;
///
/// let budget: Bytes = "1.5GiB".parse()?;
/// assert_eq!(budget, Bytes(1_610_612_736));
/// assert_eq!(budget.to_string(), "1.50 GiB");
/// # Ok::<(), dd_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

const BINARY: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
const DECIMAL: [(&str, u64); 4] =
    [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1_000)];
const LETTERS: [(&str, u64); 4] = [("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)];

impl Bytes {
    /// No bytes.
    pub const ZERO: Self = Self(0);
    /// The largest number of bytes; as a limit: none.
    pub const MAX: Self = Self(u64::MAX);

    /// `n` kibibytes.
    #[must_use]
    pub const fn kib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 10))
    }

    /// `n` mebibytes.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 20))
    }

    /// `n` gibibytes.
    #[must_use]
    pub const fn gib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 30))
    }

    /// The length of something in memory.
    #[must_use]
    pub const fn of(len: usize) -> Self {
        Self(len as u64) // lossless: usize is at most 64 bits wide on every Rust target
    }

    /// The sum, or nothing where it overflows.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// The difference, or nothing where it would be negative.
    #[must_use]
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// The product, or nothing where it overflows.
    #[must_use]
    pub fn checked_mul(self, factor: u64) -> Option<Self> {
        self.0.checked_mul(factor).map(Self)
    }

    /// The difference, zero where it would be negative.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// As a length in memory.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`] where the address space is smaller than that.
    pub fn to_usize(self) -> Result<usize> {
        usize::try_from(self.0)
            .map_err(|_| Error::SizeOverflow { what: format!("{} bytes in memory", self.0) })
    }

    /// The least multiple of `step` that is not below this (this itself where `step` is zero); saturates.
    #[must_use]
    pub const fn round_up(self, step: u64) -> Self {
        if step == 0 || self.0.is_multiple_of(step) {
            return self;
        }
        Self((self.0 / step).saturating_add(1).saturating_mul(step))
    }

    /// This many bytes as a share of `whole`; zero of zero is zero.
    #[must_use]
    pub fn fraction_of(self, whole: Self) -> f64 {
        if whole.0 == 0 { 0.0 } else { self.0 as f64 / whole.0 as f64 }
    }

    /// This many bytes times a factor in `0..`, rounded down; saturates, and is zero for a factor that is not a number.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate")]
        Self((self.0 as f64 * factor) as u64)
    }
}

impl Add for Bytes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

impl From<u64> for Bytes {
    fn from(n: u64) -> Self {
        Self(n)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = BINARY.iter().find(|(name, size)| self.0 >= *size && *name != "B");
        let text = match unit {
            Some((name, size)) => format!("{:.2} {name}", self.0 as f64 / *size as f64),
            None => format!("{} B", self.0),
        };
        f.pad(&text)
    }
}

impl FromStr for Bytes {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid =
            |reason: &str| Error::InvalidBytes { input: text.to_owned(), reason: reason.to_owned() };
        let trimmed = text.trim();
        let (number, scale) = split_unit(trimmed);
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(scale).map(Self).ok_or_else(|| invalid("more than 64 bits of bytes"));
        }
        let value: f64 = number.parse().map_err(|_| invalid("not a number with a unit"))?;
        let bytes = value * scale as f64;
        if !bytes.is_finite() || bytes < 0.0 || value.is_sign_negative() {
            return Err(invalid("not a finite number of at least zero"));
        }
        if bytes >= u64::MAX as f64 {
            return Err(invalid("more than 64 bits of bytes"));
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
        Ok(Self(bytes.round() as u64))
    }
}

/// Splits `"1.5GiB"` into `("1.5", 2^30)`; without a unit the scale is one.
fn split_unit(text: &str) -> (&str, u64) {
    let units = DECIMAL.iter().chain(&BINARY).chain(&LETTERS); // "GB" before "B".
    for (name, scale) in units {
        let Some(cut) = text.len().checked_sub(name.len()) else { continue };
        let (Some(number), Some(unit)) = (text.get(..cut), text.get(cut..)) else { continue };
        if unit.eq_ignore_ascii_case(name) {
            return (number.trim_end(), *scale);
        }
    }
    (text, 1)
}

#[cfg(feature = "serde")]
mod serde_impl {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Bytes;

    impl Serialize for Bytes {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_u64(self.0)
        }
    }

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Number(u64),
        Text(String),
    }

    /// Reads a plain number or a text such as `"1.5GiB"`.
    impl<'de> Deserialize<'de> for Bytes {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            match Form::deserialize(deserializer)? {
                Form::Number(n) => Ok(Self(n)),
                Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parses_every_unit() {
        let rows = [
            ("0", 0),
            ("4096", 4096),
            ("32MiB", 32 << 20),
            ("32 mib", 32 << 20),
            ("1.5GiB", 3 << 29),
            ("2GB", 2_000_000_000),
            ("512k", 512 << 10),
            (" 1T ", 1 << 40),
            ("10B", 10),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, expected) in rows {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(expected), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_size() {
        for text in [
            "",
            "MiB",
            "-1",
            "-0.0",
            "1.5.5GiB",
            "NaN",
            "inf",
            "1e40",
            "18446744073709551616",
            "20000000TiB",
            "12 parsecs",
            "ß",
        ] {
            let error = text.parse::<Bytes>().unwrap_err();
            assert!(matches!(error, Error::InvalidBytes { .. }), "{text}: {error}");
        }
    }

    #[test]
    fn prints_the_largest_unit_that_fits() {
        let rows = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (3 << 29, "1.50 GiB"),
            (u64::MAX, "16777216.00 TiB"),
        ];
        for (n, expected) in rows {
            assert_eq!(Bytes(n).to_string(), expected);
        }
        assert_eq!(format!("{:>10}", Bytes(7)), "       7 B");
    }

    #[cfg(feature = "serde")]
    #[test]
    fn serde_reads_numbers_and_texts() {
        assert_eq!(serde_json::from_str::<Bytes>("4096").unwrap(), Bytes(4096));
        assert_eq!(serde_json::from_str::<Bytes>("\"4KiB\"").unwrap(), Bytes(4096));
        assert_eq!(serde_json::to_string(&Bytes(4096)).unwrap(), "4096");
        assert!(serde_json::from_str::<Bytes>("-1").is_err());
    }

    proptest! {
        #[test]
        fn never_panics_on_text(text in "\\PC{0,24}") {
            let _parsed = text.parse::<Bytes>();
        }

        #[test]
        fn plain_numbers_round_trip(n: u64) {
            prop_assert_eq!(n.to_string().parse::<Bytes>().unwrap(), Bytes(n));
        }

        #[test]
        fn round_up_is_the_least_multiple(n in 0u64..1 << 40, step in 1u64..1 << 20) {
            let up = Bytes(n).round_up(step).0;
            prop_assert!(up >= n && up.is_multiple_of(step) && up - n < step);
        }
    }
}
