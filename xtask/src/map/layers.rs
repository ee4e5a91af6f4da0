//! Which crate may depend on which: the layers of `docs/architecture.md`, as a table.

use cargo_metadata::{DependencyKind, Package};

/// The crates of layer 0 to 3; what the umbrella may use.
const BELOW_THE_UMBRELLA: &[&str] = &[
    "dd-core",
    "dd-monitor",
    "dd-scale",
    "dd-offload",
    "dd-infinite",
    "dd-inspect",
    "dd-feed",
    "dd-sketch",
    "dd-pager",
    "dd-train",
    "dd-candle",
    "dd-tch",
    "dd-tensorflow",
];

/// The crates that a backend may plug into, each behind a feature.
const SOCKETS: &[&str] = &["dd-core", "dd-offload", "dd-pager", "dd-inspect", "dd-train"];

/// Each crate, built yet or not, and which of our crates it may use. Anything not listed is forbidden.
const ALLOWED: &[(&str, &[&str])] = &[
    ("dd-cli", &["deep-dimensions"]),
    ("dd-benches", &["deep-dimensions"]),
    ("dd-examples", &["deep-dimensions"]),
    ("deep-dimensions", BELOW_THE_UMBRELLA),
    ("dd-candle", SOCKETS),
    ("dd-tch", SOCKETS),
    ("dd-tensorflow", SOCKETS),
    ("dd-train", &["dd-core", "dd-offload", "dd-inspect", "dd-scale"]),
    ("dd-pager", &["dd-core", "dd-offload"]),
    ("dd-monitor", &["dd-core"]),
    ("dd-scale", &["dd-core"]),
    ("dd-offload", &["dd-core"]),
    ("dd-infinite", &["dd-core"]),
    ("dd-inspect", &["dd-core"]),
    ("dd-feed", &["dd-core"]),
    ("dd-sketch", &["dd-core"]),
    ("dd-core", &[]),
    ("dd-conformance", &["dd-core"]),
    ("xtask", &[]),
];

/// The suites that every crate of ours may run in its tests, and none may use otherwise.
const CONFORMANCE: &str = "dd-conformance";

/// All that the vocabulary may stand on; `shuttle` replaces the locks under test only.
const UNDER_CORE: &[&str] = &["half", "serde", "shuttle", "thiserror"];

/// The tensor libraries, by the first letters of their crates, and the one crate whose interface may name each.
const LIBRARIES: &[(&str, &str)] =
    &[("candle", "dd-candle"), ("tch", "dd-tch"), ("torch-sys", "dd-tch"), ("tensorflow", "dd-tensorflow")];

/// Programs have no interface that a tensor type could leak into.
const PROGRAMS: &[&str] = &["dd-cli", "dd-benches", "dd-examples"];

/// One declared dependency.
pub(super) struct Edge {
    from: String,
    to: String,
    /// Another crate of this workspace.
    ours: bool,
    dev: bool,
}

/// Every dependency that the packages declare: normal, build and dev; on any platform, with any feature.
pub(super) fn edges(packages: &[Package]) -> Vec<Edge> {
    let declared = packages.iter().flat_map(|from| from.dependencies.iter().map(move |to| (from, to)));
    let edge = |(from, to): (&Package, &cargo_metadata::Dependency)| Edge {
        from: from.name.to_string(),
        to: to.name.clone(),
        ours: to.path.is_some(),
        dev: to.kind == DependencyKind::Development,
    };
    declared.map(edge).collect()
}

/// The edges that the table forbids.
pub(super) fn check(edges: &[Edge]) -> Vec<String> {
    edges
        .iter()
        .filter_map(|edge| forbidden(edge).map(|why| format!("{} -> {}: {why}", edge.from, edge.to)))
        .collect()
}

/// The crates of the workspace that the table does not know.
pub(super) fn check_listed(packages: &[&str]) -> Vec<String> {
    let unlisted = packages.iter().filter(|package| allowed(package).is_none());
    unlisted.map(|package| format!("{package}: in no layer; add it to xtask/src/map/layers.rs")).collect()
}

fn allowed(package: &str) -> Option<&'static [&'static str]> {
    ALLOWED.iter().find(|(name, _)| *name == package).map(|(_, may_use)| *may_use)
}

fn forbidden(edge: &Edge) -> Option<&'static str> {
    match edge.ours {
        true => forbidden_inside(edge),
        false => forbidden_outside(edge),
    }
}

fn forbidden_inside(edge: &Edge) -> Option<&'static str> {
    let listed = allowed(&edge.from).is_some_and(|may_use| may_use.contains(&edge.to.as_str()));
    match edge.to.as_str() {
        CONFORMANCE if edge.from == "xtask" => Some("the chores use no crate of ours"),
        CONFORMANCE => (!edge.dev).then_some("the suites are for tests: a dev-dependency only"),
        _ => (!listed).then_some("not in the table of layers"),
    }
}

fn forbidden_outside(edge: &Edge) -> Option<&'static str> {
    if edge.dev {
        return None; // Tests may use any library.
    }
    if edge.from == "dd-core" && !UNDER_CORE.contains(&edge.to.as_str()) {
        return Some("the vocabulary stands on plain data only");
    }
    let (_, backend) = LIBRARIES.iter().find(|(library, _)| is_part_of(&edge.to, library))?;
    let at_home = edge.from == *backend || PROGRAMS.contains(&edge.from.as_str());
    (!at_home).then_some("a tensor library stays behind its backend crate")
}

/// Whether `package` is the library or one of its parts: `candle-core` is part of `candle`.
fn is_part_of(package: &str, library: &str) -> bool {
    package.strip_prefix(library).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violation(from: &str, to: &str, ours: bool, dev: bool) -> Option<String> {
        check(&[Edge { from: from.into(), to: to.into(), ours, dev }]).pop()
    }

    #[test]
    fn holds_our_crates_to_their_layers() {
        let rows = [
            ("dd-offload", "dd-core", false, true),
            ("dd-offload", "dd-monitor", false, false),
            ("dd-offload", "dd-monitor", true, false),
            ("dd-core", "dd-offload", false, false),
            ("dd-candle", "dd-offload", false, true),
            ("dd-candle", "dd-monitor", false, false),
            ("dd-train", "dd-candle", false, false),
            ("deep-dimensions", "dd-candle", false, true),
            ("deep-dimensions", "dd-cli", false, false),
            ("dd-cli", "deep-dimensions", false, true),
            ("dd-cli", "dd-offload", false, false),
            ("xtask", "dd-core", false, false),
            ("dd-core", "dd-conformance", true, true),
            ("dd-core", "dd-conformance", false, false),
            ("xtask", "dd-conformance", true, false),
            ("dd-conformance", "dd-core", false, true),
            ("dd-stranger", "dd-core", false, false),
        ];
        for (from, to, dev, fine) in rows {
            assert_eq!(violation(from, to, true, dev).is_none(), fine, "{from} -> {to}, dev: {dev}");
        }
    }

    #[test]
    fn keeps_tensor_libraries_behind_their_crates() {
        let rows = [
            ("dd-candle", "candle-core", false, true),
            ("dd-cli", "candle-nn", false, true),
            ("dd-offload", "candle-core", false, false),
            ("deep-dimensions", "candle-core", false, false),
            ("deep-dimensions", "candle-core", true, true),
            ("dd-candle", "tch", false, false),
            ("dd-monitor", "candlestick", false, true),
            ("dd-core", "half", false, true),
            ("dd-core", "tracing", false, false),
            ("dd-core", "proptest", true, true),
        ];
        for (from, to, dev, fine) in rows {
            assert_eq!(violation(from, to, false, dev).is_none(), fine, "{from} -> {to}, dev: {dev}");
        }
    }

    #[test]
    fn knows_every_crate() {
        assert!(check_listed(&["dd-core", "dd-pager"]).is_empty());
        assert_eq!(check_listed(&["dd-core", "dd-stranger"]).len(), 1);
    }

    #[test]
    fn names_in_the_table_are_in_the_table() {
        let used = ALLOWED.iter().flat_map(|(_, may_use)| may_use.iter());
        for name in used.chain(BELOW_THE_UMBRELLA) {
            assert!(allowed(name).is_some(), "{name}");
        }
    }
}
