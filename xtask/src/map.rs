//! The checks of the map: that the code is what `docs/architecture.md` and `docs/style.md` say.
//!
//! | module | what it checks |
//! |---|---|
//! | [`layers`] | which crate depends on which |
//! | [`files`] | each file by itself: its first line, its length, its `unsafe`, its words |
//! | [`places`] | the top level of the repository, and that every crate is on the map |
//!
//! Each check is a function from plain values to the violations it found, so that each is seen to fail in its tests.

mod files;
mod layers;
mod places;

use std::fs;
use std::path::Path;

use crate::workspace::{Result, Workspace};

/// A file of the repository that holds text: its path from the root, with `/`, and what it says.
struct Source {
    path: String,
    text: String,
}

/// Runs every check and prints each violation; an error if there is one.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let names: Vec<&str> = workspace.packages.iter().map(|package| package.name.as_str()).collect();
    let sources = sources(&workspace.root)?;
    let mut violations = layers::check(&layers::edges(&workspace.packages));
    violations.extend(layers::check_listed(&names));
    violations.extend(sources.iter().flat_map(files::check));
    violations.extend(places::check_top_level(&entries(&workspace.root)?));
    for document in ["README.md", "docs/architecture.md"] {
        violations.extend(places::check_named(&names, document, &text_of(&sources, document)?));
    }
    violations.iter().for_each(|violation| println!("{violation}"));
    if !violations.is_empty() {
        return Err(format!("{} deviations from the map", violations.len()).into());
    }
    println!("{} crates, {} text files: as the map says", names.len(), sources.len());
    Ok(())
}

/// What git ignores at the root of the repository, and git itself.
const IGNORED: [&str; 4] = [".git", "deepdim-demo.svg", "fixtures", "target"];

/// The entries of the top level, directories with a `/` at the end.
fn entries(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !IGNORED.contains(&name.as_str()) {
            found.push(if entry.file_type()?.is_dir() { name + "/" } else { name });
        }
    }
    found.sort();
    Ok(found)
}

/// Every text file below the root, without what is ignored there.
fn sources(root: &Path) -> Result<Vec<Source>> {
    let mut found = Vec::new();
    for name in entries(root)? {
        collect(root, Path::new(&name), &mut found)?;
    }
    Ok(found)
}

fn collect(root: &Path, path: &Path, found: &mut Vec<Source>) -> Result<()> {
    let full = root.join(path);
    if !full.is_dir() {
        if let Ok(text) = String::from_utf8(fs::read(&full)?) {
            found.push(Source { path: path.to_string_lossy().replace('\\', "/"), text });
        }
        return Ok(());
    }
    let mut names = fs::read_dir(&full)?.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
    names.sort();
    names.iter().try_for_each(|name| collect(root, &path.join(name), found))
}

fn text_of(sources: &[Source], path: &str) -> Result<String> {
    let source = sources.iter().find(|source| source.path == path);
    Ok(source.ok_or_else(|| format!("there is no {path}"))?.text.clone())
}
