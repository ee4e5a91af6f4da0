//! Which modules of a model to manage, and managing a whole checkpoint at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use dd_core::Backend;

use super::MemoryManager;
use super::module::{ModuleHandle, ModuleSpec};
use crate::checkpoint::Checkpoint;
use crate::config::MemoryConfig;
use crate::error::Result;

/// Which modules are managed; the others are kept in place for good.
pub enum Selection<'a, B: Backend> {
    /// All of them.
    All,
    /// Those of these layer types, as `Linear`.
    Kinds(&'a [&'a str]),
    /// Those whose name matches: `*` stands for any text, everything else for itself, as in `encoder.layer.*`.
    Pattern(&'a str),
    /// Those for which a function says so.
    Where(&'a dyn Fn(&ModuleSpec<B>) -> bool),
}

impl<B: Backend> Selection<'_, B> {
    /// Whether it takes this module.
    #[must_use]
    pub fn takes(&self, spec: &ModuleSpec<B>) -> bool {
        match self {
            Self::All => true,
            Self::Kinds(kinds) => kinds.contains(&spec.kind.as_str()),
            Self::Pattern(pattern) => matches_pattern(pattern, &spec.name),
            Self::Where(function) => function(spec),
        }
    }
}

/// Whether `*`-patterns match a name: the pieces between stars must occur in order, the first at the start and the
/// last at the end.
fn matches_pattern(pattern: &str, name: &str) -> bool {
    let mut pieces = pattern.split('*');
    let Some(mut rest) = pieces.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let mut pieces: Vec<&str> = pieces.collect();
    let Some(last) = pieces.pop() else { return rest.is_empty() };
    for piece in pieces {
        let Some((_, after)) = rest.split_once(piece) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}

impl<B: Backend> MemoryManager<B> {
    /// Manages the modules of a model: those that the selection takes may leave; the others stay in place once they
    /// are there.
    ///
    /// # Errors
    /// As [`wrap_module`](Self::wrap_module), for the first module that fails.
    pub fn wrap_model(
        &self,
        model: Vec<ModuleSpec<B>>,
        selection: &Selection<'_, B>,
    ) -> Result<Vec<ModuleHandle<B>>> {
        let pin = |mut spec: ModuleSpec<B>| {
            spec.pinned |= !selection.takes(&spec);
            spec
        };
        model.into_iter().map(|spec| self.wrap_module(pin(spec))).collect()
    }
}

/// The modules of a checkpoint, in the order of its files: one for each repeated block (names up to the last number,
/// as `encoder.layer.3`), and one for each group of tensors outside of blocks (names up to the last dot).
///
/// # Errors
/// As [`ModuleSpec::from_checkpoint`].
pub fn modules_of<B: Backend>(checkpoint: &Arc<Checkpoint>) -> Result<Vec<ModuleSpec<B>>> {
    let mut order = Vec::new();
    let mut seen = BTreeMap::new();
    for name in checkpoint.names() {
        let module = module_name(name);
        if seen.insert(module.to_owned(), ()).is_none() {
            order.push(module.to_owned());
        }
    }
    order.sort_by(|a, b| natural(a).cmp(&natural(b)));
    order.iter().map(|module| ModuleSpec::from_checkpoint(checkpoint, module)).collect()
}

/// The module that a tensor belongs to, by its name.
fn module_name(tensor: &str) -> &str {
    let parent = tensor.rsplit_once('.').map_or("", |(parent, _)| parent);
    let mut end = 0;
    let mut block = None;
    for segment in parent.split('.') {
        end += segment.len();
        if !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_digit()) && block.is_none() {
            block = parent.get(..end);
        }
        end += 1;
    }
    block.unwrap_or(parent)
}

/// A key that sorts `layer.10` after `layer.9`.
fn natural(name: &str) -> Vec<(u64, &str)> {
    name.split('.').map(|segment| (segment.parse().unwrap_or(u64::MAX), segment)).collect()
}

/// Manages a whole checkpoint: a started manager, and a handle for each of its modules.
///
/// # Errors
/// As [`MemoryManager::new`] and [`MemoryManager::wrap_module`].
#[allow(clippy::type_complexity, reason = "a manager and its modules")]
pub fn auto_manage_model<B: Backend>(
    backend: B,
    checkpoint: &Arc<Checkpoint>,
    config: MemoryConfig,
) -> Result<(MemoryManager<B>, Vec<ModuleHandle<B>>)> {
    let manager = MemoryManager::new(backend, config)?;
    let modules = manager.wrap_model(modules_of(checkpoint)?, &Selection::All)?;
    Ok((manager, modules))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        let rows = [
            ("encoder.layer.*", "encoder.layer.3", true),
            ("encoder.layer.*", "decoder.layer.3", false),
            ("*.attention.*", "encoder.0.attention.query", true),
            ("*query", "encoder.query", true),
            ("*query", "encoder.query.bias", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
            ("a*a", "a", false),
            ("*", "", true),
        ];
        for (pattern, name, expected) in rows {
            assert_eq!(matches_pattern(pattern, name), expected, "{pattern} on {name}");
        }
    }

    #[test]
    fn blocks_are_modules() {
        let rows = [
            ("encoder.layer.3.attention.query.weight", "encoder.layer.3"),
            ("layers.10.experts.4.w1", "layers.10"),
            ("embeddings.word_embeddings.weight", "embeddings.word_embeddings"),
            ("weight", ""),
            ("norm.weight", "norm"),
        ];
        for (tensor, module) in rows {
            assert_eq!(module_name(tensor), module);
        }
        assert!(natural("layers.9") < natural("layers.10"));
    }
}
