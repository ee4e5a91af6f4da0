//! One read as a state machine: what to ask of the disk next, and what an answer means.
//!
//! It reads no file, so every answer that a disk can give is tested without one.

use std::io;
use std::ops::Range;

use super::file::io_error;
use super::{BlockRead, DirectFile};
use crate::error::{Error, Result};

const MOST_RETRIES: u32 = 1000;

/// A read under way: the aligned range around it, and how much of that has arrived.
#[derive(Debug)]
pub(super) struct Request {
    read: BlockRead,
    start: u64,
    span: usize,
    filled: usize,
    retries: u32,
}

/// What is to be done after an answer.
#[derive(Debug)]
pub(super) enum Step {
    /// Ask for what [`Request::rest`] says now.
    Again,
    /// All that was wanted is there, or never will be.
    Done(Result<()>),
}

impl Request {
    /// Aligns a read; hands it back with the reason where that does not fit a block.
    pub(super) fn new(read: BlockRead, block: usize) -> Result<Self, (BlockRead, Error)> {
        match aligned(&read, block) {
            Ok((start, span)) => Ok(Self { read, start, span, filled: 0, retries: 0 }),
            Err(error) => Err((read, error)),
        }
    }

    pub(super) fn file(&self) -> &DirectFile {
        &self.read.file
    }

    pub(super) fn into_read(self) -> BlockRead {
        self.read
    }

    /// What to ask for: the part of the block to fill, and the file's offset for it; aligned, all of it.
    pub(super) fn rest(&self) -> (Range<usize>, u64) {
        let done = self.filled - self.filled % self.file().alignment();
        (done..self.span, self.start.saturating_add(done as u64))
    }

    /// The aligned range of the file: its start and its length.
    pub(super) const fn span(&self) -> (u64, usize) {
        (self.start, self.span)
    }

    /// Where the bytes that were asked for lie in the block.
    pub(super) fn wanted(&self) -> Range<usize> {
        let skip = usize::try_from(self.read.offset - self.start).unwrap_or(usize::MAX);
        skip..skip.saturating_add(self.read.len)
    }

    /// Takes the answer to what [`rest`](Self::rest) asked for.
    ///
    /// A short answer at an aligned place may go on; one that ends in the middle is the end of the file, which is asked
    /// once more to be sure.
    pub(super) fn advance(&mut self, answer: io::Result<usize>) -> Step {
        match answer {
            Ok(n) => {
                let filled = self.rest().0.start.saturating_add(n).min(self.span);
                if filled >= self.wanted().end {
                    self.filled = filled;
                    return Step::Done(Ok(()));
                }
                if filled <= self.filled {
                    return Step::Done(Err(self.ended()));
                }
                self.filled = filled;
                Step::Again
            }
            Err(error) if is_passing(&error) && self.retries < MOST_RETRIES => {
                self.retries += 1;
                Step::Again
            }
            Err(error) => Step::Done(Err(self.failed(error))),
        }
    }

    /// The file ends before the read does: where the answers ended, or earlier if it says so itself.
    fn ended(&self) -> Error {
        let reached = self.start.saturating_add(self.filled as u64);
        let found = self.file().extent().map_or(reached, |(len, _)| len.min(reached));
        Error::Truncated {
            path: self.file().path().to_owned(),
            expected: self.read.offset.saturating_add(self.read.len as u64),
            found,
        }
    }

    fn failed(&self, cause: io::Error) -> Error {
        let fault = Fault { offset: self.read.offset, len: self.read.len, cause };
        io_error("read", self.file().path(), io::Error::new(fault.cause.kind(), fault))
    }
}

/// Whether the same request may well succeed in a moment.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

/// The aligned range around a read: its start and its length, which must fit a block.
fn aligned(read: &BlockRead, block: usize) -> Result<(u64, usize)> {
    let alignment = read.file.alignment() as u64;
    let overflow = || dd_core::Error::SizeOverflow {
        what: format!("a read of {} B at {} of {}", read.len, read.offset, read.file.path().display()),
    };
    let end = read.offset.checked_add(read.len as u64).ok_or_else(overflow)?;
    let end = end.checked_next_multiple_of(alignment).ok_or_else(overflow)?;
    let start = read.offset - read.offset % alignment;
    let span = usize::try_from(end - start).map_err(|_| overflow())?;
    if span > block {
        return Err(Error::Core(dd_core::Error::Mismatch {
            context: format!("a read at offset {} of {}", read.offset, read.file.path().display()),
            expected: format!("at most one block of {block} B, aligned to {alignment}"),
            found: format!("{} B, aligned {span} B", read.len),
        }));
    }
    Ok((start, span))
}

/// What the system said about a read, and about which.
#[derive(Debug, thiserror::Error)]
#[error("{len} B at offset {offset}: {cause}")]
struct Fault {
    offset: u64,
    len: usize,
    #[source]
    cause: io::Error,
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 16384;

    fn request(offset: u64, len: usize) -> Result<Request, (BlockRead, Error)> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 30).unwrap(); // One large hole.
        let file = DirectFile::open(file.path()).unwrap();
        Request::new(BlockRead { file, offset, len, tag: 0 }, BLOCK)
    }

    fn passing() -> io::Result<usize> {
        Err(io::ErrorKind::Interrupted.into())
    }

    /// Answers a read of `len` at `offset` step by step; the last answer must settle it, none before.
    fn settle(offset: u64, len: usize, answers: Vec<io::Result<usize>>) -> Result<()> {
        let mut request = request(offset, len).unwrap();
        let last = answers.len() - 1;
        for (n, answer) in answers.into_iter().enumerate() {
            let (range, at) = request.rest();
            let alignment = request.file().alignment();
            assert!(range.start.is_multiple_of(alignment) && range.end.is_multiple_of(alignment));
            assert!(at.is_multiple_of(alignment as u64) && range.end <= BLOCK);
            match request.advance(answer) {
                Step::Again => assert!(n < last, "not settled after answer {n}"),
                Step::Done(outcome) => {
                    assert_eq!(n, last, "settled too early");
                    return outcome;
                }
            }
        }
        unreachable!("the last answer settles")
    }

    #[test]
    fn answers_lead_to_the_bytes() {
        let rows = [
            (0, 8192, vec![Ok(8192)]),
            (0, 5000, vec![Ok(5000)]),              // The file ends right there.
            (4096, 8192, vec![Ok(4096), Ok(4096)]), // A short answer, then the rest.
            (4096, 8192, vec![passing(), Ok(4096), passing(), Ok(4096)]),
            (5, 8192, vec![Ok(5000), Ok(8192 + 5 - 4608)]), // Short in the middle of a sector of 512 or of 4096.
        ];
        for (offset, len, answers) in rows {
            if matches!(answers.last(), Some(Ok(n)) if *n == 8192 + 5 - 4608)
                && request(0, 1).unwrap().file().alignment() != 512
            {
                dd_conformance::skipped!("this row is written for an alignment of 512");
                continue;
            }
            settle(offset, len, answers).unwrap();
        }
    }

    #[test]
    fn the_end_of_the_file_is_named() {
        let rows: [(u64, usize, Vec<io::Result<usize>>, u64); 3] = [
            (4096, 8192, vec![Ok(0)], 4096),
            (4096, 8192, vec![Ok(4096), Ok(0)], 8192),
            (4096, 8192, vec![Ok(100), Ok(100)], 4196),
        ];
        for (offset, len, answers, found_at) in rows {
            let error = settle(offset, len, answers).unwrap_err();
            let Error::Truncated { expected, found, .. } = error else { panic!("{error}") };
            assert_eq!((expected, found), (offset + len as u64, found_at));
        }
    }

    #[test]
    fn a_disk_error_names_the_place_and_keeps_its_cause() {
        let error = settle(8192, 100, vec![Err(io::Error::from_raw_os_error(5))]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("100 B at offset 8192") && text.contains("cannot read /"), "{text}");
        let Error::Io { source, .. } = error else { panic!("{text}") };
        let cause = std::error::Error::source(source.get_ref().unwrap()).unwrap();
        assert_eq!(cause.downcast_ref::<io::Error>().unwrap().raw_os_error(), Some(5));
    }

    #[test]
    fn patience_ends() {
        let mut request = request(0, 10).unwrap();
        let settled = (0..=MOST_RETRIES).find_map(|_| match request.advance(passing()) {
            Step::Again => None,
            Step::Done(outcome) => Some(outcome),
        });
        assert!(matches!(settled, Some(Err(Error::Io { .. }))));
    }

    #[test]
    fn what_fits_no_block_is_handed_back() {
        for (offset, len) in [(0, BLOCK + 1), (1, BLOCK), (u64::MAX - 5, 3), (u64::MAX, 1), (0, usize::MAX)] {
            let (read, error) = request(offset, len).unwrap_err();
            assert_eq!((read.offset, read.len), (offset, len));
            assert!(matches!(error, Error::Core(_)), "{error}");
        }
    }
}
