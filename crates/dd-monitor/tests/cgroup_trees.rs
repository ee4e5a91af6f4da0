//! Container limits on trees of fixture files: every row is a machine, and one function checks them all.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "tests"
)]

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use dd_core::Bytes;
use dd_monitor::{CgroupMemory, CgroupVersion, Error, EventCounter, HostMemory, ProcessId, Root};

#[path = "support/nested_trees.rs"]
mod nested;
#[path = "support/swap_trees.rs"]
mod swapped;

use nested::{edge_rows, nested_rows, nested_v1_rows};
use swapped::{check_swap, swap_v1_rows, swap_v2_rows};

const MIB: u64 = 1 << 20;

/// The host of every row: 1000 MiB, of which 600 are available.
const MEMINFO: &str = "MemTotal: 1024000 kB\nMemFree: 1 kB\nMemAvailable: 614400 kB\n";

const V2_MOUNT: &str = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
const V1_MOUNT: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
const HYBRID: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

/// A group of a tree: its folder and its files.
enum Group {
    /// limit, high, current, inactive_file: as the files say them.
    V2(&'static str, &'static str, &'static str, u64, u64),
    /// limit, usage, total_inactive_file, hierarchical limit.
    V1(&'static str, &'static str, u64, u64, &'static str),
    /// A file by itself, with its text; without a text it is a folder, which cannot be read as a file.
    File(&'static str, Option<&'static str>),
    /// A file that is taken away again.
    Without(&'static str),
}

use Group::{File, V1, V2, Without};

/// What must be found.
#[derive(Debug, PartialEq, Eq)]
struct Expected {
    version: Option<CgroupVersion>,
    levels: usize,
    /// Of the container, in MiB.
    limit: Option<u64>,
    soft_limit: Option<u64>,
    /// Of host and container together, in MiB: total, used, available.
    usable: (u64, u64, u64),
    /// How many things were left out with a reason.
    skipped: usize,
}

struct Row {
    name: &'static str,
    membership: &'static str,
    mounts: &'static str,
    groups: Vec<Group>,
    expected: Expected,
}

/// No container limit: the host's own figures.
const HOST: (u64, u64, u64) = (1000, 400, 600);

fn v2(levels: usize, limit: Option<u64>, usable: (u64, u64, u64)) -> Expected {
    Expected { version: Some(CgroupVersion::V2), levels, limit, soft_limit: None, usable, skipped: 0 }
}

fn v1(levels: usize, limit: Option<u64>, usable: (u64, u64, u64)) -> Expected {
    Expected { version: Some(CgroupVersion::V1), ..v2(levels, limit, usable) }
}

const fn none(skipped: usize) -> Expected {
    Expected { version: None, levels: 0, limit: None, soft_limit: None, usable: HOST, skipped }
}

fn row(
    name: &'static str,
    membership: &'static str,
    mounts: &'static str,
    groups: Vec<Group>,
    expected: Expected,
) -> Row {
    Row { name, membership, mounts, groups, expected }
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn build_group(root: &Path, group: &Group) {
    match group {
        V2(folder, max, high, current, inactive) => {
            write(root, &format!("{folder}/memory.max"), &format!("{max}\n"));
            write(root, &format!("{folder}/memory.high"), &format!("{high}\n"));
            write(root, &format!("{folder}/memory.current"), &format!("{}\n", current * MIB));
            let stat = format!("anon 1\nfile 2\ninactive_file {}\nactive_file 3\n", inactive * MIB);
            write(root, &format!("{folder}/memory.stat"), &stat);
        }
        V1(folder, limit, usage, inactive, hierarchical) => {
            write(root, &format!("{folder}/memory.limit_in_bytes"), &format!("{limit}\n"));
            write(root, &format!("{folder}/memory.usage_in_bytes"), &format!("{}\n", usage * MIB));
            let stat = format!(
                "cache 1\ninactive_file 7\nhierarchical_memory_limit {hierarchical}\ntotal_inactive_file {}\n",
                inactive * MIB
            );
            write(root, &format!("{folder}/memory.stat"), &stat);
        }
        File(path, Some(text)) => write(root, path, text),
        File(path, None) => {
            let _absent = fs::remove_file(root.join(path));
            fs::create_dir_all(root.join(path)).unwrap();
        }
        Without(path) => fs::remove_file(root.join(path)).unwrap(),
    }
}

/// Builds the tree of a row.
fn build(root: &Path, row: &Row) {
    write(root, "proc/meminfo", MEMINFO);
    write(root, "proc/self/cgroup", row.membership);
    write(root, "proc/self/mountinfo", row.mounts);
    row.groups.iter().for_each(|group| build_group(root, group));
}

/// Builds the tree of a row, reads it, and compares. The kept-open sample must say the same as the report.
fn check(row: &Row) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    build(path, row);
    let root = Root::new(path);
    let cgroup = CgroupMemory::open(&root);
    let report = cgroup.report();
    let sample = cgroup.sample();
    assert_eq!(sample, report.summary(), "{}", row.name);
    let usable = HostMemory::read(&root).unwrap().within(&sample);
    let mib = |bytes: Bytes| bytes.0 / MIB;
    let found = Expected {
        version: report.version,
        levels: report.levels.len(),
        limit: sample.limit.map(mib),
        soft_limit: sample.soft_limit.map(mib),
        usable: (mib(usable.total), mib(usable.used), mib(usable.available)),
        skipped: report.skipped.len(),
    };
    assert_eq!(found, row.expected, "{}: {:#?}", row.name, report);
    assert!(report.skipped.iter().all(|skipped| !skipped.reason.is_empty()), "{}", row.name);
    assert!(report.levels.iter().all(|level| level.path.starts_with(path)), "{}", row.name);
}

/// 9223372036854771712, as the kernel says "no limit" in v1.
const NO_LIMIT: &str = "9223372036854771712";

fn v2_rows() -> Vec<Row> {
    vec![
        row(
            "v2: a limit on the own group",
            "0::/app\n",
            V2_MOUNT,
            vec![V2("sys/fs/cgroup/app", "209715200", "max", 80, 30)],
            v2(1, Some(200), (200, 50, 150)),
        ),
        row(
            "v2: no limit anywhere",
            "0::/a/b\n",
            V2_MOUNT,
            vec![V2("sys/fs/cgroup/a", "max", "max", 80, 30), V2("sys/fs/cgroup/a/b", "max", "max", 10, 3)],
            v2(2, None, HOST),
        ),
        row(
            "v2: the smaller limit is at an ancestor",
            "0::/a/b/c\n",
            V2_MOUNT,
            vec![
                V2("sys/fs/cgroup/a", "104857600", "max", 70, 20),
                V2("sys/fs/cgroup/a/b", "max", "max", 40, 10),
                V2("sys/fs/cgroup/a/b/c", "524288000", "max", 30, 10),
            ],
            v2(3, Some(100), (100, 50, 50)),
        ),
        row(
            "v2: the larger limit at an ancestor leaves less, because its other children are full",
            "0::/a/b\n",
            V2_MOUNT,
            vec![
                V2("sys/fs/cgroup/a", "314572800", "max", 290, 0),
                V2("sys/fs/cgroup/a/b", "209715200", "max", 50, 0),
            ],
            v2(2, Some(200), (200, 50, 10)),
        ),
        row(
            "v2: a limit above the machine's memory",
            "0::/app\n",
            V2_MOUNT,
            vec![V2("sys/fs/cgroup/app", "1099511627776", "max", 80, 30)],
            v2(1, Some(1 << 20), HOST),
        ),
        row(
            "v2: the machine has less available than the container leaves",
            "0::/app\n",
            V2_MOUNT,
            vec![V2("sys/fs/cgroup/app", "943718400", "max", 10, 0)],
            v2(1, Some(900), (900, 10, 600)),
        ),
        row(
            "v2: a soft limit is reported apart, the least of all levels",
            "0::/a/b\n",
            V2_MOUNT,
            vec![
                V2("sys/fs/cgroup/a", "max", "73400320", 60, 0),
                V2("sys/fs/cgroup/a/b", "209715200", "157286400", 50, 0),
            ],
            Expected { soft_limit: Some(70), ..v2(2, Some(200), (200, 50, 150)) },
        ),
        row(
            "v2: usage above the limit leaves nothing",
            "0::/app\n",
            V2_MOUNT,
            vec![V2("sys/fs/cgroup/app", "104857600", "max", 120, 0)],
            v2(1, Some(100), (100, 120, 0)),
        ),
        row(
            "v2: a limit of zero",
            "0::/app\n",
            V2_MOUNT,
            vec![V2("sys/fs/cgroup/app", "0", "0", 0, 0)],
            Expected { soft_limit: Some(0), ..v2(1, Some(0), (0, 0, 0)) },
        ),
        row(
            "v2: more reclaimable than used",
            "0::/app\n",
            V2_MOUNT,
            vec![V2("sys/fs/cgroup/app", "104857600", "max", 10, 20)],
            v2(1, Some(100), (100, 0, 100)),
        ),
        row(
            "v2: a process in the top group of the machine, which has no limits by design",
            "0::/\n",
            V2_MOUNT,
            vec![File("sys/fs/cgroup/memory.stat", Some("inactive_file 1\n"))],
            none(0),
        ),
        row(
            "v2: the top group's path does not name what is above the mount: trailing and doubled slashes",
            "0:://a//b/\n",
            V2_MOUNT,
            vec![
                V2("sys/fs/cgroup/a/b", "104857600", "max", 10, 0),
                V2("sys/fs/cgroup/a", "max", "max", 10, 0),
            ],
            v2(2, Some(100), (100, 10, 90)),
        ),
    ]
}

fn namespace_rows() -> Vec<Row> {
    vec![
        row(
            "v2: a private namespace shows the container's group as /",
            "0::/\n",
            V2_MOUNT,
            vec![V2("sys/fs/cgroup", "209715200", "max", 80, 30)],
            v2(1, Some(200), (200, 50, 150)),
        ),
        row(
            "v2: the container's own group is bound to the mount point",
            "0::/docker/x\n",
            "31 23 0:28 /docker/x /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n",
            vec![V2("sys/fs/cgroup", "209715200", "max", 80, 30)],
            v2(1, Some(200), (200, 50, 150)),
        ),
        row(
            "v2: a subtree is bound, and the process is below it",
            "0::/pods/p1/main\n",
            "31 23 0:28 /pods/p1 /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n",
            vec![
                V2("sys/fs/cgroup", "104857600", "max", 80, 30),
                V2("sys/fs/cgroup/main", "max", "max", 40, 0),
            ],
            v2(2, Some(100), (100, 50, 50)),
        ),
        row(
            "v2: another group's subtree is bound: its limit is not ours",
            "0::/pods/p1\n",
            "31 23 0:28 /pods/p11 /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n",
            vec![V2("sys/fs/cgroup", "104857600", "max", 80, 30)],
            none(1),
        ),
        row(
            "v2: of two mounts the one that shows more ancestors counts",
            "0::/a/b\n",
            "30 23 0:28 /a/b /inner ro - cgroup2 cgroup2 rw\n\
             31 23 0:28 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n",
            vec![
                V2("inner", "524288000", "max", 10, 0),
                V2("sys/fs/cgroup/a", "104857600", "max", 40, 0),
                V2("sys/fs/cgroup/a/b", "524288000", "max", 10, 0),
            ],
            v2(2, Some(100), (100, 40, 60)),
        ),
        row(
            "v2: of two mounts the one whose folder exists counts",
            "0::/a/b\n",
            "30 23 0:28 /a/b /inner ro - cgroup2 cgroup2 rw\n\
             31 23 0:28 / /covered ro - cgroup2 cgroup2 rw\n",
            vec![V2("inner", "524288000", "max", 10, 0)],
            v2(1, Some(500), (500, 10, 490)),
        ),
        row(
            "v2: a group outside the namespace, found through a mount from outside",
            "0::/../other\n",
            "31 23 0:28 /.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            vec![V2("sys/fs/cgroup/other", "104857600", "max", 10, 0)],
            v2(1, Some(100), (100, 10, 90)),
        ),
        row(
            "v2: a path that climbs is never followed out of the mount",
            "0::/../../secret\n",
            V2_MOUNT,
            vec![V2("sys/secret", "1048576", "max", 0, 0), V2("sys/fs/cgroup", "max", "max", 0, 0)],
            none(1),
        ),
        row(
            "v2: the mount begins above the namespace: its top binds, what is between is hidden",
            "0::/\n",
            "31 23 0:28 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            vec![V2("sys/fs/cgroup", "104857600", "max", 10, 0)],
            Expected { skipped: 1, ..v2(1, Some(100), (100, 10, 90)) },
        ),
        row(
            "v2: blanks in the mount point and in the group's name",
            "0::/my app/x\n",
            "31 23 0:28 /my\\040app /sys/fs/c\\040group rw - cgroup2 cgroup2 rw\n",
            vec![V2("sys/fs/c group/x", "104857600", "max", 10, 0)],
            v2(1, Some(100), (100, 10, 90)),
        ),
        row(
            "v1: a container without a namespace, its own group bound",
            "4:memory:/docker/x\n",
            "35 31 0:32 /docker/x /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
            vec![V1("sys/fs/cgroup/memory", "209715200", 80, 30, "209715200")],
            v1(1, Some(200), (200, 50, 150)),
        ),
        row(
            "v1: a limit above the bound group is known through the hierarchical limit",
            "4:memory:/docker/x\n",
            "35 31 0:32 /docker/x /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
            vec![V1("sys/fs/cgroup/memory", NO_LIMIT, 80, 30, "104857600")],
            v1(1, Some(100), (100, 50, 50)),
        ),
    ]
}

fn v1_rows() -> Vec<Row> {
    vec![
        row(
            "v1: a limit on the own group",
            "4:memory:/app\n1:cpu:/other\n",
            V1_MOUNT,
            vec![
                V1("sys/fs/cgroup/memory/app", "209715200", 80, 30, "209715200"),
                V1("sys/fs/cgroup/memory", NO_LIMIT, 900, 0, NO_LIMIT),
            ],
            v1(2, Some(200), (200, 50, 150)),
        ),
        row(
            "v1: no limit",
            "4:memory:/app\n",
            V1_MOUNT,
            vec![
                V1("sys/fs/cgroup/memory/app", NO_LIMIT, 80, 30, NO_LIMIT),
                V1("sys/fs/cgroup/memory", NO_LIMIT, 900, 0, NO_LIMIT),
            ],
            v1(2, None, HOST),
        ),
        row(
            "v1: no limit, with pages of 64 KiB and on old kernels",
            "4:memory:/app\n",
            V1_MOUNT,
            vec![
                V1("sys/fs/cgroup/memory/app", "9223372036854710272", 80, 30, "9223372036854775807"),
                V1("sys/fs/cgroup/memory", "18446744073709551615", 900, 0, NO_LIMIT),
            ],
            v1(2, None, HOST),
        ),
        row(
            "v1: the smaller limit is at an ancestor",
            "7:cpu,memory:/a/b\n",
            V1_MOUNT,
            vec![
                V1("sys/fs/cgroup/memory/a/b", "524288000", 30, 10, "104857600"),
                V1("sys/fs/cgroup/memory/a", "104857600", 70, 20, "104857600"),
                V1("sys/fs/cgroup/memory", NO_LIMIT, 900, 0, NO_LIMIT),
            ],
            v1(3, Some(100), (100, 50, 50)),
        ),
        row(
            "v1: an ancestor that does not bind its children",
            "4:memory:/a/b\n",
            V1_MOUNT,
            vec![
                V1("sys/fs/cgroup/memory/a/b", "524288000", 30, 10, "524288000"),
                V1("sys/fs/cgroup/memory/a", "104857600", 70, 20, "104857600"),
                File("sys/fs/cgroup/memory/a/memory.use_hierarchy", Some("0\n")),
            ],
            Expected { skipped: 1, ..v1(1, Some(500), (500, 20, 480)) },
        ),
        row(
            "hybrid: the memory controller is on v1 while v2 exists",
            "4:memory:/app\n1:cpu:/\n0::/app\n",
            HYBRID,
            vec![
                V1("sys/fs/cgroup/memory/app", "209715200", 80, 30, "209715200"),
                V1("sys/fs/cgroup/memory", NO_LIMIT, 900, 0, NO_LIMIT),
                File("sys/fs/cgroup/unified/app/cgroup.procs", Some("1\n")),
            ],
            v1(2, Some(200), (200, 50, 150)),
        ),
        row(
            "hybrid: the memory controller is on v2 while v1 exists for others",
            "2:cpu:/x\n1:name=systemd:/x\n0::/app\n",
            HYBRID,
            vec![V2("sys/fs/cgroup/unified/app", "209715200", "max", 80, 30)],
            v2(1, Some(200), (200, 50, 150)),
        ),
        row(
            "hybrid: v1 is named but not mounted",
            "4:memory:/app\n0::/app\n",
            V2_MOUNT,
            vec![V2("sys/fs/cgroup/app", "209715200", "max", 80, 30)],
            Expected { skipped: 1, ..v2(1, Some(200), (200, 50, 150)) },
        ),
    ]
}

fn fault_rows() -> Vec<Row> {
    vec![
        row("no groups at all", "", "", vec![], none(1)),
        row("no list of groups", "", "", vec![Without("proc/self/cgroup")], none(1)),
        row("no list of mounts", "0::/a\n", "", vec![Without("proc/self/mountinfo")], none(1)),
        row("a list of groups that cannot be read", "", "", vec![File("proc/self/cgroup", None)], none(1)),
        row("garbage in both lists", "garbage\n\u{1}::\n", "a b c\n- - -\n\n", vec![], none(1)),
        row(
            "v2: the group's folder is gone, its parent still binds",
            "0::/a/gone\n",
            V2_MOUNT,
            vec![V2("sys/fs/cgroup/a", "104857600", "max", 10, 0)],
            Expected { skipped: 1, ..v2(1, Some(100), (100, 10, 90)) },
        ),
        row(
            "v2: the controller is not enabled for the own group: four files are missing",
            "0::/a/b\n",
            V2_MOUNT,
            vec![
                V2("sys/fs/cgroup/a", "104857600", "max", 10, 0),
                File("sys/fs/cgroup/a/b/cgroup.procs", Some("1\n")),
            ],
            Expected { skipped: 4, ..v2(1, Some(100), (100, 10, 90)) },
        ),
        row(
            "v2: a limit that cannot be read",
            "0::/a\n",
            V2_MOUNT,
            vec![
                V2("sys/fs/cgroup/a", "104857600", "52428800", 10, 0),
                File("sys/fs/cgroup/a/memory.max", None),
            ],
            Expected { skipped: 1, soft_limit: Some(50), ..v2(1, None, HOST) },
        ),
        row(
            "v2: garbage for a limit, for usage and for statistics",
            "0::/a/b/c\n",
            V2_MOUNT,
            vec![
                V2("sys/fs/cgroup/a", "12 parsecs", "max", 10, 0),
                V2("sys/fs/cgroup/a/b", "104857600", "max", 10, 5),
                File("sys/fs/cgroup/a/b/memory.stat", Some("\u{0}\u{0}")),
                V2("sys/fs/cgroup/a/b/c", "209715200", "max", 10, 5),
                File("sys/fs/cgroup/a/b/c/memory.current", Some("")),
            ],
            Expected { skipped: 3, ..v2(3, Some(100), (100, 10, 90)) },
        ),
        row(
            "v2: a limit that overflows",
            "0::/a\n",
            V2_MOUNT,
            vec![V2("sys/fs/cgroup/a", "99999999999999999999", "-1", 10, 0)],
            Expected { skipped: 2, ..v2(1, None, HOST) },
        ),
        row(
            "v1: the usage is missing, so the whole limit may be available",
            "4:memory:/\n",
            V1_MOUNT,
            vec![
                V1("sys/fs/cgroup/memory", "104857600", 10, 0, "104857600"),
                Without("sys/fs/cgroup/memory/memory.usage_in_bytes"),
            ],
            Expected { skipped: 1, ..v1(1, Some(100), (100, 0, 100)) },
        ),
    ]
}

#[test]
fn plain_v2() {
    v2_rows().iter().for_each(check);
}

#[test]
fn namespaces_and_bound_subtrees() {
    namespace_rows().iter().for_each(check);
}

#[test]
fn v1_and_hybrid() {
    v1_rows().iter().for_each(check);
}

#[test]
fn faults_are_skipped_with_a_reason() {
    fault_rows().iter().for_each(check);
}

#[test]
fn a_limit_that_changes_is_seen_by_the_next_sample() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "proc/self/cgroup", "0::/a\n");
    write(folder.path(), "proc/self/mountinfo", V2_MOUNT);
    build_group(folder.path(), &V2("sys/fs/cgroup/a", "104857600", "max", 10, 0));
    let cgroup = CgroupMemory::open(&Root::new(folder.path()));
    for (limit, usage) in [(100, 10), (50, 20), (200, 30)] {
        write(folder.path(), "sys/fs/cgroup/a/memory.max", &(limit * MIB).to_string());
        write(folder.path(), "sys/fs/cgroup/a/memory.current", &(usage * MIB).to_string());
        let sample = cgroup.sample();
        assert_eq!(sample.limit, Some(Bytes::mib(limit)));
        assert_eq!(
            (sample.used, sample.available),
            (Some(Bytes::mib(usage)), Some(Bytes::mib(limit - usage)))
        );
    }
}

#[test]
fn swap_limits() {
    swap_v2_rows().iter().chain(&swap_v1_rows()).for_each(check_swap);
}

#[test]
fn nested_groups_and_edges() {
    nested_rows().iter().chain(&edge_rows()).chain(&nested_v1_rows()).for_each(check);
}

/// Every path below a folder, with its text; a folder has none.
fn fingerprint(root: &Path) -> Vec<(String, Option<String>)> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let text =
                path.is_file().then(|| String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned());
            if text.is_none() {
                folders.push(path.clone());
            }
            found.push((path.strip_prefix(root).unwrap().display().to_string(), text));
        }
    }
    found.sort();
    found
}

/// The trees of all tables together: each is built, and no two are the same or have the same name.
#[test]
fn the_matrix_is_as_large_as_promised() {
    let built = |build: &dyn Fn(&Path)| {
        let folder = tempfile::tempdir().unwrap();
        build(folder.path());
        fingerprint(folder.path())
    };
    let tables =
        [v2_rows(), namespace_rows(), v1_rows(), fault_rows(), nested_rows(), edge_rows(), nested_v1_rows()];
    let mut trees: HashMap<_, &'static str> = HashMap::new();
    let mut names = HashSet::new();
    let mut add = |name: &'static str, tree| {
        assert!(names.insert(name), "two rows are called {name:?}");
        let same = trees.insert(tree, name);
        assert_eq!(same, None, "{name:?} is the same tree");
    };
    for row in tables.iter().flatten() {
        add(row.name, built(&|root| build(root, row)));
    }
    for row in swap_v2_rows().iter().chain(&swap_v1_rows()) {
        add(row.row.name, built(&|root| row.build(root)));
    }
    println!("{} trees, all of them different", trees.len());
    assert!(trees.len() >= 60, "{} trees", trees.len());
}

#[test]
fn another_process_has_its_own_group() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "proc/self/cgroup", "0::/a\n");
    write(folder.path(), "proc/7/cgroup", "0::/b\n");
    write(folder.path(), "proc/self/mountinfo", V2_MOUNT);
    build_group(folder.path(), &V2("sys/fs/cgroup/a", "104857600", "max", 10, 0));
    build_group(folder.path(), &V2("sys/fs/cgroup/b", "209715200", "max", 10, 0));
    let root = Root::new(folder.path());
    let limit = |process| CgroupMemory::open_for(&root, process).sample().limit;
    assert_eq!(limit(ProcessId::Own), Some(Bytes::mib(100)));
    assert_eq!(limit(ProcessId::Pid(7)), Some(Bytes::mib(200)));
    assert_eq!(limit(ProcessId::Pid(8)), None);
}

/// Membership, mounts, groups; how often the limit was reached, and how often a process was killed for it.
type EventRow<'a> = (&'a str, &'a str, &'a [Group], Option<(u64, u64)>);

#[test]
fn events_are_counted_in_both_generations() {
    let rows: [EventRow<'_>; 5] = [
        (
            "0::/a/b\n",
            V2_MOUNT,
            &[
                V2("sys/fs/cgroup/a/b", "max", "max", 1, 0),
                File("sys/fs/cgroup/a/b/memory.events", Some("max 3\noom_kill 1\n")),
            ],
            Some((3, 1)),
        ),
        (
            "0::/a/b\n",
            V2_MOUNT,
            &[
                V2("sys/fs/cgroup/a/b", "max", "max", 1, 0),
                V2("sys/fs/cgroup/a", "max", "max", 1, 0),
                File("sys/fs/cgroup/a/memory.events", Some("max 5\n")),
            ],
            Some((5, 0)),
        ),
        (
            "4:memory:/a\n",
            V1_MOUNT,
            &[
                V1("sys/fs/cgroup/memory/a", NO_LIMIT, 1, 0, NO_LIMIT),
                File("sys/fs/cgroup/memory/a/memory.failcnt", Some("7\n")),
                File("sys/fs/cgroup/memory/a/memory.memsw.failcnt", Some("2\n")),
                File(
                    "sys/fs/cgroup/memory/a/memory.oom_control",
                    Some("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
                ),
            ],
            Some((9, 2)),
        ),
        ("4:memory:/a\n", V1_MOUNT, &[V1("sys/fs/cgroup/memory/a", NO_LIMIT, 1, 0, NO_LIMIT)], None),
        ("", "", &[], None),
    ];
    for (number, (membership, mounts, groups, expected)) in rows.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "proc/self/cgroup", membership);
        write(folder.path(), "proc/self/mountinfo", mounts);
        groups.iter().for_each(|group| build_group(folder.path(), group));
        let counter = EventCounter::open(&CgroupMemory::open(&Root::new(folder.path())));
        let found = counter.map(|counter| counter.sample().unwrap());
        assert_eq!(found.as_ref().ok().map(|it| (it.max, it.oom_kill)), expected, "row {number}: {found:?}");
        assert!(expected.is_some() || matches!(found, Err(Error::NoEvents { .. })), "row {number}");
    }
}
