//! Transformers as graphs.

use super::Family;
use super::fields::Fields;
use crate::error::Result;
use crate::graph::{Axis, Graph, GraphBuilder, ModuleId, ValueId};
use crate::layer::{Activation, Attention, Layer, Norm, NormKind, Target};

/// The network that the fields describe.
pub(super) fn graph(family: Family, fields: &Fields<'_>) -> Result<Graph> {
    match family {
        Family::T5 => t5(fields),
        Family::Bert => bert(fields),
        _ => decoder(family, fields),
    }
}

/// How a family's norms are: kind, and what they learn.
fn norm(family: Family, width: usize) -> Layer {
    match family {
        Family::StarCoder2 | Family::StableLm | Family::Bert => Layer::layer_norm(width),
        Family::Olmo => Layer::Norm(Norm { kind: NormKind::Layer, width, scale: false, shift: false }),
        _ => Layer::rms_norm(width),
    }
}

fn activation(fields: &Fields<'_>, otherwise: Activation) -> Activation {
    let text = fields.text("hidden_activation").or_else(|| fields.text("hidden_act"));
    match text {
        Some(text) if text.starts_with("gelu") => Activation::Gelu,
        Some("silu" | "swish") => Activation::Silu,
        Some("relu") => Activation::Relu,
        _ => otherwise,
    }
}

/// The sizes of a decoder's blocks.
struct Sizes {
    family: Family,
    hidden: usize,
    inner: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    turned: usize,
    window: Option<usize>,
    /// Of how many layers one sees everything, where the others see a window; zero: all see the window.
    pattern: usize,
    function: Activation,
    qkv_bias: bool,
    out_bias: bool,
    mlp_bias: bool,
}

impl Sizes {
    fn of(family: Family, fields: &Fields<'_>) -> Result<Self> {
        let (hidden, heads) = (fields.size("hidden_size")?, fields.size("num_attention_heads")?);
        let own = matches!(
            family,
            Family::Mistral | Family::Qwen3 | Family::Gemma | Family::Gemma2 | Family::Gemma3 | Family::Llama
        );
        let head_dim = match (family, fields.optional("head_dim")?) {
            (_, Some(_)) if own => fields.size("head_dim")?,
            (Family::Qwen3, None) => 128,
            (Family::Gemma | Family::Gemma2 | Family::Gemma3, None) => 256,
            _ => fields.quotient("hidden_size", hidden, "num_attention_heads", heads)?,
        };
        let otherwise = if family == Family::Mistral { 8 } else { heads };
        let kv_heads = fields.size_or("num_key_value_heads", otherwise)?;
        fields.quotient("num_attention_heads", heads, "num_key_value_heads", kv_heads)?;
        let share = if family == Family::StableLm { 0.25 } else { 1.0 };
        let share = fields.fraction("partial_rotary_factor", share)?;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a bounded size"
        )]
        let turned = (head_dim as f64 * share) as usize / 2 * 2;
        let bias = fields.flag("attention_bias", false);
        let (qkv_bias, out_bias, mlp_bias) = match family {
            Family::Qwen2 => (true, false, false),
            Family::StableLm => (fields.flag("use_qkv_bias", false), false, false),
            Family::StarCoder2 => [fields.flag("use_bias", true); 3].into(),
            Family::Phi3 => (false, false, false),
            _ => (bias, bias, fields.flag("mlp_bias", false)),
        };
        let (window, pattern) = window(family, fields)?;
        let function = match family {
            Family::Gemma | Family::Gemma2 | Family::Gemma3 | Family::StarCoder2 => Activation::Gelu,
            _ => Activation::Silu,
        };
        let (inner, function) = (fields.size("intermediate_size")?, activation(fields, function));
        Ok(Self {
            family,
            hidden,
            inner,
            heads,
            kv_heads,
            head_dim,
            turned,
            window,
            pattern,
            function,
            qkv_bias,
            out_bias,
            mlp_bias,
        })
    }

    fn attention(&self, layer: usize) -> Attention {
        let sees_all = self.pattern > 0 && (layer + 1).is_multiple_of(self.pattern);
        Attention {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            causal: true,
            window: self.window.filter(|_| !sees_all),
            cached: true,
            scores: true,
        }
    }
}

/// How far layers see, and of how many one sees everything.
fn window(family: Family, fields: &Fields<'_>) -> Result<(Option<usize>, usize)> {
    let given = fields.optional("sliding_window")?;
    Ok(match family {
        Family::Gemma2 => (given.or(Some(4096)), 2),
        Family::Gemma3 => (given.or(Some(4096)), fields.size_or("sliding_window_pattern", 6)?),
        Family::Qwen2 | Family::Qwen3 => (given.filter(|_| fields.flag("use_sliding_window", false)), 0),
        Family::Mistral if !fields.map.contains_key("sliding_window") => (Some(4096), 0),
        Family::Mistral | Family::Phi3 | Family::StarCoder2 => (given, 0),
        _ => (None, 0),
    })
}

const IDS: [Axis; 2] = [Axis::Batch, Axis::Seq];

fn decoder(family: Family, fields: &Fields<'_>) -> Result<Graph> {
    let sizes = Sizes::of(family, fields)?;
    let (layers, vocab) = (fields.layers("num_hidden_layers")?, fields.vocab()?);
    let mut b = GraphBuilder::new(family.model_type());
    let ids = b.ids("input_ids", IDS);
    let table = b.module("model.embed_tokens", Layer::Embedding { count: vocab, width: sizes.hidden })?;
    let mut x = b.apply(table, &[ids])?;
    for layer in 0..layers {
        x = b.scope(&format!("model.layers.{layer}"), |b| block(b, &sizes, layer, x))?;
    }
    let x = b.layer("model.norm", norm(family, sizes.hidden), &[x])?;
    let always = matches!(family, Family::Gemma | Family::Gemma2 | Family::Gemma3 | Family::StarCoder2);
    let tied = fields.flag("tie_word_embeddings", always);
    let y = head(&mut b, tied.then_some(table), "lm_head", sizes.hidden, vocab, x)?;
    b.finish([y])
}

fn head(
    b: &mut GraphBuilder,
    tied: Option<ModuleId>,
    name: &str,
    width: usize,
    vocab: usize,
    x: ValueId,
) -> Result<ValueId> {
    let layer = Layer::Linear { inputs: width, outputs: vocab, bias: false };
    let module = match tied {
        Some(table) => b.module_sharing(name, layer, table)?,
        None => b.module(name, layer)?,
    };
    b.apply(module, &[x])
}

fn linear(b: &mut GraphBuilder, name: &str, x: ValueId, outputs: usize, bias: bool) -> Result<ValueId> {
    let inputs = b.trial_shape(x).last().copied().unwrap_or_default();
    b.layer(name, Layer::Linear { inputs, outputs, bias }, &[x])
}

fn block(b: &mut GraphBuilder, sizes: &Sizes, layer: usize, x: ValueId) -> Result<ValueId> {
    let (family, own) = (sizes.family, norm(sizes.family, sizes.hidden));
    let after_only = family == Family::Olmo2;
    let four = matches!(family, Family::Gemma2 | Family::Gemma3);
    let h = if after_only { x } else { b.layer("input_layernorm", own.clone(), &[x])? };
    let mut h = b.scope("self_attn", |b| attend(b, sizes, layer, h))?;
    if four || after_only {
        h = b.layer("post_attention_layernorm", own.clone(), &[h])?;
    }
    let x = b.layer("residual_1", Layer::Add, &[x, h])?;
    let h = match (four, after_only) {
        (true, _) => b.layer("pre_feedforward_layernorm", own.clone(), &[x])?,
        (_, true) => x,
        _ => b.layer("post_attention_layernorm", own.clone(), &[x])?,
    };
    let mut h = b.scope("mlp", |b| feed_forward(b, sizes, h))?;
    if four || after_only {
        h = b.layer("post_feedforward_layernorm", own, &[h])?;
    }
    b.layer("residual_2", Layer::Add, &[x, h])
}

fn attend(b: &mut GraphBuilder, sizes: &Sizes, layer: usize, x: ValueId) -> Result<ValueId> {
    let (queries, keys) = (sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim);
    let [mut q, mut k, v] = if sizes.family == Family::Phi3 {
        let all = linear(b, "qkv_proj", x, queries + 2 * keys, false)?;
        let mut part = |name, start, len| b.layer(name, Layer::Narrow { axis: 2, start, len }, &[all]);
        [part("q", 0, queries)?, part("k", queries, keys)?, part("v", queries + keys, keys)?]
    } else {
        let bias = sizes.qkv_bias;
        [
            linear(b, "q_proj", x, queries, bias)?,
            linear(b, "k_proj", x, keys, bias)?,
            linear(b, "v_proj", x, keys, bias)?,
        ]
    };
    match sizes.family {
        Family::Qwen3 | Family::Gemma3 => {
            q = head_norm(b, "q_norm", q, sizes.heads, sizes.head_dim)?;
            k = head_norm(b, "k_norm", k, sizes.kv_heads, sizes.head_dim)?;
        }
        Family::Olmo2 => {
            q = b.layer("q_norm", Layer::rms_norm(queries), &[q])?;
            k = b.layer("k_norm", Layer::rms_norm(keys), &[k])?;
        }
        _ => {}
    }
    let rotary = Layer::Rotary { head_dim: sizes.head_dim, turned: sizes.turned };
    let q = b.layer("rotary_q", rotary.clone(), &[q])?;
    let k = b.layer("rotary_k", rotary, &[k])?;
    let a = b.layer("attention", Layer::Attention(sizes.attention(layer)), &[q, k, v])?;
    linear(b, "o_proj", a, sizes.hidden, sizes.out_bias)
}

/// Each head normalised for itself.
fn head_norm(b: &mut GraphBuilder, name: &str, x: ValueId, heads: usize, head_dim: usize) -> Result<ValueId> {
    let apart = vec![Target::Same(0), Target::Same(1), Target::Fixed(heads), Target::Fixed(head_dim)];
    let h = b.layer(&format!("{name}.heads"), Layer::Reshape(apart), &[x])?;
    let h = b.layer(name, Layer::rms_norm(head_dim), &[h])?;
    let together = vec![Target::Same(0), Target::Same(1), Target::Rest];
    b.layer(&format!("{name}.joined"), Layer::Reshape(together), &[h])
}

fn feed_forward(b: &mut GraphBuilder, sizes: &Sizes, x: ValueId) -> Result<ValueId> {
    let (inner, bias) = (sizes.inner, sizes.mlp_bias);
    if sizes.family == Family::StarCoder2 {
        let h = linear(b, "c_fc", x, inner, bias)?;
        let h = b.layer("act", Layer::activation(sizes.function), &[h])?;
        return linear(b, "c_proj", h, sizes.hidden, bias);
    }
    let [gate, up] = if sizes.family == Family::Phi3 {
        let all = linear(b, "gate_up_proj", x, 2 * inner, bias)?;
        let mut part = |name, start| b.layer(name, Layer::Narrow { axis: 2, start, len: inner }, &[all]);
        [part("gate", 0)?, part("up", inner)?]
    } else {
        [linear(b, "gate_proj", x, inner, bias)?, linear(b, "up_proj", x, inner, bias)?]
    };
    let gate = b.layer("act", Layer::activation(sizes.function), &[gate])?;
    let h = b.layer("product", Layer::Multiply, &[gate, up])?;
    linear(b, "down_proj", h, sizes.hidden, bias)
}

fn bert(fields: &Fields<'_>) -> Result<Graph> {
    let (hidden, heads) = (fields.size("hidden_size")?, fields.size("num_attention_heads")?);
    let head_dim = fields.quotient("hidden_size", hidden, "num_attention_heads", heads)?;
    let (inner, vocab) = (fields.size("intermediate_size")?, fields.vocab()?);
    let layers = fields.layers("num_hidden_layers")?;
    let positions = fields.size_or("max_position_embeddings", 512)?;
    let kinds = fields.size_or("type_vocab_size", 2)?;
    let function = activation(fields, Activation::Gelu);
    let mut b = GraphBuilder::new("bert");
    let (ids, kind) = (b.ids("input_ids", IDS), b.ids("token_type_ids", IDS));
    let mut x = b.scope("embeddings", |b| {
        let words = b.layer("word_embeddings", Layer::Embedding { count: vocab, width: hidden }, &[ids])?;
        let kinds =
            b.layer("token_type_embeddings", Layer::Embedding { count: kinds, width: hidden }, &[kind])?;
        let sum = b.layer("sum", Layer::Add, &[words, kinds])?;
        let x =
            b.layer("position_embeddings", Layer::Position { count: positions, width: hidden }, &[sum])?;
        b.layer("LayerNorm", Layer::layer_norm(hidden), &[x])
    })?;
    let attention = Attention {
        heads,
        kv_heads: heads,
        head_dim,
        causal: false,
        window: None,
        cached: false,
        scores: true,
    };
    for layer in 0..layers {
        x = b.scope(&format!("encoder.layer.{layer}"), |b| {
            let q = linear(b, "attention.self.query", x, hidden, true)?;
            let k = linear(b, "attention.self.key", x, hidden, true)?;
            let v = linear(b, "attention.self.value", x, hidden, true)?;
            let a = b.layer("attention.self", Layer::Attention(attention), &[q, k, v])?;
            let a = linear(b, "attention.output.dense", a, hidden, true)?;
            let sum = b.layer("residual_1", Layer::Add, &[x, a])?;
            let x = b.layer("attention.output.LayerNorm", Layer::layer_norm(hidden), &[sum])?;
            let h = linear(b, "intermediate.dense", x, inner, true)?;
            let h = b.layer("act", Layer::activation(function), &[h])?;
            let h = linear(b, "output.dense", h, hidden, true)?;
            let sum = b.layer("residual_2", Layer::Add, &[x, h])?;
            b.layer("output.LayerNorm", Layer::layer_norm(hidden), &[sum])
        })?;
    }
    let first = b.layer("pooler.first", Layer::Narrow { axis: 1, start: 0, len: 1 }, &[x])?;
    let pooled = linear(&mut b, "pooler.dense", first, hidden, true)?;
    let pooled = b.layer("pooler.act", Layer::activation(Activation::Tanh), &[pooled])?;
    b.finish([x, pooled])
}

/// What both stacks of a T5 share.
struct T5 {
    width: usize,
    inner: usize,
    attention: Attention,
    gated: bool,
    function: Activation,
    buckets: usize,
}

fn t5(fields: &Fields<'_>) -> Result<Graph> {
    let (heads, head_dim) = (fields.size("num_heads")?, fields.size("d_kv")?);
    let projection = fields.text("feed_forward_proj").unwrap_or("relu");
    let function = if projection.contains("gelu") { Activation::Gelu } else { Activation::Relu };
    let t5 = T5 {
        width: fields.size("d_model")?,
        inner: fields.size("d_ff")?,
        attention: Attention {
            heads,
            kv_heads: heads,
            head_dim,
            causal: false,
            window: None,
            cached: false,
            scores: true,
        },
        gated: projection.starts_with("gated"),
        function,
        buckets: fields.size_or("relative_attention_num_buckets", 32)?,
    };
    let layers = fields.layers("num_layers")?;
    let decoders = fields.layers_or("num_decoder_layers", layers)?;
    let vocab = fields.vocab()?;
    let mut b = GraphBuilder::new("t5");
    let (ids, decoded) = (b.ids("input_ids", IDS), b.ids("decoder_input_ids", IDS));
    let table = b.module("shared", Layer::Embedding { count: vocab, width: t5.width })?;
    let mut x = b.apply(table, &[ids])?;
    for layer in 0..layers {
        x = b.scope(&format!("encoder.block.{layer}"), |b| t5.block(b, x, None, layer == 0))?;
    }
    let memory = b.layer("encoder.final_layer_norm", Layer::rms_norm(t5.width), &[x])?;
    let mut y = b.apply(table, &[decoded])?;
    for layer in 0..decoders {
        y = b.scope(&format!("decoder.block.{layer}"), |b| t5.block(b, y, Some(memory), layer == 0))?;
    }
    let y = b.layer("decoder.final_layer_norm", Layer::rms_norm(t5.width), &[y])?;
    let tied = fields.flag("tie_word_embeddings", true).then_some(table);
    let y = head(&mut b, tied, "lm_head", t5.width, vocab, y)?;
    b.finish([y])
}

impl T5 {
    fn block(
        &self,
        b: &mut GraphBuilder,
        x: ValueId,
        memory: Option<ValueId>,
        first: bool,
    ) -> Result<ValueId> {
        if first {
            let shape = [self.buckets, self.attention.heads];
            b.parameter("layer.0.SelfAttention.relative_attention_bias.weight", shape, None)?;
        }
        let decoding = memory.is_some();
        let own = Attention { causal: decoding, cached: decoding, ..self.attention };
        let mut x = b.scope("layer.0", |b| self.attend(b, "SelfAttention", x, None, own))?;
        if let Some(memory) = memory {
            x = b.scope("layer.1", |b| self.attend(b, "EncDecAttention", x, Some(memory), self.attention))?;
        }
        let last = if decoding { "layer.2" } else { "layer.1" };
        b.scope(last, |b| {
            let h = b.layer("layer_norm", Layer::rms_norm(self.width), &[x])?;
            let act = |b: &mut GraphBuilder, h| b.layer("act", Layer::activation(self.function), &[h]);
            let h = if self.gated {
                let gate = linear(b, "DenseReluDense.wi_0", h, self.inner, false)?;
                let gate = act(b, gate)?;
                let up = linear(b, "DenseReluDense.wi_1", h, self.inner, false)?;
                b.layer("product", Layer::Multiply, &[gate, up])?
            } else {
                let h = linear(b, "DenseReluDense.wi", h, self.inner, false)?;
                act(b, h)?
            };
            let h = linear(b, "DenseReluDense.wo", h, self.width, false)?;
            b.layer("residual", Layer::Add, &[x, h])
        })
    }

    fn attend(
        &self,
        b: &mut GraphBuilder,
        name: &str,
        x: ValueId,
        memory: Option<ValueId>,
        attention: Attention,
    ) -> Result<ValueId> {
        let h = b.layer("layer_norm", Layer::rms_norm(self.width), &[x])?;
        let wide = attention.heads * attention.head_dim;
        let seen = memory.unwrap_or(h);
        let q = linear(b, &format!("{name}.q"), h, wide, false)?;
        let k = linear(b, &format!("{name}.k"), seen, wide, false)?;
        let v = linear(b, &format!("{name}.v"), seen, wide, false)?;
        let a = b.layer(name, Layer::Attention(attention), &[q, k, v])?;
        let a = linear(b, &format!("{name}.o"), a, self.width, false)?;
        b.layer("residual", Layer::Add, &[x, a])
    }
}
