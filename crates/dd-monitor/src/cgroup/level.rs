//! [`Level`]: the open files of one control group.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use dd_core::Bytes;

use super::locate::Found;
use super::{CgroupFigures, CgroupLevel, CgroupVersion};
use crate::error::Skipped;
use crate::kept::{Buffer, KeptFile, buffer};
use crate::text;

/// v1 says "no limit" as the largest multiple of the page size that 63 bits hold (9223372036854771712 with pages of
/// 4 KiB), older kernels as the largest number itself; pages have at most 1 MiB.
const NO_LIMIT: u64 = (1 << 63) - (1 << 20);

/// What the files and their fields are called.
struct Names {
    limit: &'static str,
    soft_limit: Option<&'static str>,
    usage: &'static str,
    reclaimable: &'static str,
    inherited: Option<&'static str>,
    /// Limit and usage of swap; in v1 of memory and swap together. Kernels without swap accounting have neither.
    swap: [&'static str; 2],
}

const V1: Names = Names {
    limit: "memory.limit_in_bytes",
    soft_limit: None,
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
    inherited: Some("hierarchical_memory_limit"),
    swap: ["memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes"],
};

const V2: Names = Names {
    limit: "memory.max",
    soft_limit: Some("memory.high"),
    usage: "memory.current",
    reclaimable: "inactive_file",
    inherited: None,
    swap: ["memory.swap.max", "memory.swap.current"],
};

/// The open files of one group; one that could not be opened is not there.
#[derive(Debug)]
pub(super) struct Level {
    path: PathBuf,
    version: CgroupVersion,
    limit: Option<KeptFile>,
    soft_limit: Option<KeptFile>,
    usage: Option<KeptFile>,
    stat: Option<KeptFile>,
    swap: [Option<KeptFile>; 2],
}

/// Opens the groups from the process's own upwards, as far as they bind the process.
pub(super) fn open_all(found: &Found, skipped: &mut Vec<Skipped>) -> Vec<Level> {
    let mut levels = Vec::new();
    for (number, folder) in found.folders.iter().enumerate() {
        let is_top = number + 1 == found.folders.len();
        if number > 0 && !binds_children(folder) {
            skipped.push(Skipped::new(
                folder,
                "memory.use_hierarchy is 0: it does not limit the groups below it",
            ));
            break;
        }
        levels.extend(Level::open(folder, found.version, is_top, skipped));
    }
    levels
}

/// Whether a group's limit counts for the groups below it: always, but for v1 where it was switched off.
fn binds_children(folder: &Path) -> bool {
    let Ok(file) = KeptFile::open_path(folder.join("memory.use_hierarchy")) else { return true };
    file.read(&mut buffer()).ok().and_then(text::number) != Some(0)
}

impl Level {
    /// Opens what is there. The top of a v2 hierarchy has no limits by design; that needs no remark.
    fn open(folder: &Path, version: CgroupVersion, is_top: bool, skipped: &mut Vec<Skipped>) -> Option<Self> {
        let names = names(version);
        if !folder.is_dir() {
            skipped.push(Skipped::new(folder, "there is no such group in the mounted hierarchy"));
            return None;
        }
        if is_top && version == CgroupVersion::V2 && !folder.join(names.limit).exists() {
            return None;
        }
        let mut open = |name: &str| {
            let path = folder.join(name);
            KeptFile::open_path(path.clone()).map_err(|error| skipped.push(Skipped::new(path, error))).ok()
        };
        let level = Self {
            path: folder.to_owned(),
            version,
            limit: open(names.limit),
            soft_limit: names.soft_limit.and_then(&mut open),
            usage: open(names.usage),
            stat: open("memory.stat"),
            swap: names.swap.map(|name| KeptFile::open_path(folder.join(name)).ok()),
        };
        level.has_files().then_some(level)
    }

    const fn has_files(&self) -> bool {
        self.limit.is_some() || self.soft_limit.is_some() || self.usage.is_some() || self.stat.is_some()
    }

    /// Reads what a limit depends on, and says whether the kernel knows of no limit here or above. A v2 group without a
    /// limit costs no more than that; nor does a v1 group between the two ends: what it inherits, an end knows better.
    pub(super) fn sample(&self, is_end: bool) -> (CgroupFigures, bool) {
        let limits = self.limits(&mut |_, _| {});
        let inherits = is_end && names(self.version).inherited.is_some();
        if limits.limit.is_none() && !inherits {
            return (limits, false);
        }
        let (figures, inherited) = self.usage(limits, &mut |_, _| {});
        let is_unlimited = figures.limit.is_none() && inherited.is_some_and(|limit| limit >= NO_LIMIT);
        (figures, is_unlimited)
    }

    /// Reads everything, with the reason for what cannot be read.
    pub(super) fn report(&self, skipped: &mut Vec<Skipped>) -> CgroupLevel {
        let mut on_fault = |file: &KeptFile, fault: Fault| skipped.push(Skipped::new(file.path(), fault));
        let limits = self.limits(&mut on_fault);
        let (figures, _) = self.usage(limits, &mut on_fault);
        CgroupLevel { path: self.path.clone(), figures: self.swap(figures, &mut on_fault) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds what is swapped out, and may be.
    fn swap(&self, figures: CgroupFigures, on_fault: &mut OnFault<'_>) -> CgroupFigures {
        let [most, taken] = &self.swap;
        let most = ask(most.as_ref(), &mut buffer(), on_fault, limit).flatten();
        let taken = ask(taken.as_ref(), &mut buffer(), on_fault, bytes);
        match self.version {
            CgroupVersion::V2 => CgroupFigures { swap_limit: most, swap_used: taken, ..figures },
            CgroupVersion::V1 => {
                let beyond = |memory: Option<Bytes>| move |both: Bytes| Some(both.saturating_sub(memory?));
                let swap_limit = most.and_then(beyond(figures.limit));
                CgroupFigures { swap_limit, swap_used: taken.and_then(beyond(figures.usage)), ..figures }
            }
        }
    }

    fn limits(&self, on_fault: &mut OnFault<'_>) -> CgroupFigures {
        let mut ask = |file: &Option<KeptFile>| ask(file.as_ref(), &mut buffer(), on_fault, limit).flatten();
        CgroupFigures {
            limit: ask(&self.limit),
            soft_limit: ask(&self.soft_limit),
            ..CgroupFigures::default()
        }
    }

    /// Adds usage and statistics; also gives the inherited limit as the kernel writes it.
    fn usage(&self, limits: CgroupFigures, on_fault: &mut OnFault<'_>) -> (CgroupFigures, Option<u64>) {
        let names = names(self.version);
        let mut buffer = buffer();
        let usage = ask(self.usage.as_ref(), &mut buffer, on_fault, bytes);
        let mut inherited = None;
        let reclaimable = ask(self.stat.as_ref(), &mut buffer, on_fault, |text| {
            inherited = names.inherited.and_then(|field| text::field(text, field));
            text::field(text, names.reclaimable).map(Bytes).ok_or(Fault::Malformed(names.reclaimable))
        });
        let inherited_limit = inherited.filter(|bytes| *bytes < NO_LIMIT).map(Bytes);
        (CgroupFigures { usage, reclaimable, inherited_limit, ..limits }, inherited)
    }
}

const fn names(version: CgroupVersion) -> &'static Names {
    match version {
        CgroupVersion::V1 => &V1,
        CgroupVersion::V2 => &V2,
    }
}

/// Why a file gave no figure.
enum Fault {
    Io(io::Error),
    Malformed(&'static str),
}

type OnFault<'a> = dyn FnMut(&KeptFile, Fault) + 'a;

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Malformed(expected) => write!(f, "expected {expected}, found something else"),
        }
    }
}

/// Reads a file and parses it; a fault is told, and is no figure.
fn ask<T>(
    file: Option<&KeptFile>,
    buffer: &mut Buffer,
    on_fault: &mut OnFault<'_>,
    parse: impl FnOnce(&[u8]) -> Result<T, Fault>,
) -> Option<T> {
    let file = file?;
    match file.read(buffer).map_err(Fault::Io).and_then(parse) {
        Ok(figure) => Some(figure),
        Err(fault) => {
            on_fault(file, fault);
            None
        }
    }
}

fn bytes(text: &[u8]) -> Result<Bytes, Fault> {
    text::number(text).map(Bytes).ok_or(Fault::Malformed("a number of bytes"))
}

/// A limit, or none where the text says so.
fn limit(text: &[u8]) -> Result<Option<Bytes>, Fault> {
    if text.trim_ascii() == b"max" {
        return Ok(None);
    }
    let bytes = text::number(text).ok_or(Fault::Malformed("a number of bytes or `max`"))?;
    Ok((bytes < NO_LIMIT).then_some(Bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn limits() {
        let rows = [
            ("max\n", Some(None)),
            ("1048576\n", Some(Some(1 << 20))),
            ("0\n", Some(Some(0))),
            ("9223372036854771712\n", Some(None)),
            ("9223372036854710272\n", Some(None)),
            ("9223372036854775807\n", Some(None)),
            ("18446744073709551615\n", Some(None)),
            ("1099511627776\n", Some(Some(1 << 40))),
            ("-1\n", None),
            ("", None),
            ("18446744073709551616\n", None),
        ];
        for (text, expected) in rows {
            let expected = expected.map(|limit| limit.map(Bytes));
            assert_eq!(limit(text.as_bytes()).ok(), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _limit = limit(&text);
        }
    }
}
