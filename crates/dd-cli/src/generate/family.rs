//! [`Family`]: which of the library's model codes a `config.json` asks for.

use std::fmt;

/// A model code of candle-transformers, with the names under which checkpoints ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// `LlamaForCausalLM`: Llama 1 to 3, TinyLlama, SmolLM, Yi and others in its format.
    Llama,
    /// `MistralForCausalLM`.
    Mistral,
    /// `Qwen2ForCausalLM`: Qwen 1.5, 2 and 2.5.
    Qwen2,
    /// `Qwen3ForCausalLM`.
    Qwen3,
    /// `Phi3ForCausalLM`: Phi-3, Phi-3.5 and Phi-4.
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
    /// `T5ForConditionalGeneration`: an encoder and a decoder.
    T5,
    /// `BertModel`: an encoder; it gives states, no text.
    Bert,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Phi3,
        Self::Gemma,
        Self::Gemma2,
        Self::Gemma3,
        Self::StarCoder2,
        Self::StableLm,
        Self::Olmo,
        Self::Olmo2,
        Self::T5,
        Self::Bert,
    ];

    /// What `model_type` says.
    #[must_use]
    pub const fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Phi3 => "phi3",
            Self::Gemma => "gemma",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3_text",
            Self::StarCoder2 => "starcoder2",
            Self::StableLm => "stablelm",
            Self::Olmo => "olmo",
            Self::Olmo2 => "olmo2",
            Self::T5 => "t5",
            Self::Bert => "bert",
        }
    }

    /// What `architectures` says.
    #[must_use]
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Phi3 => "Phi3ForCausalLM",
            Self::Gemma => "GemmaForCausalLM",
            Self::Gemma2 => "Gemma2ForCausalLM",
            Self::Gemma3 => "Gemma3ForCausalLM",
            Self::StarCoder2 => "Starcoder2ForCausalLM",
            Self::StableLm => "StableLmForCausalLM",
            Self::Olmo => "OlmoForCausalLM",
            Self::Olmo2 => "Olmo2ForCausalLM",
            Self::T5 => "T5ForConditionalGeneration",
            Self::Bert => "BertModel",
        }
    }

    /// The family that a config names, by `architectures` where one of them is known, else by `model_type`.
    #[must_use]
    pub fn of(architectures: &[&str], model_type: Option<&str>) -> Option<Self> {
        let named = |name: &str| Self::ALL.into_iter().find(|family| family.architecture() == name);
        let typed = |name: &str| Self::ALL.into_iter().find(|family| family.model_type() == name);
        let is_other = |name: &str| matches!(name, "StableLMEpochForCausalLM");
        architectures
            .iter()
            .find_map(|name| named(name).or_else(|| is_other(name).then_some(Self::StableLm)))
            .or_else(|| typed(model_type?))
    }

    /// Whether it writes text; an encoder alone does not.
    #[must_use]
    pub const fn generates(self) -> bool {
        !matches!(self, Self::Bert)
    }

    /// All names, for messages.
    #[must_use]
    pub fn names() -> String {
        Self::ALL.map(Self::model_type).join(", ")
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.model_type())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configs_find_their_family() {
        for family in Family::ALL {
            assert_eq!(Family::of(&[family.architecture()], None), Some(family));
            assert_eq!(Family::of(&["BertForSomethingElse"], Some(family.model_type())), Some(family));
        }
        assert_eq!(Family::of(&["Unknown", "LlamaForCausalLM"], Some("bert")), Some(Family::Llama));
        assert_eq!(Family::of(&["StableLMEpochForCausalLM"], Some("stablelm_epoch")), Some(Family::StableLm));
        assert_eq!(Family::of(&["GPT2LMHeadModel"], Some("gpt2")), None);
        assert_eq!(Family::of(&[], None), None);
    }
}
