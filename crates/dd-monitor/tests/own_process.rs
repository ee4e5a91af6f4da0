//! Processes on the running system. One test, because resident size and peak belong to the whole process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

use dd_core::Bytes;
use dd_monitor::{Error, IoCounters, ProcessId, ProcessMemory, ProcessSampler, Root, reset_peak};

const BLOCK: u64 = 64 << 20;

/// Takes memory and writes to every page of it.
fn touch(bytes: u64) -> Vec<u8> {
    let mut block = vec![0u8; usize::try_from(bytes).unwrap()];
    block.iter_mut().step_by(1024).for_each(|byte| *byte = 1);
    std::hint::black_box(block)
}

#[test]
fn processes_of_this_system() {
    resident_and_peak_follow_what_is_touched();
    counts_what_is_written();
    an_absent_process_is_an_error();
    an_ended_process_is_an_error();
}

fn resident_and_peak_follow_what_is_touched() {
    let sampler = ProcessSampler::own().unwrap();
    let before = sampler.sample_with_peak().unwrap();
    assert!(before.resident > Bytes::ZERO && before.resident <= before.virtual_size, "{before:?}");
    assert!(before.peak_resident.unwrap() >= before.resident, "{before:?}");
    assert_eq!(sampler.sample().unwrap().peak_resident, None);

    let block = touch(BLOCK);
    let during = sampler.sample_with_peak().unwrap();
    let grown = during.resident.saturating_sub(before.resident).0;
    assert!(grown.abs_diff(BLOCK) <= BLOCK / 16, "{grown} instead of {BLOCK}");
    assert!(during.virtual_size.saturating_sub(before.virtual_size).0 >= BLOCK);
    drop(block);

    let after = sampler.sample_with_peak().unwrap();
    assert!(after.resident.0 + BLOCK / 2 < during.resident.0, "{after:?}, before that {during:?}");
    assert!(after.peak_resident >= before.peak_resident && after.peak_resident.unwrap().0 >= BLOCK);
    let by_number = ProcessMemory::read(&Root::default(), ProcessId::Pid(std::process::id())).unwrap();
    assert!(by_number.resident.0.abs_diff(after.resident.0) < BLOCK / 4);

    match reset_peak(&Root::default()) {
        Ok(()) => {
            let reset = sampler.sample_with_peak().unwrap().peak_resident.unwrap();
            assert!(reset.0 + BLOCK / 2 < during.peak_resident.unwrap().0, "the peak is still {reset}");
        }
        Err(error) => {
            assert!(matches!(error, Error::PeakNotResettable { .. }));
            dd_conformance::skipped!("{error}");
        }
    }
}

fn counts_what_is_written() {
    let root = Root::default();
    let Ok(before) = IoCounters::read(&root, ProcessId::Own) else {
        dd_conformance::skipped!("this kernel does not count what a process reads and writes");
        return;
    };
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(file.path(), vec![7u8; 1 << 20]).unwrap();
    let written = IoCounters::read(&root, ProcessId::Own).unwrap().since(&before).write_bytes;
    if written == Bytes::ZERO {
        dd_conformance::skipped!("the file system of the target folder does not count what is written");
    } else {
        assert!(written >= Bytes::mib(1), "{written}");
    }
}

fn an_absent_process_is_an_error() {
    let error = ProcessSampler::open(&Root::default(), ProcessId::Pid(u32::MAX)).unwrap_err();
    assert!(matches!(error, Error::Unreadable { .. }), "{error}");
}

fn an_ended_process_is_an_error() {
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let sampler = ProcessSampler::open(&Root::default(), ProcessId::Pid(child.id())).unwrap();
    assert!(sampler.sample().is_ok());
    child.kill().unwrap();
    child.wait().unwrap();
    let error = sampler.sample().unwrap_err();
    assert!(matches!(error, Error::Unreadable { .. }), "{error}");
}
