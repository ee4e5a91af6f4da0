//! [`Tier`]: where bytes rest, nearest to the computation first.

use std::fmt;

/// A place for bytes. The order is the order of distance: a device is nearest, a remote store farthest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Tier {
    /// The memory of accelerator number `n`.
    Device(u32),
    /// Page-locked host memory, from which an accelerator copies directly.
    PinnedHost,
    /// Ordinary host memory.
    Host,
    /// Host memory that holds a compressed form.
    Compressed,
    /// A file on a local disk.
    Disk,
    /// An object in a remote store.
    Remote,
}

impl Tier {
    /// Whether a computation can read from here: on a device or in host memory, uncompressed.
    #[must_use]
    pub const fn is_computable(self) -> bool {
        matches!(self, Self::Device(_) | Self::PinnedHost | Self::Host)
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(n) => f.pad(&format!("device:{n}")),
            Self::PinnedHost => f.pad("pinned host"),
            Self::Host => f.pad("host"),
            Self::Compressed => f.pad("compressed"),
            Self::Disk => f.pad("disk"),
            Self::Remote => f.pad("remote"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_comes_first() {
        let order = [
            Tier::Device(0),
            Tier::Device(1),
            Tier::PinnedHost,
            Tier::Host,
            Tier::Compressed,
            Tier::Disk,
            Tier::Remote,
        ];
        assert!(order.is_sorted());
        let computable: Vec<bool> = order.iter().map(|t| t.is_computable()).collect();
        assert_eq!(computable, [true, true, true, true, false, false, false]);
    }
}
