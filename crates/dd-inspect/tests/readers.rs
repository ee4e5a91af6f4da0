//! Headers: what is read, how little memory that takes, and that no bytes make it panic.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs, reason = "tests")]

#[path = "support/counting.rs"]
mod counting;
#[path = "support/files.rs"]
mod files;

use std::alloc::System;
use std::fs::File;
use std::io::{Cursor, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use dd_core::Bytes;
use dd_inspect::graph::Sizes;
use dd_inspect::read::{ReadLimits, WeightFiles, config, gguf, onnx, safetensors};
use dd_inspect::{Error, Graph};
use proptest::prelude::*;

use counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting<System> = Counting::new(System);
static TURN: Mutex<()> = Mutex::new(());
const HUGE: u64 = 100_000_000_000;

/// A file of a header and a hole of so many bytes behind it.
fn sparse(path: &Path, header: &[u8], len: u64) {
    let mut file = File::create(path).unwrap();
    file.write_all(header).unwrap();
    file.set_len(len).unwrap();
}

#[test]
fn a_hundred_gigabytes_take_two_mebibytes() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let rows: [(&str, Vec<u8>); 2] =
        [("model.safetensors", files::safetensors(800, HUGE)), ("model.gguf", files::gguf(800, HUGE))];
    for (name, header) in rows {
        let path = folder.path().join(name);
        sparse(&path, &header, HUGE + (1 << 20));
        let header_len = header.len() as u64;
        if name.ends_with("safetensors") {
            // The format ends with its last tensor.
            File::options().write(true).open(&path).unwrap().set_len(HUGE).unwrap();
        }
        let (found, peak) = ALLOCATOR.peak_of(|| WeightFiles::open(&path, &ReadLimits::default()).unwrap());
        assert_eq!(found.tensors.len(), 800, "{name}");
        assert!(found.bytes().0 > HUGE * 9 / 10, "{name}: {}", found.bytes());
        assert!(peak <= 2 << 20, "{name}: a header of {header_len} B took {peak} B");
    }
}

#[test]
fn a_vocabulary_is_skipped() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let bytes = files::gguf_with_words(200_000);
    let len = bytes.len();
    let (found, peak) = ALLOCATOR
        .peak_of(|| gguf::read_from(Cursor::new(&bytes), len as u64, "g", &ReadLimits::default()).unwrap());
    assert_eq!(found.metadata["general.architecture"], "llama");
    assert!(peak < 256 << 10, "{peak} B for a file of {len} B");
}

#[test]
fn shards_are_read_by_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["a.safetensors", "b.safetensors"] {
        let header = files::safetensors_of(&[(&format!("{name}.w"), &[4, 2], "F16", 16)]);
        sparse(&at(name), &header, header.len() as u64 + 16);
    }
    let write = |text: &str| std::fs::write(at("model.safetensors.index.json"), text).unwrap();
    write(r#"{"weight_map": {"a.safetensors.w": "a.safetensors", "b.safetensors.w": "b.safetensors"}}"#);
    let found = WeightFiles::open(folder.path(), &ReadLimits::default()).unwrap();
    assert_eq!((found.tensors.len(), found.elements(), found.bytes()), (2, 16, Bytes(32)));
    let bad = [
        (r#"{"weight_map": {"x": "a.safetensors"}}"#, "is not in"),
        (r#"{"weight_map": {"x": "../a.safetensors"}}"#, "outside"),
        (r#"{"weight_map": {"x": "c.safetensors"}}"#, "cannot open"),
        (r#"{"weight_map": 3}"#, "invalid type"),
        ("{", "EOF"),
    ];
    for (text, expected) in bad {
        write(text);
        let message = WeightFiles::open(folder.path(), &ReadLimits::default()).unwrap_err().to_string();
        assert!(message.contains(expected), "{text}: {message}");
    }
}

#[test]
fn what_cannot_be_is_named() {
    let tensor = |shape: &[u64], dtype: &str, bytes| files::safetensors_of(&[("w", shape, dtype, bytes)]);
    let mut long = tensor(&[2], "F32", 8);
    long[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    let mut medium = tensor(&[2], "F32", 8);
    medium[..8].copy_from_slice(&90_000_000u64.to_le_bytes());
    let overlapping =
        br#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
    let twice =
        br#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#;
    let rows: [(Vec<u8>, &str); 10] = [
        (b"abc".to_vec(), "a number of 8 B, but 3 B are left"),
        (b"version https".to_vec(), "Git LFS"),
        (long, "more than the 100000000 B of the format"),
        (medium, "more than the 64.00 MiB allowed"),
        (tensor(&[3], "F32", 8), "takes 12 B"),
        (tensor(&[2], "F31", 8), "unknown dtype"),
        (tensor(&[u64::MAX, 2], "F32", 8), "no file holds"),
        (tensor(&[1; 17], "F32", 4), "at most 16 sizes"),
        (files::with_length(overlapping), "overlap"),
        (files::with_length(twice), "twice"),
    ];
    for (mut bytes, expected) in rows {
        if bytes.len() > 20 {
            bytes.extend([0; 16]);
        }
        let found =
            safetensors::read_from(Cursor::new(&bytes), bytes.len() as u64, "f", &ReadLimits::default());
        let message = found.unwrap_err().to_string();
        assert!(message.contains(expected), "expected {expected:?}: {message}");
    }
}

#[test]
fn an_onnx_file_becomes_a_network() {
    let bytes = files::onnx();
    let model =
        onnx::read_from(Cursor::new(&bytes), bytes.len() as u64, "m", &ReadLimits::default()).unwrap();
    assert_eq!(model.weights.elements(), 8 * 27 + 8 + 2 * 8 + 2 * 8 + 10 * 8 + 10 + 2);
    let graph = model.graph.unwrap();
    let kinds: Vec<&str> = graph.modules().iter().map(|module| module.layer.kind()).collect();
    assert_eq!(kinds, ["Conv2d", "BatchNorm", "ReLU", "AvgPool", "Reshape", "Linear"]);
    // Running statistics count as parameters of the file; the shape of the reshape does not.
    assert_eq!(graph.parameter_count().unwrap(), 8 * 27 + 8 + 2 * 8 + 2 * 8 + 10 * 8 + 10);
    let shapes = graph.shapes(Sizes::batch(4)).unwrap();
    assert_eq!(shapes.of(graph.outputs()[0]), [4, 10]);
    assert_eq!(model.operators["Conv"], 1);
}

/// Sizes of published models: what their cards and papers say, to the parameter.
#[test]
fn published_models_have_their_parameters() {
    let rows: [(&str, u64); 6] = [
        (
            r#"{"model_type":"llama","vocab_size":32000,"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,
            "num_attention_heads":32,"num_key_value_heads":32}"#,
            6_738_415_616,
        ),
        (
            r#"{"model_type":"mistral","vocab_size":32000,"hidden_size":4096,"intermediate_size":14336,
            "num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8}"#,
            7_241_732_096,
        ),
        (
            r#"{"model_type":"qwen2","vocab_size":151936,"hidden_size":896,"intermediate_size":4864,"num_hidden_layers":24,
            "num_attention_heads":14,"num_key_value_heads":2,"tie_word_embeddings":true}"#,
            494_032_768,
        ),
        (
            r#"{"model_type":"gemma","vocab_size":256000,"hidden_size":2048,"intermediate_size":16384,"num_hidden_layers":18,
            "num_attention_heads":8,"num_key_value_heads":1,"head_dim":256}"#,
            2_506_172_416,
        ),
        (
            r#"{"model_type":"bert","vocab_size":30522,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,
            "num_attention_heads":12}"#,
            109_482_240,
        ),
        (
            r#"{"model_type":"t5","vocab_size":32128,"d_model":512,"d_ff":2048,"d_kv":64,"num_heads":8,"num_layers":6}"#,
            60_506_624,
        ),
    ];
    for (text, expected) in rows {
        let model = config::parse(text, "c").unwrap();
        assert_eq!(model.graph.parameter_count().unwrap(), expected, "{:?}", model.family);
    }
}

#[test]
fn hostile_configs_are_refused_by_name() {
    let good = r#"{"model_type":"llama","vocab_size":100,"hidden_size":64,"intermediate_size":64,"num_hidden_layers":2,
        "num_attention_heads":4}"#;
    assert!(config::parse(good, "c").is_ok());
    let rows = [
        ("\"hidden_size\":64", "\"hidden_size\":0", "hidden_size is 0"),
        ("\"hidden_size\":64", "\"hidden_size\":66", "no multiple"),
        ("\"hidden_size\":64", "\"hidden_size\":18446744073709551615", "hidden_size is 18446744073709551615"),
        ("\"num_hidden_layers\":2", "\"num_hidden_layers\":1000000", "num_hidden_layers is 1000000"),
        ("\"num_attention_heads\":4", "\"num_attention_heads\":\"4\"", "num_attention_heads is \"4\""),
        ("\"vocab_size\":100,", "", "vocab_size is missing"),
        ("llama", "lama", "known are llama"),
        ("{", "[", "invalid type"),
    ];
    for (from, to, expected) in rows {
        let message = config::parse(&good.replace(from, to), "c").unwrap_err().to_string();
        assert!(message.contains(expected), "{to}: {message}");
    }
}

/// Runs every reader on the bytes; none may panic, nor take more than the limit and what small bookkeeping needs.
fn read_all(bytes: &[u8]) {
    let limits = ReadLimits { header: Bytes::kib(64) };
    let len = bytes.len() as u64;
    let (_, peak) = ALLOCATOR.peak_of(|| {
        let _ =
            safetensors::read_from(Cursor::new(bytes), len, "s", &limits).map_err(|error| error.to_string());
        let _ = gguf::read_from(Cursor::new(bytes), len, "g", &limits).map_err(|error| error.to_string());
        let onnx: Result<_, Error> = onnx::read_from(Cursor::new(bytes), len, "o", &limits);
        let graph: Option<Graph> = onnx.ok().and_then(|model| model.graph.ok());
        let _ =
            graph.map(|graph| graph.shapes(Sizes::new(3, 5)).map(drop).map_err(|error| error.to_string()));
    });
    assert!(peak <= 4 << 20, "{peak} B for {len} B");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), kind in 0usize..3) {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = match kind { 0 => b"GGUF\x03\0\0\0".to_vec(), 1 => b"\x3a".to_vec(), _ => Vec::new() };
        all.extend(bytes);
        read_all(&all);
    }

    #[test]
    fn no_changed_file_makes_a_reader_panic(
        kind in 0usize..3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = match kind {
            0 => files::safetensors_of(&[("model.a", &[4, 8], "F32", 128), ("model.b", &[3], "BF16", 6)]),
            1 => files::gguf_with_words(5),
            _ => files::onnx(),
        };
        bytes.extend([0; 64]);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        read_all(&bytes);
    }

    #[test]
    fn no_changed_config_makes_a_reader_panic(at in any::<prop::sample::Index>(), value in "[0-9\"a-z:,{}.-]{0,6}") {
        let text = r#"{"model_type":"gemma3_text","vocab_size":100,"hidden_size":64,"intermediate_size":64,
            "num_hidden_layers":2,"num_attention_heads":4,"head_dim":16,"sliding_window":32}"#;
        let mut text = text.to_owned();
        let at = at.index(text.len());
        text.insert_str(at, &value);
        let _ = config::parse(&text, "c").map(|model| {
            model.graph.shapes(Sizes::new(usize::MAX, 3)).map(drop).map_err(|error| error.to_string())
        });
    }
}
