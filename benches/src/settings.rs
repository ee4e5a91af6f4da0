//! How large, how often, where: from the environment, with defaults that take a minute or two.
//!
//! | variable | what it sets | default |
//! |---|---|---|
//! | `DD_BENCH_SIZE` | bytes of the model or file that streams, as `2GiB` | 512 MiB; `paging` 1.2 GiB |
//! | `DD_BENCH_WIDTH` | width of that model; its blocks take 48 B times the square of it | 512: 43 blocks of 12 MiB |
//! | `DD_BENCH_ROUNDS` | rounds in which the contestants take turns, at least 10, in `paging` 3 | 20 |
//! | `DD_BENCH_DIR` | a folder on the disk to be measured | Cargo's temporary folder in `target` |
//! | `DD_BENCH_BLOCK` | prompts that `paging` runs as a block | 64 |
//! | `DD_BENCH_ONLY` | contestants that take part in `paging`, as `in_memory,paged` | all of them |
//! | `DD_BENCH_PEERS` | the Python that has the peers; `cargo xtask bench --peers` sets it | `paging`, `feed`: none; `monitor` and `scale`: `python3`, where it has them |
//! | `DD_BENCH_JSON` | where it is set, `paging` prints JSON after its table; `cargo xtask bench --json` sets it | |
//!
//! With `--test` (as `cargo test --benches` runs a suite too) everything is small and runs once: that shows that a suite
//! works, and measures nothing.

use std::path::PathBuf;

use criterion::Criterion;
use deep_dimensions::core::Bytes;
use tempfile::TempDir;

use crate::Result;

/// The fewest samples that criterion takes.
pub(crate) const FEWEST: usize = 10;

/// How a suite is to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bytes of the model or file.
    pub size: Bytes,
    /// Width of the model.
    pub width: usize,
    /// Rounds.
    pub rounds: usize,
    /// Whether only to show that the suite works.
    pub quick: bool,
    folder: PathBuf,
}

impl Settings {
    /// Reads the environment and the command line. `folder` is used unless `DD_BENCH_DIR` names another.
    ///
    /// # Errors
    /// A size or a number that is none.
    pub fn read(folder: &str) -> Result<Self> {
        Self::of_size(folder, Bytes::mib(512), Bytes::mib(8), FEWEST)
    }

    /// As [`read`](Self::read), with other sizes where none is set: to measure, and at most to show that the suite works; and
    /// with fewer rounds where that is asked for.
    ///
    /// # Errors
    /// A size or a number that is none.
    pub fn of_size(folder: &str, measured: Bytes, quick_size: Bytes, fewest: usize) -> Result<Self> {
        let quick = is_quick(std::env::args().skip(1));
        let size = std::env::var("DD_BENCH_SIZE").map_or(Ok(measured), |size| size.parse())?;
        let rounds = std::env::var("DD_BENCH_ROUNDS").map_or(Ok(20), |rounds| rounds.parse())?;
        let width = std::env::var("DD_BENCH_WIDTH").map_or(Ok(512), |width| width.parse())?;
        Ok(Self {
            width: if quick { 256 } else { width },
            size: if quick { size.min(quick_size) } else { size },
            rounds: if quick { 1 } else { rounds.max(fewest) },
            quick,
            folder: std::env::var_os("DD_BENCH_DIR").map_or_else(|| folder.into(), PathBuf::from),
        })
    }

    /// A folder of its own on the disk to be measured; it goes when this is dropped.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn scratch(&self) -> Result<TempDir> {
        std::fs::create_dir_all(&self.folder)?;
        Ok(tempfile::Builder::new().prefix("dd-bench-").tempdir_in(&self.folder)?)
    }

    /// Criterion, set to take as many samples as there are rounds.
    #[must_use]
    pub fn criterion(&self) -> Criterion {
        Criterion::default().sample_size(self.rounds.max(FEWEST)).without_plots().configure_from_args()
    }
}

/// Whether criterion will only test: as it decides itself.
fn is_quick(mut arguments: impl Iterator<Item = String>) -> bool {
    let mut bench = false;
    let test = arguments.any(|argument| {
        bench |= argument == "--bench";
        argument == "--test"
    });
    test || !bench
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cargo_bench_measures() {
        let rows: [(&[&str], bool); 5] = [
            (&["--bench"], false),
            (&["streaming", "--bench"], false),
            (&["--bench", "--test"], true),
            (&["--test", "--bench"], true),
            (&[], true),
        ];
        for (arguments, quick) in rows {
            assert_eq!(is_quick(arguments.iter().map(|&a| a.to_owned())), quick, "{arguments:?}");
        }
    }
}
