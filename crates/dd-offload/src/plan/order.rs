//! [`OrderKind`]: the shape of the order of use.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The shape of the order in which one pass uses the units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OrderKind {
    /// Each unit once, the same way round each time: inference. An LRU cache below the model's size hits nothing.
    Cyclic,
    /// There and back again: forward and backward of training. An LRU cache is optimal.
    Palindrome,
    /// Anything else.
    Irregular,
}

impl OrderKind {
    /// The kind of an order that repeats for ever. Uses of one unit in a row count as one, and so do passes in a row
    /// that the order may hold.
    ///
    /// ```
    /// use dd_offload::plan::OrderKind;
    ///
    /// assert_eq!(OrderKind::of(&[0, 1, 2]), OrderKind::Cyclic);
    /// assert_eq!(OrderKind::of(&[0, 1, 2, 2, 1, 0]), OrderKind::Palindrome);
    /// assert_eq!(OrderKind::of(&[0, 1, 0, 2]), OrderKind::Palindrome); // 1, 0, 2, 0: there and back
    /// assert_eq!(OrderKind::of(&[0, 1, 2, 0, 2, 1, 1, 2]), OrderKind::Irregular);
    /// ```
    #[must_use]
    pub fn of(order: &[usize]) -> Self {
        let mut uses = order.to_vec();
        uses.dedup();
        while uses.len() > 1 && uses.first() == uses.last() {
            uses.pop();
        }
        uses.truncate(primitive(&uses));
        let mut sorted = uses.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.len() == uses.len() {
            return Self::Cyclic;
        }
        let backward: Vec<usize> = uses.iter().rev().copied().collect();
        if is_rotation(&uses, &backward) { Self::Palindrome } else { Self::Irregular }
    }
}

impl fmt::Display for OrderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cyclic => "cyclic",
            Self::Palindrome => "palindrome",
            Self::Irregular => "irregular",
        })
    }
}

/// For each prefix, the length of its longest proper border (Knuth, Morris and Pratt's failure function).
pub(super) fn borders(items: &[usize]) -> Vec<usize> {
    let mut borders: Vec<usize> = Vec::with_capacity(items.len());
    for index in 0..items.len() {
        let border = next_border(items, &borders, index);
        borders.push(border);
    }
    borders
}

/// The border of `items[..=index]`, given the borders of all shorter prefixes.
pub(super) fn next_border(items: &[usize], borders: &[usize], index: usize) -> usize {
    if index == 0 {
        return 0;
    }
    let mut border = borders.get(index - 1).copied().unwrap_or(0);
    while border > 0 && items.get(border) != items.get(index) {
        border = borders.get(border - 1).copied().unwrap_or(0);
    }
    if items.get(border) == items.get(index) { border + 1 } else { 0 }
}

/// The length of the shortest word whose repetition is `items`.
fn primitive(items: &[usize]) -> usize {
    let period = items.len() - borders(items).last().copied().unwrap_or(0);
    if period > 0 && items.len().is_multiple_of(period) { period } else { items.len() }
}

/// Whether `other` is `items` begun elsewhere.
fn is_rotation(items: &[usize], other: &[usize]) -> bool {
    if items.len() != other.len() {
        return false;
    }
    let separator = usize::MAX; // No unit has this index.
    let mut text = other.to_vec();
    text.push(separator);
    text.extend(items.iter().chain(items));
    borders(&text).contains(&other.len())
}
