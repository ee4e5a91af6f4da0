//! How a program is to run: [`Inference`], [`Training`], [`Precision`], [`Optimizer`].

use std::fmt;
use std::str::FromStr;

use dd_core::DType;

use crate::error::{Error, Result};

/// Which element types are computed and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Precision {
    /// Of parameters, where a file does not say another.
    pub params: DType,
    /// Of results and gradients.
    pub compute: DType,
}

impl Precision {
    /// All of one type.
    #[must_use]
    pub const fn all(dtype: DType) -> Self {
        Self { params: dtype, compute: dtype }
    }

    /// Mixed precision: computed with copies in `compute`, parameters kept in `F32` besides while training.
    #[must_use]
    pub const fn mixed(compute: DType) -> Self {
        Self { params: DType::F32, compute }
    }

    /// Whether it is computed in another type than parameters are kept in.
    #[must_use]
    pub fn is_mixed(self) -> bool {
        self.params != self.compute
    }
}

impl Default for Precision {
    fn default() -> Self {
        Self::all(DType::F32)
    }
}

/// One pass forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Inference {
    /// Element types; of a mixed precision only `compute` counts.
    pub precision: Precision,
    /// Positions that were seen before: their keys and values are held in a cache, to which this pass adds its own.
    pub past: Option<usize>,
}

/// One training step: forward, backward, and the optimizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Training {
    /// Element types.
    pub precision: Precision,
    /// The optimizer.
    pub optimizer: Optimizer,
}

/// How parameters are changed, and what is kept for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Optimizer {
    /// `w − η g`: nothing is kept.
    #[default]
    Sgd,
    /// One value per parameter.
    Momentum,
    /// Two values per parameter.
    Adam,
    /// Adam with decoupled weight decay: two values per parameter.
    AdamW,
    /// Momentum, its state in 8 bits with a scale per block of 256; parameters of less than 4096 elements keep `F32`.
    Momentum8Bit,
    /// AdamW, its states in 8 bits each, as bitsandbytes keeps them by default: a scale per block of 256; parameters of less
    /// than 4096 elements keep `F32`.
    AdamW8Bit,
}

/// Elements that share a scale in an 8-bit state.
const BLOCK: u64 = 256;
/// Smaller parameters keep their state in full.
const LEAST_8BIT: u64 = 4096;

impl Optimizer {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Sgd, Self::Momentum, Self::Adam, Self::AdamW, Self::Momentum8Bit, Self::AdamW8Bit];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sgd => "sgd",
            Self::Momentum => "momentum",
            Self::Adam => "adam",
            Self::AdamW => "adamw",
            Self::Momentum8Bit => "momentum8bit",
            Self::AdamW8Bit => "adamw8bit",
        }
    }

    /// How many values are kept per parameter.
    #[must_use]
    pub const fn states(self) -> u8 {
        match self {
            Self::Sgd => 0,
            Self::Momentum | Self::Momentum8Bit => 1,
            Self::Adam | Self::AdamW | Self::AdamW8Bit => 2,
        }
    }

    /// Type and bytes of one state of a parameter with so many elements; nothing past 64 bits.
    #[must_use]
    pub fn state_bytes(self, elements: u64) -> Option<(DType, u64)> {
        match self {
            Self::Momentum8Bit | Self::AdamW8Bit if elements >= LEAST_8BIT => {
                let scales = elements.div_ceil(BLOCK).checked_mul(4)?;
                Some((DType::U8, elements.checked_add(scales)?))
            }
            _ => Some((DType::F32, elements.checked_mul(4)?)),
        }
    }
}

impl fmt::Display for Optimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Optimizer {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let lower = text.trim().to_ascii_lowercase().replace(['-', '_'], "");
        Self::ALL.into_iter().find(|one| one.as_str() == lower).ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join(", ");
            Error::setting("optimizer", format!("{text:?}"), format!("expected one of {names}"))
        })
    }
}
