//! Where the folders of this process's control groups are.
//!
//! Two texts are joined here. `/proc/self/cgroup` names the group relative to the root of the cgroup namespace, and
//! `/proc/self/mountinfo` names, for each mount, which group is shown at the mount point, relative to the same root.
//! Paths may begin with `..` where a group lies outside the namespace (cgroup_namespaces(7)).

use std::path::PathBuf;

use super::CgroupVersion;
use crate::error::Skipped;
use crate::process::ProcessId;
use crate::root::Root;

const MOUNTS: &str = "/proc/self/mountinfo";

/// The folders of the group and its ancestors.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) version: CgroupVersion,
    /// The group of the process first, the root of the mount last.
    pub(super) folders: Vec<PathBuf>,
}

/// Finds the hierarchy that limits memory: v1 where it has the memory controller and is mounted, else v2.
pub(super) fn locate(root: &Root, process: ProcessId, skipped: &mut Vec<Skipped>) -> Option<Found> {
    let members = format!("/proc/{process}/cgroup");
    let mut read = |path: &str| {
        root.read_text(path).map_err(|error| skipped.push(Skipped::new(root.join(path), error))).ok()
    };
    let (membership, mounts) = (read(&members)?, read(MOUNTS)?);
    let groups = groups(&membership);
    if groups.is_empty() {
        skipped.push(Skipped::new(root.join(&members), "names no group that could limit memory"));
    }
    let mounts: Vec<Mount> = mounts.lines().filter_map(mount).collect();
    groups.into_iter().find_map(|(version, group)| {
        let folders = folders(root, group, mounts.iter().filter(|mount| mount.version == version), skipped)?;
        Some(Found { version, folders })
    })
}

/// The groups that may limit memory, the deciding one first, from lines `id:controllers:path`.
fn groups(membership: &str) -> Vec<(CgroupVersion, &str)> {
    let lines = membership.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        path.starts_with('/').then_some((controllers, path))
    });
    let (mut v1, mut v2) = (None, None);
    for (controllers, path) in lines {
        if controllers.is_empty() {
            v2 = v2.or(Some((CgroupVersion::V2, path)));
        } else if controllers.split(',').any(|name| name == "memory") {
            v1 = v1.or(Some((CgroupVersion::V1, path)));
        }
    }
    v1.into_iter().chain(v2).collect()
}

/// A mounted hierarchy that may have the memory controller.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    version: CgroupVersion,
    /// The group that is shown at the mount point.
    root: String,
    point: String,
}

/// Reads a line of mountinfo (proc_pid_mountinfo(5)):
/// `id parent major:minor root point options [optional…] - type source super-options`.
fn mount(line: &str) -> Option<Mount> {
    let mut words = line.split(' ');
    let (root, point) = (words.nth(3)?, words.next()?);
    let mut rest = words.skip_while(|word| *word != "-").skip(1);
    let (kind, _source, options) = (rest.next()?, rest.next()?, rest.next().unwrap_or_default());
    let version = match kind {
        "cgroup2" => CgroupVersion::V2,
        "cgroup" if options.split(',').any(|option| option == "memory") => CgroupVersion::V1,
        _ => return None,
    };
    Some(Mount { version, root: unescape(root), point: unescape(point) })
}

/// Undoes the kernel's escapes: a backslash and three octal digits stand for a byte.
fn unescape(word: &str) -> String {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        match octal(rest) {
            Some((byte, tail)) => {
                bytes.push(byte);
                rest = tail;
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The byte of an escape at the start, and what follows it.
fn octal(text: &[u8]) -> Option<(u8, &[u8])> {
    let (digits, tail) = text.strip_prefix(b"\\")?.split_at_checked(3)?;
    let value = digits.iter().try_fold(0u16, |sum, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        Some(sum * 8 + u16::from(digit))
    })?;
    Some((u8::try_from(value).ok()?, tail))
}

/// The way from a mount's root down to a group.
#[derive(Debug, PartialEq, Eq)]
enum Way<'a> {
    /// Through these groups.
    Down(Vec<&'a str>),
    /// The root is an ancestor, but the names between are outside the namespace.
    Hidden,
    /// The group is not below the root.
    Outside,
}

fn way<'a>(root: &str, group: &'a str) -> Way<'a> {
    let names = |path: &'a str| path.split('/').filter(|name| !name.is_empty());
    let (mut below, mut above) =
        (names(group).peekable(), root.split('/').filter(|name| !name.is_empty()).peekable());
    while let (Some(name), Some(expected)) = (below.peek(), above.peek()) {
        if name != expected {
            break;
        }
        below.next();
        above.next();
    }
    let below: Vec<&str> = below.collect();
    if below.contains(&"..") {
        return Way::Outside;
    }
    if above.peek().is_none() {
        return Way::Down(below);
    }
    if above.all(|name| name == "..") { Way::Hidden } else { Way::Outside }
}

/// The folders of a group in the mount that shows it best: where its folder exists, then where most ancestors show.
fn folders<'m>(
    root: &Root,
    group: &str,
    mounts: impl Iterator<Item = &'m Mount>,
    skipped: &mut Vec<Skipped>,
) -> Option<Vec<PathBuf>> {
    let ways: Vec<(&Mount, Way<'_>)> = mounts.map(|mount| (mount, way(&mount.root, group))).collect();
    let shown = ways.iter().filter_map(|(mount, way)| match way {
        Way::Down(names) => Some(ladder(root, &mount.point, names)),
        Way::Hidden | Way::Outside => None,
    });
    let best = shown.max_by_key(|folders| (folders.first().is_some_and(|leaf| leaf.is_dir()), folders.len()));
    if best.is_some() {
        return best;
    }
    let hidden = ways.iter().find(|(_, way)| *way == Way::Hidden);
    let reason = match (hidden, ways.as_slice()) {
        (Some(_), _) => {
            format!("the groups between the mount's root and {group} are hidden by the namespace")
        }
        (None, []) => format!("no mounted hierarchy shows the group {group}"),
        (None, _) => format!("the mounted part of the hierarchy does not hold the group {group}"),
    };
    let place = ways.first().map_or_else(|| root.join(MOUNTS), |(mount, _)| root.join(&mount.point));
    skipped.push(Skipped::new(place, reason));
    hidden.map(|(mount, _)| ladder(root, &mount.point, &[]))
}

/// The folders from the group up to the mount point.
fn ladder(root: &Root, point: &str, names: &[&str]) -> Vec<PathBuf> {
    let top = root.join(point);
    let mut folders: Vec<PathBuf> = names
        .iter()
        .scan(top.clone(), |folder, name| {
            folder.push(name);
            Some(folder.clone())
        })
        .collect();
    folders.insert(0, top);
    folders.reverse();
    folders
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn groups_of_a_process() {
        use CgroupVersion::{V1, V2};
        let rows = [
            ("0::/a/b\n", vec![(V2, "/a/b")]),
            ("4:memory:/x\n0::/\n", vec![(V1, "/x"), (V2, "/")]),
            ("0::/\n3:cpu,memory:/y:z\n", vec![(V1, "/y:z"), (V2, "/")]),
            ("9:name=memory:/n\n2:memory2:/n\n", vec![]),
            ("0::relative\n0:\n\n:::", vec![]),
        ];
        for (text, expected) in rows {
            assert_eq!(groups(text), expected, "{text:?}");
        }
    }

    #[test]
    fn lines_of_mountinfo() {
        use CgroupVersion::{V1, V2};
        let rows = [
            (
                "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
                Some((V1, "/", "/sys/fs/cgroup/memory")),
            ),
            ("35 31 0:32 / /c rw shared:1 master:2 - cgroup none rw,cpu,memory", Some((V1, "/", "/c"))),
            ("35 31 0:32 /docker/x /c rw - cgroup2 cgroup2 rw,nsdelegate", Some((V2, "/docker/x", "/c"))),
            (r"35 31 0:32 /a\040b /my\040mount\134x rw - cgroup2 c", Some((V2, "/a b", r"/my mount\x"))),
            ("35 31 0:32 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", None),
            ("35 31 0:32 / /sys/fs/cgroup rw - tmpfs tmpfs rw", None),
            ("35 31 0:32 / /c rw cgroup2 c rw", None),
            ("35 31 0:32 / /c", None),
            ("", None),
        ];
        for (line, expected) in rows {
            let found = mount(line);
            let found =
                found.as_ref().map(|mount| (mount.version, mount.root.as_str(), mount.point.as_str()));
            assert_eq!(found, expected, "{line:?}");
        }
    }

    #[test]
    fn escapes() {
        let rows = [
            (r"a\040b", "a b"),
            (r"\134", r"\"),
            (r"\04", r"\04"),
            (r"\999", r"\999"),
            (r"\777", r"\777"),
            ("ü", "ü"),
        ];
        for (word, expected) in rows {
            assert_eq!(unescape(word), expected, "{word}");
        }
    }

    #[test]
    fn ways_down() {
        let rows = [
            ("/", "/", Way::Down(vec![])),
            ("/", "/a/b", Way::Down(vec!["a", "b"])),
            ("/a", "/a/b", Way::Down(vec!["b"])),
            ("/a/b", "/a/b", Way::Down(vec![])),
            ("/a", "/ab", Way::Outside),
            ("/a/b", "/a", Way::Outside),
            ("/x", "/a", Way::Outside),
            ("/..", "/../a", Way::Down(vec!["a"])),
            ("/", "/../a", Way::Outside),
            ("/", "/a/../../b", Way::Outside),
            ("/../..", "/", Way::Hidden),
            ("/../..", "/../a", Way::Hidden),
            ("/../x", "/a", Way::Outside),
        ];
        for (root, group, expected) in rows {
            assert_eq!(way(root, group), expected, "{root} → {group}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,80}", words in proptest::collection::vec("[-/.a\\\\0-9]{0,4}", 0..14)) {
            let _groups = groups(&text);
            let _mount = (mount(&text), mount(&words.join(" ")), unescape(&text));
            let _way = way(&text, &words.join("/"));
        }
    }
}
