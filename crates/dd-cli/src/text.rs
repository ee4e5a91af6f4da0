//! Sentences to token ids, as the model's own files say.

use std::path::Path;

use serde::Deserialize;
use tokenizers::{Tokenizer, TruncationParams};

use crate::bert::Config;
use crate::error::{CliError, Result};
use crate::process;

/// Turns every text into its token ids, special tokens included, at most as many as the model takes. Nothing is
/// padded. The tokenizer is dropped before this returns: nothing of it stays in memory during the passes.
///
/// # Errors
/// [`CliError::Io`] where `tokenizer.json` cannot be read; [`CliError::Input`] where it is none, where a text has an
/// id past the model's vocabulary, or gives no token at all.
pub fn tokenize(folder: &Path, config: &Config, texts: &[String]) -> Result<Vec<Vec<u32>>> {
    let path = folder.join("tokenizer.json");
    let tokenizer = open(&path, max_length(folder, config))?;
    let encode = |text: &String| -> Result<Vec<u32>> {
        let encoding = tokenizer.encode(text.as_str(), true).map_err(|e| {
            CliError::input("--text", format!("{text:?} cannot be tokenised: {e}"), "give another text")
        })?;
        check(encoding.get_ids(), text, config, &path)
    };
    let all = texts.iter().map(encode).collect();
    tracing::debug!(resident = ?process::sample().resident, "texts are tokens; the tokenizer is still in memory");
    all
}

fn open(path: &Path, max_length: usize) -> Result<Tokenizer> {
    let bytes = std::fs::read(path).map_err(|e| CliError::io("read", path, e))?;
    let invalid = |problem: tokenizers::Error| {
        CliError::input(path.display(), problem, "fetch tokenizer.json again: it is not a tokenizer")
    };
    let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(invalid)?;
    let truncation = TruncationParams { max_length, ..TruncationParams::default() };
    tokenizer.with_padding(None).with_truncation(Some(truncation)).map_err(invalid)?;
    Ok(tokenizer)
}

fn check(ids: &[u32], text: &str, config: &Config, path: &Path) -> Result<Vec<u32>> {
    let fits = |id: &u32| usize::try_from(*id).is_ok_and(|id| id < config.vocab_size);
    if ids.is_empty() {
        return Err(CliError::input(
            "--text",
            format!("{text:?} has no token"),
            "give a text with a word in it",
        ));
    }
    match ids.iter().find(|id| !fits(id)) {
        None => Ok(ids.to_vec()),
        Some(id) => Err(CliError::input(
            path.display(),
            format!("it gives token {id}, the model has {} words", config.vocab_size),
            "take tokenizer.json and config.json from the same model",
        )),
    }
}

/// The most tokens of a text: what the sentence model says, else what the tokenizer says, and never more than there
/// are positions.
fn max_length(folder: &Path, config: &Config) -> usize {
    #[derive(Deserialize)]
    struct Sentence {
        max_seq_length: Option<f64>,
    }
    #[derive(Deserialize)]
    struct Tokens {
        model_max_length: Option<f64>,
    }
    let sentence = read::<Sentence>(&folder.join("sentence_bert_config.json")).and_then(|s| s.max_seq_length);
    let stated = sentence
        .or_else(|| read::<Tokens>(&folder.join("tokenizer_config.json")).and_then(|t| t.model_max_length));
    let most = config.max_position_embeddings;
    match stated {
        // Both files write "no limit" as huge floats.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate")]
        Some(length) if length >= 1.0 => (length as usize).min(most),
        _ => most,
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn the_length_is_the_first_that_is_stated() {
        let config = testing::config(8, 2, 16, 1); // 512 positions
        let rows: [(&[(&str, &str)], usize); 5] = [
            (&[], 512),
            (&[("tokenizer_config.json", r#"{"model_max_length":128}"#)], 128),
            (&[("tokenizer_config.json", r#"{"model_max_length":1e30}"#)], 512),
            (
                &[
                    ("tokenizer_config.json", r#"{"model_max_length":128}"#),
                    ("sentence_bert_config.json", r#"{"max_seq_length":256}"#),
                ],
                256,
            ),
            (&[("sentence_bert_config.json", "broken")], 512),
        ];
        for (files, expected) in rows {
            let folder = tempfile::tempdir().unwrap();
            files.iter().for_each(|(name, text)| std::fs::write(folder.path().join(name), text).unwrap());
            assert_eq!(max_length(folder.path(), &config), expected, "{files:?}");
        }
    }

    #[test]
    fn a_tokenizer_that_is_missing_or_broken_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let config = testing::config(8, 2, 16, 1);
        let error = tokenize(folder.path(), &config, &["x".to_owned()]).unwrap_err();
        assert_eq!(error.exit_code(), 4, "{error}");
        std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        let error = tokenize(folder.path(), &config, &["x".to_owned()]).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
    }
}
