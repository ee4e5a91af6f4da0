//! Managed runs as a user makes them: the same vectors to the bit, within the limit, as the kernel sees it too.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dd_cli::demo::Checkpoint;
use dd_cli::testing;
use dd_conformance::skipped;
use serde_json::Value;

/// What a process needs beside its limit: code, threads, packing buffers, what is left of the tokenizer. The README
/// states it.
const CONSTANT: u64 = 20 << 20;

const TEXTS: [&str; 3] =
    ["A cat sat on the mat.", "A kitten rests on a rug.", "The stock market fell sharply today."];

fn deepdim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_deepdim")).args(arguments).output().unwrap()
}

fn run(model: &Path, more: &[&str], texts: &[&str]) -> Value {
    let mut arguments = vec!["--json", "run", model.to_str().unwrap()];
    arguments.extend(more);
    arguments.extend(texts.iter().flat_map(|text| ["--text", text]));
    let output = deepdim(&arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The real MiniLM, if it was fetched.
fn minilm() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/all-MiniLM-L6-v2");
    if folder.join("model.safetensors").exists() {
        return Some(folder);
    }
    skipped!("{} is not there; cargo xtask fixtures fetches it", folder.display());
    None
}

#[test]
fn minilm_within_less_than_its_weights_gives_the_same_vectors() {
    let Some(model) = minilm() else { return };
    let long = "Memory is what is left when everything else has been forgotten. ".repeat(40);
    let texts = [&TEXTS[..], &[long.as_str()]].concat();
    let expected = run(&model, &["--unmanaged"], &texts);
    for (memory, limit) in
        [("16MiB", 16 << 20), ("32MiB", 32 << 20), ("64MiB", 64 << 20), ("128MiB", 128 << 20)]
    {
        let found = run(&model, &["--memory", memory], &texts);
        assert!(found["embeddings"] == expected["embeddings"], "{memory}: the vectors differ");
        let figure = |name: &str| found["memory"][name].as_u64().unwrap();
        assert!(figure("accounted_peak") <= limit, "{memory}: {}", found["memory"]);
        assert!(figure("resident_peak") <= limit + CONSTANT, "{memory}: {}", found["memory"]);
        assert_eq!(figure("bytes_written"), 0, "{memory}: a run writes nothing");
        assert!(found["plan"]["resident_bytes"].as_u64().unwrap() <= limit);
    }
}

#[test]
fn below_the_least_memory_the_least_is_named_and_would_do() {
    let Some(model) = minilm() else { return };
    let folder = model.to_str().unwrap();
    let output = deepdim(&["--json", "run", folder, "--memory", "4MiB", "--text", TEXTS[0]]);
    assert_eq!(output.status.code(), Some(3));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let least = report["needed_bytes"].as_u64().unwrap();
    assert!(least > 7 << 20 && least < 10 << 20, "{report}");
    // The least for the weights; activations come on top, and are named in turn.
    let mut memory = least;
    for _ in 0..2 {
        let output = deepdim(&["--json", "run", folder, "--memory", &memory.to_string(), "--text", TEXTS[0]]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        match output.status.code() {
            Some(0) => return,
            Some(3) => memory = report["needed_bytes"].as_u64().unwrap(),
            other => panic!("{other:?}: {report}"),
        }
    }
    panic!("the least that was named, {memory} B, did not do");
}

#[test]
fn a_plan_says_what_would_stay() {
    let Some(model) = minilm() else { return };
    let folder = model.to_str().unwrap();
    let output = deepdim(&["--json", "plan", folder, "--memory", "32MiB"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let plan = &report["plan"];
    let bytes = |name: &str| plan[name].as_u64().unwrap();
    assert!(bytes("resident_bytes") + bytes("staging") + bytes("blocks") <= 32 << 20);
    assert!(bytes("streamed_bytes") > 0 && bytes("least_budget") < 16 << 20);
    if report["bandwidth"].is_number() {
        assert!(plan["predicted"].is_object(), "{plan}");
    } else {
        skipped!("the disk's bandwidth cannot be measured here, so nothing is predicted");
    }
    let text = String::from_utf8(deepdim(&["plan", folder, "--memory", "32MiB"]).stdout).unwrap();
    assert!(text.contains("least budget") && text.contains("encoder.layer.0"), "{text}");
    assert_eq!(deepdim(&["plan", folder, "--memory", "1MiB"]).status.code(), Some(3));
}

#[test]
fn half_precision_and_sharded_checkpoints_run_managed() {
    let made =
        Checkpoint::write(&std::env::temp_dir(), &testing::config(256, 4, 1024, 6), &mut |_| {}).unwrap();
    let file = made.path().join("model.safetensors");
    let words = r#"{"[UNK]": 0, "a": 1, "cat": 2}"#;
    let tokenizer = format!(
        r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {{"type": "Whitespace"}}, "post_processor": null, "decoder": null,
        "model": {{"type": "WordLevel", "vocab": {words}, "unk_token": "[UNK]"}}}}"#
    );
    std::fs::write(made.path().join("tokenizer.json"), tokenizer).unwrap();
    let all = candle_core::safetensors::load(&file, &candle_core::Device::Cpu).unwrap();
    for half in [false, true] {
        let convert = |tensor: &candle_core::Tensor| match half {
            true => tensor.to_dtype(candle_core::DType::BF16).unwrap(),
            false => tensor.clone(),
        };
        let shard = |index: usize| format!("model-0000{}-of-00002.safetensors", index + 1);
        let mut map = serde_json::Map::new();
        let mut shards = [std::collections::HashMap::new(), std::collections::HashMap::new()];
        for (number, (name, tensor)) in all.iter().enumerate() {
            map.insert(name.clone(), shard(number % 2).into());
            shards[number % 2].insert(name.clone(), convert(tensor));
        }
        for (index, tensors) in shards.iter().enumerate() {
            candle_core::safetensors::save(tensors, made.path().join(shard(index))).unwrap();
        }
        let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
        std::fs::write(made.path().join("model.safetensors.index.json"), index).unwrap();
        std::fs::remove_file(&file).ok();
        let texts = ["a cat a cat", "cat"];
        let expected = run(made.path(), &["--unmanaged"], &texts);
        let found = run(made.path(), &["--memory", "12MiB"], &texts);
        assert!(found["embeddings"] == expected["embeddings"], "half: {half}");
        assert!(found["plan"]["streamed_bytes"].as_u64().unwrap() > 0 || half);
    }
    std::fs::remove_file(made.path().join("model-00002-of-00002.safetensors")).unwrap();
    let output = deepdim(&["run", made.path().to_str().unwrap(), "--memory", "12MiB", "--text", "a"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("model-00002-of-00002.safetensors"), "{message}");
}

#[test]
#[cfg(target_os = "linux")]
fn it_survives_a_kernel_limit_of_its_memory_and_the_constant() {
    let Some(model) = minilm() else { return };
    let limit = (32 << 20) + CONSTANT;
    let Some(group) = group::Group::of(limit) else { return };
    let mut arguments = vec!["run", model.to_str().unwrap(), "--memory", "32MiB", "--json"];
    arguments.extend(TEXTS.iter().flat_map(|text| ["--text", text]));
    let capped = group.run(env!("CARGO_BIN_EXE_deepdim"), &arguments);
    assert!(capped.status.success(), "{:?}: {}", capped.status, String::from_utf8_lossy(&capped.stderr));
    let report: Value = serde_json::from_slice(&capped.stdout).unwrap();
    assert!(report["embeddings"] == run(&model, &["--unmanaged"], &TEXTS)["embeddings"]);
    // The cap is a cap: without management the same run does not survive it.
    arguments[2] = "--unmanaged";
    arguments.remove(3);
    assert!(!group.run(env!("CARGO_BIN_EXE_deepdim"), &arguments).status.success());
}

/// A control group with a memory limit, where this user may make one.
#[cfg(target_os = "linux")]
mod group {
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output};

    pub(crate) struct Group(PathBuf);

    impl Group {
        /// Of version 1 or 2, whichever has the memory controller.
        pub(crate) fn of(limit: u64) -> Option<Self> {
            let roots =
                [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
            for (root, file) in roots {
                let folder = Path::new(root).join(format!("deepdim-test-{}", std::process::id()));
                if !Path::new(root).join("cgroup.procs").exists() || std::fs::create_dir(&folder).is_err() {
                    continue;
                }
                let group = Self(folder);
                if std::fs::write(group.0.join(file), limit.to_string()).is_ok() {
                    return Some(group);
                }
            }
            dd_conformance::skipped!("no control group with a memory limit can be made here");
            None
        }

        pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Output {
            let enter = format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", self.0.display());
            Command::new("sh").args(["-c", &enter, program]).args(arguments).output().unwrap()
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            std::fs::remove_dir(&self.0).ok();
        }
    }
}
