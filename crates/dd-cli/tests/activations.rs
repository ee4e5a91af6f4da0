//! The peak that is reserved for activations against what the allocator counts.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

#[path = "support/counting.rs"]
mod counting;

use std::alloc::System;

use dd_cli::activations;
use dd_cli::bert::{Bert, Ragged};
use dd_cli::testing;

#[global_allocator]
static COUNTING: counting::Counting<System> = counting::Counting::new(System);

/// One test, so that nothing else allocates meanwhile.
#[test]
fn the_reservation_covers_the_peak_and_is_tight() {
    let shapes: [(usize, usize, usize, &[usize]); 8] = [
        (384, 12, 1536, &[256]),
        (384, 12, 1536, &[12, 14, 9]),
        (384, 12, 1536, &[64; 16]),
        (384, 12, 1536, &[512, 512]),
        (768, 12, 3072, &[128]),
        (768, 12, 3072, &[20; 40]),
        (256, 4, 1024, &[300, 5, 5]),
        (256, 4, 512, &[30]),
    ];
    for (hidden, heads, inner, lengths) in shapes {
        let config = testing::config(hidden, heads, inner, 2);
        let model = Bert::held(&testing::builder(&config).unwrap(), &config).unwrap();
        let sentences: Vec<Vec<u32>> = lengths.iter().map(|len| vec![7; *len]).collect();
        let pass = || {
            let batch = Ragged::new(sentences.iter().map(Vec::as_slice));
            model.forward(&batch, &mut |_| {}).unwrap()
        };
        drop(pass()); // Threads and their packing buffers are made once.
        let (_states, measured) = COUNTING.peak_of(pass);
        let reserved = activations::peak(&config, lengths).to_usize().unwrap();
        println!("{hidden} {lengths:?}: measured {measured} B, reserved {reserved} B");
        assert!(measured <= reserved, "hidden {hidden}, {lengths:?}: {measured} B > {reserved} B reserved");
        assert!(
            reserved as f64 <= 1.3 * measured as f64,
            "{lengths:?}: {reserved} B for {measured} B is not tight"
        );
    }
}
