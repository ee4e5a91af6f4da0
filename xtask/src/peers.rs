//! The Python environments of those that we compare with, and of those that must read what we write.
//!
//! | environment | made by | holds |
//! |---|---|---|
//! | `target/peers` | `cargo xtask bench --peers` | accelerate and infinite-tensor with torch, tensorstore, zarr: for the suites |
//! | `target/peers-light` | the same, where only `monitor` and `scale` are named | psutil and deep-dimensions |
//! | `target/peers-zarr` | `cargo xtask peers` | zarr and tensorstore: for the tests of what other programs read |
//!
//! The wheel of torch that the package index has for Linux is a CUDA build: its libraries are linked to NVIDIA's, and without
//! them `import torch` fails, on machines without a GPU too. So those that are linked are fetched with it (4 GB once installed), and
//! what is not linked (the compiler of GPU kernels, the solvers) is left out. Nobody fetches this unasked.
//!
//! The suites [`LIGHT`] compare with small packages only: asked for alone, they get an environment of a few megabytes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::workspace::{Result, Workspace, succeed};

/// An environment: what is in it, and what must work before it counts as there.
struct Environment {
    /// Its folder in the target directory.
    name: &'static str,
    /// What a person should know before it is fetched.
    size: &'static str,
    /// Installed as they are, without what they ask for.
    alone: &'static [&'static str],
    /// Installed with what they ask for.
    with_dependencies: &'static [&'static str],
    /// A Python program.
    proof: &'static str,
}

/// For the suites of benches/.
const SUITES: Environment = Environment {
    name: "peers",
    size: "4 GB",
    alone: &[
        "torch==2.13.0",
        "nvidia-cudnn-cu13==9.20.0.48",
        "nvidia-cusparselt-cu13==0.8.1",
        "nvidia-nccl-cu13==2.29.7",
        "nvidia-nvshmem-cu13==3.4.5",
        "accelerate==1.15.0",
        "deep-dimensions==0.2.4",
        "infinite-tensor==0.4.0",
        "transformers==5.23.0",
    ],
    with_dependencies: &[
        "cuda-toolkit[cublas,cudart,cufft,cufile,cupti,curand,cusparse,nvjitlink,nvrtc,nvtx]==13.0.3",
        "filelock",
        "fsspec",
        "huggingface-hub",
        "jinja2",
        "networkx",
        "numpy",
        "packaging",
        "psutil",
        "pyyaml",
        "regex",
        "requests",
        "safetensors",
        "sympy",
        "tensorstore==0.1.86",
        "tokenizers",
        "tqdm",
        "typing-extensions",
        "zarr==3.1.6",
    ],
    proof: "import torch, accelerate, transformers; assert torch.ones(2).sum() == 2; \
            print('torch', torch.__version__, 'accelerate', accelerate.__version__); \
            import infinite_tensor, tensorstore, zarr; \
            print('infinite-tensor', infinite_tensor.__version__, 'zarr', zarr.__version__)",
};

/// The suites whose peers need no tensor library.
const LIGHT_SUITES: &[&str] = &["monitor", "scale"];

/// For those suites alone; one of the packages names torch without a use of it here.
const LIGHT: Environment = Environment {
    name: "peers-light",
    size: "10 MB",
    alone: &["deep-dimensions==0.2.4", "psutil"],
    with_dependencies: &[],
    proof: "import sys, types; sys.modules['torch'] = types.ModuleType('torch'); \
            import deep_dimensions, psutil; print('psutil', psutil.__version__)",
};

/// For the tests that read our stores with other programs.
const READERS: Environment = Environment {
    name: "peers-zarr",
    size: "200 MB",
    alone: &[],
    with_dependencies: &["tensorstore==0.1.86", "zarr==3.1.6"],
    proof: "import tensorstore, zarr; print('zarr', zarr.__version__)",
};

/// The interpreter of the environment that these suites need, which is made unless it is there already; without a name it
/// is all of them.
pub(crate) fn python(workspace: &Workspace, suites: &[String]) -> Result<PathBuf> {
    Environment::of(suites).python(workspace)
}

/// Makes the readers' environment unless it is there already. The tests find it by its place.
pub(crate) fn readers(workspace: &Workspace) -> Result<()> {
    let python = READERS.python(workspace)?;
    println!("the tests of what other programs read will use {}", python.display());
    Ok(())
}

impl Environment {
    fn of(suites: &[String]) -> &'static Self {
        let light = !suites.is_empty() && suites.iter().all(|suite| LIGHT_SUITES.contains(&suite.as_str()));
        if light { &LIGHT } else { &SUITES }
    }

    fn python(&self, workspace: &Workspace) -> Result<PathBuf> {
        let place = workspace.target.join(self.name);
        let (python, ready) = (place.join("bin/python"), place.join("ready"));
        if fs::read_to_string(&ready).is_ok_and(|found| found == self.pins()) {
            return Ok(python);
        }
        println!("making a Python environment in {}: about {}", place.display(), self.size);
        if place.exists() {
            fs::remove_dir_all(&place)?;
        }
        self.make(&place, &python).map_err(|error| {
            format!("the peers cannot be had: {error}; `python3 -m venv` and pip must work here")
        })?;
        fs::write(ready, self.pins())?;
        Ok(python)
    }

    fn make(&self, place: &Path, python: &Path) -> Result<()> {
        succeed(Command::new("python3").args(["-m", "venv"]).arg(place))?;
        let quietly = ["--disable-pip-version-check", "--quiet", "--retries", "2", "--only-binary", ":all:"];
        let pip = || {
            let mut pip = Command::new(python);
            pip.args(["-m", "pip", "install"]).args(quietly);
            pip
        };
        if !self.alone.is_empty() {
            succeed(pip().arg("--no-deps").args(self.alone))?;
        }
        if !self.with_dependencies.is_empty() {
            succeed(pip().args(self.with_dependencies))?;
        }
        succeed(Command::new(python).args(["-c", self.proof]))
    }

    /// What was asked for: an environment made for another list is made anew.
    fn pins(&self) -> String {
        [self.alone, self.with_dependencies].concat().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_suites_alone_get_the_small_environment() {
        let rows: [(&[&str], &str); 5] = [
            (&[], "peers"),
            (&["monitor"], "peers-light"),
            (&["scale", "monitor"], "peers-light"),
            (&["scale", "paging"], "peers"),
            (&["paging"], "peers"),
        ];
        for (suites, expected) in rows {
            let suites: Vec<String> = suites.iter().map(ToString::to_string).collect();
            assert_eq!(Environment::of(&suites).name, expected, "{suites:?}");
        }
        assert_ne!(SUITES.pins(), LIGHT.pins());
    }
}
