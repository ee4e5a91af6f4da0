//! The header of a `.npy` file: [the format](https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html), versions 1 to 3.

use dd_core::DType;

use super::mapped::Rows;

const MAGIC: &[u8] = b"\x93NUMPY";

/// Where the array's rows lie, or what is wrong.
pub(super) fn read_header(bytes: &[u8]) -> Result<Rows, String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("not a .npy file: it does not begin with \\x93NUMPY")?;
    let (version, rest) = rest.split_at_checked(2).ok_or("cut short within its version")?;
    let width = match version {
        [1, _] => 2,
        [2 | 3, _] => 4,
        other => return Err(format!("version {other:?} of the format; expected 1 to 3")),
    };
    let (length, rest) = rest.split_at_checked(width).ok_or("cut short within its header's length")?;
    let length = length.iter().rev().fold(0usize, |n, byte| n << 8 | usize::from(*byte));
    let header = rest.get(..length).ok_or_else(|| format!("cut short within its header of {length} B"))?;
    let header = std::str::from_utf8(header).map_err(|_| "its header is no text")?;
    if value(header, "fortran_order")? != "False" {
        return Err("in Fortran order; save it with numpy.ascontiguousarray".to_owned());
    }
    let start = MAGIC.len() + 2 + width + length;
    Ok(Rows { start, shape: shape(value(header, "shape")?)?, dtype: dtype(value(header, "descr")?)? })
}

/// The text of a value of the header, which is a Python dictionary of three entries.
fn value<'a>(header: &'a str, key: &str) -> Result<&'a str, String> {
    let quoted = format!("'{key}':");
    let missing = || format!("no {key} in its header {header:?}");
    let (_, rest) = header.split_once(&quoted).ok_or_else(missing)?;
    let rest = rest.trim_start();
    let end = match rest.chars().next() {
        Some('(') => rest.find(')').map(|end| end + 1),
        Some('[') => return Err("an array of records; expected one of plain numbers".to_owned()),
        _ => rest.find([',', '}']),
    };
    end.and_then(|end| rest.get(..end)).map(str::trim).ok_or_else(missing)
}

fn shape(text: &str) -> Result<Vec<usize>, String> {
    let inner = text.strip_prefix('(').and_then(|text| text.strip_suffix(')'));
    let inner = inner.ok_or_else(|| format!("shape {text:?}; expected as (10, 3)"))?;
    let dims = inner.split(',').map(str::trim).filter(|dim| !dim.is_empty());
    dims.map(|dim| dim.parse().map_err(|_| format!("dimension {dim:?} in its shape"))).collect()
}

fn dtype(text: &str) -> Result<DType, String> {
    match text.trim_matches(['\'', '"']) {
        "<f8" => Ok(DType::F64),
        "<f4" => Ok(DType::F32),
        "<f2" => Ok(DType::F16),
        "<i8" => Ok(DType::I64),
        "<i4" => Ok(DType::I32),
        "<i2" => Ok(DType::I16),
        "|i1" => Ok(DType::I8),
        "<u8" => Ok(DType::U64),
        "<u4" => Ok(DType::U32),
        "<u2" => Ok(DType::U16),
        "|u1" => Ok(DType::U8),
        "|b1" => Ok(DType::Bool),
        other => Err(format!("type {other:?}; expected little-endian numbers such as '<f4' or '|u1'")),
    }
}

#[cfg(test)]
#[cfg(not(dd_shuttle))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(version: u8, header: &str) -> Vec<u8> {
        let width = if version == 1 { 2 } else { 4 };
        let length = header.len().to_le_bytes();
        [MAGIC, &[version, 0], &length[..width], header.as_bytes()].concat()
    }

    #[test]
    fn headers_as_numpy_writes_them() {
        let rows = [
            (1, "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }", vec![3, 4], DType::F32),
            (2, "{'descr': '|u1', 'fortran_order': False, 'shape': (7,), }\n", vec![7], DType::U8),
            (3, "{'shape': (), 'fortran_order': False, 'descr': '<f2'}", vec![], DType::F16),
        ];
        for (version, header, shape, dtype) in rows {
            let bytes = file(version, header);
            let found = read_header(&bytes).unwrap();
            assert_eq!((found.shape, found.dtype, found.start), (shape, dtype, bytes.len()), "{header}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let rows = [
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (3, 4), }", "Fortran"),
            ("{'descr': '>f4', 'fortran_order': False, 'shape': (3, 4), }", ">f4"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,), }", "records"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (3, -4), }", "-4"),
            ("{'descr': '<f4', 'fortran_order': False}", "shape"),
        ];
        for (header, word) in rows {
            let error = read_header(&file(1, header)).err().unwrap();
            assert!(error.contains(word), "{header}: {error}");
        }
        for bytes in
            [&b"PK\x03\x04"[..], b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff", b"\x93NUMPY\x09\x00\x00\x00"]
        {
            assert!(read_header(bytes).is_err());
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>, header in "\\PC{0,60}", cut in 0usize..80) {
            let _any = read_header(&bytes);
            let _any = read_header(&[MAGIC, &bytes].concat());
            let whole = file(1, &header);
            let _any = read_header(&whole[..cut.min(whole.len())]);
        }
    }
}
