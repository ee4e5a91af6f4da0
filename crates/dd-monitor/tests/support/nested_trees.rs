//! More rows of the matrix of container limits: groups within groups, and files at the edge of what they may say.

use super::*;

/// Groups as they are nested in practice.
pub(super) fn nested_rows() -> Vec<Row> {
    const POD: &str = "sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/pod1.slice/main.scope";
    vec![
        row(
            "v2: a pod: the limit is two levels above the container, and slices have none",
            "0::/kubepods.slice/kubepods-burstable.slice/pod1.slice/main.scope\n",
            V2_MOUNT,
            vec![
                V2("sys/fs/cgroup/kubepods.slice", "max", "max", 500, 0),
                V2("sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice", "max", "max", 400, 0),
                V2(
                    "sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/pod1.slice",
                    "314572800",
                    "max",
                    120,
                    20,
                ),
                V2(POD, "max", "max", 100, 20),
            ],
            v2(4, Some(300), (300, 100, 200)),
        ),
        row(
            "v2: every level has the same limit: the highest one's usage counts",
            "0::/a/b\n",
            V2_MOUNT,
            vec![
                V2("sys/fs/cgroup/a", "209715200", "max", 150, 0),
                V2("sys/fs/cgroup/a/b", "209715200", "max", 50, 0),
            ],
            v2(2, Some(200), (200, 150, 50)),
        ),
        row(
            "v2: a limit exactly the machine's memory",
            "0::/app\n",
            V2_MOUNT,
            vec![V2("sys/fs/cgroup/app", "1048576000", "max", 80, 30)],
            v2(1, Some(1000), (1000, 400, 600)),
        ),
        row(
            "v2: a limit of one page",
            "0::/app\n",
            V2_MOUNT,
            vec![V2("sys/fs/cgroup/app", "4096", "max", 0, 0)],
            v2(1, Some(0), (0, 0, 0)),
        ),
    ]
}

/// Limits at the edges of what a limit may be.
pub(super) fn edge_rows() -> Vec<Row> {
    vec![
        row(
            "v2: a soft limit alone",
            "0::/app\n",
            V2_MOUNT,
            vec![V2("sys/fs/cgroup/app", "max", "104857600", 80, 30)],
            Expected { soft_limit: Some(100), ..v2(1, None, HOST) },
        ),
        row(
            "v2: a soft limit above the hard one",
            "0::/app\n",
            V2_MOUNT,
            vec![V2("sys/fs/cgroup/app", "104857600", "209715200", 10, 0)],
            Expected { soft_limit: Some(200), ..v2(1, Some(100), (100, 10, 90)) },
        ),
        row(
            "v2: everything used is page cache",
            "0::/app\n",
            V2_MOUNT,
            vec![V2("sys/fs/cgroup/app", "104857600", "max", 100, 100)],
            v2(1, Some(100), (100, 0, 100)),
        ),
        row(
            "v2: a limit that only just is one: above it the number would mean none",
            "0::/app\n",
            V2_MOUNT,
            vec![V2("sys/fs/cgroup/app", "9223372036853727231", "max", 80, 30)],
            v2(1, Some(8_796_093_022_206), HOST),
        ),
        row(
            "v2: a number in place of max",
            "0::/app\n",
            V2_MOUNT,
            vec![V2("sys/fs/cgroup/app", "9223372036854771712", "18446744073709551615", 80, 30)],
            v2(1, None, HOST),
        ),
        row(
            "v2: ten levels, one limit",
            "0::/a/b/c/d/e/f/g/h/i/j\n",
            V2_MOUNT,
            vec![
                V2("sys/fs/cgroup/a/b/c/d/e", "209715200", "max", 80, 30),
                V2("sys/fs/cgroup/a/b/c/d/e/f/g/h/i/j", "max", "max", 10, 0),
                V2("sys/fs/cgroup/a", "max", "max", 90, 0),
            ],
            Expected { skipped: 28, ..v2(3, Some(200), (200, 50, 150)) },
        ),
    ]
}

/// The same of v1 and of both generations at once, and what cannot be read there.
pub(super) fn nested_v1_rows() -> Vec<Row> {
    vec![
        row(
            "v1: ten levels below one limit that only the statistics know",
            "4:memory:/a/b\n",
            "35 31 0:32 /a /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
            vec![
                V1("sys/fs/cgroup/memory", NO_LIMIT, 400, 0, "524288000"),
                V1("sys/fs/cgroup/memory/b", NO_LIMIT, 80, 30, "524288000"),
            ],
            v1(2, Some(500), (500, 400, 100)),
        ),
        row(
            "v1: a limit of zero",
            "4:memory:/app\n",
            V1_MOUNT,
            vec![
                V1("sys/fs/cgroup/memory/app", "0", 0, 0, "0"),
                V1("sys/fs/cgroup/memory", NO_LIMIT, 900, 0, NO_LIMIT),
            ],
            v1(2, Some(0), (0, 0, 0)),
        ),
        row(
            "v1: a limit above the machine's memory",
            "4:memory:/app\n",
            V1_MOUNT,
            vec![
                V1("sys/fs/cgroup/memory/app", "1099511627776", 80, 30, "1099511627776"),
                V1("sys/fs/cgroup/memory", NO_LIMIT, 900, 0, NO_LIMIT),
            ],
            v1(2, Some(1 << 20), HOST),
        ),
        row(
            "hybrid: both generations have the folder, v1 has the controller",
            "4:memory:/app\n0::/app\n",
            HYBRID,
            vec![
                V1("sys/fs/cgroup/memory/app", "209715200", 80, 30, "209715200"),
                V1("sys/fs/cgroup/memory", NO_LIMIT, 900, 0, NO_LIMIT),
                V2("sys/fs/cgroup/unified/app", "max", "max", 1, 0),
            ],
            v1(2, Some(200), (200, 50, 150)),
        ),
        row(
            "hybrid: the memory controller shares a v1 hierarchy with others",
            "4:cpu,cpuacct,memory:/app\n0::/\n",
            "35 31 0:32 / /sys/fs/cgroup/all rw - cgroup cgroup rw,cpu,cpuacct,memory\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            vec![
                V1("sys/fs/cgroup/all/app", "209715200", 80, 30, "209715200"),
                V1("sys/fs/cgroup/all", NO_LIMIT, 900, 0, NO_LIMIT),
            ],
            v1(2, Some(200), (200, 50, 150)),
        ),
        row(
            "v2: the limit file is empty",
            "0::/a/b\n",
            V2_MOUNT,
            vec![
                V2("sys/fs/cgroup/a", "209715200", "max", 80, 30),
                V2("sys/fs/cgroup/a/b", "", "max", 10, 0),
            ],
            Expected { skipped: 1, ..v2(2, Some(200), (200, 50, 150)) },
        ),
        row(
            "v2: all files of the own group are folders",
            "0::/a/b\n",
            V2_MOUNT,
            vec![
                V2("sys/fs/cgroup/a", "209715200", "max", 80, 30),
                File("sys/fs/cgroup/a/b/memory.max", None),
                File("sys/fs/cgroup/a/b/memory.high", None),
                File("sys/fs/cgroup/a/b/memory.current", None),
                File("sys/fs/cgroup/a/b/memory.stat", None),
            ],
            Expected { skipped: 4, ..v2(2, Some(200), (200, 50, 150)) },
        ),
        row(
            "v1: the limit cannot be read, the statistics know it",
            "4:memory:/app\n",
            V1_MOUNT,
            vec![
                V1("sys/fs/cgroup/memory/app", "1", 80, 30, "209715200"),
                File("sys/fs/cgroup/memory/app/memory.limit_in_bytes", None),
                V1("sys/fs/cgroup/memory", NO_LIMIT, 900, 0, NO_LIMIT),
            ],
            Expected { skipped: 1, ..v1(2, Some(200), (200, 50, 150)) },
        ),
    ]
}
