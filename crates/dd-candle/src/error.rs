//! candle's errors as ours. Running out of device memory is an expected outcome that callers branch on, but candle
//! hands it over as a boxed driver error inside its own: it is recognised here by what it says.

use candle_core::Error as Candle;
use dd_core::{Bytes, Error};

use crate::dtype::{NAME, from_candle};

/// What the drivers say when the memory is not there: the CUDA driver, cuBLAS, Metal.
const OUT_OF_MEMORY: [&str; 3] =
    ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED", "FailedToCreateResource(\"Buffer\")"];

/// Whether an error of candle means that device memory ran out, however deeply it is wrapped.
#[must_use]
pub fn is_out_of_memory(error: &Candle) -> bool {
    match error {
        Candle::Context { inner, .. }
        | Candle::WithPath { inner, .. }
        | Candle::WithBacktrace { inner, .. } => is_out_of_memory(inner),
        // `Cuda` passes its cause's `source` through, so the cause itself is only reached by name.
        Candle::Cuda(cause) | Candle::WrappedContext { wrapped: cause, .. } => {
            cause.downcast_ref::<Candle>().is_some_and(is_out_of_memory) || chain_says_so(cause.as_ref())
        }
        other => chain_says_so(other),
    }
}

fn chain_says_so(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut chain = std::iter::successors(Some(error), |error| error.source());
    chain.any(|error| {
        let texts = [error.to_string(), format!("{error:?}")];
        texts.iter().any(|text| OUT_OF_MEMORY.iter().any(|sign| text.contains(sign)))
    })
}

/// Where an operation ran and what it needed, for the error that says that it was not there.
#[derive(Clone, Debug)]
pub(crate) struct Need {
    pub(crate) place: String,
    pub(crate) needed: Bytes,
    pub(crate) available: Bytes,
}

impl Need {
    pub(crate) fn refused(self) -> Error {
        Error::OutOfMemory { place: self.place, needed: self.needed, available: self.available }
    }
}

/// candle's error in `operation` as ours.
pub(crate) fn convert(operation: &str, error: Candle, need: impl FnOnce() -> Need) -> Error {
    if is_out_of_memory(&error) {
        return need().refused();
    }
    match root(&error) {
        Candle::UnsupportedDTypeForOp(dtype, _) => match from_candle(*dtype) {
            Ok(dtype) => Error::UnsupportedDType { backend: NAME.to_owned(), dtype },
            Err(unknown) => unknown,
        },
        Candle::DeviceMismatchBinaryOp { lhs, rhs, .. } => Error::Mismatch {
            context: operation.to_owned(),
            expected: "tensors on one device".to_owned(),
            found: format!("{lhs:?} and {rhs:?}"),
        },
        _ => Error::library(NAME, operation, error),
    }
}

/// The error without the context that was added to it.
pub(crate) fn root(error: &Candle) -> &Candle {
    match error {
        Candle::Context { inner, .. }
        | Candle::WithPath { inner, .. }
        | Candle::WithBacktrace { inner, .. } => root(inner),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As cudarc's `DriverError` shows itself.
    #[derive(Debug, thiserror::Error)]
    #[error("DriverError({0}, \"{1}\")")]
    struct Driver(&'static str, &'static str);

    #[derive(Debug, thiserror::Error)]
    #[error("while loading a module")]
    struct Outer(#[source] Driver);

    const FULL: Driver = Driver("CUDA_ERROR_OUT_OF_MEMORY", "out of memory");
    const LOST: Driver = Driver("CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered");

    #[test]
    fn a_full_device_is_recognised_however_it_is_wrapped() {
        let full = || Candle::Cuda(Box::new(FULL));
        let rows: [(Candle, bool); 9] = [
            (full(), true),
            (Candle::Cuda(Box::new(Outer(FULL))), true),
            (Candle::Cuda("CUBLAS_STATUS_ALLOC_FAILED".into()), true),
            (full().context("layer 3").with_path("model.safetensors"), true),
            (Candle::WrappedContext { wrapped: Box::new(full()), context: "layer 3".to_owned() }, true),
            (Candle::WithBacktrace { inner: Box::new(full()), backtrace: Box::new(trace()) }, true),
            (Candle::Cuda(Box::new(LOST)), false),
            (Candle::Cuda(Box::new(Outer(LOST))), false),
            (Candle::Msg("shape mismatch".to_owned()), false),
        ];
        for (error, expected) in rows {
            let text = format!("{error:?}");
            assert_eq!(is_out_of_memory(&error), expected, "{text}");
            let need = || Need { place: "device:0".to_owned(), needed: Bytes(7), available: Bytes(3) };
            let ours = convert("matmul", error, need);
            assert_eq!(ours.is_out_of_memory(), expected, "{text}");
            assert_eq!(matches!(ours, Error::Library { .. }), !expected, "{text}");
        }
    }

    fn trace() -> std::backtrace::Backtrace {
        std::backtrace::Backtrace::disabled()
    }
}
