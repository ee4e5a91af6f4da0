//! The checks of one file by itself: its first line, its length, its name, its `unsafe`, and its words.

use super::Source;

/// A longer file holds more than one idea.
const MOST_LINES: usize = 800;

/// Hosts of package registries: where packages come from is for each machine's own configuration to say. The lock
/// file is Cargo's to write.
const REGISTRY_HOSTS: [&str; 4] = [
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("pythonhosted", ".org"),
    concat!("anaconda", ".org"),
];

/// What is wrong with a file.
pub(super) fn check(source: &Source) -> Vec<String> {
    let mut found = vec![foreign_host(source)];
    if source.path.ends_with(".rs") {
        found.extend([no_introduction(source), too_long(source), mod_file(source), stray_unsafe(source)]);
    }
    found.into_iter().flatten().map(|what| format!("{}: {what}", source.path)).collect()
}

fn foreign_host(source: &Source) -> Option<String> {
    let host = REGISTRY_HOSTS.iter().find(|host| source.text.contains(*host))?;
    (source.path != "Cargo.lock").then(|| format!("names the registry host {host}"))
}

fn no_introduction(source: &Source) -> Option<String> {
    (!source.text.starts_with("//!")).then(|| "does not begin with `//!` and its idea".to_owned())
}

fn too_long(source: &Source) -> Option<String> {
    let lines = source.text.lines().count();
    (lines > MOST_LINES).then(|| format!("has {lines} lines; at most {MOST_LINES}"))
}

fn mod_file(source: &Source) -> Option<String> {
    let named = source.path.rsplit('/').next() == Some("mod.rs");
    named.then(|| "a module `foo` is `foo.rs` beside `foo/`".to_owned())
}

/// The compiler denies `unsafe` where nothing allows it; here the permission must stand in the file itself, where a
/// reviewer of that file sees it with its reason.
fn stray_unsafe(source: &Source) -> Option<String> {
    let used = source.text.lines().any(|line| words(&code_of(line)).any(|word| word == "unsafe"));
    let mut attributes = source.text.split("allow(").skip(1).filter_map(|rest| rest.split(")]").next());
    let allowed = attributes.any(|names| words(names).any(|word| word == "unsafe_code"));
    (used && !allowed)
        .then(|| "has `unsafe` without an allowance in this file that gives its reason".to_owned())
}

/// A line without its comment and without what stands between quotes.
fn code_of(line: &str) -> String {
    let line = line.replace("\\\"", "");
    let unquoted: Vec<&str> = line.split('"').step_by(2).collect();
    let unquoted = unquoted.join("\"\"");
    unquoted.split("//").next().unwrap_or_default().to_owned()
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_each_fault_of_a_file() {
        let long = format!("//! Long.\n{}", "\n".repeat(MOST_LINES));
        let host = format!("see {}\n", REGISTRY_HOSTS[0]);
        let allowed = "//! Raw.\n#![allow(unsafe_code, reason = \"maps\")]\nunsafe { f() }\n";
        let rows = [
            ("a.rs", "//! An idea.\n", ""),
            ("a.rs", "// No idea.\n", "does not begin with"),
            ("a.rs", "", "does not begin with"),
            ("a.rs", long.as_str(), "801 lines"),
            ("a.md", "No idea.\n", ""),
            ("src/mod.rs", "//! An idea.\n", "beside"),
            ("src/amod.rs", "//! An idea.\n", ""),
            ("a.rs", "//! Raw.\nlet x = unsafe { f() };\n", "without an allowance"),
            ("a.rs", "//! Raw.\nunsafe impl Send for A {}\n", "without an allowance"),
            ("a.rs", allowed, ""),
            (
                "a.rs",
                "//! Raw.\n#![allow(\n    unsafe_code,\n    reason = \"maps\"\n)]\nunsafe { f() }\n",
                "",
            ),
            (
                "a.rs",
                "//! Raw.\n#![allow(dead_code)]\nfn unsafe_code() { unsafe { f() } }\n",
                "without an allowance",
            ),
            ("a.rs", "//! Not unsafe.\nlet x = 1; // unsafe {\nlet y = \"unsafe {\";\nunsafe_code();\n", ""),
            ("a.md", host.as_str(), "registry host"),
            ("Cargo.lock", host.as_str(), ""),
        ];
        for (path, text, message) in rows {
            let found = check(&Source { path: path.into(), text: text.into() });
            assert_eq!(found.len(), usize::from(!message.is_empty()), "{path}: {text:.60}: {found:?}");
            assert!(found.concat().contains(message), "{found:?}");
        }
    }
}
