//! The project's checks and chores: `cargo xtask ci | bench | docs | fixtures | peers`.
//!
//! | module | what it does |
//! |---|---|
//! | [`ci`] | the stages of the one test command, in order, and their report |
//! | [`map`] | the checks that the code is what `docs/architecture.md` says |
//! | [`fixtures`] | fetches the real model that the tests run |
//! | [`bench`] | runs the criterion suites and keeps their raw results |
//! | [`peers`] | the Python environments of those that we compare with, or that read what we write |
//! | [`workspace`] | where things are, and how Cargo is called |

mod bench;
mod ci;
mod fixtures;
mod map;
mod peers;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::{Result, Workspace};

/// The project's checks and chores.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Every check, cheapest first.
    Ci(ci::Options),
    /// The criterion suites of benches/.
    Bench(bench::Options),
    /// The API documentation of the workspace; a warning is an error.
    Docs,
    /// Fetches and verifies the test model, once.
    Fixtures,
    /// Makes a Python environment of 200 MB with zarr and tensorstore, with which tests read our stores.
    Peers,
}

fn main() -> ExitCode {
    match run(&Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> Result<()> {
    if let Task::Ci(options) = task
        && options.list
    {
        ci::list();
        return Ok(());
    }
    let workspace = Workspace::find()?;
    match task {
        Task::Ci(options) => ci::run(&workspace, options),
        Task::Bench(options) => bench::run(&workspace, options),
        Task::Docs => ci::docs(&workspace),
        Task::Fixtures => fixtures::run(&workspace),
        Task::Peers => peers::readers(&workspace),
    }
}
