//! The dashboard: tiers, history, holders, pressure and advice on a terminal.

use std::path::Path;
use std::time::{Duration, Instant};

use deep_dimensions::core::{Bytes, MemorySample, Tier};
use deep_dimensions::monitor::pressure::Stall;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, Paragraph, Wrap};

use crate::error::{CliError, Result};
use crate::monitor::MonitorArgs;
use crate::monitor::lines::share;
use crate::monitor::watch::{View, Watch};

/// What a figure such as `1023.99 MiB` takes, with the blanks beside it.
const FIGURE: u16 = 14;
/// A screen of fewer rows shows fewer holders, for the sake of the history.
const LOW: u16 = 30;
/// From these shares on a bar is yellow, or red.
const SHARES: (f64, f64) = (0.85, 0.95);

/// Shows the dashboard until `q`, Esc or Ctrl-C, until the time is over, or until there is nothing more to watch.
///
/// # Errors
/// [`CliError::Io`] where the terminal fails.
pub fn show(watch: &mut Watch, args: &MonitorArgs) -> Result<()> {
    let failed =
        |error: std::io::Error| CliError::io("show the dashboard on", Path::new("the terminal"), error);
    let mut terminal = ratatui::try_init().map_err(failed)?;
    let outcome = run(&mut terminal, watch, args).map_err(failed);
    ratatui::restore();
    outcome
}

fn run(
    terminal: &mut ratatui::DefaultTerminal,
    watch: &mut Watch,
    args: &MonitorArgs,
) -> std::io::Result<()> {
    let began = Instant::now();
    let mut next = began;
    loop {
        if let Err(error) = watch.look() {
            tracing::info!(%error, "there is nothing more to watch");
            return Ok(());
        }
        let view = watch.view();
        terminal.draw(|frame| draw(frame, &view))?;
        next = (next + args.interval).max(Instant::now());
        if args.duration.is_some_and(|duration| next > began + duration) {
            return Ok(());
        }
        while let Some(wait) = next.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero()) {
            if event::poll(wait)? {
                match event::read()? {
                    Event::Resize(..) => {
                        terminal.draw(|frame| draw(frame, &view))?;
                    }
                    event if ends(&event) => return Ok(()),
                    _ => {}
                }
            }
        }
    }
}

/// Whether a key ends the dashboard.
fn ends(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press && (interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

/// Draws a moment.
pub fn draw(frame: &mut Frame<'_>, view: &View) {
    let tiers = u16::try_from(view.tiers.len()).unwrap_or(8).min(10);
    let lists = if frame.area().height < LOW { 8 } else { 11 };
    let rows = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(tiers + 2),
        Constraint::Min(6),
        Constraint::Length(lists),
    ]);
    let [title, bars, history, bottom] = rows.areas(frame.area());
    let [left, right] = Layout::horizontal([Constraint::Percentage(45), Constraint::Min(20)]).areas(bottom);
    let time = format!(" · {} · q ends", clock(view.at));
    let bold = Style::new().add_modifier(Modifier::BOLD);
    frame.render_widget(Line::from(vec![Span::styled(view.title.as_str(), bold), Span::raw(time)]), title);
    draw_tiers(frame, view, bars);
    draw_history(frame, view, history);
    draw_holders(frame, view, left);
    draw_news(frame, view, right);
}

/// Hours, minutes and seconds.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn colour(share: f64) -> Color {
    match share {
        share if share >= SHARES.1 => Color::Red,
        share if share >= SHARES.0 => Color::Yellow,
        _ => Color::Green,
    }
}

/// A bar of this many characters.
fn bar(share: f64, width: u16) -> String {
    let full = (0..width).filter(|column| f64::from(*column) + 0.5 < share * f64::from(width)).count();
    let rest = usize::from(width).saturating_sub(full);
    format!("{}{}", "█".repeat(full), "░".repeat(rest))
}

fn draw_tiers(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let width = area.width.saturating_sub(60).clamp(10, 60);
    let row = |(tier, sample): &(Tier, MemorySample)| {
        let used = sample.used_fraction();
        let bar = Span::styled(bar(used, width), Style::new().fg(colour(used)));
        Line::from(vec![bar, Span::raw(format!("  {}", share(*tier, sample)))])
    };
    let rows: Vec<Line<'_>> = view.tiers.iter().map(row).collect();
    frame.render_widget(Paragraph::new(rows).block(Block::bordered().title(" tiers ")), area);
}

fn draw_history(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let ends = view.past.first().zip(view.past.last()).map_or((0.0, 1.0), |(first, last)| (first.0, last.0));
    let most = view.past.iter().map(|(_, mib)| *mib).fold(1.0, f64::max) * 1.1;
    let now = view.past.last().map(|(_, mib)| Bytes::mib(1).scaled(*mib)).unwrap_or_default();
    let dataset = Dataset::default()
        .marker(Marker::Braille)
        .graph_type(GraphType::Line)
        .style(Style::new().fg(Color::Cyan))
        .data(&view.past);
    let of = |share: f64| Bytes::mib(1).scaled(most * share).to_string();
    let ago = format!("{:.0} s ago", (ends.1 - ends.0).max(0.0));
    let chart = Chart::new(vec![dataset])
        .block(Block::bordered().title(format!(" {}: {now} ", view.past_name)))
        .x_axis(Axis::default().bounds([ends.0, ends.1.max(ends.0 + 1e-3)]).labels([ago, "now".to_owned()]))
        .y_axis(Axis::default().bounds([0.0, most]).labels(["0 B".to_owned(), of(0.5), of(1.0)]));
    frame.render_widget(chart, area);
}

fn draw_holders(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let most = view.holders.first().map_or(Bytes::ZERO, |(_, bytes)| *bytes);
    // The names take what they need, the bars the rest: at least a few blocks.
    let inner = area.width.saturating_sub(2);
    let bar_width = inner.saturating_sub(20 + FIGURE).clamp(5, 40);
    let name_width = usize::from(inner.saturating_sub(FIGURE + bar_width).min(20));
    let row = |(name, bytes): &(String, Bytes)| {
        let name: String = name.chars().take(name_width).collect();
        let held = Span::raw(format!("{name:<name_width$}{:>13} ", bytes.to_string()));
        let bar = bar(bytes.fraction_of(most), bar_width);
        Line::from(vec![held, Span::styled(bar, Style::new().fg(Color::Blue))])
    };
    let rows: Vec<Line<'_>> = view.holders.iter().map(row).collect();
    frame.render_widget(Paragraph::new(rows).block(Block::bordered().title(" holders ")), area);
}

fn draw_news(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let advice = view.recommendations.iter().take(4).map(|text| Line::styled(text.clone(), Color::Yellow));
    let crossings = view.crossings.iter().rev().take(4).map(|text| Line::raw(text.clone()));
    let rows: Vec<Line<'_>> = waited(view).into_iter().chain(advice).chain(crossings).collect();
    let news = Paragraph::new(rows).wrap(Wrap { trim: true });
    frame.render_widget(news.block(Block::bordered().title(" pressure and advice ")), area);
}

/// How long tasks waited for memory, as a table of shares of the time.
fn waited(view: &View) -> Vec<Line<'static>> {
    let Some((some, full)) = view.pressure else {
        return vec![Line::raw("this kernel tells no pressure")];
    };
    let row = |name: &str, figures: [String; 3]| {
        let [ten, minute, five] = figures;
        Line::raw(format!("{name:<15}{ten:>8}{minute:>8}{five:>8}"))
    };
    let shares = |stall: Stall| {
        let shares = [stall.ten_seconds_fraction, stall.minute_fraction, stall.five_minutes_fraction];
        shares.map(|share| format!("{:.1} %", share * 100.0))
    };
    vec![
        row("waiting, over", ["10 s", "1 min", "5 min"].map(str::to_owned)),
        row("some tasks", shares(some)),
        row("all tasks", shares(full)),
    ]
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyEvent;

    use super::*;

    fn view() -> View {
        let sample = |used| MemorySample {
            total: Bytes::gib(10),
            used: Bytes::gib(used),
            available: Bytes::gib(10 - used),
        };
        let stall = Stall { ten_seconds_fraction: 0.25, ..Stall::default() };
        View {
            title: "deepdim monitor · process 7".to_owned(),
            at: Duration::from_secs(3725),
            tiers: vec![(Tier::Device(0), sample(9)), (Tier::Host, sample(2)), (Tier::Disk, sample(5))],
            resident: Some(Bytes::mib(100)),
            past: (0..60).map(|n| (f64::from(n), f64::from(n * 10))).collect(),
            past_name: "resident",
            holders: vec![("anonymous".to_owned(), Bytes::mib(80)), ("file".to_owned(), Bytes::mib(20))],
            pressure: Some((stall, Stall::default())),
            recommendations: vec!["warning: device:0 is 90 % full".to_owned()],
            crossings: vec!["offload: device:0 rose to 90.0 %".to_owned()],
        }
    }

    fn drawn(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        let buffer = terminal.backend().buffer();
        let rows = buffer.content().chunks(usize::from(width));
        rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>() + "\n").collect()
    }

    #[test]
    fn everything_is_on_the_screen() {
        let screen = drawn(&view(), 110, 34);
        let texts = [
            "deepdim monitor · process 7 · 1:02:05 · q ends",
            "device:0 9.00 GiB of 10.00 GiB, 90 %",
            "disk 5.00 GiB",
            "resident: 590.00 MiB",
            "59 s ago",
            "anonymous",
            "80.00 MiB",
            "waiting, over      10 s   1 min   5 min",
            "some tasks       25.0 %   0.0 %   0.0 %",
            "warning: device:0 is 90 % full",
            "offload: device:0 rose",
        ];
        for text in texts {
            assert!(screen.contains(text), "{text} is not on\n{screen}");
        }
    }

    /// On the smallest usual screen every part still says something: bars beside names and figures, and no line is cut.
    #[test]
    fn a_small_screen_shows_it_all() {
        let mut crowded = view();
        crowded.tiers.truncate(2);
        crowded.holders =
            (0..8).map(|n| (format!("a-very-long-name-of-{n}"), Bytes::mib(1000 - n))).collect();
        let screen = drawn(&crowded, 80, 24);
        let texts = [
            "device:0 9.00 GiB of 10.00 GiB, 90 %",
            "a-very-long-nam  1000.00 MiB █████",
            "some tasks       25.0 %",
            "offload: device:0 rose to 90.0 %",
            "59 s ago",
        ];
        for text in texts {
            assert!(screen.contains(text), "{text} is not on\n{screen}");
        }
        assert!(
            screen
                .lines()
                .filter(|line| line.contains('⠤') || line.contains('⣀') || line.contains('⠉'))
                .count()
                > 2,
            "{screen}"
        );
    }

    #[test]
    fn any_size_and_no_figure_are_no_failure() {
        for (width, height) in [(1, 1), (20, 5), (80, 24), (200, 60)] {
            assert!(!drawn(&View::default(), width, height).is_empty());
            assert!(!drawn(&view(), width, height).is_empty());
        }
    }

    #[test]
    fn bars() {
        let rows = [(0.0, "░░░░"), (0.5, "██░░"), (1.0, "████"), (2.0, "████"), (f64::NAN, "░░░░")];
        for (share, expected) in rows {
            assert_eq!(bar(share, 4), expected, "{share}");
        }
    }

    #[test]
    fn keys_that_end_it() {
        let key = |code, modifiers| Event::Key(KeyEvent::new(code, modifiers));
        let rows = [
            (key(KeyCode::Char('q'), KeyModifiers::NONE), true),
            (key(KeyCode::Esc, KeyModifiers::NONE), true),
            (key(KeyCode::Char('c'), KeyModifiers::CONTROL), true),
            (key(KeyCode::Char('c'), KeyModifiers::NONE), false),
            (Event::Resize(1, 1), false),
        ];
        for (event, expected) in rows {
            assert_eq!(ends(&event), expected, "{event:?}");
        }
    }
}
