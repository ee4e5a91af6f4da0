//! Rows of the matrix of container limits that are about swap.

use super::*;

/// A v2 group's swap files: limit, and usage in MiB.
fn swap(root: &Path, folder: &str, limit: &str, usage: u64) {
    write(root, &format!("{folder}/memory.swap.max"), &format!("{limit}\n"));
    write(root, &format!("{folder}/memory.swap.current"), &format!("{}\n", usage * MIB));
}

/// A v1 group's files for memory and swap together.
fn memsw(root: &Path, folder: &str, limit: &str, usage: u64) {
    write(root, &format!("{folder}/memory.memsw.limit_in_bytes"), &format!("{limit}\n"));
    write(root, &format!("{folder}/memory.memsw.usage_in_bytes"), &format!("{}\n", usage * MIB));
}

/// What a swap row must find, in MiB: the least limit, and what the own group has swapped out.
type SwapExpected = (Option<u64>, Option<u64>);

/// Builds a tree, and compares what it says of swap; the limits of memory stay what they are without.
pub(super) fn check_swap(of: &SwapRow) {
    check(&of.row);
    let folder = tempfile::tempdir().unwrap();
    of.build(folder.path());
    let cgroup = CgroupMemory::open(&Root::new(folder.path()));
    let report = cgroup.report();
    let mib = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.0 / MIB);
    let used = report.levels.first().and_then(|level| level.figures.swap_used);
    assert_eq!((mib(report.swap_limit()), mib(used)), of.expected, "{}: {report:#?}", of.row.name);
    assert_eq!(report.skipped.len(), of.skipped, "{}: {report:#?}", of.row.name);
    assert_eq!(cgroup.sample(), report.summary(), "{}", of.row.name);
}

/// A row with its files for swap, and what must be found of it: the least limit and the usage, and how many things were
/// left out with a reason.
pub(super) struct SwapRow {
    pub(super) row: Row,
    files: Vec<(&'static str, &'static str, u64)>,
    write: fn(&Path, &str, &str, u64),
    expected: SwapExpected,
    skipped: usize,
}

pub(super) fn swap_v2_rows() -> Vec<SwapRow> {
    const APP: &str = "sys/fs/cgroup/app";
    let group = || V2(APP, "209715200", "max", 80, 30);
    let of = |name| row(name, "0::/app\n", V2_MOUNT, vec![group()], v2(1, Some(200), (200, 50, 150)));
    let rows: [(&'static str, &'static str, u64, SwapExpected, usize); 6] = [
        ("v2: a swap limit", "104857600", 10, (Some(100), Some(10)), 0),
        ("v2: swap switched off", "0", 0, (Some(0), Some(0)), 0),
        ("v2: swap without a limit", "max", 7, (None, Some(7)), 0),
        ("v2: more swapped out than is now allowed", "1048576", 9, (Some(1), Some(9)), 0),
        ("v2: a swap limit above all swap", "1125899906842624", 0, (Some(1 << 30), Some(0)), 0),
        ("v2: garbage for a swap limit", "lots", 3, (None, Some(3)), 1),
    ];
    let with = |(name, limit, usage, expected, skipped)| SwapRow {
        row: of(name),
        files: vec![(APP, limit, usage)],
        write: swap,
        expected,
        skipped,
    };
    let nested = row(
        "v2: the smaller swap limit is at the parent",
        "0::/a/b\n",
        V2_MOUNT,
        vec![V2("sys/fs/cgroup/a", "max", "max", 40, 0), V2("sys/fs/cgroup/a/b", "209715200", "max", 50, 0)],
        v2(2, Some(200), (200, 50, 150)),
    );
    let more = [
        SwapRow {
            row: row(
                "v2: a kernel without swap accounting",
                "0::/app\n",
                V2_MOUNT,
                vec![V2(APP, "209715200", "max", 70, 20)],
                v2(1, Some(200), (200, 50, 150)),
            ),
            files: Vec::new(),
            write: swap,
            expected: (None, None),
            skipped: 0,
        },
        SwapRow {
            row: nested,
            files: vec![("sys/fs/cgroup/a", "52428800", 20), ("sys/fs/cgroup/a/b", "104857600", 10)],
            write: swap,
            expected: (Some(50), Some(10)),
            skipped: 0,
        },
    ];
    rows.into_iter().map(with).chain(more).collect()
}

pub(super) fn swap_v1_rows() -> Vec<SwapRow> {
    const APP: &str = "sys/fs/cgroup/memory/app";
    let of = |name, limit, expected| {
        let groups =
            vec![V1(APP, limit, 80, 30, limit), V1("sys/fs/cgroup/memory", NO_LIMIT, 900, 0, NO_LIMIT)];
        row(name, "4:memory:/app\n", V1_MOUNT, groups, expected)
    };
    let limited = || v1(2, Some(200), (200, 50, 150));
    let rows: [(&'static str, &'static str, Expected, &'static str, u64, SwapExpected); 5] = [
        ("v1: memory and swap together", "209715200", limited(), "314572800", 95, (Some(100), Some(15))),
        ("v1: no room for swap", "209715200", limited(), "209715200", 80, (Some(0), Some(0))),
        (
            "v1: memory is limited, both together are not",
            "209715200",
            limited(),
            NO_LIMIT,
            90,
            (None, Some(10)),
        ),
        ("v1: neither is limited", NO_LIMIT, v1(2, None, HOST), NO_LIMIT, 80, (None, Some(0))),
        ("v1: the sum lags behind its part", "209715200", limited(), "314572800", 79, (Some(100), Some(0))),
    ];
    let with = |(name, limit, limits, both, usage, expected)| SwapRow {
        row: of(name, limit, limits),
        files: vec![(APP, both, usage)],
        write: memsw,
        expected,
        skipped: 0,
    };
    rows.into_iter().map(with).collect()
}

impl SwapRow {
    pub(super) fn build(&self, root: &Path) {
        build(root, &self.row);
        self.files.iter().for_each(|(folder, limit, usage)| (self.write)(root, folder, limit, *usage));
    }
}
