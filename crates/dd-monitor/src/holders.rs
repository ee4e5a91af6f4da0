//! [`largest_processes`]: who holds the machine's memory.

use std::fs;

use dd_core::Bytes;

use crate::process::{ProcessId, ProcessSampler};
use crate::root::Root;

/// A process and what it holds.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ProcessHolder {
    /// Its number.
    pub pid: u32,
    /// Its name, as `/proc/<pid>/comm` has it: at most 15 letters.
    pub name: String,
    /// Its resident memory, shared pages included.
    pub resident: Bytes,
}

/// The processes that hold the most resident memory, the largest first, at most `most`. Those that cannot be read (they
/// ended meanwhile, or belong to someone else) are left out, as are those without memory of their own.
#[must_use]
pub fn largest_processes(root: &Root, most: usize) -> Vec<ProcessHolder> {
    let Ok(entries) = fs::read_dir(root.join("/proc")) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut found: Vec<ProcessHolder> = names.filter_map(|name| holder(root, name.parse().ok()?)).collect();
    found.sort_by(|a, b| b.resident.cmp(&a.resident).then(a.pid.cmp(&b.pid)));
    found.truncate(most);
    found
}

fn holder(root: &Root, pid: u32) -> Option<ProcessHolder> {
    let resident = ProcessSampler::open(root, ProcessId::Pid(pid)).ok()?.sample().ok()?.resident;
    let name = root.read_text(&format!("/proc/{pid}/comm")).ok()?.trim().to_owned();
    (resident > Bytes::ZERO).then_some(ProcessHolder { pid, name, resident })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_come_first() {
        let folder = tempfile::tempdir().unwrap();
        let rows = [
            (7, "seven", "9 20"),
            (8, "eight", "9 50"),
            (9, "kernel", "0 0"),
            (10, "broken", "x"),
            (11, "equal", "9 20"),
        ];
        for (pid, name, statm) in rows {
            let process = folder.path().join(format!("proc/{pid}"));
            fs::create_dir_all(&process).unwrap();
            fs::write(process.join("statm"), statm).unwrap();
            fs::write(process.join("status"), "").unwrap();
            fs::write(process.join("comm"), format!("{name}\n")).unwrap();
        }
        fs::create_dir_all(folder.path().join("proc/self")).unwrap();
        let root = Root::new(folder.path());
        let names = |most| largest_processes(&root, most).into_iter().map(|it| it.name).collect::<Vec<_>>();
        assert_eq!(names(10), ["eight", "seven", "equal"]);
        assert_eq!(names(1), ["eight"]);
        assert!(largest_processes(&Root::new(folder.path().join("absent")), 5).is_empty());
    }
}
