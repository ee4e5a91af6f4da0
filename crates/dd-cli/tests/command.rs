//! The command as a user runs it: exit codes, messages, JSON, files.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dd_cli::demo::Checkpoint;
use dd_cli::testing;
use serde_json::Value;

fn deepdim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_deepdim"))
        .args(arguments)
        .env("HF_ENDPOINT", "http://127.0.0.1:9") // Nothing listens there: offline, everywhere.
        .output()
        .unwrap()
}

/// A small model of 50 words, with its tokenizer, in a folder of its own.
fn small_model() -> Checkpoint {
    let made = Checkpoint::write(&std::env::temp_dir(), &testing::config(32, 2, 64, 2), &mut |_| {}).unwrap();
    let words = ["[UNK]", "a", "cat", "sat", "dog", "ran"];
    let vocab: Value =
        words.iter().zip(0..).map(|(word, id)| ((*word).to_owned(), Value::from(id))).collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    });
    std::fs::write(made.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    made
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn exit_codes_and_messages_tell_what_to_do() {
    let made = small_model();
    let model = text(made.path());
    let rows: [(&[&str], i32, &str); 8] = [
        (&["run", model, "--unmanaged", "--text", "a cat"], 0, ""),
        (&["run", model, "--unmanaged"], 2, "--text"),
        (&["run", model, "--text", "a"], 2, "--memory"),
        (&["run", model, "--unmanaged", "--text", ""], 2, "no token"),
        (&["run", "/no/such/folder", "--unmanaged", "--text", "a"], 2, "no such folder"),
        (&["run", model, "--unmanaged", "--memory", "1KiB", "--text", "a"], 3, "give more with --memory"),
        (&["run", "nobody/no-model", "--unmanaged", "--text", "a"], 4, "give the path of a folder"),
        (&["demo", "--dir", "/no/such/folder", "--size", "1MiB"], 4, "/no/such/folder"),
    ];
    for (arguments, code, message) in rows {
        let output = deepdim(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(message), "{arguments:?}: {stderr}");
    }
}

#[test]
fn errors_are_json_where_it_is_asked_for() {
    let made = small_model();
    let rows: [(&[&str], i64, bool); 2] = [
        (&["--json", "run", text(made.path()), "--unmanaged", "--memory", "1KiB", "--text", "a"], 3, true),
        (&["run", "--json"], 2, false),
    ];
    for (arguments, code, needed) in rows {
        let report: Value = serde_json::from_slice(&deepdim(arguments).stdout).unwrap();
        assert_eq!(report["exit_code"].as_i64(), Some(code), "{report}");
        assert_eq!(report["needed_bytes"].is_u64(), needed, "{report}");
    }
}

#[test]
fn a_run_reports_vectors_memory_and_a_timeline() {
    let made = small_model();
    let plot = made.path().join("timeline.svg");
    let arguments = ["run", text(made.path()), "--unmanaged", "--json", "--timeline", text(&plot)];
    let texts = ["--text", "a cat sat", "--text", "a dog ran", "--text", "a cat sat"];
    let output = deepdim(&[&arguments[..], &texts].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["tokens"], serde_json::json!([3, 3, 3]));
    assert_eq!(report["embeddings"][0], report["embeddings"][2]);
    assert_ne!(report["embeddings"][0], report["embeddings"][1]);
    assert!((report["similarity"][0][2].as_f64().unwrap() - 1.0).abs() < 1e-6);
    let memory = &report["memory"];
    assert!(memory["accounted_peak"].as_u64().unwrap() > memory["weights"].as_u64().unwrap());
    assert_eq!(memory["bytes_written"].as_u64().unwrap_or(0), 0, "a run writes nothing");
    assert!(std::fs::read_to_string(plot).unwrap().contains("accounted"));
}

#[test]
fn a_demo_shows_both_runs_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let plot: PathBuf = folder.path().join("demo.svg");
    let sizes = ["--size", "60MiB", "--passes", "3"]; // In half of its weights.
    let places = ["--json", "demo", "--dir", text(folder.path()), "--plot", text(&plot)];
    let output = deepdim(&[&places[..], &sizes].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["identical"], true);
    assert_eq!(report["unmanaged"]["checksum"], report["managed"]["checksum"]);
    assert_eq!(report["managed"]["passes"].as_array().unwrap().len(), 3);
    for run in ["unmanaged", "managed"] {
        let memory = &report[run]["memory"];
        let figure = |name: &str| memory[name].as_u64().unwrap();
        assert_eq!(figure("bytes_written"), 0, "a run writes nothing");
        let constant = 20 << 20; // As the README states it.
        let promised = figure("accounted_peak") + constant;
        let resident = figure("resident_peak");
        assert!(
            resident <= promised.max(figure("starting_peak")),
            "{run}: {resident} B > {promised} B: {memory}"
        );
    }
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["demo.svg"]);
}

#[test]
#[cfg(target_os = "linux")]
fn an_interrupted_demo_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let entries = || std::fs::read_dir(folder.path()).unwrap().count();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_deepdim"))
        .args(["demo", "--size", "8GiB", "--dir", text(folder.path())])
        .spawn()
        .unwrap();
    while entries() == 0 {
        assert!(demo.try_wait().unwrap().is_none(), "it ended before it made anything");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let sent = Command::new("kill").args(["-INT", &demo.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    assert_eq!(entries(), 0);
}

#[test]
fn the_real_model_knows_what_is_alike() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/all-MiniLM-L6-v2");
    if !folder.join("model.safetensors").exists() {
        dd_conformance::skipped!("{} is not there; cargo xtask fixtures fetches it", folder.display());
        return;
    }
    let texts = ["A cat sat on the mat.", "A kitten rests on a rug.", "The stock market fell sharply today."];
    let mut arguments = vec!["--json", "run", text(&folder), "--unmanaged"];
    arguments.extend(texts.iter().flat_map(|text| ["--text", text]));
    let report: Value = serde_json::from_slice(&deepdim(&arguments).stdout).unwrap();
    let cosine = |a: usize, b: usize| report["similarity"][a][b].as_f64().unwrap();
    assert!(cosine(0, 1) > 0.5 && cosine(0, 2) < 0.2 && cosine(1, 2) < 0.2, "{}", report["similarity"]);
    assert_eq!(report["pooling"]["modes"], serde_json::json!(["mean"]));
    assert_eq!(report["pooling"]["normalize"], true);
}
