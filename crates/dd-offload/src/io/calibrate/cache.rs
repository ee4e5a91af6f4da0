//! The file that remembers calibrations: small JSON, replaced as a whole, trusted only after checks.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Table;

const LARGEST: u64 = 1 << 20;
const LIFETIME: u64 = 30 * 24 * 3600; // Seconds. Disks change under a device number; monthly is often enough to see it.

#[derive(Default, Serialize, Deserialize)]
struct Cache {
    entries: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    measured_at: u64, // Seconds since 1970.
    table: Table,
}

/// What is remembered under `key`, if it is there, young enough and possible.
pub(super) fn load(path: &Path, key: &str) -> Option<Table> {
    let entry = read(path).entries.remove(key)?;
    let is_fresh = now().checked_sub(entry.measured_at).is_some_and(|age| age <= LIFETIME);
    (is_fresh && is_possible(&entry.table)).then_some(entry.table)
}

/// Remembers `table` under `key`; what is too old goes.
pub(super) fn store(path: &Path, key: &str, table: &Table) {
    let mut cache = read(path);
    cache.entries.retain(|_, entry| now().saturating_sub(entry.measured_at) <= LIFETIME);
    cache.entries.insert(key.to_owned(), Entry { measured_at: now(), table: table.clone() });
    if let Err(error) = replace(path, &cache) {
        tracing::warn!(%error, path = %path.display(), "the calibration is not remembered");
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Whether a calibration could have written this.
fn is_possible(table: &Table) -> bool {
    !table.trials.is_empty()
        && table.trials.iter().all(|trial| trial.geometry.validate().is_ok() && trial.bandwidth > 0)
}

/// The cache, or an empty one where there is none or it is not one.
fn read(path: &Path) -> Cache {
    match try_read(path) {
        Ok(cache) => cache,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Cache::default(),
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "the remembered calibrations cannot be used");
            Cache::default()
        }
    }
}

fn try_read(path: &Path) -> io::Result<Cache> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut text = Vec::new();
    File::open(path)?.take(LARGEST).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Writes the cache beside its place and moves it there, so that a reader sees the old one or the new one.
fn replace(path: &Path, cache: &Cache) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let beside = path.with_extension(format!("{}-{}", std::process::id(), now()));
    let written = write(&beside, cache).and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        let _gone_or_never_there = std::fs::remove_file(&beside);
    }
    written
}

fn write(path: &Path, cache: &Cache) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(cache)?;
    OpenOptions::new().write(true).create_new(true).open(path)?.write_all(&text)
}

#[cfg(test)]
mod tests {
    use dd_core::Bytes;

    use super::*;
    use crate::io::calibrate::Trial;
    use crate::io::{EngineKind, Geometry};

    fn table(bandwidth: u64) -> Table {
        let trials = vec![Trial { geometry: Geometry::default(), bandwidth }];
        Table { engine: EngineKind::Threads, memory_limit: Bytes::mib(16), trials }
    }

    #[test]
    fn what_is_stored_is_loaded_by_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new").join("io.json");
        assert_eq!(load(&path, "1:threads"), None);
        store(&path, "1:threads", &table(100));
        store(&path, "2:threads", &table(200));
        store(&path, "1:threads", &table(300));
        assert_eq!(load(&path, "1:threads"), Some(table(300)));
        assert_eq!(load(&path, "2:threads"), Some(table(200)));
        assert_eq!(load(&path, "1:io_uring"), None);
        let files = std::fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(files, 1, "nothing else is left behind");
    }

    #[test]
    fn what_cannot_be_used_is_ignored_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("io.json");
        let entry = |at: u64, table: Table| {
            let entries = BTreeMap::from([("1:threads".to_owned(), Entry { measured_at: at, table })]);
            serde_json::to_string(&Cache { entries }).unwrap()
        };
        let whole = entry(now(), table(1));
        let mut odd = table(1);
        odd.trials[0].geometry.block = 17;
        let rows = [
            String::new(),
            "null".to_owned(),
            whole[..whole.len() / 2].to_owned(),
            "[".repeat(5000),
            entry(now() - LIFETIME - 10, table(1)),
            entry(now() + 1000, table(1)),
            entry(now(), table(0)),
            entry(now(), Table { trials: Vec::new(), ..table(1) }),
            entry(now(), odd),
        ];
        for text in rows {
            std::fs::write(&path, &text).unwrap();
            assert_eq!(load(&path, "1:threads"), None, "{text}");
            store(&path, "1:threads", &table(5));
            assert_eq!(load(&path, "1:threads"), Some(table(5)), "{text}");
        }
    }

    #[test]
    fn a_place_that_cannot_be_written_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        store(folder.path(), "1:threads", &table(1)); // A folder where the file should be.
        assert_eq!(load(folder.path(), "1:threads"), None);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(folder.path().is_dir());
    }
}
