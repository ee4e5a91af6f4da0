//! [`similar`]: a name that was perhaps meant, for the message of an error.

/// Names longer than this, and more names than that, are not compared: a hostile file must not cost time.
const MAX_NAME: usize = 200;
const MAX_NAMES: usize = 20_000;

/// The name among these that is most like `wanted`, if any is much alike: one that ends or begins with it (a prefix
/// too many or too few), else one that differs in at most a quarter of its characters.
pub(super) fn similar<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if wanted.is_empty() || wanted.len() > MAX_NAME {
        return None;
    }
    let candidates = names.take(MAX_NAMES).filter(|name| !name.is_empty() && name.len() <= MAX_NAME);
    let scored = candidates.filter_map(|name| Some((distance(wanted, name)?, name)));
    scored.min().map(|(_, name)| name)
}

/// How far apart two names are; nothing where they are not alike.
fn distance(wanted: &str, name: &str) -> Option<usize> {
    let contained = |long: &str, short: &str| {
        let rest = long.strip_suffix(short).filter(|rest| rest.ends_with('.'));
        rest.or_else(|| long.strip_prefix(short).filter(|rest| rest.starts_with('.'))).is_some()
    };
    if contained(name, wanted) || contained(wanted, name) {
        return Some(0);
    }
    let limit = wanted.len().max(name.len()) / 4;
    if wanted.len().abs_diff(name.len()) > limit {
        return None;
    }
    let edits = edits(wanted, name);
    (edits <= limit).then_some(edits)
}

/// The Levenshtein distance in bytes, a row at a time.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, byte) in a.bytes().enumerate() {
        let (mut diagonal, mut left) = (i, i + 1);
        for (cell, other) in row.iter_mut().skip(1).zip(b.bytes()) {
            let above = *cell;
            left = (above + 1).min(left + 1).min(diagonal + usize::from(byte != other));
            diagonal = above;
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(a.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_was_meant() {
        let names = ["bert.encoder.layer.0.weight", "bert.encoder.layer.0.bias", "", "x"];
        let rows = [
            ("encoder.layer.0.weight", Some("bert.encoder.layer.0.weight")),
            ("bert.encoder.layer.0.wieght", Some("bert.encoder.layer.0.weight")),
            ("model.bert.encoder.layer.0.bias", Some("bert.encoder.layer.0.bias")),
            ("lm_head.weight", None),
            ("", None),
        ];
        for (wanted, expected) in rows {
            assert_eq!(similar(wanted, names.iter().copied()), expected, "{wanted}");
        }
    }

    #[test]
    fn edits_are_levenshtein() {
        for (a, b, expected) in [("", "", 0), ("kitten", "sitting", 3), ("abc", "", 3), ("", "ab", 2)] {
            assert_eq!(edits(a, b), expected, "{a:?} {b:?}");
        }
    }
}
