//! [`Device`]: how a user names a place to compute.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::tier::Tier;

/// A place to compute, as a user names it: `"auto"`, `"cpu"`, `"cuda"` (the first), `"cuda:1"`, `"metal:0"`.
///
/// ```
/// use dd_core::Device;
/// assert_eq!("cuda:1".parse::<Device>()?, Device::Cuda(1));
/// # Ok::<(), dd_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "String", into = "String")
)]
pub enum Device {
    /// The best that is there: an accelerator if there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// NVIDIA accelerator number `n`.
    Cuda(u32),
    /// Apple accelerator number `n`.
    Metal(u32),
}

impl Device {
    /// The tier of tensors on this device; none for `Auto`, which is not resolved yet.
    #[must_use]
    pub const fn tier(self) -> Option<Tier> {
        match self {
            Self::Auto => None,
            Self::Cpu => Some(Tier::Host),
            Self::Cuda(n) | Self::Metal(n) => Some(Tier::Device(n)),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Cpu => f.pad("cpu"),
            Self::Cuda(n) => f.pad(&format!("cuda:{n}")),
            Self::Metal(n) => f.pad(&format!("metal:{n}")),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || Error::Unknown {
            kind: "device",
            input: text.to_owned(),
            expected: "auto, cpu, cuda, cuda:N, metal or metal:N",
        };
        let lower = text.trim().to_ascii_lowercase();
        let (name, index) = match lower.split_once(':') {
            None => (lower.as_str(), None),
            Some((name, index)) if !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit()) => {
                (name, Some(index.parse::<u32>().map_err(|_| unknown())?))
            }
            Some(_) => return Err(unknown()),
        };
        match (name, index) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None) => Ok(Self::Cpu),
            ("cuda", index) => Ok(Self::Cuda(index.unwrap_or(0))),
            ("metal", index) => Ok(Self::Metal(index.unwrap_or(0))),
            _ => Err(unknown()),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for device in [Device::Auto, Device::Cpu, Device::Cuda(0), Device::Cuda(17), Device::Metal(1)] {
            assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
        }
        assert_eq!(" CUDA ".parse::<Device>().unwrap(), Device::Cuda(0));
    }

    #[test]
    fn refuses_what_is_no_device() {
        for text in
            ["", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:1:2", "cpu:0", "auto:1", "cuda:99999999999"]
        {
            assert!(matches!(text.parse::<Device>(), Err(Error::Unknown { kind: "device", .. })), "{text}");
        }
    }
}
