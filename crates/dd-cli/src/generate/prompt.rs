//! [`Prompts`]: what the user wrote, as token ids; and back to text.
//!
//! The library's models have no mask for padding, so that a block is made of prompts of equal length in tokens
//! ([`blocks`]): no token is padded, and each text is what it would be alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use serde_json::Value;
use tokenizers::Tokenizer;

use super::chat::ChatTemplate;
use super::config::{ModelConfig, eos_of};
use crate::error::{CliError, Result};

/// Token ids as a user writes them: `1,2,3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenIds(pub Vec<u32>);

impl FromStr for TokenIds {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let id = |part: &str| part.trim().parse().map_err(|e| format!("{part:?} is no token id: {e}"));
        text.split(',').map(id).collect::<std::result::Result<_, _>>().map(Self)
    }
}

/// One prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// As the user wrote it, where it was text.
    pub text: Option<String>,
    /// What the model is given.
    pub tokens: Vec<u32>,
}

/// All prompts of a run, and what turns tokens into text.
pub struct Prompts {
    /// Those given as text, then those given as ids.
    pub all: Vec<Prompt>,
    /// Whether the model's chat template was put around those given as text.
    pub chat: bool,
    /// Ids that end a text.
    pub eos: Vec<u32>,
    /// The model's tokenizer, where there is one; it is needed for text, not for ids.
    pub tokenizer: Option<Tokenizer>,
}

impl Prompts {
    /// Reads the tokenizer in `folder` and turns prompts into tokens. `raw` leaves the chat template out.
    ///
    /// # Errors
    /// [`CliError::Io`] where there is text and no `tokenizer.json`; [`CliError::Input`] where a file is not what it
    /// should be, or a prompt has no token or one that the model does not know.
    pub fn read(
        folder: &Path,
        config: &ModelConfig,
        texts: &[String],
        ids: &[TokenIds],
        raw: bool,
    ) -> Result<Self> {
        let tokenizer = open(folder, !texts.is_empty())?;
        let template = if raw || texts.is_empty() { None } else { ChatTemplate::read(folder)? };
        let mut all = Vec::with_capacity(texts.len() + ids.len());
        for text in texts {
            let given =
                template.as_ref().map_or_else(|| Ok(text.clone()), |template| template.render(text))?;
            let tokens = encode(tokenizer.as_ref(), &given, template.is_none())?;
            all.push(Prompt { text: Some(text.clone()), tokens });
        }
        all.extend(ids.iter().map(|ids| Prompt { text: None, tokens: ids.0.clone() }));
        all.iter().try_for_each(|prompt| check(prompt, config))?;
        Ok(Self { all, chat: template.is_some(), eos: eos(folder, config), tokenizer })
    }

    /// The length of each, in tokens.
    #[must_use]
    pub fn lengths(&self) -> Vec<usize> {
        self.all.iter().map(|prompt| prompt.tokens.len()).collect()
    }

    /// The text of tokens, special ones left out; nothing where there is no tokenizer.
    ///
    /// # Errors
    /// [`CliError::Input`] where the tokenizer cannot say.
    pub fn decode(&self, tokens: &[u32]) -> Result<Option<String>> {
        let Some(tokenizer) = &self.tokenizer else { return Ok(None) };
        let text = tokenizer.decode(tokens, true);
        text.map(Some).map_err(|e| CliError::input("tokenizer.json", e, "fetch tokenizer.json again"))
    }
}

/// Groups prompts of equal length, by their numbers, each group in the order given.
#[must_use]
pub fn blocks(lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut by_length = BTreeMap::<usize, Vec<usize>>::new();
    for (number, length) in lengths.iter().enumerate() {
        by_length.entry(*length).or_default().push(number);
    }
    let mut all: Vec<Vec<usize>> = by_length.into_values().collect();
    all.sort_unstable();
    all
}

fn open(folder: &Path, needed: bool) -> Result<Option<Tokenizer>> {
    let path = folder.join("tokenizer.json");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(_) if !needed => return Ok(None),
        Err(error) => return Err(CliError::io("read", &path, error)),
    };
    let invalid = |problem: tokenizers::Error| {
        CliError::input(path.display(), problem, "fetch tokenizer.json again: it is not a tokenizer")
    };
    let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(invalid)?;
    tokenizer.with_padding(None).with_truncation(None).map_err(invalid)?;
    Ok(Some(tokenizer))
}

/// A template writes the special tokens itself.
fn encode(tokenizer: Option<&Tokenizer>, text: &str, special: bool) -> Result<Vec<u32>> {
    let Some(tokenizer) = tokenizer else { return Ok(Vec::new()) };
    let encoding = tokenizer.encode(text, special).map_err(|e| {
        CliError::input("--prompt", format!("{text:?} cannot be tokenised: {e}"), "give another prompt")
    })?;
    Ok(encoding.get_ids().to_vec())
}

fn check(prompt: &Prompt, config: &ModelConfig) -> Result<()> {
    let vocab = config.sizes.vocab;
    let place = prompt.text.as_ref().map_or("--prompt-tokens", |_| "--prompt");
    if prompt.tokens.is_empty() {
        return Err(CliError::input(
            place,
            format!("{:?} has no token", prompt.text),
            "give one with a word in it",
        ));
    }
    let known = |id: &&u32| usize::try_from(**id).is_ok_and(|id| id < vocab);
    match prompt.tokens.iter().find(|id| !known(id)) {
        None => Ok(()),
        Some(id) => Err(CliError::input(
            place,
            format!("it has token {id}, the model has {vocab} words"),
            "take tokenizer.json and config.json from the same model",
        )),
    }
}

/// What `config.json` and `generation_config.json` say together.
fn eos(folder: &Path, config: &ModelConfig) -> Vec<u32> {
    let text = std::fs::read_to_string(folder.join("generation_config.json")).unwrap_or_default();
    let generation: Value = serde_json::from_str(&text).unwrap_or_default();
    let mut all = config.eos();
    all.extend(eos_of(generation.get("eos_token_id")));
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{Family, tiny};

    fn prompts(ids: &[&[u32]]) -> Vec<TokenIds> {
        ids.iter().map(|ids| TokenIds(ids.to_vec())).collect()
    }

    #[test]
    fn ids_are_read_as_written() {
        assert_eq!("1, 2,3".parse(), Ok(TokenIds(vec![1, 2, 3])));
        for bad in ["", "1,,2", "1,-2", "a", "4294967296"] {
            assert!(bad.parse::<TokenIds>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn equal_lengths_make_a_block() {
        let folder = tempfile::tempdir().unwrap();
        let config = ModelConfig::parse(&tiny::config(Family::Llama, 64, 2).to_string(), "c").unwrap();
        let read = |ids: &[TokenIds]| Prompts::read(folder.path(), &config, &[], ids, false);
        let all = read(&prompts(&[&[1, 2], &[3], &[4, 5], &[6, 7, 8], &[9]])).unwrap();
        assert_eq!(blocks(&all.lengths()), [vec![0, 2], vec![1, 4], vec![3]]);
        assert_eq!(all.decode(&[1]).unwrap(), None);
        assert!(read(&prompts(&[&[]])).err().unwrap().to_string().contains("no token"));
        assert!(read(&prompts(&[&[512]])).err().unwrap().to_string().contains("512 words"));
        let text = Prompts::read(folder.path(), &config, &["a".to_owned()], &[], false);
        assert_eq!(text.err().unwrap().exit_code(), 4, "text wants a tokenizer");
    }

    #[test]
    fn both_files_say_what_ends_a_text() {
        let folder = tempfile::tempdir().unwrap();
        let mut json = tiny::config(Family::Llama, 64, 2);
        json["eos_token_id"] = Value::from(7);
        let config = ModelConfig::parse(&json.to_string(), "c").unwrap();
        assert_eq!(eos(folder.path(), &config), [7]);
        std::fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id":[9,7,3]}"#).unwrap();
        assert_eq!(eos(folder.path(), &config), [3, 7, 9]);
    }
}
