//! `deepdim run` with prompts, as a user runs it: texts, seeds, blocks, budgets, messages.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

use std::path::Path;
use std::process::{Command, Output};

use dd_cli::generate::{Family, tiny};
use serde_json::{Value, json};
use tempfile::TempDir;

fn deepdim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_deepdim"))
        .args(arguments)
        .env("HF_ENDPOINT", "http://127.0.0.1:9") // Nothing listens there: offline, everywhere.
        .output()
        .unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn model(family: Family) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    tiny::write_tiny(family, folder.path(), 1 << 20, 3).unwrap();
    folder
}

/// Words of one letter or two; the model's 512 words are `w0` and so on beside them.
fn add_tokenizer(folder: &Path) {
    let mut vocab: serde_json::Map<String, Value> =
        (0..512).map(|id| (format!("w{id}"), id.into())).collect();
    for (word, id) in
        [("Hi", 500), ("there", 501), ("user", 502), ("assistant", 503), ("[UNK]", 504)] as [(&str, u32); 5]
    {
        vocab.remove(&format!("w{id}"));
        vocab.insert(word.to_owned(), id.into());
    }
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

fn report(folder: &Path, more: &[&str]) -> Value {
    let output = deepdim(&[&["--json", "run", text(folder), "--max-tokens", "6"], more].concat());
    assert!(output.status.success(), "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn tokens(report: &Value, prompt: usize) -> Vec<u64> {
    report["texts"][prompt]["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

#[test]
fn token_ids_need_no_tokenizer_and_equal_lengths_go_together() {
    for family in [Family::Llama, Family::T5, Family::Gemma3] {
        let folder = model(family);
        let given =
            ["--unmanaged", "--prompt-tokens", "5,6,7", "--prompt-tokens", "9", "--prompt-tokens", "3,2,1"];
        let all = report(folder.path(), &given);
        assert_eq!(all["family"], family.model_type());
        assert_eq!(
            all["blocks"].as_array().unwrap().len(),
            2,
            "{family}: prompts of equal length go together"
        );
        for (prompt, ids) in ["5,6,7", "9", "3,2,1"].into_iter().enumerate() {
            let alone = report(folder.path(), &["--unmanaged", "--prompt-tokens", ids]);
            assert_eq!(tokens(&alone, 0), tokens(&all, prompt), "{family}, prompt {ids}");
            let ended = all["texts"][prompt]["finish"] == "eos";
            assert!(ended || tokens(&all, prompt).len() == 6, "{family}: {}", all["texts"][prompt]);
        }
        assert!(all["seconds_to_first_token"].as_f64().unwrap() >= all["open_seconds"].as_f64().unwrap());
    }
}

#[test]
fn half_precision_in_shards_is_widened_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let layout = tiny::Layout { dtype: tiny::Dtype::BF16, shards: 3 };
    tiny::write(&tiny::config(Family::Gemma2, 64, 3), folder.path(), 8, layout).unwrap();
    let run = report(folder.path(), &["--unmanaged", "--prompt-tokens", "5,6"]);
    let figure = |name: &str| run["memory"][name].as_u64().unwrap();
    assert!(figure("accounted_peak") > 2 * figure("weights"), "{run}");
    assert_eq!(tokens(&run, 0).len(), 6);
}

#[test]
fn a_seed_repeats_itself_and_another_differs() {
    let folder = model(Family::Llama);
    let drawn = |seed| {
        let how = [
            "--unmanaged",
            "--prompt-tokens",
            "5,6",
            "--temperature",
            "1.5",
            "--top-p",
            "0.95",
            "--seed",
            seed,
        ];
        tokens(&report(folder.path(), &how), 0)
    };
    assert_eq!(drawn("7"), drawn("7"));
    assert_ne!(drawn("7"), drawn("8"));
}

#[test]
fn a_lone_text_streams_and_is_what_the_report_says() {
    let folder = model(Family::Qwen2);
    add_tokenizer(folder.path());
    let given = ["--unmanaged", "--prompt", "Hi there"];
    let reported = report(folder.path(), &given);
    let written = reported["texts"][0]["text"].as_str().unwrap();
    assert_eq!(written.split(' ').count(), 6, "{written:?}");
    assert_eq!(reported["texts"][0]["prompt"], "Hi there");
    let shown = deepdim(&[&["run", text(folder.path()), "--max-tokens", "6"], &given[..]].concat());
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.starts_with(&format!("{written}\n")), "{shown}");
    assert!(shown.contains("seconds to first token") && shown.contains("accounted peak"), "{shown}");
    let two = deepdim(&[
        "run",
        text(folder.path()),
        "--unmanaged",
        "--max-tokens",
        "2",
        "--prompt",
        "Hi",
        "--prompt",
        "there",
    ]);
    let two = String::from_utf8(two.stdout).unwrap();
    assert!(two.contains("[1] ") && two.contains("[2] "), "{two}");
}

#[test]
fn a_chat_template_is_used_unless_the_prompt_is_raw() {
    let folder = model(Family::Llama);
    add_tokenizer(folder.path());
    let template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}assistant";
    let config = json!({ "chat_template": template });
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let chat = report(folder.path(), &["--unmanaged", "--prompt", "Hi there"]);
    assert_eq!((&chat["chat"], &chat["texts"][0]["prompt_tokens"]), (&json!(true), &json!(4)));
    let ids = report(folder.path(), &["--unmanaged", "--prompt-tokens", "502,500,501,503"]);
    assert_eq!(tokens(&chat, 0), tokens(&ids, 0));
    let raw = report(folder.path(), &["--unmanaged", "--prompt", "Hi there", "--raw"]);
    assert_eq!((&raw["chat"], &raw["texts"][0]["prompt_tokens"]), (&json!(false), &json!(2)));
}

#[test]
fn a_text_ends_where_the_model_says_so() {
    let folder = model(Family::Mistral);
    let whole = tokens(&report(folder.path(), &["--unmanaged", "--prompt-tokens", "5,6"]), 0);
    let last = whole[3];
    let config = json!({"eos_token_id": [last, 511]}).to_string();
    std::fs::write(folder.path().join("generation_config.json"), config).unwrap();
    let ended = report(folder.path(), &["--unmanaged", "--prompt-tokens", "5,6"]);
    let until = whole.iter().position(|token| *token == last).unwrap();
    assert_eq!(tokens(&ended, 0), whole[..until]);
    assert_eq!(ended["texts"][0]["finish"], "eos");
}

#[test]
fn a_budget_is_kept_or_refused_with_the_least_that_would_do() {
    let folder = model(Family::Phi3);
    let path = text(folder.path());
    let prompts = ["--prompt-tokens", "5,6,7", "--prompt-tokens", "1,2,3", "--prompt-tokens", "4,4,4"];
    let run = |more: &[&str], memory: u64| {
        let memory = memory.to_string();
        deepdim(&[&["--json", "run", path, "--memory", &memory], more, &prompts[..]].concat())
    };
    let mut written = Vec::new();
    for how in [&["--unmanaged"][..], &[]] {
        let refused = run(how, 64 << 10);
        assert_eq!(refused.status.code(), Some(3));
        let error: Value = serde_json::from_slice(&refused.stdout).unwrap();
        let least = error["needed_bytes"].as_u64().unwrap();
        if how.is_empty() {
            let size = ["--memory", "1GiB", "--tokens", "3", "--max-tokens", "128"];
            let planned = deepdim(&[&["--json", "plan", path], &size[..]].concat());
            let planned: Value = serde_json::from_slice(&planned.stdout).unwrap();
            assert_eq!(planned["paging"]["least_budget"], json!(least), "{planned}");
        }
        assert_eq!(run(how, least - 1).status.code(), Some(3), "less than the least that was named");
        let mut blocks = Vec::new();
        for memory in [least, 4 * least] {
            let report: Value = serde_json::from_slice(&run(how, memory).stdout).unwrap();
            assert!(report["memory"]["accounted_peak"].as_u64().unwrap() <= memory, "{report}");
            assert_eq!(report["memory"]["bytes_written"], 0, "{report}");
            blocks.push(report["blocks"].as_array().unwrap().len());
            written.push(tokens(&report, 2));
        }
        assert!(blocks[0] > blocks[1], "with little memory a block is split: {blocks:?}");
    }
    assert!(
        written.windows(2).all(|pair| pair[0] == pair[1]),
        "paged or not, whatever the memory: {written:?}"
    );
}

#[test]
fn a_packed_model_writes_the_same() {
    let folder = model(Family::Llama);
    let out = folder.path().join("packed");
    let packed = deepdim(&["--json", "pack", text(folder.path()), text(&out), "--chunk", "16KiB"]);
    assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    let said: Value = serde_json::from_slice(&packed.stdout).unwrap();
    assert!(said["ratio"].as_f64().unwrap() > 1.1 && said["packed_tensors"].as_u64().unwrap() > 0, "{said}");
    let plain = tokens(&report(folder.path(), &["--unmanaged", "--prompt-tokens", "5,6"]), 0);
    let paged = report(&out, &["--memory", "2MiB", "--prompt-tokens", "5,6"]);
    assert_eq!(tokens(&paged, 0), plain, "{paged}");
    let refused = deepdim(&["run", text(&out), "--unmanaged", "--prompt-tokens", "5,6"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("packed"), "{refused:?}");
    let again = deepdim(&["pack", text(folder.path()), text(&out)]);
    assert_eq!(again.status.code(), Some(2), "there is something at OUT");
}

#[test]
fn messages_name_what_is_wrong() {
    let folder = model(Family::Llama);
    let path = text(folder.path());
    let bert = model(Family::Bert);
    let broken = model(Family::Llama);
    let config = std::fs::read_to_string(broken.path().join("config.json")).unwrap();
    let config = config.replace("\"num_hidden_layers\": ", "\"num_hidden_layers\": 1");
    std::fs::write(broken.path().join("config.json"), config).unwrap();
    let rows: [(&[&str], i32, &str); 9] = [
        (&["run", path, "--unmanaged", "--prompt", "Hi"], 4, "tokenizer.json"),
        (&["run", path, "--unmanaged", "--prompt-tokens", "512"], 2, "the model has 512 words"),
        (&["run", path, "--unmanaged", "--prompt-tokens", "1,x"], 2, "no token id"),
        (&["run", path, "--unmanaged", "--prompt-tokens", "1", "--temperature", "-1"], 2, "--temperature"),
        (
            &["run", path, "--unmanaged", "--prompt-tokens", "1", "--max-tokens", "1024"],
            2,
            "fewer --max-tokens",
        ),
        (&["run", path, "--unmanaged", "--text", "Hi"], 2, "model_type"),
        (&["plan", path, "--memory", "1KiB"], 3, "give at least --memory"),
        (&["run", text(bert.path()), "--unmanaged", "--prompt-tokens", "1"], 2, "give --text"),
        (&["run", text(broken.path()), "--unmanaged", "--prompt-tokens", "1"], 2, "model.layers.4"),
    ];
    for (arguments, code, message) in rows {
        let output = deepdim(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(message), "{arguments:?}: {stderr}");
    }
}
