//! `deepdim tiles` as a user runs it: pictures, stores, JSON, exit codes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn deepdim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_deepdim")).arg("tiles").args(arguments).output().unwrap()
}

fn report(arguments: &[&str]) -> Value {
    let output = deepdim(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A picture's width, height and pixels.
fn picture(path: &Path) -> (u32, u32, Vec<u8>) {
    let mut reader = png::Decoder::new(BufReader::new(File::open(path).unwrap())).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    pixels.truncate(info.buffer_size());
    (info.width, info.height, pixels)
}

#[test]
fn a_region_is_drawn_the_same_whatever_it_is_cut_from() {
    let place = tempfile::tempdir().unwrap();
    let draw = |name: &str, options: &[&str]| {
        let path = place.path().join(name);
        let found = report(&[&["render", path.to_str().unwrap()], options].concat());
        assert!(found["accounted_peak"].as_u64() <= found["limit"].as_u64(), "{found}");
        assert!(found["computed"].as_u64().unwrap() > 0);
        picture(&path)
    };
    let (width, height, whole) = draw("whole.png", &["--region", "-150:150,-200:200", "--memory", "8MiB"]);
    assert_eq!((width, height, whole.len()), (400, 300, 400 * 300 * 3));
    assert!(whole.iter().any(|byte| *byte != whole[0]), "not one colour alone");
    let tight = ["--region", "-150:150,-200:200", "--memory", "2MiB", "--threads", "1"];
    assert_eq!(draw("tight.png", &tight).2, whole, "in less memory, on one thread");
    let (_, _, part) = draw("part.png", &["--region", "-31:33,-7:130"]);
    for row in 0..64 {
        let from = ((row + 119) * 400 + 193) * 3;
        assert_eq!(part[row * 137 * 3..][..137 * 3], whole[from..][..137 * 3], "row {row}");
    }
    let (_, _, other) = draw("other.png", &["--region", "-31:33,-7:130", "--seed", "1"]);
    assert_ne!(other, part, "another seed is another terrain");
    for layer in ["heights", "blurred"] {
        let (width, height, gray) = draw("gray.png", &["--region", "-40:8,3:70", "--layer", layer]);
        assert_eq!((width, height, gray.len()), (67, 48, 67 * 48));
    }
}

#[test]
fn a_store_spares_the_work_and_says_what_it_holds() {
    let place = tempfile::tempdir().unwrap();
    let (out, store) = (place.path().join("a.png"), place.path().join("store"));
    let (out, store_text) = (out.to_str().unwrap(), store.to_str().unwrap());
    let render = ["render", out, "--region", "0:256,-256:0", "--store", store_text];
    let first = report(&render);
    // 4 windows of the relief, 16 of the blur around them, 36 of the heights around those.
    assert_eq!((&first["computed"], &first["stored"]), (&Value::from(56), &Value::from(56)));
    let drawn = fs::read(out).unwrap();
    let second = report(&render);
    assert_eq!((&second["computed"], &second["stored"]), (&Value::from(0), &Value::from(56)));
    assert_eq!(fs::read(out).unwrap(), drawn);

    let held = report(&["inspect", store_text, "--verify"]);
    let tensors = held["tensors"].as_array().unwrap();
    let ids: Vec<&str> = tensors.iter().map(|tensor| tensor["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["blurred-0", "heights-0", "shaded-0"]);
    let relief = &tensors[2];
    assert_eq!(relief["windows"], 4);
    assert_eq!(
        (&relief["first"], &relief["last"]),
        (&serde_json::json!([0, -2]), &serde_json::json!([1, -1]))
    );
    assert_eq!(relief["bytes"], 4 * 128 * 128 * 3);
    assert!(relief["stored"].as_u64().unwrap() > 0);

    let table = deepdim(&["inspect", store_text]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("heights-0") && table.contains("[128, 128] F32"), "{table}");

    let chunk = store.join("shaded-0/c.0.1.0.0.0");
    let mut bytes = fs::read(&chunk).unwrap();
    bytes[9] ^= 1;
    fs::write(&chunk, bytes).unwrap();
    let verified = deepdim(&["inspect", store_text, "--verify", "--json"]);
    assert_eq!(verified.status.code(), Some(2));
    let first_line = String::from_utf8(verified.stdout).unwrap();
    let found: Value = serde_json::from_str(first_line.lines().next().unwrap()).unwrap();
    assert_eq!(found["tensors"][2]["corrupt"][0][0], serde_json::json!([0, -1]));
    let refused = deepdim(&render);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("corrupt"));
    assert_eq!(fs::read(out).unwrap(), drawn, "the picture that was there stays");
}

#[test]
fn exit_codes_and_messages_tell_what_to_do() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("a.png");
    let out = out.to_str().unwrap();
    let empty = place.path().to_str().unwrap();
    let rows: [(&[&str], i32, &str); 7] = [
        (&["render", out, "--memory", "100KiB"], 3, "--memory"),
        (&["render", out, "--region", "5:5,0:8"], 2, "no range"),
        (&["render", out, "--layer", "clouds"], 2, "clouds"),
        (&["render", "/no/such/folder/a.png"], 4, "/no/such/folder"),
        (&["render", out, "--region", "0:8,4611686018427387900:4611686018427387908"], 0, ""),
        (&["inspect", empty], 4, "no tile store"),
        (&["inspect", "/no/such/folder"], 4, "no tile store"),
    ];
    for (arguments, code, message) in rows {
        let output = deepdim(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(message), "{arguments:?}: {stderr}");
    }
}
