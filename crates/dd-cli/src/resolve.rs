//! MODEL: a folder in Hugging Face layout, a file in one, or a name on the hub.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{CliError, Result};

/// Where a model's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFiles {
    /// The folder with `config.json` and the rest.
    pub folder: PathBuf,
    /// What a checkpoint reader is given: the one file, or the index of the shards.
    pub checkpoint: PathBuf,
    /// The safetensors files themselves.
    pub shards: Vec<PathBuf>,
}

/// The small files that a run may read, in no order; only the first must be there.
pub(crate) const SMALL: [&str; 8] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "sentence_bert_config.json",
    "modules.json",
    "1_Pooling/config.json",
    "generation_config.json",
    "chat_template.jinja",
];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Finds a model's files; `cache` is where hub models are kept (`None`: where all programs keep them).
///
/// # Errors
/// [`CliError::Input`] where MODEL names nothing or lacks a file; [`CliError::Io`] where the hub cannot be reached.
pub fn resolve(model: &str, cache: Option<&Path>) -> Result<ModelFiles> {
    let path = Path::new(model);
    if path.is_dir() {
        return in_folder(path);
    }
    if path.is_file() {
        return of_file(path);
    }
    if looks_like_a_name(model) {
        return hub(model, cache);
    }
    Err(CliError::input(model, "there is no such folder or file", USAGE))
}

const USAGE: &str = "give a folder with config.json and model.safetensors, a .safetensors file in one, or a name on \
                     the hub such as sentence-transformers/all-MiniLM-L6-v2";

fn in_folder(folder: &Path) -> Result<ModelFiles> {
    [SINGLE, INDEX].iter().map(|name| folder.join(name)).find(|path| path.is_file()).map_or_else(
        || {
            let problem = format!("there is neither {SINGLE} nor {INDEX}");
            Err(CliError::input(folder.display(), problem, USAGE))
        },
        |path| of_file(&path),
    )
}

fn of_file(path: &Path) -> Result<ModelFiles> {
    let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
    let shards = match path.extension().and_then(|extension| extension.to_str()) {
        Some("safetensors") => vec![path.to_owned()],
        Some("json") => shards_of(path, &folder)?,
        _ => return Err(CliError::input(path.display(), "it is neither .safetensors nor an index", USAGE)),
    };
    Ok(ModelFiles { folder, checkpoint: path.to_owned(), shards })
}

fn shards_of(index: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(index).map_err(|e| CliError::io("read", index, e))?;
    let parsed: Index = serde_json::from_str(&text)
        .map_err(|e| CliError::input(index.display(), e, "fetch the index file again"))?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    let inside =
        |name: &String| Path::new(name).components().all(|c| matches!(c, std::path::Component::Normal(_)));
    if let Some(name) = names.iter().find(|name| !inside(name)) {
        let problem = format!("shard {name:?} lies outside its folder");
        return Err(CliError::input(index.display(), problem, "fetch the index file again"));
    }
    let shards: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
    match shards.iter().find(|shard| !shard.is_file()) {
        None => Ok(shards),
        Some(missing) => Err(CliError::input(
            index.display(),
            format!("shard {} is missing", missing.display()),
            "fetch the missing file into the same folder",
        )),
    }
}

/// `owner/name` or `name`, of the letters that the hub allows.
fn looks_like_a_name(model: &str) -> bool {
    let word = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let parts: Vec<&str> = model.split('/').collect();
    parts.len() <= 2 && parts.into_iter().all(word)
}

#[cfg(not(feature = "hub"))]
fn hub(model: &str, _: Option<&Path>) -> Result<ModelFiles> {
    Err(CliError::input(model, "there is no such folder, and this build does not know the hub", USAGE))
}

#[cfg(feature = "hub")]
fn hub(model: &str, cache: Option<&Path>) -> Result<ModelFiles> {
    use hf_hub::api::sync::{ApiBuilder, ApiError};

    let failed = |source: ApiError| CliError::Io {
        operation: "fetch from the hub",
        path: PathBuf::from(model),
        source: Box::new(source),
        remedy: "without a network, give the path of a folder with config.json and model.safetensors instead"
            .to_owned(),
    };
    let mut builder = ApiBuilder::from_env().with_progress(false).with_retries(1);
    if let Some(cache) = cache {
        builder = builder.with_cache_dir(cache.to_owned());
    }
    let repo = builder.build().map_err(failed)?.model(model.to_owned());
    let folder = repo.get("config.json").map_err(failed)?;
    let folder = folder.parent().map(Path::to_owned).unwrap_or_default();
    for name in SMALL {
        if let Err(error) = repo.get(name) {
            tracing::debug!(model, name, %error, "not on the hub");
        }
    }
    if repo.get(SINGLE).is_ok() {
        return in_folder(&folder);
    }
    let index = repo.get(INDEX).map_err(failed)?;
    for name in missing_shards(&index, &folder)? {
        repo.get(&name).map_err(failed)?;
    }
    in_folder(&folder)
}

#[cfg(feature = "hub")]
fn missing_shards(index: &Path, folder: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(index).map_err(|e| CliError::io("read", index, e))?;
    let parsed: serde_json::Value = serde_json::from_str(&text)
        .map_err(|e| CliError::input(index.display(), e, "fetch the index file again"))?;
    let map = parsed.get("weight_map").and_then(|map| map.as_object());
    let names = map.into_iter().flatten().filter_map(|(_, name)| name.as_str().map(str::to_owned));
    let names: BTreeSet<String> = names.filter(|name| !folder.join(name).is_file()).collect();
    Ok(names.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_files_and_shards_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        assert_eq!(resolve(&text(folder.path()), None).unwrap_err().exit_code(), 2);
        std::fs::write(at("a.safetensors"), "").unwrap();
        std::fs::write(at(INDEX), r#"{"weight_map":{"x":"a.safetensors","y":"b.safetensors"}}"#).unwrap();
        let message = resolve(&text(folder.path()), None).unwrap_err().to_string();
        assert!(message.contains("b.safetensors is missing"), "{message}");
        std::fs::write(at("b.safetensors"), "").unwrap();
        assert_eq!(
            resolve(&text(folder.path()), None).unwrap().shards,
            [at("a.safetensors"), at("b.safetensors")]
        );
        assert_eq!(resolve(&text(&at("a.safetensors")), None).unwrap().shards, [at("a.safetensors")]);
        std::fs::write(at(INDEX), r#"{"weight_map":{"x":"../a.safetensors"}}"#).unwrap();
        assert!(resolve(&text(folder.path()), None).is_err());
    }

    #[test]
    fn names_are_told_from_paths() {
        for (model, name) in [
            ("a/b", true),
            ("bert-base-uncased", true),
            ("./a", false),
            ("a/b/c", false),
            ("/a", false),
            ("", false),
        ] {
            assert_eq!(looks_like_a_name(model), name, "{model}");
        }
    }
}
