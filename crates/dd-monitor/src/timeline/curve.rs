//! [`plot_curves`]: figures that are not memory (a loss, a rate) drawn as a timeline is.

use std::path::Path;

use plotters::prelude::*;

use super::canvas::{Canvas, OVERSAMPLING, Pixels};
use super::write;
use crate::error::{Error, Result};

const SIZE: (u32, u32) = (900, 460);
const INK: RGBColor = RGBColor(38, 50, 56);
const GRID: RGBColor = RGBColor(228, 232, 235);
const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 77, 110), RGBColor(191, 87, 0), RGBColor(56, 102, 45), RGBColor(94, 53, 137)];

/// Draws named rows of points, in the order of their x, into a PNG file.
///
/// # Errors
/// [`Error::Drawing`] where nothing can be drawn; [`Error::Unwritable`].
pub fn plot_curves(
    path: impl AsRef<Path>,
    title: &str,
    (x_label, y_label): (&str, &str),
    curves: &[(&str, &[(f64, f64)])],
) -> Result<()> {
    let failed = |reason: String| Error::Drawing { what: "PNG", reason };
    let mut pixels = Pixels::new(SIZE.0, SIZE.1).map_err(|error| failed(error.to_string()))?;
    let canvas = Canvas::new(&mut pixels).map_err(|error| failed(error.to_string()))?;
    let area = canvas.into_drawing_area();
    let drawn = draw(&area, title, (x_label, y_label), curves).map_err(|error| error.to_string());
    drop(area);
    drawn.map_err(failed)?;
    write(path.as_ref(), &pixels.to_png().map_err(|error| failed(error.to_string()))?)
}

fn draw(
    area: &DrawingArea<Canvas<'_>, plotters::coord::Shift>,
    title: &str,
    (x_label, y_label): (&str, &str),
    curves: &[(&str, &[(f64, f64)])],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let points = || curves.iter().flat_map(|(_, points)| points.iter());
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::MIN_POSITIVE, f64::max);
    let (width, height) = (most(&mut points().map(|p| p.0)), 1.08 * most(&mut points().map(|p| p.1)));
    let px = |points: u32| points * OVERSAMPLING;
    let font = |size: u32| ("sans-serif", f64::from(px(size))).into_font().color(&INK);
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(area)
        .caption(title, font(20))
        .margin(px(14))
        .x_label_area_size(px(46))
        .y_label_area_size(px(70))
        .build_cartesian_2d(0.0..width, 0.0..height)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(GRID.stroke_width(OVERSAMPLING))
        .light_line_style(TRANSPARENT)
        .axis_style(INK.stroke_width(OVERSAMPLING))
        .x_labels(10)
        .y_labels(8)
        .x_desc(x_label)
        .y_desc(y_label)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.2}"))
        .label_style(font(14))
        .axis_desc_style(font(15))
        .draw()?;
    let left = 0.72 * width;
    for (row, ((name, points), colour)) in (0..).zip(curves.iter().zip(COLOURS.iter().cycle())) {
        chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(px(2))))?;
        let y = height * (0.95 - 0.07 * f64::from(row));
        let sample = [(left, y), (left + 0.05 * width, y)];
        chart.draw_series(LineSeries::new(sample, colour.stroke_width(px(2))))?;
        let place = (left + 0.06 * width, y + 0.018 * height);
        chart.draw_series([Text::new((*name).to_owned(), place, font(14))])?;
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_become_a_picture() {
        let path = std::env::temp_dir().join(format!("dd-monitor-curve-{}.png", std::process::id()));
        let points: Vec<(f64, f64)> = (0..50).map(|x| (f64::from(x), 1.0 / f64::from(x + 1))).collect();
        plot_curves(&path, "loss", ("batch", "loss"), &[("training", &points), ("none", &[])]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 4000, "{} bytes", bytes.len());
        assert!(plot_curves("/nowhere/at/all.png", "", ("", ""), &[]).is_err());
    }
}
