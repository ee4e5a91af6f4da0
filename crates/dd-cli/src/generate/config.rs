//! [`ModelConfig`]: a `config.json`, its omissions filled in, its sizes checked before anything believes them.
//!
//! The library's own structs read the fields (`serde`), but they panic, divide by zero or allocate without bound where
//! a size is hostile; and published files leave out what transformers has defaults for. So each size is checked here
//! first, by name, and each omission is filled in with transformers' default.

mod defaults;
mod sizes;

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

pub use sizes::Sizes;

use super::family::Family;
use crate::error::{CliError, Result};

/// What a `config.json` says, checked.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// Which model code it asks for.
    pub family: Family,
    /// What bounds its memory.
    pub sizes: Sizes,
    fields: Map<String, Value>,
    place: String,
}

impl ModelConfig {
    /// Reads `config.json` in a folder.
    ///
    /// # Errors
    /// [`CliError::Io`] where it cannot be read; as [`parse`](Self::parse).
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| CliError::io("read", &path, e))?;
        Self::parse(&text, &path.display().to_string())
    }

    /// The config in `text`; `place` names it in messages.
    ///
    /// # Errors
    /// [`CliError::Input`] where it is no config, asks for an unknown family, or where a field is missing or cannot
    /// be; the message names the field.
    pub fn parse(text: &str, place: &str) -> Result<Self> {
        let mut fields: Map<String, Value> = serde_json::from_str(text).map_err(|e| {
            CliError::input(place, e, "fetch config.json again: it is not the JSON of a model")
        })?;
        let family = family_of(&fields).ok_or_else(|| unknown_family(&fields, place))?;
        defaults::fill(family, &mut fields);
        let sizes = Sizes::of(family, &fields, place)?;
        Ok(Self { family, sizes, fields, place: place.to_owned() })
    }

    /// The library's own struct, read from the fields, for a model of at most so many positions: tables that the model
    /// makes for itself are no longer than they need be. `positions` of `None` is what the file says.
    ///
    /// # Errors
    /// [`CliError::Input`] with the field that is missing or of the wrong type.
    pub fn library<T: DeserializeOwned>(&self, positions: Option<usize>) -> Result<T> {
        let mut fields = self.fields.clone();
        if let Some(positions) = positions {
            for name in ["max_position_embeddings", "sliding_window"] {
                if let Some(most) = fields.get(name).and_then(Value::as_u64) {
                    let capped = most.min(self.positions_for(positions) as u64);
                    fields.insert(name.to_owned(), Value::from(capped));
                }
            }
        }
        serde_json::from_value(Value::Object(fields)).map_err(|e| {
            CliError::input(&self.place, e, format!("take config.json of a {} model", self.family))
        })
    }

    /// The table length for a run of `positions`: rounded up, never more than the file says, never less than the
    /// library needs.
    #[must_use]
    pub fn positions_for(&self, positions: usize) -> usize {
        // The library's llama compares the number of heads with the number of positions.
        let enough = positions.max(self.sizes.heads).max(self.sizes.least_positions).next_multiple_of(64);
        enough.min(self.sizes.positions)
    }

    /// Ids that end a text, as this file says.
    #[must_use]
    pub fn eos(&self) -> Vec<u32> {
        eos_of(self.fields.get("eos_token_id"))
    }

    /// The id a decoder starts with, where the family has one.
    #[must_use]
    pub fn decoder_start(&self) -> Option<u32> {
        let start = self.fields.get("decoder_start_token_id").or_else(|| self.fields.get("pad_token_id"))?;
        u32::try_from(start.as_u64()?).ok()
    }

    /// Of how many layers one sees all positions, where the others see a window; else one.
    #[must_use]
    pub fn pattern(&self) -> usize {
        let pattern = self.fields.get("sliding_window_pattern").and_then(Value::as_u64);
        pattern.and_then(|pattern| usize::try_from(pattern).ok()).unwrap_or(1).max(1)
    }

    /// What names this file in messages.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }
}

/// One id or a list of them.
#[must_use]
pub fn eos_of(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
    match value {
        Some(Value::Array(all)) => all.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}

fn family_of(fields: &Map<String, Value>) -> Option<Family> {
    let architectures: Vec<&str> = fields
        .get("architectures")
        .and_then(Value::as_array)
        .map(|names| names.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    Family::of(&architectures, fields.get("model_type").and_then(Value::as_str))
}

fn unknown_family(fields: &Map<String, Value>, place: &str) -> CliError {
    let show = |name: &str| fields.get(name).map_or_else(|| "missing".to_owned(), Value::to_string);
    CliError::input(
        place,
        format!("architectures is {}, model_type is {}", show("architectures"), show("model_type")),
        format!("supported are {}", Family::names()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::tiny;

    #[test]
    fn every_field_may_be_missing_or_hostile_and_none_panics() {
        let bad =
            [Value::Null, Value::from(0), Value::from(-1), Value::from(7), Value::from(u64::MAX), "x".into()];
        for family in Family::ALL {
            let good = tiny::config(family, 64, 2);
            ModelConfig::parse(&good.to_string(), "c").unwrap();
            for name in good.as_object().unwrap().keys() {
                let mut without = good.clone();
                without.as_object_mut().unwrap().remove(name);
                check(&without);
                for value in &bad {
                    let mut with = good.clone();
                    with[name] = value.clone();
                    check(&with);
                }
            }
        }
    }

    /// A config that parses has a model, or an error that is typed.
    fn check(json: &Value) {
        if let Ok(config) = ModelConfig::parse(&json.to_string(), "c") {
            let _ = super::super::requirements::of(&config, &|_| false).map_err(|e| e.to_string());
        }
    }

    #[test]
    fn messages_name_the_field() {
        let rows = [
            (Family::Llama, "num_attention_heads", Value::from(0), "num_attention_heads is 0"),
            (Family::Llama, "num_attention_heads", Value::from(3), "hidden_size"),
            (Family::Qwen2, "num_key_value_heads", Value::from(3), "num_key_value_heads"),
            (Family::Gemma3, "sliding_window_pattern", Value::from(0), "sliding_window_pattern"),
            (Family::Mistral, "hidden_size", Value::Null, "hidden_size"),
            (Family::T5, "is_encoder_decoder", Value::from(false), "is_encoder_decoder"),
            (Family::T5, "relative_attention_num_buckets", Value::from(1), "relative_attention_num_buckets"),
            (Family::StableLm, "partial_rotary_factor", Value::from(9.5), "partial_rotary_factor"),
        ];
        for (family, name, value, expected) in rows {
            let mut json = tiny::config(family, 64, 2);
            json[name] = value;
            let message = ModelConfig::parse(&json.to_string(), "c").unwrap_err().to_string();
            assert!(message.contains(expected), "{family}: {message}");
        }
        let message = ModelConfig::parse(r#"{"model_type":"gpt2"}"#, "c").unwrap_err().to_string();
        assert!(message.contains("\"gpt2\"") && message.contains("starcoder2"), "{message}");
    }
}
