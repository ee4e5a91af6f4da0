//! Dimensions as a user writes them: `1024,1024,3`.

use crate::error::{Error, Result};

/// Reads sizes separated by commas (or `x`, or spaces around either).
///
/// # Errors
/// [`Error::Empty`] for nothing, [`Error::Dimension`] with the index and the text of what is zero, negative, too large or
/// no number.
///
/// ```
/// assert_eq!(dd_scale::parse::dimensions("1024, 1024, 3")?, [1024, 1024, 3]);
/// # Ok::<(), dd_scale::Error>(())
/// ```
pub fn dimensions(text: &str) -> Result<Vec<usize>> {
    if text.trim().is_empty() {
        return Err(Error::Empty);
    }
    text.split([',', 'x', '×']).enumerate().map(|(index, part)| dimension(index, part.trim())).collect()
}

/// Reads places of dimensions, counted from zero, separated by commas: `0,2`.
///
/// # Errors
/// [`Error::Setting`] with the text of what is no place.
pub fn places(text: &str) -> Result<Vec<usize>> {
    let place = |part: &str| {
        let reason = "expected places of dimensions, counted from zero, such as 0,2";
        part.trim().parse().map_err(|_| Error::setting("frozen", format!("{part:?}"), reason))
    };
    text.split(',').map(place).collect()
}

fn dimension(index: usize, text: &str) -> Result<usize> {
    let wrong = |reason: &str| Error::Dimension {
        index,
        value: if text.is_empty() { "empty".to_owned() } else { text.to_owned() },
        reason: reason.to_owned(),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<usize>() {
        Ok(0) => Err(wrong("expected at least 1")),
        Ok(size) => Ok(size),
        Err(_) if text.strip_prefix('-').is_some_and(digits) => {
            Err(wrong("it is negative; expected at least 1"))
        }
        Err(_) if digits(text) => Err(wrong("more than the address space has")),
        Err(_) => Err(wrong("expected a whole number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_places() {
        assert_eq!(places("0, 2").unwrap(), [0, 2]);
        for text in ["", "1,", "-1", "a"] {
            assert!(matches!(places(text), Err(Error::Setting { option: "frozen", .. })), "{text}");
        }
    }

    #[test]
    fn reads_sizes_and_names_what_is_none() {
        let rows: [(&str, Result<&[usize], &str>); 9] = [
            ("1024,1024,3", Ok(&[1024, 1024, 3])),
            ("64x3", Ok(&[64, 3])),
            (" 7 ", Ok(&[7])),
            ("", Err("no dimensions given")),
            ("4,0", Err("dimension 1 is 0: expected at least 1")),
            ("4,-3", Err("dimension 1 is -3: it is negative")),
            ("4,,3", Err("dimension 1 is empty: expected a whole number")),
            ("1.5", Err("dimension 0 is 1.5: expected a whole number")),
            ("3,99999999999999999999", Err("dimension 1 is 99999999999999999999: more than")),
        ];
        for (text, expected) in rows {
            match (dimensions(text), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
                (Err(found), Err(expected)) => assert!(found.to_string().starts_with(expected), "{found}"),
                (found, expected) => panic!("{text}: expected {expected:?}, found {found:?}"),
            }
        }
    }
}
