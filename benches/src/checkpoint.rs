//! Writing a model of any size as a safetensors file: with values, or with a hole in their place.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use crate::Result;
use crate::cache::evict;

/// What stands where the values belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// Small numbers, spread evenly around zero: always the same ones.
    Random,
    /// A hole: the file has its size, and takes no room on disk.
    Hole,
}

/// Writes these tensors (in F32), sees the file onto the disk and takes it out of the page cache; gives its size.
///
/// # Errors
/// What the disk says.
pub fn write(path: &Path, tensors: &[(String, Vec<usize>)], values: Values) -> Result<u64> {
    let (header, data) = header(tensors, "F32", 4);
    let size = header.len() as u64 + data;
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&header)?;
    match values {
        Values::Random => random(&mut file, data)?,
        Values::Hole => file.get_ref().set_len(size)?,
    }
    file.flush()?;
    evict(path)?;
    Ok(size)
}

/// Writes the same numbers twice, as F32 and as BF16: every number is one that BF16 has. They are spread like trained weights
/// are, as a bell of width 0.02, since how well a format packs depends on it.
///
/// # Errors
/// What the disk says.
pub fn write_both(f32: &Path, bf16: &Path, tensors: &[(String, Vec<usize>)]) -> Result<()> {
    let create = |path, (header, _): (Vec<u8>, u64)| -> Result<_> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        file.write_all(&header)?;
        Ok(file)
    };
    let mut wide = create(f32, header(tensors, "F32", 4))?;
    let mut narrow = create(bf16, header(tensors, "BF16", 2))?;
    let count: usize = tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let mut state = SEED;
    for _ in 0..count {
        xorshift(&mut state);
        let bits = bell(state).to_bits();
        narrow.write_all(&((bits >> 16) as u16).to_le_bytes())?;
        wide.write_all(&(bits & 0xffff_0000).to_le_bytes())?;
    }
    wide.flush()?;
    narrow.flush()?;
    evict(f32)?;
    evict(bf16)
}

/// The sum of four evenly spread numbers, of width 0.02.
fn bell(random: u64) -> f32 {
    let sum: u64 = (0..4).map(|part| (random >> (16 * part)) & 0xffff).sum();
    (sum as f32 / 65_535.0 - 2.0) * (0.02 / 0.577_35) // Each has a variance of 1/12, all four of 1/3.
}

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

const fn xorshift(state: &mut u64) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
}

/// The header with its length before it, and the bytes of data that it promises. As written by others, it is padded to
/// a multiple of eight only: the data begin at no round offset.
fn header(tensors: &[(String, Vec<usize>)], dtype: &str, width: u64) -> (Vec<u8>, u64) {
    let mut end = 0;
    let mut entries = Vec::with_capacity(tensors.len());
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() as u64 * width;
        entries.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
        ));
    }
    let mut json = format!("{{{}}}", entries.join(","));
    json.push_str(&" ".repeat(json.len().next_multiple_of(8) - json.len()));
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json.into_bytes());
    (header, end)
}

/// Numbers in −0.02..0.02 by xorshift.
fn random(file: &mut impl std::io::Write, bytes: u64) -> Result<()> {
    let mut state = SEED;
    for _ in 0..bytes / 4 {
        xorshift(&mut state);
        let mantissa = f32::from_bits(0x3f80_0000 | (state >> 41) as u32); // 1 to 2
        file.write_all(&((mantissa - 1.5) * 0.04).to_le_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn both_files_hold_the_same_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let (wide, narrow) = (folder.path().join("wide"), folder.path().join("narrow"));
        let tensors = [("a".to_owned(), vec![40, 50]), ("b".to_owned(), vec![3])];
        write_both(&wide, &narrow, &tensors).unwrap();
        let load = |path: &Path| candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let (wide, narrow) = (load(&wide), load(&narrow));
        for (name, shape) in tensors {
            assert_eq!(narrow[&name].dtype(), DType::BF16);
            assert_eq!(wide[&name].dims(), shape);
            let values = |tensor: &candle_core::Tensor| {
                tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            assert_eq!(values(&wide[&name]), values(&narrow[&name]));
        }
        let values = wide["a"].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let width = (values.iter().map(|x| x * x).sum::<f32>() / 2000.0).sqrt();
        assert!((0.018..0.022).contains(&width), "{width}");
    }
}
