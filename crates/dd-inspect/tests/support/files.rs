//! Small files in each format, made by hand.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "small numbers of a test's own making"
)]

/// A safetensors file up to its data: its length and the JSON.
pub(crate) fn with_length(json: &[u8]) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes(), json].concat()
}

/// A header of these tensors: name, shape, dtype, bytes.
pub(crate) fn safetensors_of(tensors: &[(&str, &[u64], &str, u64)]) -> Vec<u8> {
    let mut at = 0;
    let entries: Vec<String> = tensors
        .iter()
        .map(|(name, shape, dtype, bytes)| {
            at += bytes;
            format!(
                "{name:?}:{{\"dtype\":{dtype:?},\"shape\":{shape:?},\"data_offsets\":[{},{at}]}}",
                at - bytes
            )
        })
        .collect();
    with_length(format!("{{\"__metadata__\":{{\"format\":\"pt\"}},{}}}", entries.join(",")).as_bytes())
}

/// A header of `count` tensors that fill a file of about `len` bytes.
pub(crate) fn safetensors(count: u64, len: u64) -> Vec<u8> {
    let each = (len - (1 << 20)) / count / 8192 * 8192;
    let rows = each / 8192;
    let named: Vec<(String, [u64; 2])> =
        (0..count).map(|at| (format!("model.layers.{at}.mlp.down_proj.weight"), [rows, 4096])).collect();
    let tensors: Vec<(&str, &[u64], &str, u64)> =
        named.iter().map(|(name, shape)| (name.as_str(), &shape[..], "BF16", each)).collect();
    safetensors_of(&tensors)
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn gguf_of(tensors: &[(String, Vec<u64>, u32, u64)], words: u64) -> Vec<u8> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(2u64.to_le_bytes());
    text(&mut out, "general.architecture");
    out.extend(8u32.to_le_bytes());
    text(&mut out, "llama");
    text(&mut out, "tokenizer.ggml.tokens");
    out.extend(9u32.to_le_bytes());
    out.extend(8u32.to_le_bytes());
    out.extend(words.to_le_bytes());
    (0..words).for_each(|word| text(&mut out, &format!("word{word}")));
    for (name, shape, kind, offset) in tensors {
        text(&mut out, name);
        out.extend(u32::try_from(shape.len()).unwrap().to_le_bytes());
        shape.iter().for_each(|size| out.extend(size.to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out
}

pub(crate) fn gguf_with_words(words: u64) -> Vec<u8> {
    gguf_of(&[("output.weight".to_owned(), vec![32, 1], 8, 0)], words).into_iter().chain([0; 34]).collect()
}

/// A header of `count` tensors of Q4_K that fill about `len` bytes, and the words of a tokenizer.
pub(crate) fn gguf(count: u64, len: u64) -> Vec<u8> {
    let rows = len / count / (16 * 144);
    let each = rows * 16 * 144;
    let tensors: Vec<_> =
        (0..count).map(|at| (format!("blk.{at}.ffn_down.weight"), vec![4096, rows], 12, at * each)).collect();
    gguf_of(&tensors, 2000)
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// A field of bytes.
fn bytes(number: u64, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint(&mut out, number << 3 | 2);
    varint(&mut out, content.len() as u64);
    out.extend(content);
    out
}

fn number(field: u64, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(&mut out, field << 3);
    varint(&mut out, value);
    out
}

fn weight(name: &str, shape: &[u64]) -> Vec<u8> {
    let count: u64 = shape.iter().product();
    let mut out: Vec<u8> = shape.iter().flat_map(|size| number(1, *size)).collect();
    out.extend([number(2, 1), bytes(8, name.as_bytes()), bytes(9, &vec![0; count as usize * 4])].concat());
    bytes(5, &out)
}

fn node(operator: &str, inputs: &[&str], output: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut out: Vec<u8> = inputs.iter().flat_map(|name| bytes(1, name.as_bytes())).collect();
    out.extend([bytes(2, output.as_bytes()), bytes(4, operator.as_bytes())].concat());
    attributes.iter().for_each(|attribute| out.extend(bytes(5, attribute)));
    bytes(1, &out)
}

fn ints(name: &str, values: &[u64]) -> Vec<u8> {
    let packed: Vec<u8> = values.iter().flat_map(|value| number(8, *value)).collect();
    [bytes(1, name.as_bytes()), packed].concat()
}

fn tensor_value(name: &str, sizes: &[Option<u64>]) -> Vec<u8> {
    let dims: Vec<u8> = sizes
        .iter()
        .flat_map(|size| bytes(1, &size.map_or_else(|| bytes(2, b"batch"), |size| number(1, size))))
        .collect();
    let kind = bytes(1, &[number(1, 1), bytes(2, &dims)].concat());
    [bytes(1, name.as_bytes()), bytes(2, &kind)].concat()
}

/// Convolution, batch norm, ReLU, global pool, reshape by a small weight, Gemm.
pub(crate) fn onnx() -> Vec<u8> {
    let shape: Vec<u8> = [0i64, -1].iter().flat_map(|size| size.to_le_bytes()).collect();
    let shape = bytes(5, &[number(1, 2), number(2, 7), bytes(8, b"shape"), bytes(9, &shape)].concat());
    let graph = [
        node("Conv", &["x", "w", "b"], "c", &[ints("strides", &[2, 2]), ints("pads", &[1, 1, 1, 1])]),
        node("BatchNormalization", &["c", "scale", "shift", "mean", "var"], "n", &[]),
        node("Relu", &["n"], "r", &[]),
        node("GlobalAveragePool", &["r"], "p", &[]),
        node("Reshape", &["p", "shape"], "f", &[]),
        node("Gemm", &["f", "fc.w", "fc.b"], "y", &[[bytes(1, b"transB"), number(3, 1)].concat()]),
        bytes(2, b"tiny"),
        weight("w", &[8, 3, 3, 3]),
        weight("b", &[8]),
        weight("scale", &[8]),
        weight("shift", &[8]),
        weight("mean", &[8]),
        weight("var", &[8]),
        weight("fc.w", &[10, 8]),
        weight("fc.b", &[10]),
        shape,
        bytes(11, &tensor_value("x", &[None, Some(3), Some(16), Some(16)])),
        bytes(12, &tensor_value("y", &[None, Some(10)])),
    ]
    .concat();
    [number(1, 8), bytes(2, b"by hand"), bytes(7, &graph)].concat()
}
