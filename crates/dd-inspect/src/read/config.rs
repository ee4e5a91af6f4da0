//! `config.json` of the transformer families of Hugging Face, as networks.
//!
//! Sources: `configuration_*.py` and `modeling_*.py` of <https://github.com/huggingface/transformers>. Sizes are bounded
//! before anything is made of them.

mod build;
mod fields;

use std::path::Path;

use dd_core::{Bytes, DType};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::graph::Graph;
use fields::Fields;

/// The largest `config.json` that is read.
const MAX_CONFIG: u64 = 4 << 20;

/// A family of transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// `LlamaForCausalLM`.
    Llama,
    /// `MistralForCausalLM`.
    Mistral,
    /// `Qwen2ForCausalLM`.
    Qwen2,
    /// `Qwen3ForCausalLM`.
    Qwen3,
    /// `Phi3ForCausalLM`.
    Phi3,
    /// `GemmaForCausalLM`.
    Gemma,
    /// `Gemma2ForCausalLM`.
    Gemma2,
    /// `Gemma3ForCausalLM`, the text model.
    Gemma3,
    /// `Starcoder2ForCausalLM`.
    StarCoder2,
    /// `StableLmForCausalLM`.
    StableLm,
    /// `OlmoForCausalLM`.
    Olmo,
    /// `Olmo2ForCausalLM`.
    Olmo2,
    /// `T5ForConditionalGeneration`.
    T5,
    /// `BertModel`.
    Bert,
}

/// Each family with the names under which a config asks for it.
const NAMES: [(Family, &str, &str); 14] = [
    (Family::Llama, "llama", "LlamaForCausalLM"),
    (Family::Mistral, "mistral", "MistralForCausalLM"),
    (Family::Qwen2, "qwen2", "Qwen2ForCausalLM"),
    (Family::Qwen3, "qwen3", "Qwen3ForCausalLM"),
    (Family::Phi3, "phi3", "Phi3ForCausalLM"),
    (Family::Gemma, "gemma", "GemmaForCausalLM"),
    (Family::Gemma2, "gemma2", "Gemma2ForCausalLM"),
    (Family::Gemma3, "gemma3_text", "Gemma3ForCausalLM"),
    (Family::StarCoder2, "starcoder2", "Starcoder2ForCausalLM"),
    (Family::StableLm, "stablelm", "StableLmForCausalLM"),
    (Family::Olmo, "olmo", "OlmoForCausalLM"),
    (Family::Olmo2, "olmo2", "Olmo2ForCausalLM"),
    (Family::T5, "t5", "T5ForConditionalGeneration"),
    (Family::Bert, "bert", "BertModel"),
];

impl Family {
    /// What `model_type` says.
    #[must_use]
    pub fn model_type(self) -> &'static str {
        NAMES.iter().find(|(family, _, _)| *family == self).map_or("", |(_, name, _)| name)
    }

    fn of(fields: &Map<String, Value>) -> Option<Self> {
        let names = fields.get("architectures").and_then(Value::as_array);
        let known = |text: &str| {
            let text = if text == "StableLMEpochForCausalLM" { "StableLmForCausalLM" } else { text };
            NAMES.iter().find(|(_, _, architecture)| *architecture == text).map(|(family, _, _)| *family)
        };
        let by_name = names.into_iter().flatten().filter_map(Value::as_str).find_map(known);
        let kind = fields.get("model_type").and_then(Value::as_str);
        by_name
            .or_else(|| NAMES.iter().find(|(_, name, _)| Some(*name) == kind).map(|(family, _, _)| *family))
    }
}

/// A model as its `config.json` describes it.
#[derive(Clone, Debug)]
pub struct ConfigModel {
    /// Its family.
    pub family: Family,
    /// The type that its weights are stored in, where the file says.
    pub dtype: Option<DType>,
    /// The network: inputs `[batch, seq]` of ids.
    pub graph: Graph,
}

/// The model of a `config.json`, or of a folder with one.
///
/// # Errors
/// [`Error::Io`]; [`Error::HeaderTooLarge`]; as [`parse`].
pub fn read(path: &Path) -> Result<ConfigModel> {
    let path = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    let failed = |source| Error::Io { operation: "read", path: path.clone(), source };
    let len = std::fs::metadata(&path).map_err(failed)?.len();
    if len > MAX_CONFIG {
        return Err(Error::HeaderTooLarge { path, needed: Bytes(len), allowed: Bytes(MAX_CONFIG) });
    }
    parse(&std::fs::read_to_string(&path).map_err(failed)?, &path.display().to_string())
}

/// The model of the text of a `config.json`; `place` names it in messages.
///
/// # Errors
/// [`Error::Config`] where it is none, of an unknown family, or where a field is missing or cannot be.
pub fn parse(text: &str, place: &str) -> Result<ConfigModel> {
    let wrong = |problem: String| Error::Config { place: place.to_owned(), problem };
    let map: Map<String, Value> = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let family = Family::of(&map).ok_or_else(|| {
        let show = |name: &str| map.get(name).map_or_else(|| "missing".to_owned(), Value::to_string);
        let known = NAMES.map(|(_, name, _)| name).join(", ");
        wrong(format!(
            "model_type is {}, architectures {}; known are {known}",
            show("model_type"),
            show("architectures")
        ))
    })?;
    let fields = Fields { map: &map, place };
    let named = map.get("dtype").or_else(|| map.get("torch_dtype")).and_then(Value::as_str);
    let dtype = named.and_then(|name| name.parse().ok());
    Ok(ConfigModel { family, dtype, graph: build::graph(family, &fields)? })
}
