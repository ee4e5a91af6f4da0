//! The command `deepdim`.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use dd_cli::args::{Args, Command};
use dd_cli::error::{CliError, ErrorReport, Result};
use dd_cli::plan::Planned;
use dd_cli::tiles::TilesCommand;
use dd_cli::{demo, generate, heap, inspect, interrupt, monitor, pack, plan, report, run, tiles};
use deep_dimensions::offload::plan::ResidencyPlan;
use serde::Serialize;

fn main() -> ExitCode {
    heap::give_back_at_once();
    start_log();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let done = act(&args);
    interrupt::leave_to_it_if_asked();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, args.json),
    }
}

fn act(args: &Args) -> Result<()> {
    let json = args.json;
    match &args.command {
        Command::Run(run) if run.texts.is_empty() => {
            let report = generate::run::run(run, &mut |piece| stream(args.json, piece))?;
            show(args.json, &report, generate::report::generate_text)
        }
        Command::Run(run) => {
            show(args.json, &run::run(run, |plan| announce(args.json, plan))?, report::run_text)
        }
        Command::Plan(plan) => match plan::plan(plan)? {
            Planned::Embeds(report) => show(args.json, &report, report::plan_text),
            Planned::Writes(report) => show(args.json, &report, generate::report::plan_text),
        },
        Command::Pack(pack) => show(args.json, &pack::pack(pack)?, pack::pack_text),
        Command::Scale(scale) => show(args.json, &dd_cli::scale::scale(scale)?, dd_cli::scale::scale_text),
        Command::Demo(demo) => {
            let report = demo::demo(demo)?;
            show(args.json, &report, report::demo_text)?;
            report.check()
        }
        Command::Inspect(wanted) => show(args.json, &inspect::inspect(wanted)?, inspect::text),
        Command::Tiles(TilesCommand::Render(args)) => {
            show(json, &tiles::render::render(args)?, tiles::render::render_text)
        }
        Command::Tiles(TilesCommand::Inspect(args)) => {
            let report = tiles::inspect::inspect(args)?;
            show(json, &report, tiles::inspect::inspect_text)?;
            report.check()
        }
        Command::Monitor(watch) => monitor::monitor(watch, args.json),
        Command::DemoPass(pass) => show(true, &demo::child(pass)?, |_| String::new()),
    }
}

fn show<T: Serialize>(json: bool, report: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
    if json {
        let text = serde_json::to_string(report).map_err(|e| CliError::input("report", e, "report this"))?;
        say(&text);
    } else {
        say(&text(report));
    }
    Ok(())
}

/// Prints a line. A reader that has gone away (`deepdim … | head`) is no error, and no reason to panic.
fn say(text: &str) {
    if let Err(error) = writeln!(std::io::stdout(), "{text}") {
        tracing::debug!(%error, "nobody reads the output");
    }
}

/// Shows a person a text while it is written; in JSON it is part of the report.
fn stream(json: bool, piece: &str) {
    let mut out = std::io::stdout();
    if !json && let Err(error) = write!(out, "{piece}").and_then(|()| out.flush()) {
        tracing::debug!(%error, "nobody reads the output");
    }
}

/// Shows a person the plan before it is carried out; in JSON it is part of the report.
fn announce(json: bool, plan: &ResidencyPlan) {
    if !json {
        say(&format!("{plan}\n"));
    }
}

#[allow(clippy::print_stderr, reason = "errors are told to the user")]
fn fail(error: &CliError, json: bool) -> ExitCode {
    eprintln!("deepdim: {error}");
    if json && let Ok(text) = serde_json::to_string(&error.report()) {
        say(&text);
    }
    ExitCode::from(error.exit_code())
}

/// Help and version are no errors; anything else is bad usage, and with `--json` it is JSON as well.
fn usage(error: &clap::Error) -> ExitCode {
    let bad = error.use_stderr();
    if bad && std::env::args().any(|word| word == "--json") {
        let report = ErrorReport { error: error.to_string(), exit_code: 2, needed_bytes: None };
        if let Ok(text) = serde_json::to_string(&report) {
            say(&text);
        }
    }
    if error.print().is_err() || bad { ExitCode::from(2) } else { ExitCode::SUCCESS }
}

/// Events go to standard error where `DEEPDIM_LOG` asks for them, for example `DEEPDIM_LOG=debug`.
fn start_log() {
    if let Ok(filter) = std::env::var("DEEPDIM_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
}
