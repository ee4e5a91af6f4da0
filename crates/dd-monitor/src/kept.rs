//! [`KeptFile`]: a file of the kernel that stays open and is read again in place.
//!
//! Opening a file of `/proc` costs more than reading it. The kernel makes the text anew for every read from its
//! start, so one positioned read of a kept descriptor is a whole, fresh sample.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use crate::root::Root;

/// Holds every text that is read this way (`memory.stat`, the longest, has about 3 KiB); lives on the stack.
pub(crate) type Buffer = [u8; 8192];

/// A buffer to read into.
pub(crate) const fn buffer() -> Buffer {
    [0; 8192]
}

/// A file that stays open.
#[derive(Debug)]
pub(crate) struct KeptFile {
    path: PathBuf,
    file: File,
}

impl KeptFile {
    pub(crate) fn open(root: &Root, path: &str) -> io::Result<Self> {
        Self::open_path(root.join(path))
    }

    pub(crate) fn open_path(path: PathBuf) -> io::Result<Self> {
        let file = File::open(&path)?;
        Ok(Self { path, file })
    }

    pub(crate) const fn path(&self) -> &PathBuf {
        &self.path
    }

    /// The open file, to wait on.
    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    /// Reads the text from its start. One read returns it whole: the kernel writes each of these files as one record.
    pub(crate) fn read<'b>(&self, buffer: &'b mut Buffer) -> io::Result<&'b [u8]> {
        let length = loop {
            match read_at_start(&self.file, buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome?,
            }
        };
        let is_full = length == buffer.len();
        let text = buffer.get(..length).unwrap_or_default();
        Ok(if is_full { whole_lines(text) } else { text })
    }
}

/// A text that was cut, without the line that the cut went through: half a number is another number.
fn whole_lines(text: &[u8]) -> &[u8] {
    let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    text.get(..end).unwrap_or_default()
}

#[cfg(unix)]
fn read_at_start(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, 0)
}

#[cfg(windows)]
fn read_at_start(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_file_says_now() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        std::fs::write(folder.path().join("value"), "1\n").unwrap();
        let kept = KeptFile::open(&root, "/value").unwrap();
        for text in ["1\n", "22\n", "", "3"] {
            std::fs::write(kept.path(), text).unwrap();
            assert_eq!(kept.read(&mut buffer()).unwrap(), text.as_bytes());
        }
        assert!(KeptFile::open(&root, "/absent").is_err());
    }

    #[test]
    fn a_line_that_does_not_fit_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long");
        std::fs::write(&path, format!("a 1\n{}\nb 1234567890", "x".repeat(8192 - 8))).unwrap();
        let kept = KeptFile::open_path(path).unwrap();
        assert_eq!(kept.read(&mut buffer()).unwrap().len(), 8192 - 3);
        std::fs::write(kept.path(), "1".repeat(10_000)).unwrap();
        assert_eq!(kept.read(&mut buffer()).unwrap(), b"");
    }
}
