//! Plain `mmap` under an unmodified model: tensors whose storage is the mapped file itself.
//!
//! candle's own mapped builder copies every tensor out of the mapping, so a model still needs its weights in memory. This is
//! what is left when nothing is copied: the kernel reads what is touched into the page cache, with its usual reading ahead,
//! and throws out what it holds to be the oldest.
#![allow(unsafe_code, reason = "storage that is a mapping, for a control that nobody ships")]

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use candle_core::{Device, Tensor};
use memmap2::{MmapOptions, MmapRaw};
use safetensors::SafeTensors;

use crate::Result;

/// Every tensor of an F32 file, over its mapping. Mapping and tensors are never freed: a child process ends soon enough.
///
/// # Errors
/// A file that cannot be mapped, is no safetensors file, or holds anything but aligned F32.
pub fn tensors(file: &Path) -> Result<HashMap<String, Tensor>> {
    let map: &'static mut MmapRaw = Box::leak(Box::new(private(&File::open(file)?)?));
    // SAFETY: the mapping is readable, `len` bytes long and never unmapped; nobody writes to the file, which is ours alone.
    let bytes: &'static [u8] = unsafe { std::slice::from_raw_parts(map.as_ptr(), map.len()) };
    let parsed = SafeTensors::deserialize(bytes)?;
    let tensor = |(name, view): (String, safetensors::tensor::TensorView<'static>)| {
        let data = view.data();
        if view.dtype() != safetensors::Dtype::F32 || data.as_ptr().align_offset(align_of::<f32>()) != 0 {
            return Err(format!("{name}: expected aligned F32, found {:?}", view.dtype()).into());
        }
        let count = data.len() / size_of::<f32>();
        // SAFETY: the pointer is aligned and good for `count` numbers for ever, through a private mapping that may be written
        // to. It did not come from the allocator, and never goes there: the tensor below is leaked with its storage.
        let storage = unsafe { Vec::from_raw_parts(data.as_ptr().cast::<f32>().cast_mut(), count, count) };
        let tensor = Tensor::from_vec(storage, view.shape(), &Device::Cpu)?;
        std::mem::forget(tensor.clone());
        Ok((name, tensor))
    };
    parsed.tensors().into_iter().map(tensor).collect()
}

/// A private mapping, whose pages are the page cache's as long as nobody writes to them.
fn private(file: &File) -> Result<MmapRaw> {
    // SAFETY: nobody shortens or changes the file while it is mapped: it lies in a folder of our own.
    Ok(MmapRaw::from(unsafe { MmapOptions::new().map_copy(file)? }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::write_both;

    #[test]
    fn mapped_tensors_are_those_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let (wide, narrow) = (folder.path().join("wide"), folder.path().join("narrow"));
        write_both(&wide, &narrow, &[("a".to_owned(), vec![40, 50]), ("b".to_owned(), vec![3])]).unwrap();
        let (mapped, read) =
            (tensors(&wide).unwrap(), candle_core::safetensors::load(&wide, &Device::Cpu).unwrap());
        assert_eq!(mapped.len(), 2);
        for (name, tensor) in read {
            let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(&mapped[&name]), values(&tensor), "{name}");
        }
        assert!(tensors(&narrow).unwrap_err().to_string().contains("expected aligned F32"));
    }
}
