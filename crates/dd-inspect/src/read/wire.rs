//! Protocol-buffers wire format, as far as headers need it: fields one after the other, unknown ones skipped.
//!
//! Format: <https://protobuf.dev/programming-guides/encoding/>.

use super::source::{Input, Source};
use crate::error::Result;

/// A field's number and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// A number.
    Number(u64),
    /// So many bytes, from the place where reading stands.
    Bytes(u64),
    /// Four or eight bytes, already skipped.
    Fixed,
}

/// The next field before `end`; nothing at the end.
pub(super) fn field<R: Input>(source: &mut Source<R>, end: u64) -> Result<Option<(u64, Value)>> {
    if source.position() >= end {
        return Ok(None);
    }
    let key = varint(source, end)?;
    let value = match key & 7 {
        0 => Value::Number(varint(source, end)?),
        1 => {
            within(source, 8, end)?;
            source.skip(8, "a number")?;
            Value::Fixed
        }
        2 => {
            let len = varint(source, end)?;
            within(source, len, end)?;
            Value::Bytes(len)
        }
        5 => {
            within(source, 4, end)?;
            source.skip(4, "a number")?;
            Value::Fixed
        }
        other => return Err(source.wrong(format!("expected wire type 0, 1, 2 or 5, found {other}"))),
    };
    Ok(Some((key >> 3, value)))
}

/// Goes past a field that nobody wants.
pub(super) fn skip<R: Input>(source: &mut Source<R>, value: Value) -> Result<()> {
    match value {
        Value::Bytes(len) => source.skip(len, "a field"),
        Value::Number(_) | Value::Fixed => Ok(()),
    }
}

/// Numbers that are packed into `len` bytes.
pub(super) fn packed<R: Input>(source: &mut Source<R>, len: u64, most: usize) -> Result<Vec<u64>> {
    let end = source.position() + len;
    let mut all = Vec::new();
    while source.position() < end {
        if all.len() >= most {
            return Err(source.wrong(format!("expected at most {most} numbers")));
        }
        source.keep(8)?;
        all.push(varint(source, end)?);
    }
    Ok(all)
}

fn within<R: Input>(source: &Source<R>, len: u64, end: u64) -> Result<()> {
    let left = end.saturating_sub(source.position());
    if len <= left {
        return Ok(());
    }
    Err(source.wrong(format!("a field of {len} B in a message with {left} B left")))
}

fn varint<R: Input>(source: &mut Source<R>, end: u64) -> Result<u64> {
    let mut number = 0u64;
    for shift in (0..70).step_by(7) {
        within(source, 1, end)?;
        let [byte] = source.array::<1>()?;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            break;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(source.wrong("a number of more than 64 bits"))
}
