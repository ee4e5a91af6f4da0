//! Any bytes as the header of a safetensors file.
#![no_main]

use std::io::Cursor;

use dd_inspect::read::{ReadLimits, safetensors};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let limits = ReadLimits { header: dd_core::Bytes::mib(1) };
    let _ = safetensors::read_from(Cursor::new(bytes), bytes.len() as u64, "fuzz", &limits);
});
