//! Where things are, and how other programs are called: what every task needs.

use std::error::Error;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::{MetadataCommand, Package};

/// A task either does what it says or ends with a message for the person at the terminal.
pub(crate) type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// The workspace that the current directory is in.
pub(crate) struct Workspace {
    /// The directory of the root `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Where Cargo puts what it builds; `CARGO_TARGET_DIR` is respected.
    pub(crate) target: PathBuf,
    /// The workspace's own packages, with their declared dependencies.
    pub(crate) packages: Vec<Package>,
    /// The file that tests append their `skipped: …` lines to, through [`SKIP_LOG`].
    pub(crate) skip_log: PathBuf,
}

/// The environment variable that names the skip log.
pub(crate) const SKIP_LOG: &str = "DD_SKIP_LOG";

impl Workspace {
    /// Asks `cargo metadata`, without resolving dependencies: this needs no network.
    pub(crate) fn find() -> Result<Self> {
        let metadata = MetadataCommand::new().no_deps().exec()?;
        let target = metadata.target_directory.into_std_path_buf();
        Ok(Self {
            root: metadata.workspace_root.into_std_path_buf(),
            skip_log: target.join("skipped.log"),
            target,
            packages: metadata.packages,
        })
    }

    /// A target directory of its own within the target directory.
    pub(crate) fn target_named(&self, name: &str) -> Result<String> {
        let path = self.target.join(name).into_os_string().into_string();
        path.map_err(|path| format!("{} is not UTF-8", path.display()).into())
    }

    /// Runs a built program in the root, its output going to the terminal.
    pub(crate) fn run(&self, program: &Path) -> Result<()> {
        println!("$ {}", program.display());
        succeed(Command::new(program).env(SKIP_LOG, &self.skip_log).current_dir(&self.root))
    }

    /// Runs Cargo in the root, its output going to the terminal.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Result<()> {
        self.cargo_with(&[], arguments)
    }

    /// Runs Cargo with further environment variables.
    pub(crate) fn cargo_with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Result<()> {
        let shown: Vec<String> = variables.iter().map(|(name, value)| format!("{name}='{value}'")).collect();
        println!("$ {}", [&shown.join(" "), "cargo", &arguments.join(" ")].join(" ").trim_start());
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(arguments).envs(variables.iter().copied()).env(SKIP_LOG, &self.skip_log);
        // Making a backtrace reads megabytes of debug information into the heap, which tests that count memory would see.
        command.env("RUST_BACKTRACE", "0");
        succeed(command.current_dir(&self.root))
    }
}

/// Runs a command to its end; anything but success is an error that names it.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let name = Path::new(command.get_program()).file_name().unwrap_or(OsStr::new("?")).display().to_string();
    let status = command.status().map_err(|error| format!("cannot start `{name}`: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{name}` ended with {status}").into()) }
}
