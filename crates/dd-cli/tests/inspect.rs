//! `deepdim inspect` as a user runs it: every family's parameters against the library's own, files, plots, refusals.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

use std::path::Path;
use std::process::{Command, Output};

use dd_cli::generate::config::ModelConfig;
use dd_cli::generate::family::Family;
use dd_cli::generate::tiny;
use deep_dimensions::inspect::read::config;
use serde_json::Value;

fn deepdim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_deepdim")).args(arguments).output().unwrap()
}

fn report(arguments: &[&str]) -> Value {
    let output = deepdim(&[&["--json", "inspect"], arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn every_family_has_the_parameters_that_its_checkpoint_has() {
    for family in Family::ALL {
        let folder = tempfile::tempdir().unwrap();
        let checked: ModelConfig = tiny::write_tiny(family, folder.path(), 1 << 20, 3).unwrap();
        let model = config::read(folder.path()).unwrap();
        assert_eq!(model.family.model_type(), family.model_type());
        let found = report(&[text(folder.path()), "--seq", "16"]);
        let stored = found["parameters"]["elements"].as_u64().unwrap();
        let hidden = checked.sizes.hidden as u64;
        // The library's BERT has no pooler; published checkpoints of `BertModel` do.
        let pooler = if family == Family::Bert { hidden * hidden + hidden } else { 0 };
        assert_eq!(found["table"]["parameters"].as_u64().unwrap(), stored + pooler, "{family}");
        assert!(found["needs"]["live_peak"].as_u64().unwrap() > 4 * stored, "{family}");
    }
}

#[test]
fn training_takes_more_and_longer_sequences_too() {
    let folder = tempfile::tempdir().unwrap();
    tiny::write_tiny(Family::Llama, folder.path(), 1 << 20, 3).unwrap();
    let path = text(folder.path());
    let peak = |more: &[&str]| report(&[&[path], more].concat())["needs"]["live_peak"].as_u64().unwrap();
    let plain = peak(&["--seq", "64"]);
    let rows: [(&[&str], &[&str]); 6] = [
        (&["--seq", "64"], &["--seq", "128"]),
        (&["--seq", "64"], &["--seq", "64", "--batch", "2"]),
        (&["--seq", "64"], &["--seq", "64", "--train", "sgd"]),
        (&["--seq", "64", "--train", "sgd"], &["--seq", "64", "--train", "adamw"]),
        (&["--seq", "64", "--dtype", "bf16"], &["--seq", "64"]),
        (&["--seq", "1"], &["--seq", "1", "--past", "500"]),
    ];
    for (less, more) in rows {
        assert!(peak(less) < peak(more), "{less:?} and {more:?}");
    }
    assert!(peak(&["--seq", "256", "--fused-attention"]) < peak(&["--seq", "256"]));
    let fits = |available: String| report(&[path, "--seq", "64", "--available", &available])["fits"].clone();
    assert_eq!(fits(plain.to_string())["largest_batch"], 1);
    assert_eq!(fits(plain.to_string())["fits"], true);
    assert_eq!(fits((plain - 1).to_string())["largest_batch"], Value::Null);
    let largest = fits((4 * plain).to_string());
    let batch = largest["largest_batch"].as_u64().unwrap().to_string();
    assert!(peak(&["--seq", "64", "--batch", &batch]) <= 4 * plain);
}

#[test]
fn the_text_reads_like_a_table() {
    let folder = tempfile::tempdir().unwrap();
    tiny::write_tiny(Family::Qwen2, folder.path(), 1 << 20, 3).unwrap();
    let output = deepdim(&["inspect", text(folder.path()), "--train", "adamw"]);
    let said = String::from_utf8(output.stdout).unwrap();
    for expected in [
        "Layer",
        "Mult-adds",
        "model.layers.0.self_attn.q_proj",
        "(shared)",
        "Live peak",
        "optimizer state",
        "Largest batch",
    ] {
        assert!(said.contains(expected), "{expected:?} is not in\n{said}");
    }
}

#[test]
fn weights_alone_and_plots() {
    let folder = tempfile::tempdir().unwrap();
    tiny::write_tiny(Family::Gemma3, folder.path(), 1 << 20, 3).unwrap();
    let weights = folder.path().join("model.safetensors");
    let found = report(&[text(&weights)]);
    assert_eq!(found["parameters"]["files"], 1);
    assert!(found["table"].is_null() && found["without_network"].is_string());
    for name in ["m.svg", "m.png"] {
        let plot = folder.path().join(name);
        report(&[text(folder.path()), "--train", "adamw", "--plot", text(&plot)]);
        let bytes = std::fs::read(&plot).unwrap();
        if name.ends_with("svg") {
            let svg = String::from_utf8(bytes).unwrap();
            for expected in ["optimizer state", "activations", "step", "backward begins"] {
                assert!(svg.contains(expected), "{expected}");
            }
        } else {
            assert_eq!(&bytes[1..4], b"PNG");
        }
    }
}

#[test]
fn refusals_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("config.json"), r#"{"model_type":"gpt2"}"#).unwrap();
    std::fs::write(at("bad.safetensors"), "abc").unwrap();
    std::fs::write(at("bad.gguf"), "GGUF").unwrap();
    let (config, weights, gguf) = (at("config.json"), at("bad.safetensors"), at("bad.gguf"));
    let rows: [(&[&str], i32, &str); 8] = [
        (&["/no/such/thing"], 2, "no such folder or file"),
        (&[text(&config)], 2, "known are llama"),
        (&[text(&weights)], 2, "bad.safetensors at byte 0"),
        (&[text(&gguf)], 2, "bad.gguf at byte 4"),
        (&[text(&config), "--train", "lion"], 2, "adamw8bit"),
        (&[text(&config), "--batch", "0"], 2, "give at least 1"),
        (&[text(&config), "--mixed"], 2, "--train"),
        (&["/dev/null"], 2, "expected a .safetensors"),
    ];
    for (arguments, code, message) in rows {
        let output = deepdim(&[&["inspect"], arguments].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(message), "{arguments:?}: {stderr}");
    }
}
