//! `cargo xtask bench --peers`: a Python of its own that has accelerate, for the suites that compare with it.
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

/// The suites whose peers need no tensor library, and those peers (one names torch without a use of it here).
const LIGHT: &[&str] = &["monitor", "scale"];
const LIGHT_ALONE: &[&str] = &["deep-dimensions==0.2.4", "psutil"];
const LIGHT_PROOF: &str = "import sys, types; sys.modules['torch'] = types.ModuleType('torch'); \
                           import deep_dimensions, psutil; print('psutil', psutil.__version__)";

/// Installed as they are, without what they ask for.
const ALONE: &[&str] = &[
    "torch==2.13.0",
    "nvidia-cudnn-cu13==9.20.0.48",
    "nvidia-cusparselt-cu13==0.8.1",
    "nvidia-nccl-cu13==2.29.7",
    "nvidia-nvshmem-cu13==3.4.5",
    "accelerate==1.15.0",
    "transformers==5.23.0",
    "deep-dimensions==0.2.4",
];

/// Installed with what they ask for.
const WITH_DEPENDENCIES: &[&str] = &[
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
    "tokenizers",
    "tqdm",
    "typing-extensions",
];

/// What must work before the environment counts as there.
const PROOF: &str = "import torch, accelerate, transformers; assert torch.ones(2).sum() == 2; \
                     print('torch', torch.__version__, 'accelerate', accelerate.__version__)";

/// What an environment is made of.
struct Peers {
    folder: &'static str,
    size: &'static str,
    alone: &'static [&'static str],
    with_dependencies: &'static [&'static str],
    proof: &'static str,
}

const ALL: Peers =
    Peers { folder: "peers", size: "4 GB", alone: ALONE, with_dependencies: WITH_DEPENDENCIES, proof: PROOF };
const FEW: Peers = Peers {
    folder: "peers-light",
    size: "10 MB",
    alone: LIGHT_ALONE,
    with_dependencies: &[],
    proof: LIGHT_PROOF,
};

impl Peers {
    /// What these suites need; without a name it is all of them.
    fn of(suites: &[String]) -> &'static Self {
        let light = !suites.is_empty() && suites.iter().all(|suite| LIGHT.contains(&suite.as_str()));
        if light { &FEW } else { &ALL }
    }

    /// What was asked for: an environment made for another list is made anew.
    fn pins(&self) -> String {
        [self.alone, self.with_dependencies].concat().join("\n")
    }
}

/// The interpreter of the environment for these suites, which is made unless it is there already.
pub(crate) fn python(workspace: &Workspace, suites: &[String]) -> Result<PathBuf> {
    let peers = Peers::of(suites);
    let place = workspace.target.join(peers.folder);
    let (python, ready) = (place.join("bin/python"), place.join("ready"));
    if fs::read_to_string(&ready).is_ok_and(|found| found == peers.pins()) {
        return Ok(python);
    }
    println!("making the environment of the peers in {}: about {}", place.display(), peers.size);
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    make(peers, &place, &python).map_err(|error| {
        format!("the peers cannot be had: {error}; `python3 -m venv` and pip must work here")
    })?;
    fs::write(ready, peers.pins())?;
    Ok(python)
}

fn make(peers: &Peers, place: &Path, python: &Path) -> Result<()> {
    succeed(Command::new("python3").args(["-m", "venv"]).arg(place))?;
    let quietly = ["--disable-pip-version-check", "--quiet", "--retries", "2", "--only-binary", ":all:"];
    let pip = || {
        let mut pip = Command::new(python);
        pip.args(["-m", "pip", "install"]).args(quietly);
        pip
    };
    succeed(pip().arg("--no-deps").args(peers.alone))?;
    if !peers.with_dependencies.is_empty() {
        succeed(pip().args(peers.with_dependencies))?;
    }
    succeed(Command::new(python).args(["-c", peers.proof]))
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
            assert_eq!(Peers::of(&suites).folder, expected, "{suites:?}");
        }
        assert_ne!(ALL.pins(), FEW.pins());
    }
}
