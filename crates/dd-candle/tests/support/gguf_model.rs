//! Small Llama checkpoints in GGUF, made of random weights, and what a run over one gives.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;

pub(crate) const WIDTH: usize = 512;
pub(crate) const INNER: usize = 1024;
pub(crate) const WORDS: usize = 1024;
const HEADS: u32 = 8;

/// Uniform numbers in -1..1 from a counter.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn floats(&mut self, count: usize, scale: f32) -> Vec<f32> {
        #[allow(clippy::cast_precision_loss, reason = "random weights")]
        (0..count).map(|_| ((self.next() >> 40) as f32 / 8_388_608.0 - 1.0) * scale).collect()
    }
}

/// The tensors of a Llama of `layers` layers; `dtype` gives each matrix its type by its name.
fn tensors(layers: usize, dtype: impl Fn(&str) -> GgmlDType) -> Result<Vec<(String, QTensor)>> {
    let mut random = Random(7);
    let mut made = Vec::new();
    let mut matrix = |name: String, rows: usize, columns: usize| -> Result<()> {
        let values = random.floats(rows * columns, 0.06);
        let tensor = Tensor::from_vec(values, (rows, columns), &Device::Cpu)?;
        let tensor = QTensor::quantize(&tensor, dtype(&name))?;
        made.push((name, tensor));
        Ok(())
    };
    matrix("token_embd.weight".to_owned(), WORDS, WIDTH)?;
    for layer in 0..layers {
        let square = ["attn_q", "attn_k", "attn_v", "attn_output"];
        for name in square {
            matrix(format!("blk.{layer}.{name}.weight"), WIDTH, WIDTH)?;
        }
        matrix(format!("blk.{layer}.ffn_gate.weight"), INNER, WIDTH)?;
        matrix(format!("blk.{layer}.ffn_up.weight"), INNER, WIDTH)?;
        matrix(format!("blk.{layer}.ffn_down.weight"), WIDTH, INNER)?;
    }
    matrix("output.weight".to_owned(), WORDS, WIDTH)?;
    let norms =
        (0..layers).flat_map(|i| [format!("blk.{i}.attn_norm.weight"), format!("blk.{i}.ffn_norm.weight")]);
    for name in norms.chain(["output_norm.weight".to_owned()]) {
        let ones = Tensor::ones(WIDTH, candle_core::DType::F32, &Device::Cpu)?;
        made.push((name, QTensor::quantize(&ones, GgmlDType::F32)?));
    }
    Ok(made)
}

/// Writes such a Llama to `path` and says how many bytes of weights it has.
pub(crate) fn write_llama(path: &Path, layers: usize, dtype: impl Fn(&str) -> GgmlDType) -> Result<u64> {
    let tensors = tensors(layers, dtype)?;
    let number = |value: usize| Value::U32(u32::try_from(value).unwrap());
    let metadata = [
        ("general.architecture", Value::String("llama".to_owned())),
        ("llama.attention.head_count", Value::U32(HEADS)),
        ("llama.attention.head_count_kv", Value::U32(HEADS)),
        ("llama.block_count", number(layers)),
        ("llama.embedding_length", number(WIDTH)),
        ("llama.rope.dimension_count", number(WIDTH / 8)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        // What a real file has many of.
        (
            "tokenizer.ggml.tokens",
            Value::Array((0..99).map(|i| Value::String(format!("word {i}"))).collect()),
        ),
    ];
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(name, value)| (*name, value)).collect();
    let named: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut BufWriter::new(File::create(path)?), &metadata, &named)?;
    Ok(tensors.iter().map(|(_, tensor)| tensor.storage_size_in_bytes() as u64).sum())
}

/// The model as candle loads it.
pub(crate) fn plain(path: &Path) -> Result<ModelWeights> {
    let mut file = File::open(path)?;
    let content = gguf_file::Content::read(&mut file)?;
    ModelWeights::from_gguf(content, &mut file, &Device::Cpu)
}

/// The bits of the logits of a prompt of `prompt` words and of `steps` words after it, one at a time.
pub(crate) fn logits(model: &mut ModelWeights, prompt: usize, steps: usize, seed: u64) -> Result<Vec<u32>> {
    let mut random = Random(seed);
    let mut bits = Vec::new();
    let mut position = 0;
    for count in std::iter::once(prompt).chain(std::iter::repeat_n(1, steps)) {
        let words: Vec<u32> =
            (0..count).map(|_| u32::try_from(random.next() % WORDS as u64).unwrap()).collect();
        let input = Tensor::new(words.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
        let output = model.forward(&input, position)?.flatten_all()?.to_vec1::<f32>()?;
        bits.extend(output.iter().map(|value| value.to_bits()));
        position += count;
    }
    Ok(bits)
}
