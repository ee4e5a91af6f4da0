//! [`Config`]: what `config.json` says of a BERT-family model, checked.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{CliError, Result};

/// The nonlinearity between the two halves of a feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x·Φ(x), exactly.
    Gelu,
    /// x·Φ(x) by its tanh approximation.
    #[serde(alias = "gelu_pytorch_tanh", alias = "gelu_fast")]
    GeluNew,
    /// max(x, 0).
    Relu,
}

/// The sizes and constants of a BERT encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Must be "bert".
    pub model_type: String,
    /// Rows of the word embedding table.
    pub vocab_size: usize,
    /// Width of a token's state.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads per layer; divides the width.
    pub num_attention_heads: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// The feed-forward part's nonlinearity.
    pub hidden_act: Activation,
    /// The most tokens of one sentence.
    pub max_position_embeddings: usize,
    /// Rows of the token type table.
    #[serde(default = "two")]
    pub type_vocab_size: usize,
    /// Added to the variance in layer norms.
    #[serde(default = "epsilon")]
    pub layer_norm_eps: f64,
    /// Only "absolute" is supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position_embedding_type: Option<String>,
    /// Decoders are not supported.
    #[serde(default)]
    pub is_decoder: bool,
}

const fn two() -> usize {
    2
}

const fn epsilon() -> f64 {
    1e-12
}

impl Config {
    /// Reads and checks `config.json`.
    ///
    /// # Errors
    /// [`CliError::Io`] where it cannot be read; [`CliError::Input`] where it is not of the BERT family or its sizes
    /// contradict each other.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| CliError::io("read", path, e))?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Parses and checks the text of a `config.json`; `place` is for messages.
    ///
    /// # Errors
    /// [`CliError::Input`] as in [`read`](Self::read).
    pub fn parse(text: &str, place: &str) -> Result<Self> {
        check_family(text, place)?;
        let config: Self = serde_json::from_str(text).map_err(|e| {
            CliError::input(place, e, "give a BERT checkpoint with hidden_act gelu, gelu_new or relu")
        })?;
        config.check().map_err(|problem| {
            CliError::input(place, problem, "fetch config.json again, or export the model anew")
        })?;
        Ok(config)
    }

    /// Width of one attention head.
    #[must_use]
    pub fn head_size(&self) -> usize {
        self.hidden_size.checked_div(self.num_attention_heads).unwrap_or(0)
    }

    fn check(&self) -> Result<(), String> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        ];
        const MOST: usize = 1 << 28;
        if let Some((name, size)) = sizes.iter().find(|(_, size)| *size == 0 || *size > MOST) {
            return Err(format!("{name} is {size}; expected 1 to {MOST}"));
        }
        if self.num_hidden_layers > 4096 {
            return Err(format!("num_hidden_layers is {}; expected at most 4096", self.num_hidden_layers));
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let (width, heads) = (self.hidden_size, self.num_attention_heads);
            return Err(format!("hidden_size {width} is no multiple of num_attention_heads {heads}"));
        }
        if !(self.layer_norm_eps.is_finite() && self.layer_norm_eps >= 0.0) {
            return Err(format!("layer_norm_eps is {}; expected a small number", self.layer_norm_eps));
        }
        if self.position_embedding_type.as_deref().is_some_and(|kind| kind != "absolute") {
            return Err("position_embedding_type is not \"absolute\", the one that is supported".to_owned());
        }
        if self.is_decoder {
            return Err("is_decoder is true; only encoders are supported".to_owned());
        }
        Ok(())
    }
}

/// Says which families there are before complaining of fields that another family lacks.
fn check_family(text: &str, place: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Family {
        model_type: Option<String>,
    }
    let family: Family = serde_json::from_str(text)
        .map_err(|e| CliError::input(place, e, "fetch config.json again: it is not the JSON of a model"))?;
    match family.model_type.as_deref() {
        Some("bert") => Ok(()),
        other => Err(CliError::input(
            place,
            format!(
                "model_type is {}",
                other.map_or_else(|| "missing".to_owned(), |name| format!("{name:?}"))
            ),
            "supported is \"bert\" (BERT, MiniLM, BGE, E5, GTE and other encoders in its format)",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"model_type":"bert","vocab_size":10,"hidden_size":8,"num_hidden_layers":1,
        "num_attention_heads":2,"intermediate_size":16,"hidden_act":"gelu","max_position_embeddings":4}"#;

    #[test]
    fn reads_what_is_there_and_defaults_the_rest() {
        let config = Config::parse(GOOD, "config.json").unwrap();
        assert_eq!((config.head_size(), config.type_vocab_size), (4, 2));
        assert_eq!(config.hidden_act, Activation::Gelu);
    }

    #[test]
    fn refuses_with_the_reason() {
        let rows = [
            (GOOD.replace("\"bert\"", "\"gpt2\""), "supported is \"bert\""),
            (GOOD.replace("\"model_type\":\"bert\",", ""), "missing"),
            (GOOD.replace("\"num_attention_heads\":2", "\"num_attention_heads\":3"), "no multiple"),
            (GOOD.replace("\"vocab_size\":10", "\"vocab_size\":0"), "vocab_size is 0"),
            (GOOD.replace("\"gelu\"", "\"silu\""), "silu"),
            (GOOD.replace("\"hidden_size\":8,", ""), "hidden_size"),
            (GOOD.replace('}', ",\"is_decoder\":true}"), "only encoders"),
            (GOOD.replace('}', ",\"position_embedding_type\":\"relative_key\"}"), "absolute"),
            ("not json".to_owned(), "not the JSON"),
        ];
        for (text, expected) in rows {
            let message = Config::parse(&text, "config.json").unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
