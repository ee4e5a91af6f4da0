//! Memory over time as an SVG: what is accounted, what is resident, and the budget as a line.

use std::path::Path;

use deep_dimensions::core::Bytes;
use plotters::prelude::*;

use crate::error::{CliError, Result};
use crate::timeline::Moment;

const SIZE: (u32, u32) = (960, 480);
const INK: RGBColor = RGBColor(38, 50, 56);
const GRID: RGBColor = RGBColor(224, 229, 232);
const LIMIT: RGBColor = RGBColor(198, 40, 40);
const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 105, 148), RGBColor(230, 126, 34), RGBColor(106, 153, 78), RGBColor(125, 91, 166)];

/// One run in a plot.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Its name, or nothing where there is one run.
    pub name: &'a str,
    /// Its memory over time.
    pub moments: &'a [Moment],
    /// Whether what is accounted is drawn too, as an area.
    pub accounted: bool,
}

/// Draws these runs, and the budget where there is one, into an SVG file.
///
/// # Errors
/// [`CliError::Io`] where the file cannot be written.
pub fn draw(path: &Path, title: &str, runs: &[Run<'_>], budget: Option<Bytes>) -> Result<()> {
    let mut text = String::new();
    let drawn = draw_text(&mut text, title, runs, budget).map_err(|e| e.to_string());
    drawn.map_err(|e| CliError::io("draw", path, e))?;
    std::fs::write(path, text).map_err(|e| CliError::io("write", path, e))
}

type Drawn<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn draw_text(text: &mut String, title: &str, runs: &[Run<'_>], budget: Option<Bytes>) -> Drawn<()> {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (seconds, height) = extent(runs, budget);
    let (scale, unit) = if seconds < 2.0 { (1e3, "time [ms]") } else { (1.0, "time [s]") };
    let width = seconds * scale;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20).into_font().color(&INK))
        .margin(18)
        .x_label_area_size(44)
        .y_label_area_size(76)
        .build_cartesian_2d(0.0..width, 0.0..height)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(GRID)
        .light_line_style(WHITE)
        .axis_style(INK)
        .x_desc(unit)
        .y_desc("memory [MiB]")
        .x_label_formatter(&|x| if scale > 1.0 { format!("{x:.0}") } else { format!("{x:.1}") })
        .y_label_formatter(&|y| format!("{y:.0}"))
        .label_style(("sans-serif", 14).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 15).into_font().color(&INK))
        .draw()?;
    for (run, colour) in runs.iter().zip(COLOURS) {
        if run.accounted {
            let points = steps(run.moments).into_iter().map(|(x, y)| (x * scale, y));
            chart
                .draw_series(AreaSeries::new(points, 0.0, colour.mix(0.22)))?
                .label(label(run.name, "accounted"))
                .legend(move |(x, y)| {
                    Rectangle::new([(x, y - 5), (x + 22, y + 5)], colour.mix(0.22).filled())
                });
        }
        let points = run.moments.iter().filter_map(|m| Some((m.seconds * scale, mib(m.resident?))));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(label(run.name, "resident"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(2)));
    }
    if let Some(budget) = budget {
        let line = [(0.0, mib(budget)), (width, mib(budget))];
        chart
            .draw_series(DashedLineSeries::new(line, 8, 5, LIMIT.stroke_width(2)))?
            .label(format!("budget {budget}"))
            .legend(|(x, y)| PathElement::new([(x, y), (x + 22, y)], LIMIT.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .legend_area_size(32)
        .margin(10)
        .background_style(WHITE.mix(0.9))
        .border_style(GRID)
        .label_font(("sans-serif", 14).into_font().color(&INK))
        .draw()?;
    root.present()?;
    Ok(())
}

fn label(run: &str, what: &str) -> String {
    if run.is_empty() { what.to_owned() } else { format!("{run}: {what}") }
}

/// What is accounted holds until the next moment: steps, not slopes.
fn steps(moments: &[Moment]) -> Vec<(f64, f64)> {
    let next = moments.iter().skip(1).chain(moments.last());
    moments
        .iter()
        .zip(next)
        .flat_map(|(now, next)| [(now.seconds, mib(now.accounted)), (next.seconds, mib(now.accounted))])
        .collect()
}

/// The ends of both axes, with room for the legend above the highest point.
fn extent(runs: &[Run<'_>], budget: Option<Bytes>) -> (f64, f64) {
    let moments = || runs.iter().flat_map(|run| run.moments);
    let width = moments().map(|m| m.seconds).fold(0.001, f64::max);
    let high = moments().map(|m| m.resident.unwrap_or_default().max(m.accounted));
    let high = high.chain(budget).max().unwrap_or_default();
    (width, 1.35 * mib(high).max(1.0))
}

fn mib(bytes: Bytes) -> f64 {
    bytes.0 as f64 / f64::from(1 << 20)
}

/// A line of text that shows resident memory over time, `width` characters wide, as shares of `top`.
#[must_use]
pub fn sparkline(moments: &[Moment], top: Bytes, width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let end = moments.last().map_or(0.0, |m| m.seconds);
    let bar = |column: usize| {
        let within = |m: &&Moment| {
            let place = m.seconds / end.max(1e-9) * width as f64;
            place >= column as f64 && place <= (column + 1) as f64
        };
        let high = moments.iter().filter(within).filter_map(|m| m.resident).max()?;
        let level = (high.fraction_of(top) * 8.0).clamp(0.0, 7.0);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=7")]
        BARS.get(level as usize).copied()
    };
    let mut last = ' ';
    let mut draw = |column| {
        last = bar(column).unwrap_or(last);
        last
    };
    (0..width).map(&mut draw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(mibs: &[u64]) -> Vec<Moment> {
        let at = |(n, mib): (u32, &u64)| Moment {
            seconds: f64::from(n) * 0.1,
            accounted: Bytes::mib(*mib),
            resident: Some(Bytes::mib(mib + 8)),
        };
        (0..).zip(mibs).map(at).collect()
    }

    #[test]
    fn the_plot_names_its_axes_series_and_budget() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.svg");
        let moments = moments(&[1, 20, 32, 31]);
        let run = Run { name: "managed", moments: &moments, accounted: true };
        draw(&path, "Memory of a run", &[run], Some(Bytes::mib(32))).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        let texts = [
            "time [ms]",
            "memory [MiB]",
            "managed: accounted",
            "managed: resident",
            "budget 32.00 MiB",
            "Memory of a",
        ];
        texts.iter().for_each(|text| assert!(svg.contains(text), "{text}"));
        assert!(draw(&folder.path().join("no/t.svg"), "", &[], None).is_err());
    }

    #[test]
    fn no_moment_is_no_failure() {
        let mut text = String::new();
        draw_text(&mut text, "", &[Run { name: "", moments: &[], accounted: true }], None).unwrap();
        assert!(text.contains("</svg>"));
    }

    #[test]
    fn a_sparkline_rises_with_memory() {
        let line = sparkline(&moments(&[0, 8, 16, 24, 32, 40, 48, 56]), Bytes::mib(64), 8);
        assert_eq!(line.chars().count(), 8);
        assert!(line.chars().collect::<Vec<_>>().is_sorted(), "{line}");
        assert_eq!(sparkline(&[], Bytes::mib(1), 3), "   ");
    }
}
