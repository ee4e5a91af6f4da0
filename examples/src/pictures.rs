//! [`Pictures`]: where a program puts what it draws. And floats as the bytes that tensors are.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use png::{BitDepth, ColorType, Encoder};
use tempfile::TempDir;

use crate::Result;

/// A folder for pictures: the program's argument, or one that goes when this goes.
pub struct Pictures {
    folder: PathBuf,
    _temporary: Option<TempDir>,
}

impl Pictures {
    /// The folder, made where it is not there.
    ///
    /// # Errors
    /// A folder that cannot be made.
    pub fn new() -> Result<Self> {
        if let Some(folder) = std::env::args_os().nth(1) {
            std::fs::create_dir_all(&folder)?;
            return Ok(Self { folder: folder.into(), _temporary: None });
        }
        let temporary = tempfile::tempdir()?;
        Ok(Self { folder: temporary.path().to_owned(), _temporary: Some(temporary) })
    }

    /// A file in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes a picture: one byte per pixel in gray, or three in colour.
    ///
    /// # Errors
    /// A file that cannot be written; pixels that are not `width` times `height`.
    pub fn write(&self, name: &str, width: u32, height: u32, pixels: &[u8]) -> Result<PathBuf> {
        let path = self.path(name);
        let gray = pixels.len() as u64 == u64::from(width) * u64::from(height);
        write(&path, width, height, if gray { ColorType::Grayscale } else { ColorType::Rgb }, pixels)?;
        println!("  drawn: {}", path.display());
        Ok(path)
    }
}

fn write(path: &Path, width: u32, height: u32, color: ColorType, pixels: &[u8]) -> Result {
    let mut encoder = Encoder::new(BufWriter::new(File::create(path)?), width, height);
    encoder.set_color(color);
    encoder.set_depth(BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    Ok(writer.finish()?)
}

/// A tensor's bytes as floats.
#[must_use]
pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Floats as a tensor's bytes.
#[must_use]
pub fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
