//! Checkpoints as users have them, whole and broken: each fault has a name, a path and a tensor.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use dd_core::{Bytes, DType};
use dd_offload::Error;
use dd_offload::checkpoint::{Checkpoint, MAX_HEADER, ShardId};

/// A safetensors file of this header and this many data bytes, counting up.
fn file_of(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend((0..=u8::MAX).cycle().take(data));
    bytes
}

fn tensor(name: &str, dtype: &str, shape: &[usize], offsets: [u64; 2]) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":{offsets:?}}}"#)
}

fn header(tensors: &[String]) -> String {
    format!("{{{}}}", tensors.join(","))
}

/// The variant's name, from the debug text.
fn kind(error: &Error) -> String {
    format!("{error:?}").split([' ', '(', '{']).next().unwrap().to_owned()
}

/// The one check of the rows of faults: the variant, and what the message must say.
fn check(what: &str, path: &Path, expected: &str, says: &[&str]) {
    let error = Checkpoint::open(path).expect_err(what);
    assert_eq!(kind(&error), expected, "{what}: {error}");
    let message = error.to_string();
    let folder = path.to_string_lossy();
    for text in says.iter().copied().chain([&*folder]) {
        assert!(message.contains(text), "{what}: {message:?} does not say {text:?}");
    }
}

#[test]
fn corrupt_headers_are_named() {
    let a = |shape: &[usize], offsets| tensor("a", "F32", shape, offsets);
    let two = |b: [u64; 2]| header(&[a(&[2], [0, 8]), tensor("b", "U8", &[8], b)]);
    let whole = file_of(&header(&[a(&[2], [0, 8])]), 8);
    let with_length = |length: u64| [&length.to_le_bytes()[..], &whole[8..]].concat();
    let rows: Vec<(&str, Vec<u8>, &str, &[&str])> = vec![
        ("empty file", vec![], "Truncated", &["promises 8 B", "has 0 B"]),
        ("seven bytes", vec![0; 7], "Truncated", &["has 7 B"]),
        ("length beyond the file", with_length(100_000), "Truncated", &["promises 100008 B"]),
        ("length above the limit", with_length(MAX_HEADER + 1), "InvalidCheckpoint", &["100000001 B"]),
        ("length of 64 bits", with_length(u64::MAX), "InvalidCheckpoint", &["18446744073709551615 B"]),
        ("length cuts the JSON", with_length(20), "InvalidCheckpoint", &["header is not one"]),
        ("length of zero", with_length(0), "InvalidCheckpoint", &["header is not one"]),
        (
            "LFS pointer",
            b"version https://git-lfs.github.com/spec/v1".to_vec(),
            "InvalidCheckpoint",
            &["LFS"],
        ),
        ("not UTF-8", [&2u64.to_le_bytes()[..], b"{\xff"].concat(), "InvalidCheckpoint", &["UTF-8"]),
        ("not a map", file_of("[1]", 0), "InvalidCheckpoint", &["a map of tensors"]),
        ("deep JSON", file_of(&"[".repeat(9000), 0), "InvalidCheckpoint", &["header is not one"]),
        ("two values", file_of("{}{}", 0), "InvalidCheckpoint", &["trailing"]),
        (
            "unknown dtype",
            file_of(&header(&[tensor("a", "F31", &[1], [0, 4])]), 4),
            "InvalidCheckpoint",
            &["\"a\"", "F31"],
        ),
        (
            "unsupported dtype",
            file_of(&header(&[tensor("a", "C64", &[1], [0, 8])]), 8),
            "BadOffsets",
            &["\"a\"", "C64"],
        ),
        (
            "negative offset",
            file_of(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}}"#, 1),
            "InvalidCheckpoint",
            &["\"a\""],
        ),
        (
            "no offsets",
            file_of(r#"{"a":{"dtype":"U8","shape":[1]}}"#, 1),
            "InvalidCheckpoint",
            &["\"a\"", "data_offsets"],
        ),
        ("one byte short", whole[..whole.len() - 1].to_vec(), "Truncated", &["fetch it again"]),
        ("one byte too many", [&whole[..], &[0]].concat(), "InvalidCheckpoint", &["1 B follow"]),
        ("overlap", file_of(&two([4, 12]), 12), "BadOffsets", &["\"b\"", "4..12", "overlaps"]),
        ("hole", file_of(&two([9, 17]), 17), "BadOffsets", &["\"b\"", "hole of 1 B"]),
        (
            "hole at the start",
            file_of(&header(&[a(&[1], [4, 8])]), 8),
            "BadOffsets",
            &["\"a\"", "hole of 4 B"],
        ),
        ("far out of range", file_of(&two([1 << 40, (1 << 40) + 8]), 16), "BadOffsets", &["\"b\"", "hole"]),
        ("backwards", file_of(&header(&[a(&[1], [4, 0])]), 4), "BadOffsets", &["ends before it starts"]),
        ("size is not the shape's", file_of(&header(&[a(&[3], [0, 8])]), 8), "BadOffsets", &["12 B", "8 B"]),
        (
            "shape overflows",
            file_of(&header(&[a(&[1 << 40, 1 << 40], [0, 8])]), 8),
            "BadOffsets",
            &["overflow"],
        ),
        (
            "sub-byte row",
            file_of(&header(&[tensor("a", "F4", &[2, 3], [0, 3])]), 3),
            "BadOffsets",
            &["multiple of 2"],
        ),
        (
            "end of 64 bits",
            file_of(&header(&[tensor("a", "U8", &[usize::MAX], [0, u64::MAX])]), 8),
            "BadOffsets",
            &["no file can be that long"],
        ),
        (
            "same name twice",
            file_of(&header(&[tensor("a", "U8", &[4], [0, 4]), tensor("a", "U8", &[4], [4, 8])]), 8),
            "InvalidCheckpoint",
            &["\"a\"", "twice"],
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (what, bytes, expected, says) in rows {
        let path = folder.path().join("model.safetensors");
        fs::write(&path, bytes).unwrap();
        check(what, &path, expected, says);
    }
}

/// Writes shards and an index; gives the index's path.
fn sharded(folder: &Path, index: &[(&str, &str)], shards: &[(&str, Vec<u8>)]) -> PathBuf {
    for (name, bytes) in shards {
        fs::write(folder.join(name), bytes).unwrap();
    }
    let map: Vec<String> = index.iter().map(|(tensor, shard)| format!("{tensor:?}:{shard:?}")).collect();
    let path = folder.join("model.safetensors.index.json");
    fs::write(&path, format!(r#"{{"metadata":{{"total_size":24}},"weight_map":{{{}}}}}"#, map.join(",")))
        .unwrap();
    path
}

#[test]
fn corrupt_indices_are_named() {
    let one = || ("1.safetensors", file_of(&header(&[tensor("a", "U8", &[4], [0, 4])]), 4));
    let two = || ("2.safetensors", file_of(&header(&[tensor("b", "U8", &[4], [0, 4])]), 4));
    let again = || ("2.safetensors", file_of(&header(&[tensor("a", "U8", &[4], [0, 4])]), 4));
    type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], Vec<(&'a str, Vec<u8>)>, &'a str, &'a [&'a str]);
    let rows: Vec<Row<'_>> = vec![
        (
            "missing shard",
            &[("a", "1.safetensors"), ("b", "2.safetensors")],
            vec![one()],
            "MissingShard",
            &["\"b\"", "2.safetensors", "index.json"],
        ),
        (
            "missing tensor",
            &[("a", "1.safetensors"), ("c", "1.safetensors")],
            vec![one()],
            "MissingTensor",
            &["\"c\"", "1.safetensors"],
        ),
        (
            "wrong shard",
            &[("a", "2.safetensors"), ("b", "1.safetensors")],
            vec![one(), two()],
            "MissingTensor",
            &["\"a\"", "2.safetensors"],
        ),
        (
            "name in two shards",
            &[("a", "1.safetensors"), ("b", "2.safetensors")],
            vec![one(), again()],
            "InvalidCheckpoint",
            &["\"a\"", "1.safetensors too"],
        ),
        (
            "escape upwards",
            &[("a", "../1.safetensors")],
            vec![one()],
            "InvalidCheckpoint",
            &["\"a\"", "../1.safetensors"],
        ),
        ("escape from the root", &[("a", "/etc/passwd")], vec![], "InvalidCheckpoint", &["/etc/passwd"]),
        ("escape in the middle", &[("a", "x/../../1.safetensors")], vec![], "InvalidCheckpoint", &["\"a\""]),
        ("no name", &[("a", "")], vec![], "InvalidCheckpoint", &["\"a\""]),
        (
            "broken shard",
            &[("a", "1.safetensors")],
            vec![("1.safetensors", vec![1])],
            "Truncated",
            &["1.safetensors"],
        ),
    ];
    for (what, index, shards, expected, says) in rows {
        let folder = tempfile::tempdir().unwrap();
        sharded(folder.path(), index, &shards);
        let error = Checkpoint::open(folder.path()).expect_err(what);
        assert_eq!(kind(&error), expected, "{what}: {error}");
        check(what, folder.path(), expected, says);
    }
    for text in ["", "[]", "{}", r#"{"weight_map":[]}"#, r#"{"weight_map":{"a":1}}"#] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
        check(text, folder.path(), "InvalidCheckpoint", &["index"]);
    }
}

#[test]
fn paths_that_are_no_checkpoint_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let bytes = file_of("{}", 0);
    for name in ["two/x.safetensors", "two/y.safetensors", "none/readme.txt", "plain"] {
        fs::create_dir_all(at(name).parent().unwrap()).unwrap();
        fs::write(at(name), &bytes).unwrap();
    }
    fs::create_dir_all(at("dir/model.safetensors")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(at("pipe.safetensors")).status();
    let rows = [
        ("absent", "Io", "cannot open"),
        ("plain/model", "Io", "cannot open"),
        ("two", "InvalidCheckpoint", "found 2 *.safetensors"),
        ("none", "InvalidCheckpoint", "found 0 *.safetensors"),
        ("dir", "InvalidCheckpoint", "plain file"),
        ("pipe.safetensors", "InvalidCheckpoint", "plain file"),
    ];
    for (name, expected, says) in rows {
        if name.starts_with("pipe") && !made.as_ref().is_ok_and(std::process::ExitStatus::success) {
            dd_conformance::skipped!("mkfifo is not there");
            continue;
        }
        check(name, &at(name), expected, &[says]);
    }
    assert_eq!(kind(&Checkpoint::from_files(&[]).unwrap_err()), "InvalidConfig");
}

#[test]
fn an_unreadable_directory_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let closed = folder.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    if fs::read_dir(&closed).is_err() {
        check("closed", &closed, "Io", &["cannot open"]);
    } else {
        as_nobody(&closed);
    }
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
}

/// Which directory [`an_unreadable_directory_seen_by_nobody`] is to open.
const CLOSED: &str = "DD_TEST_CLOSED";

/// The superuser may read every directory, so another user opens it: this program once more, under another number.
fn as_nobody(closed: &Path) {
    use std::os::unix::process::CommandExt;
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    again
        .args(["--exact", "an_unreadable_directory_seen_by_nobody"])
        .env(CLOSED, closed)
        .uid(65534)
        .gid(65534);
    match again.output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) => {
            dd_conformance::skipped!("this user may read every directory, and can be no other: {error}")
        }
    }
}

#[test]
fn an_unreadable_directory_seen_by_nobody() {
    let Some(closed) = std::env::var_os(CLOSED) else { return }; // It is the other half of the test above.
    check("closed", Path::new(&closed), "Io", &["cannot open"]);
}

#[test]
fn a_sharded_checkpoint_is_one_map() {
    let folder = tempfile::tempdir().unwrap();
    let first = header(&[
        tensor("layer.1.weight", "F32", &[2, 1], [2, 10]),
        tensor("layer.10.weight", "BF16", &[1], [0, 2]),
        r#""__metadata__":{"format":"pt"}"#.to_owned(),
    ]);
    let second =
        header(&[tensor("layer.1.bias", "U8", &[3], [0, 3]), tensor("empty", "F64", &[0, 7], [3, 3])]);
    let index = sharded(
        folder.path(),
        &[
            ("layer.1.bias", "2.safetensors"),
            ("layer.1.weight", "1.safetensors"),
            ("layer.10.weight", "1.safetensors"),
        ],
        &[("1.safetensors", file_of(&first, 10)), ("2.safetensors", file_of(&second, 3))],
    );
    let files = [folder.path().join("1.safetensors"), folder.path().join("2.safetensors")];
    let opened = [Checkpoint::open(folder.path()), Checkpoint::open(&index), Checkpoint::from_files(&files)];
    for checkpoint in opened {
        let checkpoint = checkpoint.unwrap();
        let names: Vec<&str> = checkpoint.names().collect();
        assert_eq!(names, ["layer.10.weight", "layer.1.weight", "layer.1.bias", "empty"]);
        assert_eq!(checkpoint.total_bytes(), Bytes(13));
        let weight = checkpoint.tensor("layer.1.weight").unwrap();
        assert_eq!((weight.shard, weight.len, weight.desc.shape()), (ShardId(0), 8, &[2, 1][..]));
        assert_eq!(weight.desc.dtype(), DType::F32);
        assert_eq!(weight.offset, 8 + first.len() as u64 + 2);
        let module: Vec<&str> = checkpoint.with_prefix("layer.1.").map(|(name, _)| name).collect();
        assert_eq!(module, ["layer.1.weight", "layer.1.bias"]);
        assert_eq!(checkpoint.with_prefix("").count(), 4);
        assert_eq!(checkpoint.with_prefix("layer.2").count(), 0);
        let mut bytes = [0; 8];
        checkpoint.read_into("layer.1.weight", &mut bytes).unwrap();
        assert_eq!(bytes, [2, 3, 4, 5, 6, 7, 8, 9]);
        assert!(checkpoint.read_into("layer.1.weight", &mut [0; 7]).is_err());
        let error = checkpoint.tensor("layer.1.wieght").unwrap_err().to_string();
        assert!(error.contains("did you mean \"layer.1.weight\""), "{error}");
        checkpoint.verify().unwrap();
    }
}

#[test]
fn changes_under_an_open_file_are_found() {
    let header = header(&[tensor("a", "U8", &[8], [0, 8])]);
    type Change = fn(&Path);
    let rows: [(&str, Change, &str); 4] = [
        ("cut", |path| OpenOptions::new().write(true).open(path).unwrap().set_len(20).unwrap(), "Truncated"),
        (
            "grown",
            |path| OpenOptions::new().append(true).open(path).unwrap().write_all(&[0]).unwrap(),
            "FileChanged",
        ),
        (
            "written",
            |path| {
                let file = OpenOptions::new().write(true).open(path).unwrap();
                file.write_all_at(&[9], 8).unwrap();
                file.set_modified(std::time::UNIX_EPOCH).unwrap(); // Whatever the clock's step.
            },
            "FileChanged",
        ),
        (
            "replaced",
            |path| {
                let new = path.with_extension("new");
                fs::write(&new, b"something else").unwrap();
                fs::rename(new, path).unwrap();
            },
            "",
        ),
    ];
    for (what, change, expected) in rows {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fs::write(&path, file_of(&header, 8)).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        change(&path);
        let found = checkpoint.verify().err().map(|error| kind(&error)).unwrap_or_default();
        assert_eq!(found, expected, "{what}");
        let mut bytes = [0; 8];
        let read = checkpoint.read_into("a", &mut bytes);
        match what {
            "cut" => assert_eq!(kind(&read.unwrap_err()), "Truncated"),
            "replaced" => assert_eq!(bytes, [0, 1, 2, 3, 4, 5, 6, 7], "the old content"),
            _ => read.unwrap(),
        }
    }
}

/// Bytes that this thread has read through system calls; nothing where the kernel does not count them.
fn bytes_read() -> Option<u64> {
    let text = fs::read_to_string("/proc/thread-self/io").ok()?;
    text.lines().find_map(|line| line.strip_prefix("rchar: "))?.parse().ok()
}

#[test]
fn opening_ten_gigabytes_reads_the_header() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let layers = 100u64;
    let each = 25 << 20; // Elements: 100 MiB.
    let tensors: Vec<String> = (0..layers)
        .map(|i| {
            tensor(&format!("layer.{i}"), "F32", &[each], [i * 4 * each as u64, (i + 1) * 4 * each as u64])
        })
        .collect();
    let head = file_of(&header(&tensors), 0);
    let file = File::create(&path).unwrap();
    file.write_all_at(&head, 0).unwrap();
    let size = head.len() as u64 + layers * 4 * each as u64;
    if let Err(error) = file.set_len(size) {
        dd_conformance::skipped!("no sparse file of {size} B here: {error}");
        return;
    }
    let Some(before) = bytes_read() else {
        dd_conformance::skipped!("the kernel does not count a thread's reads");
        return;
    };
    let checkpoint = Checkpoint::open(&path).unwrap();
    let read = bytes_read().unwrap() - before;
    assert_eq!(checkpoint.total_bytes(), Bytes(layers * 4 * each as u64));
    assert!(read <= head.len() as u64 + 4096, "{read} B were read for a header of {} B", head.len());
}
