//! The kernel's small texts, read in place: numbers and `key value` lines, without an allocation.

/// The whole text as one decimal number, blanks around it allowed. Signs, units and overflow are not numbers.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    let digits = text.trim_ascii();
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit <= 9)?;
        sum.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// The words of a line.
pub(crate) fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// The `key value` or `key: value` lines of a text whose value is a number; a unit `kB` multiplies by 1024. Other
/// lines are passed over.
pub(crate) fn fields(text: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    text.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut words = words(line);
        let key = words.next()?;
        let value = number(words.next()?)?;
        let scale = if words.next() == Some(b"kB".as_slice()) { 1024 } else { 1 };
        Some((key.strip_suffix(b":").unwrap_or(key), value.checked_mul(scale)?))
    })
}

/// The first value of a key.
pub(crate) fn field(text: &[u8], key: &str) -> Option<u64> {
    // Looking at the key first spares the numbers of all lines before it.
    let lines = text.split(|byte| *byte == b'\n').filter(|line| line.starts_with(key.as_bytes()));
    lines.flat_map(fields).find(|(name, _)| *name == key.as_bytes()).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers() {
        let rows = [
            ("0", Some(0)),
            (" 42\n", Some(42)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("", None),
            ("\n", None),
            ("max", None),
            ("-1", None),
            ("+1", None),
            ("1 2", None),
            ("12kB", None),
        ];
        for (text, expected) in rows {
            assert_eq!(number(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn keyed_lines() {
        let text =
            b"Name:\tx\nVmHWM:\t  12 kB\nanon 7\nbroken\nhuge 18446744073709551615 kB\nanon 8\n\nlast: 9";
        let rows =
            [("VmHWM", Some(12 << 10)), ("anon", Some(7)), ("Name", None), ("huge", None), ("last", Some(9))];
        for (key, expected) in rows {
            assert_eq!(field(text, key), expected, "{key}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _number = number(&text);
            let _count = fields(&text).count();
        }

        #[test]
        fn numbers_round_trip(n: u64) {
            prop_assert_eq!(number(n.to_string().as_bytes()), Some(n));
        }
    }
}
