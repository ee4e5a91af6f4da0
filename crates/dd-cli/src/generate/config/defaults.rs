//! What a published `config.json` leaves out: the defaults of transformers' configuration classes.
//!
//! Source: `configuration_*.py` of <https://github.com/huggingface/transformers>.

use serde_json::{Map, Value, json};

use crate::generate::family::Family;

/// Fills in omissions, and what the library wants said differently.
pub(super) fn fill(family: Family, fields: &mut Map<String, Value>) {
    lift_rope(fields);
    if let Value::Object(all) = defaults(family) {
        for (name, value) in all {
            fields.entry(name).or_insert(value);
        }
    }
    if let Value::Object(all) = never_null(family) {
        for (name, value) in all {
            if fields.get(&name).is_none_or(Value::is_null) {
                fields.insert(name, value);
            }
        }
    }
    settle(family, fields);
}

/// From version 5 on, transformers writes `rope_parameters` for `rope_theta` and `rope_scaling`.
fn lift_rope(fields: &mut Map<String, Value>) {
    let Some(Value::Object(rope)) = fields.get("rope_parameters").cloned() else { return };
    let kind = rope.get("rope_type").and_then(Value::as_str).unwrap_or("default").to_owned();
    if let Some(theta) = rope.get("rope_theta") {
        fields.entry("rope_theta").or_insert_with(|| theta.clone());
    }
    if kind != "default" {
        fields.entry("rope_scaling").or_insert(Value::Object(rope));
    }
}

/// Fields that may be left out.
fn defaults(family: Family) -> Value {
    match family {
        Family::Llama => json!({"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}),
        Family::Mistral => json!({"sliding_window": 4096, "head_dim": null}),
        Family::Gemma2 => json!({"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
            "sliding_window": 4096}),
        _ => json!({}),
    }
}

/// Fields that may be left out or null.
fn never_null(family: Family) -> Value {
    match family {
        Family::Llama => json!({"rope_theta": 1e4}),
        Family::Mistral => json!({"num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
            "max_position_embeddings": 131_072, "hidden_act": "silu"}),
        Family::Qwen2 => {
            json!({"max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28,
            "tie_word_embeddings": false, "rope_theta": 1e4, "rms_norm_eps": 1e-6, "use_sliding_window": false,
            "hidden_act": "silu"})
        }
        Family::Qwen3 => json!({"max_position_embeddings": 32768, "head_dim": 128, "attention_bias": false,
            "max_window_layers": 28, "tie_word_embeddings": false, "rope_theta": 1e4, "rms_norm_eps": 1e-6,
            "use_sliding_window": false, "hidden_act": "silu"}),
        Family::Phi3 => json!({"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
            "hidden_act": "silu"}),
        Family::Gemma => {
            json!({"attention_bias": false, "head_dim": 256, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
            "max_position_embeddings": 8192})
        }
        Family::Gemma2 => {
            json!({"attention_bias": false, "head_dim": 256, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
            "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
            "max_position_embeddings": 8192})
        }
        Family::Gemma3 => {
            json!({"attention_bias": false, "head_dim": 256, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
            "rope_local_base_freq": 1e4, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
            "sliding_window": 4096, "sliding_window_pattern": 6, "max_position_embeddings": 131_072})
        }
        Family::StarCoder2 => json!({"norm_epsilon": 1e-5, "rope_theta": 1e4, "use_bias": true,
            "hidden_act": "gelu_pytorch_tanh", "max_position_embeddings": 4096}),
        Family::StableLm => json!({"partial_rotary_factor": 0.25, "rope_theta": 1e4, "layer_norm_eps": 1e-5,
            "hidden_act": "silu", "max_position_embeddings": 4096}),
        Family::Olmo => json!({"attention_bias": false, "rope_theta": 1e4, "tie_word_embeddings": false,
            "hidden_act": "silu", "max_position_embeddings": 2048}),
        Family::Olmo2 => json!({"attention_bias": false, "rope_theta": 1e4, "tie_word_embeddings": false,
            "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 2048}),
        Family::T5 => json!({"dropout_rate": 0.1, "layer_norm_epsilon": 1e-6, "initializer_factor": 1.0,
            "is_encoder_decoder": true, "pad_token_id": 0, "eos_token_id": 1, "feed_forward_proj": "relu",
            "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}),
        Family::Bert => json!({"hidden_dropout_prob": 0.1, "initializer_range": 0.02, "pad_token_id": 0,
            "layer_norm_eps": 1e-12, "type_vocab_size": 2, "hidden_act": "gelu",
            "max_position_embeddings": 512}),
    }
}

/// What the library would take amiss.
fn settle(family: Family, fields: &mut Map<String, Value>) {
    match family {
        // Its mask looks at the window even where no window is to be used.
        Family::Qwen2 if fields.get("use_sliding_window") == Some(&Value::Bool(false)) => {
            if let Some(all) = fields.get("max_position_embeddings").cloned() {
                fields.insert("sliding_window".to_owned(), all);
            }
        }
        // It refuses a file that says both; transformers goes by the second.
        Family::Gemma => {
            let set = |name: &str| fields.get(name).is_some_and(|value| !value.is_null());
            match (set("hidden_act"), set("hidden_activation")) {
                (true, true) => drop(fields.remove("hidden_act")),
                (false, false) => {
                    fields.insert("hidden_activation".to_owned(), "gelu_pytorch_tanh".into());
                }
                _ => {}
            }
        }
        // Each step is given one token: without the cache it would see nothing else.
        Family::StableLm | Family::T5 => {
            fields.insert("use_cache".to_owned(), true.into());
        }
        _ => {}
    }
}
