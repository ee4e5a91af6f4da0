//! [`Pooling`]: the states of a sentence's tokens to one vector, as the model's own files say; and similarity.

use std::path::Path;

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use crate::bert::Ragged;
use crate::error::{CliError, Result};

/// How the states of a sentence become numbers of one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The state of the first token.
    Cls,
    /// The largest value of each component.
    Max,
    /// The mean of all states.
    Mean,
    /// The sum of all states over the square root of their number.
    MeanSqrtLen,
}

/// What follows the encoder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pooling {
    /// One or several, written one after the other.
    pub modes: Vec<Mode>,
    /// Whether vectors are scaled to length 1.
    pub normalize: bool,
    /// Whether the model's files say so, or nothing does and this is the common choice.
    pub stated: bool,
}

#[derive(Deserialize)]
struct Module {
    #[serde(default)]
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct PoolingFile {
    pooling_mode_cls_token: bool,
    pooling_mode_max_tokens: bool,
    pooling_mode_mean_tokens: bool,
    pooling_mode_mean_sqrt_len_tokens: bool,
    pooling_mode_weightedmean_tokens: bool,
    pooling_mode_lasttoken: bool,
}

impl Pooling {
    /// Reads `modules.json` and the pooling's own file. Without them: the mean, not normalised.
    ///
    /// # Errors
    /// [`CliError::Io`] and [`CliError::Input`] for files that are broken or ask for what there is not.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("modules.json");
        if !path.exists() {
            return Ok(Self { modes: vec![Mode::Mean], normalize: false, stated: false });
        }
        let modules: Vec<Module> = json(&path)?;
        let mut pooling = Self { modes: Vec::new(), normalize: false, stated: true };
        for module in &modules {
            match module.kind.rsplit('.').next() {
                Some("Transformer") => {}
                Some("Pooling") => pooling.modes = modes(&folder.join(&module.path).join("config.json"))?,
                Some("Normalize") => pooling.normalize = true,
                _ => {
                    let problem = format!("module {:?} is not supported", module.kind);
                    return Err(CliError::input(path.display(), problem, SUPPORTED));
                }
            }
        }
        if pooling.modes.is_empty() {
            return Err(CliError::input(path.display(), "no pooling is named in it", SUPPORTED));
        }
        Ok(pooling)
    }

    /// One vector per sentence: `[tokens, hidden] → sentences × (modes · hidden)`.
    ///
    /// # Errors
    /// What the tensor library says.
    pub fn pool(&self, states: &Tensor, batch: &Ragged) -> Result<Vec<Vec<f32>>> {
        let one = |(start, len)| self.pool_one(&states.narrow(0, start, len)?);
        batch.spans().map(|span| one(span).map_err(CliError::tensor("pooling"))).collect()
    }

    fn pool_one(&self, states: &Tensor) -> candle_core::Result<Vec<f32>> {
        let mut vector = Vec::new();
        for mode in &self.modes {
            vector.extend(mode.apply(states)?.to_vec1::<f32>()?);
        }
        if self.normalize {
            let length = dot(&vector, &vector).sqrt().max(1e-12);
            vector.iter_mut().for_each(|value| *value /= length);
        }
        Ok(vector)
    }
}

impl Mode {
    fn apply(self, states: &Tensor) -> candle_core::Result<Tensor> {
        let len = states.dim(0)? as f64;
        match self {
            Self::Cls => states.get(0),
            Self::Max => states.max(D::Minus2),
            Self::Mean => states.sum(0)? / len,
            Self::MeanSqrtLen => states.sum(0)? / len.sqrt(),
        }
    }
}

const SUPPORTED: &str = "supported are Transformer, Pooling (cls, max, mean, mean_sqrt_len) and Normalize";

fn modes(path: &Path) -> Result<Vec<Mode>> {
    let file: PoolingFile = json(path)?;
    if file.pooling_mode_weightedmean_tokens || file.pooling_mode_lasttoken {
        return Err(CliError::input(path.display(), "its pooling mode is not supported", SUPPORTED));
    }
    let rows = [
        (file.pooling_mode_cls_token, Mode::Cls),
        (file.pooling_mode_max_tokens, Mode::Max),
        (file.pooling_mode_mean_tokens, Mode::Mean),
        (file.pooling_mode_mean_sqrt_len_tokens, Mode::MeanSqrtLen),
    ];
    Ok(rows.into_iter().filter_map(|(set, mode)| set.then_some(mode)).collect())
}

fn json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|e| CliError::io("read", path, e))?;
    serde_json::from_str(&text).map_err(|e| CliError::input(path.display(), e, "fetch the file again"))
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Cosine of the angle between two vectors; 0 where one has no length.
#[must_use]
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let lengths = dot(a, a).sqrt() * dot(b, b).sqrt();
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn every_mode_pools_each_sentence_by_itself() {
        let states = Tensor::new(&[[1f32, 4.0], [3.0, 0.0], [5.0, 5.0]], &Device::Cpu).unwrap();
        let batch = Ragged::new([[1u32, 2].as_slice(), &[3]]);
        let root = 2f32.sqrt();
        let rows = [
            (Mode::Cls, [[1.0, 4.0], [5.0, 5.0]]),
            (Mode::Max, [[3.0, 4.0], [5.0, 5.0]]),
            (Mode::Mean, [[2.0, 2.0], [5.0, 5.0]]),
            (Mode::MeanSqrtLen, [[4.0 / root, 4.0 / root], [5.0, 5.0]]),
        ];
        for (mode, expected) in rows {
            let pooling = Pooling { modes: vec![mode], normalize: false, stated: true };
            let found = pooling.pool(&states, &batch).unwrap();
            assert_eq!(found, expected.map(|row| row.to_vec()), "{mode:?}");
        }
        let both = Pooling { modes: vec![Mode::Cls, Mode::Mean], normalize: true, stated: true };
        let found = both.pool(&states, &batch).unwrap();
        assert!(found.iter().all(|v| v.len() == 4 && (dot(v, v) - 1.0).abs() < 1e-6));
    }

    #[test]
    fn the_models_own_files_decide() {
        const TRANSFORMER: &str = r#"{"idx":0,"path":"","type":"sentence_transformers.models.Transformer"}"#;
        const POOL: &str = r#"{"idx":1,"path":"p","type":"sentence_transformers.models.Pooling"}"#;
        const NORM: &str = r#"{"idx":2,"path":"n","type":"sentence_transformers.models.Normalize"}"#;
        const DENSE: &str = r#"{"idx":2,"path":"d","type":"sentence_transformers.models.Dense"}"#;
        type Expected = Option<(Mode, bool)>;
        let rows: [(&[&str], &str, Expected); 5] = [
            (&[TRANSFORMER, POOL, NORM], r#"{"pooling_mode_cls_token":true}"#, Some((Mode::Cls, true))),
            (&[TRANSFORMER, POOL], r#"{"pooling_mode_mean_tokens":true}"#, Some((Mode::Mean, false))),
            (&[TRANSFORMER, POOL, DENSE], r#"{"pooling_mode_mean_tokens":true}"#, None),
            (&[TRANSFORMER, POOL], r#"{"pooling_mode_lasttoken":true}"#, None),
            (&[TRANSFORMER], "{}", None),
        ];
        for (modules, config, expected) in rows {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("modules.json"), format!("[{}]", modules.join(","))).unwrap();
            std::fs::create_dir(folder.path().join("p")).unwrap();
            std::fs::write(folder.path().join("p/config.json"), config).unwrap();
            let found = Pooling::read(folder.path()).ok().map(|p| (p.modes[0], p.normalize));
            assert_eq!(found, expected, "{modules:?} {config}");
        }
    }

    #[test]
    fn without_files_it_is_the_mean_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!Pooling::read(folder.path()).unwrap().stated);
    }
}
