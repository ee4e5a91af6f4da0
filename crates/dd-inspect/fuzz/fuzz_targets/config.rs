//! Any text as a `config.json`.
#![no_main]

use dd_inspect::graph::Sizes;
use dd_inspect::read::config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(model) = config::parse(text, "fuzz") {
        let _ = model.graph.shapes(Sizes::new(usize::MAX, 7));
    }
});
