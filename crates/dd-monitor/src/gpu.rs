//! [`Gpus`]: the memory of NVIDIA devices, through NVML, the driver's own library.
//!
//! A machine without the driver is an ordinary machine: [`Gpus::open`] never fails, it says plainly that there is no
//! GPU, and why. The library is loaded while the program runs; nothing is linked against it.
//!
//! NVML numbers devices by their place on the bus and knows nothing of `CUDA_VISIBLE_DEVICES`; a backend that numbers
//! them in another way finds the same device by [`GpuMemory::uuid`].

use std::fmt;

use dd_core::{Bytes, MemorySample};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use crate::error::{Error, Result};

/// One reading of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    /// The device's number, in the order of the bus.
    pub index: u32,
    /// What the maker calls it.
    pub name: String,
    /// What tells it from every other device.
    pub uuid: String,
    /// How much there is.
    pub total: Bytes,
    /// How much programs have taken, all of them together.
    pub used: Bytes,
    /// How much can still be taken.
    pub free: Bytes,
    /// How much the driver keeps for itself; part of the total, neither used nor free.
    pub reserved: Bytes,
}

/// The NVIDIA devices of this machine.
pub enum Gpus {
    /// The driver answers; it may still have no device.
    Present(Box<Devices>),
    /// No driver, or none that answers.
    Absent {
        /// Why, in a sentence.
        reason: String,
    },
}

/// The devices that a driver has; names are asked once.
pub struct Devices {
    nvml: Nvml,
    names: Vec<(String, String)>,
}

impl Gpus {
    /// Asks the driver. Where there is none, that is the answer.
    #[must_use]
    pub fn open() -> Self {
        match Nvml::init().and_then(Devices::list) {
            Ok(devices) => Self::Present(Box::new(devices)),
            Err(error) => Self::absent(reason(&error)),
        }
    }

    /// No devices, for the reason given.
    #[must_use]
    pub fn absent(reason: impl Into<String>) -> Self {
        let reason = reason.into();
        tracing::debug!(reason, "no GPU");
        Self::Absent { reason }
    }

    /// How many devices there are; they are numbered from zero.
    #[must_use]
    pub fn count(&self) -> u32 {
        match self {
            Self::Present(devices) => devices.count(),
            Self::Absent { .. } => 0,
        }
    }

    /// Why there is no device, where there is none.
    #[must_use]
    pub fn absence(&self) -> Option<&str> {
        match self {
            Self::Present(devices) if devices.count() == 0 => Some("the NVIDIA driver lists no device"),
            Self::Present(_) => None,
            Self::Absent { reason } => Some(reason),
        }
    }

    /// Reads the figures of one device. `available` is what is free; `used` is everything else, the driver's part
    /// included.
    ///
    /// # Errors
    /// [`Error::NoGpu`] for a number that is not below [`count`](Self::count); [`Error::Gpu`] where the driver refuses.
    pub fn sample(&self, index: u32) -> Result<MemorySample> {
        let gpu = self.devices(index)?.figures(index)?;
        let (total, available) = (Bytes(gpu.total), Bytes(gpu.free));
        Ok(MemorySample { total, used: total.saturating_sub(available), available })
    }

    /// Reads one device, its names included.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn read(&self, index: u32) -> Result<GpuMemory> {
        let devices = self.devices(index)?;
        let figures = devices.figures(index)?;
        let (name, uuid) = devices.name(index).cloned().unwrap_or_default();
        Ok(GpuMemory {
            index,
            name,
            uuid,
            total: Bytes(figures.total),
            used: Bytes(figures.used),
            free: Bytes(figures.free),
            reserved: Bytes(figures.reserved),
        })
    }

    /// The devices, where one has that number.
    fn devices(&self, index: u32) -> Result<&Devices> {
        match self {
            Self::Present(devices) if index < devices.count() => Ok(devices),
            Self::Present(devices) => {
                let reason = format!("the NVIDIA driver lists {}, numbered from 0", devices.count());
                Err(Error::NoGpu { index, reason })
            }
            Self::Absent { reason } => Err(Error::NoGpu { index, reason: reason.clone() }),
        }
    }
}

impl fmt::Debug for Gpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present(devices) => f.debug_tuple("Present").field(&devices.names).finish(),
            Self::Absent { reason } => f.debug_struct("Absent").field("reason", reason).finish(),
        }
    }
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Devices").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Devices {
    fn list(nvml: Nvml) -> Result<Self, NvmlError> {
        let named = |index| {
            let device = nvml.device_by_index(index)?;
            Ok((device.name()?, device.uuid()?))
        };
        // A device that does not even tell its name (fallen off the bus) keeps its number; sampling it says why.
        let names = (0..nvml.device_count()?).map(|index| named(index).unwrap_or_else(unnamed)).collect();
        Ok(Self { nvml, names })
    }

    fn count(&self) -> u32 {
        u32::try_from(self.names.len()).unwrap_or(u32::MAX)
    }

    fn name(&self, index: u32) -> Option<&(String, String)> {
        self.names.get(usize::try_from(index).ok()?)
    }

    fn figures(&self, index: u32) -> Result<nvml_wrapper::struct_wrappers::device::MemoryInfo> {
        let figures = self.nvml.device_by_index(index).and_then(|device| device.memory_info());
        figures.map_err(|source| Error::Gpu { index, what: "memory", source: Box::new(source) })
    }
}

fn unnamed(error: NvmlError) -> (String, String) {
    tracing::warn!(%error, "a GPU does not tell its name");
    ("unnamed".to_owned(), String::new())
}

/// Why NVML does not answer.
fn reason(error: &NvmlError) -> String {
    match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => {
            "the NVIDIA driver is not installed (its library NVML was not found)".to_owned()
        }
        NvmlError::DriverNotLoaded => "the NVIDIA driver is installed but not loaded".to_owned(),
        NvmlError::NoPermission => "this user may not ask the NVIDIA driver".to_owned(),
        other => format!("the NVIDIA driver does not answer: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absence_is_plain_and_no_error() {
        let gpus = Gpus::absent("none was wanted");
        assert_eq!((gpus.count(), gpus.absence()), (0, Some("none was wanted")));
        for error in [gpus.sample(0).unwrap_err(), gpus.read(3).unwrap_err()] {
            assert!(error.to_string().ends_with("none was wanted"), "{error}");
            assert!(matches!(error, Error::NoGpu { .. }));
        }
    }

    #[test]
    fn reasons_are_sentences() {
        let rows = [
            (NvmlError::LibraryNotFound, "not installed"),
            (NvmlError::DriverNotLoaded, "not loaded"),
            (NvmlError::NoPermission, "may not"),
            (NvmlError::Unknown, "does not answer"),
        ];
        for (error, expected) in rows {
            assert!(reason(&error).contains(expected), "{error}");
        }
    }

    #[test]
    fn this_machine() {
        let gpus = Gpus::open();
        if let Some(reason) = gpus.absence() {
            assert_eq!(gpus.count(), 0);
            assert!(gpus.sample(0).is_err());
            dd_conformance::skipped!("{reason}");
            return;
        }
        for index in 0..gpus.count() {
            let gpu = gpus.read(index).unwrap();
            assert!(!gpu.name.is_empty() && gpu.free <= gpu.total && gpu.used <= gpu.total, "{gpu:?}");
            assert_eq!(gpus.sample(index).unwrap().total, gpu.total);
        }
        assert!(matches!(gpus.sample(gpus.count()), Err(Error::NoGpu { .. })));
    }
}
