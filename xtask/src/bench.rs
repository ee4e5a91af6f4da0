//! `cargo xtask bench`: the criterion suites, and keeping the raw results of a run for `docs/benchmarks.md`.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::peers;
use crate::workspace::{Result, Workspace};

/// What to measure, and whether to keep it.
#[derive(Args)]
pub(crate) struct Options {
    /// The suites to run, by the names of their files in benches/; all of them without any.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Copies criterion's estimates to docs/benchmarks/LABEL/; a date and a machine make a good label.
    #[arg(long, value_name = "LABEL", value_parser = plain_label)]
    save: Option<String>,
    /// Compares with Python packages too (paging, feed, infinite, monitor, scale), in an environment that is fetched on the
    /// first call: 4 GB, or 10 MB where only monitor and scale are named.
    #[arg(long)]
    peers: bool,
    /// Prints what a suite found as JSON too, after its table (paging).
    #[arg(long)]
    json: bool,
}

/// Runs the suites; with `--save` keeps what criterion estimated.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    // The whole workspace is selected, so that dependencies have the features, and the builds, that its tests have.
    let mut arguments = vec!["bench", "--profile", "dev", "--workspace", "--exclude", "xtask"];
    let all = if options.names.is_empty() { suites(&workspace.root)? } else { Vec::new() };
    for name in options.names.iter().chain(&all) {
        arguments.extend(["--bench", name]);
    }
    let python = options.peers.then(|| peers::python(workspace, &options.names)).transpose()?;
    let python = python.map(|python| python.into_os_string().into_string());
    let python = python.transpose().map_err(|path| format!("{} is not UTF-8", path.display()))?;
    let peers = python.as_deref().map(|python| ("DD_BENCH_PEERS", python));
    let json = options.json.then_some(("DD_BENCH_JSON", "1"));
    let variables: Vec<_> = peers.into_iter().chain(json).collect();
    workspace.cargo_with(&variables, &arguments)?;
    match &options.save {
        None => Ok(()),
        Some(label) => {
            save(&workspace.target.join("criterion"), &workspace.root.join("docs/benchmarks").join(label))
        }
    }
}

/// Every suite, by name.
fn suites(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root.join("benches/benches"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().and_then(|name| name.to_str()).map(str::to_owned));
        }
    }
    names.sort();
    Ok(names)
}

/// A label becomes a directory, so it is one plain name.
fn plain_label(label: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !label.is_empty() && label.chars().all(plain) {
        Ok(label.to_owned())
    } else {
        Err("a label is made of letters, digits, `-` and `_`, such as 2026-11-20-two-cores".to_owned())
    }
}

/// Criterion leaves `<group>/<case>/new/estimates.json`; what is kept is `<group>/<case>.json`.
fn save(criterion: &Path, to: &Path) -> Result<()> {
    let found = estimates(criterion)?;
    for file in &found {
        let case = file.parent().and_then(Path::parent).unwrap_or(criterion).strip_prefix(criterion)?;
        let kept = to.join(format!("{}.json", case.display()));
        fs::create_dir_all(kept.parent().unwrap_or(to))?;
        fs::copy(file, kept)?;
    }
    if found.is_empty() {
        return Err(format!("no estimates under {}", criterion.display()).into());
    }
    println!("{} estimates kept in {}", found.len(), to.display());
    Ok(())
}

/// The estimates of the latest run, found at any depth.
fn estimates(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(estimates(&path)?);
        } else if path.ends_with("new/estimates.json") {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_one_plain_name() {
        for (label, good) in [("2026-11-20_box", true), ("", false), ("..", false), ("a/b", false)] {
            assert_eq!(plain_label(label).is_ok(), good, "{label}");
        }
    }

    #[test]
    fn keeps_the_new_estimates_by_group_and_case() {
        let base = std::env::temp_dir().join(format!("xtask-bench-{}", std::process::id()));
        for part in ["pass/managed/new", "pass/managed/base"] {
            fs::create_dir_all(base.join("criterion").join(part)).unwrap();
            fs::write(base.join("criterion").join(part).join("estimates.json"), part).unwrap();
        }
        save(&base.join("criterion"), &base.join("kept")).unwrap();
        assert_eq!(fs::read_to_string(base.join("kept/pass/managed.json")).unwrap(), "pass/managed/new");
        assert!(save(&base.join("kept"), &base.join("again")).is_err(), "there is no estimate to keep");
        fs::remove_dir_all(&base).unwrap();
    }
}
