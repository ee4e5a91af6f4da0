//! Which candle device a [`dd_core::Device`] means on this machine.

use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::Device as Candle;
use candle_core::utils::{cuda_is_available, metal_is_available};
use dd_core::{Device, Error, Result};

use crate::error::root;

/// Opens a device. [`Device::Auto`] is the first NVIDIA device, else the first Apple device, else the CPU: whatever
/// this build has been compiled for and finds.
///
/// An NVIDIA device is opened with one stream of its own, in which the work of all threads is ordered, so that
/// storage can be overwritten as soon as the last handle to it is gone.
///
/// # Errors
/// [`Error::InvalidArgument`] for a device that this build or this machine has not, saying which of the two and what
/// to do.
pub fn open(device: Device) -> Result<Candle> {
    match device {
        Device::Cpu => Ok(Candle::Cpu),
        Device::Cuda(n) => named(device, n, "cuda", Candle::new_cuda_with_stream),
        Device::Metal(n) => named(device, n, "metal", Candle::new_metal),
        Device::Auto => Ok(best()),
    }
}

fn best() -> Candle {
    let cuda = cuda_is_available().then(|| open(Device::Cuda(0)));
    let metal = metal_is_available().then(|| open(Device::Metal(0)));
    for found in [cuda, metal].into_iter().flatten() {
        match found {
            Ok(device) => return device,
            Err(error) => tracing::info!(%error, "no accelerator, so the CPU"),
        }
    }
    Candle::Cpu
}

fn named(
    device: Device,
    number: u32,
    feature: &str,
    open: impl Fn(usize) -> candle_core::Result<Candle>,
) -> Result<Candle> {
    let absent = |reason: String| Error::InvalidArgument { argument: "device", reason };
    let ordinal = usize::try_from(number).map_err(|_| absent(format!("{device} has too large a number")))?;
    // Both libraries panic rather than fail where there is no driver, or no device of that number.
    match catch_unwind(AssertUnwindSafe(|| open(ordinal))) {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(error)) => Err(absent(match root(&error) {
            candle_core::Error::NotCompiledWithCudaSupport
            | candle_core::Error::NotCompiledWithMetalSupport => {
                format!(
                    "{device} was asked for, but this build has no such devices; build with the feature `{feature}`, or use cpu"
                )
            }
            other => format!(
                "{device} does not open: {other}; look at the driver and the device's number, or use cpu"
            ),
        })),
        Err(_) => Err(absent(format!(
            "{device} does not open: its driver is not installed; install it, or use cpu"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_always_there() {
        assert!(open(Device::Cpu).unwrap().is_cpu());
        let found = open(Device::Auto).unwrap();
        assert!(found.is_cpu() || cuda_is_available() || metal_is_available(), "{found:?}");
    }

    #[test]
    fn an_absent_device_is_an_error_that_says_what_to_do() {
        // No machine has so many.
        for device in [Device::Cuda(4_000), Device::Metal(4_000)] {
            let error = open(device).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument { argument: "device", .. }));
            let text = error.to_string();
            assert!(text.contains(&device.to_string()) && text.contains("or use cpu"), "{text}");
        }
    }

    #[test]
    fn a_library_that_panics_for_want_of_a_driver_is_an_error_too() {
        let error =
            named(Device::Cuda(0), 0, "cuda", |_| panic!("no driver (expected in this test)")).unwrap_err();
        assert!(error.to_string().contains("install it"), "{error}");
    }
}
