//! [`Ragged`]: sentences as rows one after the other; and work on rows in blocks.

use candle_core::{Result, Tensor};

/// The most rows that are worked on at once. Large enough for a matrix product to be limited by arithmetic, small
/// enough that the intermediate states of a feed-forward part stay small beside its weights.
pub const ROWS: usize = 128;

/// Token ids of several sentences, one after the other, without padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ragged {
    ids: Vec<u32>,
    lengths: Vec<usize>,
}

impl Ragged {
    /// The sentences' ids in order. Empty sentences keep their place.
    pub fn new<'a>(sentences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut batch = Self::default();
        for sentence in sentences {
            batch.ids.extend_from_slice(sentence);
            batch.lengths.push(sentence.len());
        }
        batch
    }

    /// All token ids, `[tokens]`.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Tokens per sentence.
    #[must_use]
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Each token's place within its sentence, `[tokens]`.
    #[must_use]
    pub fn positions(&self) -> Vec<u32> {
        self.lengths.iter().flat_map(|len| (0u32..).take(*len)).collect()
    }

    /// First row and number of rows of each sentence.
    pub fn spans(&self) -> impl Iterator<Item = (usize, usize)> {
        self.lengths.iter().scan(0, |start, len| {
            let span = (*start, *len);
            *start += len;
            Some(span)
        })
    }
}

/// First row and number of rows of each block: as few blocks as [`ROWS`] allows, all of nearly the same size. No block
/// of several rows' worth is ever a single row, for which a matrix product takes another path: so, bit for bit, a
/// sentence's result does not depend on which sentences share its batch. (In a model of less than 129 components it may:
/// products of at most 256 elements take another path too.)
pub(super) fn blocks(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = rows.div_ceil(ROWS);
    let bound = move |block: usize| block * rows / count;
    (0..count).map(move |block| (bound(block), bound(block + 1) - bound(block)))
}

/// Rows of the largest block that so many rows are worked on in.
#[must_use]
pub const fn largest_block(rows: usize) -> usize {
    match rows.div_ceil(ROWS) {
        0 => 0,
        count => rows.div_ceil(count),
    }
}

/// A tensor `[rows, width]` whose blocks are made one by one from their first row and number of rows.
pub(crate) fn by_blocks(
    (rows, width): (usize, usize),
    like: &Tensor,
    mut make: impl FnMut(usize, usize) -> Result<Tensor>,
) -> Result<Tensor> {
    let whole = Tensor::zeros((rows, width), like.dtype(), like.device())?;
    for (start, len) in blocks(rows) {
        whole.slice_set(&make(start, len)?, 0, start)?;
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_lie_one_after_the_other() {
        let batch = Ragged::new([[5u32, 6, 7].as_slice(), &[], &[8, 9]]);
        assert_eq!(batch.ids(), [5, 6, 7, 8, 9]);
        assert_eq!(batch.positions(), [0, 1, 2, 0, 1]);
        assert_eq!(batch.spans().collect::<Vec<_>>(), [(0, 3), (3, 0), (3, 2)]);
    }

    #[test]
    fn blocks_cover_every_row_once() {
        for rows in [0, 1, ROWS - 1, ROWS, ROWS + 1, 5 * ROWS] {
            let covered: usize = blocks(rows).map(|(_, len)| len).sum();
            assert_eq!(covered, rows);
            assert_eq!(blocks(rows).map(|(_, len)| len).max().unwrap_or(0), largest_block(rows));
            assert!(blocks(rows).all(|(_, len)| len <= ROWS && (len > 1 || rows == 1)));
        }
    }
}
