//! The top level of the repository, and that every crate is on the map.

/// What lies at the top level: no more, no less.
const TOP_LEVEL: &[&str] = &[
    ".cargo/",
    ".ci/",
    ".gitignore",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "benches/",
    "clippy.toml",
    "crates/",
    "docs/",
    "examples/",
    "rustfmt.toml",
    "xtask/",
];

/// What is missing from the top level, and what should not be there.
pub(super) fn check_top_level(entries: &[String]) -> Vec<String> {
    let missing = TOP_LEVEL.iter().filter(|wanted| !entries.iter().any(|entry| entry == *wanted));
    let extra = entries.iter().filter(|entry| !TOP_LEVEL.contains(&entry.as_str()));
    let missing = missing.map(|name| format!("{name}: missing at the top level"));
    missing.chain(extra.map(|name| format!("{name}: does not belong at the top level"))).collect()
}

/// The crates that no row of a table in `text` names, as `` `name` ``.
pub(super) fn check_named(packages: &[&str], document: &str, text: &str) -> Vec<String> {
    let named = |package: &str| {
        text.lines().any(|line| line.starts_with('|') && line.contains(&format!("`{package}`")))
    };
    let missing = packages.iter().filter(|package| !named(package));
    missing.map(|package| format!("{document}: no table names the crate `{package}`")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_what_is_missing_and_what_is_extra() {
        let whole: Vec<String> = TOP_LEVEL.iter().map(|name| (*name).to_owned()).collect();
        assert!(check_top_level(&whole).is_empty());
        let missing = check_top_level(&whole[1..]);
        assert_eq!(missing, [".cargo/: missing at the top level"]);
        let extra = check_top_level(&[whole, vec!["notes.txt".to_owned()]].concat());
        assert_eq!(extra, ["notes.txt: does not belong at the top level"]);
    }

    #[test]
    fn sees_a_crate_that_no_table_names() {
        let text = "| `dd-core` | the vocabulary |\n\nIn passing: `dd-offload`.\n";
        assert!(check_named(&["dd-core"], "README.md", text).is_empty());
        let missing = check_named(&["dd-core", "dd-offload"], "README.md", text);
        assert_eq!(missing, ["README.md: no table names the crate `dd-offload`"]);
    }
}
