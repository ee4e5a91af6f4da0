//! `cargo xtask bench --peers`: a Python of its own that has accelerate, for the suites that compare with it.
//!
//! The wheel of torch that the package index has for Linux is a CUDA build: its libraries are linked to NVIDIA's, and without
//! them `import torch` fails, on machines without a GPU too. So those that are linked are fetched with it (4 GB once installed), and
//! what is not linked (the compiler of GPU kernels, the solvers) is left out. Nobody fetches this unasked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::workspace::{Result, Workspace, succeed};

/// Installed as they are, without what they ask for.
const ALONE: &[&str] = &[
    "torch==2.13.0",
    "nvidia-cudnn-cu13==9.20.0.48",
    "nvidia-cusparselt-cu13==0.8.1",
    "nvidia-nccl-cu13==2.29.7",
    "nvidia-nvshmem-cu13==3.4.5",
    "accelerate==1.15.0",
    "transformers==5.23.0",
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

/// The interpreter of the environment, which is made unless it is there already.
pub(crate) fn python(workspace: &Workspace) -> Result<PathBuf> {
    let place = workspace.target.join("peers");
    let (python, ready) = (place.join("bin/python"), place.join("ready"));
    if fs::read_to_string(&ready).is_ok_and(|found| found == pins()) {
        return Ok(python);
    }
    println!("making the environment of the peers in {}: about 4 GB", place.display());
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    make(&place, &python).map_err(|error| {
        format!("the peers cannot be had: {error}; `python3 -m venv` and pip must work here")
    })?;
    fs::write(ready, pins())?;
    Ok(python)
}

fn make(place: &Path, python: &Path) -> Result<()> {
    succeed(Command::new("python3").args(["-m", "venv"]).arg(place))?;
    let quietly = ["--disable-pip-version-check", "--quiet", "--retries", "2", "--only-binary", ":all:"];
    let pip = || {
        let mut pip = Command::new(python);
        pip.args(["-m", "pip", "install"]).args(quietly);
        pip
    };
    succeed(pip().arg("--no-deps").args(ALONE))?;
    succeed(pip().args(WITH_DEPENDENCIES))?;
    succeed(Command::new(python).args(["-c", PROOF]))
}

/// What was asked for: an environment made for another list is made anew.
fn pins() -> String {
    [ALONE, WITH_DEPENDENCIES].concat().join("\n")
}
