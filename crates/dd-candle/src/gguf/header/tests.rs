//! Whole and broken headers, made byte by byte.

use super::*;

#[derive(Clone)]
struct Maker {
    magic: u32,
    version: u32,
    tensors: Option<u64>,
    entries: Vec<(Vec<u8>, u32, Vec<u8>)>,
    infos: Vec<(&'static str, Vec<u64>, u32, u64)>,
    data: usize,
}

/// Two tensors: `a` [2, 256] in Q4_K (288 bytes), `b` [8] in f32 (32 bytes).
fn whole() -> Maker {
    Maker {
        magic: MAGIC,
        version: 3,
        tensors: None,
        entries: vec![(b"general.name".to_vec(), 8, text("x"))],
        infos: vec![("a", vec![256, 2], 12, 0), ("b", vec![8], 0, 288)],
        data: 320,
    }
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Maker {
    fn length(&self, value: u64) -> Vec<u8> {
        if self.version == 1 {
            u32::try_from(value).unwrap().to_le_bytes().to_vec()
        } else {
            value.to_le_bytes().to_vec()
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = [self.magic.to_le_bytes(), self.version.to_le_bytes()].concat();
        out.extend(self.length(self.tensors.unwrap_or(self.infos.len() as u64)));
        out.extend(self.length(self.entries.len() as u64));
        for (name, kind, value) in &self.entries {
            out.extend(self.length(name.len() as u64));
            out.extend_from_slice(name);
            out.extend(kind.to_le_bytes());
            out.extend_from_slice(value);
        }
        for (name, dims, kind, offset) in &self.infos {
            out.extend(self.length(name.len() as u64));
            out.extend_from_slice(name.as_bytes());
            out.extend(u32::try_from(dims.len()).unwrap().to_le_bytes());
            dims.iter().for_each(|dim| out.extend(self.length(*dim)));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32) + self.data, 9);
        out
    }
}

fn read(bytes: &[u8]) -> Result<Header> {
    Header::read(bytes, bytes.len() as u64, Path::new("m.gguf"))
}

#[test]
fn whole_headers_are_what_candle_reads() {
    let aligned = |value: u32, data| Maker {
        entries: vec![(b"general.alignment".to_vec(), 4, value.to_le_bytes().to_vec())],
        data,
        ..whole()
    };
    let one = Maker { version: 1, entries: vec![(b"k".to_vec(), 4, vec![0; 4])], ..whole() };
    let none = Maker { infos: Vec::new(), entries: Vec::new(), data: 0, ..whole() };
    for maker in
        [whole(), Maker { version: 2, ..whole() }, one, aligned(32, 320), aligned(1 << 12, 1 << 13), none]
    {
        let bytes = maker.bytes();
        let header = read(&bytes).unwrap();
        let content =
            candle_core::quantized::gguf_file::Content::read(&mut std::io::Cursor::new(&bytes)).unwrap();
        assert_eq!(header.tensors.len(), content.tensor_infos.len());
        for TensorEntry { name, dims, dtype, range } in &header.tensors {
            let info = &content.tensor_infos[name];
            let theirs: Vec<u64> = info.shape.dims().iter().map(|dim| *dim as u64).collect();
            assert_eq!(
                (dims, dtype, range.start),
                (&theirs, &info.ggml_dtype, content.tensor_data_offset + info.offset)
            );
        }
        assert_eq!(header.weights(), if header.tensors.is_empty() { 0 } else { 320 });
    }
}

#[test]
fn broken_headers_are_refused_by_name() {
    let info = |name, dims: &[u64], kind, offset| Maker {
        infos: vec![(name, dims.to_vec(), kind, offset)],
        ..whole()
    };
    let entry =
        |name: &[u8], kind, value: Vec<u8>| Maker { entries: vec![(name.to_vec(), kind, value)], ..whole() };
    let nested: Vec<u8> =
        (0..50).flat_map(|_| [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat()).collect();
    let strings = [8u32.to_le_bytes().to_vec(), u64::MAX.to_le_bytes().to_vec()].concat();
    let numbers = [4u32.to_le_bytes().to_vec(), (1u64 << 62).to_le_bytes().to_vec()].concat();
    let rows = [
        (Maker { magic: 1, ..whole() }, "magic number"),
        (Maker { version: 4, ..whole() }, "version"),
        (Maker { tensors: Some(u64::MAX), ..whole() }, "tensor"),
        (info("a", &[256, 1 << 60], 12, 0), "tensor a"),
        (info("a", &[u64::MAX, u64::MAX], 0, 0), "tensor a"),
        (info("a", &[100], 12, 0), "whole blocks"),
        (info("a", &[1, 1, 1, 1, 1], 0, 0), "4 dimensions"),
        (info("a", &[8], 99, 0), "type 99"),
        (info("a", &[8], 0, u64::MAX - 8), "within the file"),
        (info("a", &[8], 0, 289), "within the file"),
        (Maker { infos: vec![("a", vec![8], 0, 0), ("b", vec![8], 0, 16)], ..whole() }, "overlap"),
        (Maker { infos: vec![("a", vec![8], 0, 0), ("a", vec![8], 0, 32)], ..whole() }, "a second one"),
        (entry(b"general.alignment", 4, vec![0; 4]), "power of two"),
        (entry(b"general.alignment", 4, 48u32.to_le_bytes().to_vec()), "power of two"),
        (entry(b"general.alignment", 8, text("32")), "integer"),
        (entry(b"k", 13, vec![0; 8]), "0 to 12"),
        (entry(b"k", 9, nested), "within each other"),
        (entry(b"k", 9, strings), "bytes more"),
        (entry(b"k", 9, numbers), "bytes more"),
        (entry(b"k", 8, u64::MAX.to_le_bytes().to_vec()), "bytes more"),
    ];
    for (maker, says) in rows {
        let error = read(&maker.bytes()).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{says}: {error}");
        let text = error.to_string();
        assert!(text.contains(says) && text.contains("m.gguf"), "{says}: {text}");
    }
}

#[test]
fn no_shorter_file_is_whole() {
    let bytes = whole().bytes();
    for len in 0..bytes.len() {
        let error = read(&bytes[..len]).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{len}: {error}");
    }
}
