//! `cargo xtask ci`: every check of the project, cheapest first, and a report of what was done and what was not.

mod report;

use std::fs;
use std::io::Write;
use std::time::Instant;

use clap::Args;

use self::report::{Outcome, Report};
use crate::workspace::{Result, Workspace};
use crate::{fixtures, map};

/// What to run.
#[derive(Args)]
pub(crate) struct Options {
    /// Only this stage; may be given several times.
    #[arg(long, value_name = "STAGE", value_parser = stage_names())]
    only: Vec<String>,
    /// Prints the stages and runs none.
    #[arg(long)]
    pub(crate) list: bool,
    /// Runs the later stages even where an earlier one failed.
    #[arg(long)]
    keep_going: bool,
}

/// One stage: what it is called, what it checks, and the work.
struct Stage {
    name: &'static str,
    about: &'static str,
    run: fn(&Workspace) -> Outcome,
}

const STAGES: &[Stage] = &[
    Stage {
        name: "fmt",
        about: "the code is formatted",
        run: |w| w.cargo(&["fmt", "--all", "--check"]).into(),
    },
    Stage { name: "map", about: "the code is what docs/architecture.md says", run: |w| map::run(w).into() },
    Stage { name: "clippy", about: "no lint warns", run: |w| clippy(w).into() },
    Stage {
        name: "features",
        about: "each crate compiles without its optional parts",
        run: |w| features(w).into(),
    },
    Stage { name: "fixtures", about: "the test model is there, byte for byte", run: fixtures },
    Stage {
        name: "shuttle",
        about: "the budget, the windows of a feed and the tile engine hold under any interleaving",
        run: |w| shuttle(w).into(),
    },
    Stage { name: "test", about: "unit, integration and documentation tests", run: |w| test(w).into() },
    Stage { name: "examples", about: "each example program runs", run: |w| examples(w).into() },
    Stage {
        name: "demo",
        about: "the README's first command does what it says",
        run: |w| w.cargo(DEMO).into(),
    },
    Stage { name: "docs", about: "the API documentation builds without a warning", run: |w| docs(w).into() },
];

/// The README's first command.
const DEMO: &[&str] = &["run", "--", "demo"];

/// What must compile with another set of features than the workspace has by default.
const OTHER_FEATURES: &[&[&str]] = &[
    &["-p", "dd-core"],
    &["-p", "dd-candle", "--no-default-features"],
    &["-p", "dd-infinite"],
    &["-p", "deep-dimensions", "--no-default-features"],
    &["-p", "dd-cli", "--no-default-features"],
];

/// The workspace without these chores: `cargo_metadata` asks for a feature of `serde_json` that would compile the tensor
/// library anew between here and a plain `cargo build`.
///
/// The tile stores in object stores are checked with the rest, though no program of ours has them.
const PRODUCT: &[&str] = &["--workspace", "--exclude", "xtask", "--features", "dd-infinite/object-store"];

/// The chores, in the target directory that they run from.
const CHORES: &[&str] = &["-p", "xtask", "--target-dir", "target/xtask"];

fn stage_names() -> Vec<&'static str> {
    STAGES.iter().map(|stage| stage.name).collect()
}

/// Prints the stages in their order.
pub(crate) fn list() {
    for stage in STAGES {
        println!("{:10} {}", stage.name, stage.about);
    }
}

/// Runs the chosen stages; an error if one failed.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    clear_skip_log(workspace)?;
    let chosen =
        |stage: &&Stage| options.only.is_empty() || options.only.iter().any(|name| name == stage.name);
    let mut report = Report::default();
    for stage in STAGES.iter().filter(chosen) {
        if report.failed() && !options.keep_going {
            report.add(stage.name, Outcome::NotRun, 0.0);
        } else {
            perform(stage, workspace, &mut report);
        }
    }
    print!("\n{}", report.print(&skip_lines(workspace)));
    if report.failed() { Err("the checks did not pass".into()) } else { Ok(()) }
}

fn perform(stage: &Stage, workspace: &Workspace, report: &mut Report) {
    println!("\n=== {}: {}", stage.name, stage.about);
    let start = Instant::now();
    let outcome = (stage.run)(workspace);
    let seconds = start.elapsed().as_secs_f64();
    println!("=== {}: {outcome} in {seconds:.1} s", stage.name);
    report.add(stage.name, outcome, seconds);
}

fn clear_skip_log(workspace: &Workspace) -> Result<()> {
    fs::create_dir_all(&workspace.target)?;
    Ok(fs::write(&workspace.skip_log, "")?)
}

fn note_skipped(workspace: &Workspace, line: &str) -> Result<()> {
    let mut log = fs::OpenOptions::new().append(true).create(true).open(&workspace.skip_log)?;
    Ok(writeln!(log, "{line}")?)
}

fn skip_lines(workspace: &Workspace) -> Vec<String> {
    let log = fs::read_to_string(&workspace.skip_log).unwrap_or_default();
    log.lines().map(str::to_owned).collect()
}

fn clippy(workspace: &Workspace) -> Result<()> {
    let strict = ["--all-targets", "--", "-D", "warnings"];
    workspace.cargo(&[&["clippy"], PRODUCT, &strict].concat())?;
    workspace.cargo(&[&["clippy"], CHORES, &strict].concat())
}

/// The features that need a vendor's toolkit are not built here, and the report says so.
fn features(workspace: &Workspace) -> Result<()> {
    note_skipped(
        workspace,
        "skipped: the features `cuda` and `metal`: they need their vendors' toolkits to build",
    )?;
    OTHER_FEATURES.iter().try_for_each(|chosen| workspace.cargo(&[&["check"], *chosen].concat()))
}

/// A machine that cannot fetch the model still runs every other check; the tests that need it say so themselves.
fn fixtures(workspace: &Workspace) -> Outcome {
    match fixtures::run(workspace) {
        Ok(()) => Outcome::Passed,
        Err(reason) => Outcome::Skipped(reason.to_string()),
    }
}

/// In a target directory of its own: the flag changes every dependency.
fn shuttle(workspace: &Workspace) -> Result<()> {
    let target = workspace.target_named("shuttle")?;
    let suites: [&[&str]; 3] = [
        &["-p", "dd-core", "--test", "budget_shuttle"],
        &["-p", "dd-feed", "--lib", "interleavings"],
        &["-p", "dd-infinite", "--test", "engine_shuttle"],
    ];
    suites.iter().try_for_each(|suite| {
        let test = [&["test", "--target-dir", &target], *suite].concat();
        workspace.cargo_with(&[("RUSTFLAGS", "--cfg dd_shuttle")], &test)
    })
}

fn test(workspace: &Workspace) -> Result<()> {
    let product = workspace.cargo(&[&["test", "--no-fail-fast"], PRODUCT].concat());
    product.and(workspace.cargo(&[&["test"], CHORES].concat()))
}

/// Runs every program of `examples/`, so that none can rot. They are built beside the command: alone they would ask
/// for fewer features of what they depend on, and compile the tensor library once more.
fn examples(workspace: &Workspace) -> Result<()> {
    let package = workspace.packages.iter().find(|package| package.name.as_str() == "dd-examples");
    let targets = package.ok_or("the workspace has no package `dd-examples`")?.targets.iter();
    let programs: Vec<&str> =
        targets.filter(|target| target.is_bin()).map(|target| target.name.as_str()).collect();
    if programs.is_empty() {
        return Err("there is no program in examples/src/bin".into());
    }
    // With the features that the tests had: fewer packages would have fewer, and be built again.
    workspace.cargo(&[&["build", "--bins"], PRODUCT].concat())?;
    let built = workspace.target.join("debug");
    programs.iter().try_for_each(|program| workspace.run(&built.join(program)))
}

/// Builds the API documentation; a warning is an error.
pub(crate) fn docs(workspace: &Workspace) -> Result<()> {
    workspace.cargo_with(&[("RUSTDOCFLAGS", "-D warnings")], &[&["doc"], PRODUCT, &["--no-deps"]].concat())
}
