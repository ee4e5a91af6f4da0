//! Every suite finds out implementations that are broken on purpose, and says what is wrong with them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::panic::{AssertUnwindSafe, catch_unwind};

mod backend;
mod linalg;
mod small;
mod store;

/// Checks that a suite panics on a fault with a message that contains these words.
fn caught(fault: &str, words: &str, suite: impl FnOnce()) {
    let Err(panic) = catch_unwind(AssertUnwindSafe(suite)) else {
        panic!("{fault}: the suite did not find it");
    };
    let literal = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let message = literal.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    assert!(message.contains(words), "{fault}: expected a message with {words:?}, found: {message}");
}
