//! Drawing a [`Timeline`]: stacked holders, lines, the budget, what happened, and a legend beside them.

use std::path::Path;

use dd_core::Bytes;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::canvas::{Canvas, OVERSAMPLING, Pixels};
use super::{SeriesKind, Timeline, write};
use crate::error::{Error, Result};

/// A picture's size in points.
const SIZE: (u32, u32) = (1200, 560);
/// What the legend takes of the width.
const LEGEND: u32 = 300;
/// The most holders that are drawn apart; the smaller ones are drawn as one.
const MOST_HOLDERS: usize = 9;
/// The most marks that the legend has room for.
const MOST_MARKS: usize = 8;

const INK: RGBColor = RGBColor(38, 50, 56);
const FAINT: RGBColor = RGBColor(120, 132, 138);
const GRID: RGBColor = RGBColor(228, 232, 235);
const LIMIT: RGBColor = RGBColor(198, 40, 40);
const LINES: [RGBColor; 5] = [
    RGBColor(0, 77, 110),
    RGBColor(191, 87, 0),
    RGBColor(56, 102, 45),
    RGBColor(94, 53, 137),
    RGBColor(120, 40, 60),
];
const AREAS: [RGBColor; 10] = [
    RGBColor(141, 199, 226),
    RGBColor(253, 205, 145),
    RGBColor(172, 217, 158),
    RGBColor(205, 184, 230),
    RGBColor(247, 181, 189),
    RGBColor(186, 228, 222),
    RGBColor(233, 220, 140),
    RGBColor(190, 197, 230),
    RGBColor(222, 196, 171),
    RGBColor(210, 214, 217),
];

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;
type Points = Vec<(f64, f64)>;

impl Timeline {
    /// Draws the timeline into an SVG or a PNG file, by the end of its name.
    ///
    /// # Errors
    /// [`Error::UnknownPicture`] for another end; [`Error::Drawing`]; [`Error::Unwritable`].
    pub fn plot(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let end = path.extension().and_then(|end| end.to_str()).map(str::to_ascii_lowercase);
        match end.as_deref() {
            Some("svg") => write(path, self.to_svg()?.as_bytes()),
            Some("png") => write(path, &self.to_png()?),
            _ => Err(Error::UnknownPicture { path: path.to_owned() }),
        }
    }

    /// The picture as an SVG text.
    ///
    /// # Errors
    /// [`Error::Drawing`] where the library refuses.
    pub fn to_svg(&self) -> Result<String> {
        let mut text = String::new();
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        let drawn = Picture::of(self).draw(&area, 1).map_err(|error| error.to_string());
        drop(area);
        drawn.map_err(|reason| Error::Drawing { what: "SVG", reason })?;
        Ok(text)
    }

    /// The picture as a PNG.
    ///
    /// # Errors
    /// [`Error::Drawing`] where the library refuses.
    pub fn to_png(&self) -> Result<Vec<u8>> {
        let failed = |reason: String| Error::Drawing { what: "PNG", reason };
        let mut pixels = Pixels::new(SIZE.0, SIZE.1).map_err(|error| failed(error.to_string()))?;
        let canvas = Canvas::new(&mut pixels).map_err(|error| failed(error.to_string()))?;
        let area = canvas.into_drawing_area();
        let drawn = Picture::of(self).draw(&area, OVERSAMPLING).map_err(|error| error.to_string());
        drop(area);
        drawn.map_err(failed)?;
        pixels.to_png().map_err(|error| failed(error.to_string()))
    }
}

/// A named, coloured row of points.
struct Shape {
    name: String,
    colour: RGBColor,
    points: Points,
}

/// What is drawn, in the units of the axes.
struct Picture<'a> {
    timeline: &'a Timeline,
    areas: Vec<Shape>,
    lines: Vec<Shape>,
    /// The time of the first row in seconds, and how many units of the axis a second has.
    time: (f64, f64, &'static str),
    /// How many bytes a unit of the axis has.
    memory: (f64, &'static str),
    width: f64,
    height: f64,
}

impl<'a> Picture<'a> {
    fn of(timeline: &'a Timeline) -> Self {
        let first = timeline.rows.first().map_or(0.0, |row| row.seconds);
        let last = timeline.rows.last().map_or(0.0, |row| row.seconds);
        let (scale, unit) = match last - first {
            _ if timeline.steps => (1.0, "step"),
            span if span < 2.0 => (1e3, "time [ms]"),
            span if span < 600.0 => (1.0, "time [s]"),
            _ => (1.0 / 60.0, "time [min]"),
        };
        let highest = highest(timeline);
        let memory =
            [("GiB", 30), ("MiB", 20), ("KiB", 10)].into_iter().find(|(_, bits)| highest.0 >> bits >= 2);
        let memory = memory.map_or((1.0, "B"), |(name, bits)| (f64::from(1u32 << bits), name));
        let mut picture = Self {
            timeline,
            areas: Vec::new(),
            lines: Vec::new(),
            time: (first, scale, unit),
            memory,
            width: ((last - first) * scale).max(1e-3),
            height: 1.08 * (highest.fraction_of(Bytes(1)) / memory.0).max(1.0),
        };
        picture.areas = picture.stack();
        picture.lines = picture.lines();
        picture
    }

    fn x(&self, seconds: f64) -> f64 {
        (seconds - self.time.0) * self.time.1
    }

    fn y(&self, bytes: Bytes) -> f64 {
        bytes.fraction_of(Bytes(1)) / self.memory.0
    }

    /// The columns of a kind.
    fn columns(&self, kind: SeriesKind) -> impl Iterator<Item = (usize, &'a str)> {
        let series = self.timeline.series.iter().enumerate();
        series.filter(move |(_, it)| it.kind == kind).map(|(column, it)| (column, it.name.as_str()))
    }

    fn lines(&self) -> Vec<Shape> {
        let shape = |((column, name), colour): ((usize, &str), &RGBColor)| Shape {
            name: name.to_owned(),
            colour: *colour,
            points: self.timeline.values(column).map(|(at, bytes)| (self.x(at), self.y(bytes))).collect(),
        };
        self.columns(SeriesKind::Line).zip(LINES.iter().cycle()).map(shape).collect()
    }

    /// The holders, each on top of those before it; the largest first, the smallest ones together.
    fn stack(&self) -> Vec<Shape> {
        let most =
            |column: usize| self.timeline.values(column).map(|(_, bytes)| bytes).max().unwrap_or_default();
        let mut holders: Vec<(usize, &str)> = self.columns(SeriesKind::Holder).collect();
        holders.sort_by_key(|(column, _)| std::cmp::Reverse(most(*column)));
        let rest = holders.split_off(holders.len().min(MOST_HOLDERS));
        let mut groups: Vec<(String, Vec<usize>)> =
            holders.into_iter().map(|(column, name)| (name.to_owned(), vec![column])).collect();
        if !rest.is_empty() {
            groups.push((
                format!("{} others", rest.len()),
                rest.into_iter().map(|(column, _)| column).collect(),
            ));
        }
        let mut floor = vec![Bytes::ZERO; self.timeline.rows.len()];
        let shape = |((name, columns), colour): ((String, Vec<usize>), &RGBColor)| {
            for (sum, row) in floor.iter_mut().zip(&self.timeline.rows) {
                *sum += columns.iter().filter_map(|column| row.bytes.get(*column).copied().flatten()).sum();
            }
            Shape { name, colour: *colour, points: self.steps(&floor) }
        };
        groups.into_iter().zip(AREAS.iter().cycle()).map(shape).collect()
    }

    /// What is accounted holds until the next moment: steps, not slopes.
    fn steps(&self, levels: &[Bytes]) -> Points {
        let times = self.timeline.rows.iter().map(|row| self.x(row.seconds));
        let next = times.clone().skip(1).chain(times.clone().next_back());
        let pairs = times.zip(next).zip(levels);
        pairs.flat_map(|((now, next), level)| [(now, self.y(*level)), (next, self.y(*level))]).collect()
    }

    /// Draws everything, `unit` pixels to the point.
    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, unit: u32) -> Drawn
    where
        DB::ErrorType: 'static,
    {
        area.fill(&WHITE)?;
        let pen = Pen { unit: f64::from(unit) };
        let (left, right) = area.split_horizontally((SIZE.0 - LEGEND) * unit);
        let px = |points: u32| points * unit;
        let mut chart = ChartBuilder::on(&left)
            .caption(&self.timeline.title, pen.font(21, INK))
            .margin(px(14))
            .x_label_area_size(px(46))
            .y_label_area_size(px(80))
            .build_cartesian_2d(0.0..self.width, 0.0..self.height)?;
        let decimals = if self.width < 20.0 { 1 } else { 0 };
        let fine = if self.height < 20.0 { 1 } else { 0 };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(GRID.stroke_width(unit))
            .light_line_style(TRANSPARENT)
            .axis_style(INK.stroke_width(unit))
            .x_labels(10)
            .y_labels(8)
            .x_desc(self.time.2)
            .y_desc(format!("memory [{}]", self.memory.1))
            .x_label_formatter(&|x| format!("{x:.decimals$}"))
            .y_label_formatter(&|y| format!("{y:.fine$}"))
            .label_style(pen.font(14, INK))
            .axis_desc_style(pen.font(15, INK))
            .draw()?;
        // The highest of the stack first: each lower one covers what is below it.
        for shape in self.areas.iter().rev() {
            chart.draw_series(AreaSeries::new(shape.points.iter().copied(), 0.0, shape.colour.filled()))?;
        }
        for shape in &self.lines {
            chart.draw_series(LineSeries::new(
                shape.points.iter().copied(),
                shape.colour.stroke_width(2 * unit),
            ))?;
        }
        if let Some(budget) = self.timeline.budget {
            let line = [(0.0, self.y(budget)), (self.width, self.y(budget))];
            chart.draw_series(DashedLineSeries::new(line, px(9), px(6), LIMIT.stroke_width(2 * unit)))?;
        }
        for (number, mark) in (1..).zip(self.timeline.marks.iter().take(MOST_MARKS)) {
            let x = self.x(mark.seconds).clamp(0.0, self.width);
            let line = [(x, 0.0), (x, self.height)];
            chart.draw_series(DashedLineSeries::new(line, px(2), px(4), FAINT.stroke_width(unit)))?;
            let label = pen.font(13, INK).pos(Pos::new(HPos::Center, VPos::Top));
            chart.draw_series([Text::new(number.to_string(), (x, self.height), label)])?;
        }
        self.draw_legend(&right, &pen)?;
        area.present()?;
        Ok(())
    }

    fn draw_legend<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, pen: &Pen) -> Drawn
    where
        DB::ErrorType: 'static,
    {
        let mut row = Row { area, pen, top: 52 };
        if let Some(budget) = self.timeline.budget {
            row.entry(&Sample::Dashes, LIMIT, &format!("budget {budget}"), None)?;
        }
        for shape in &self.lines {
            row.entry(&Sample::Line, shape.colour, &shape.name, self.most(&shape.name, SeriesKind::Line))?;
        }
        // As they lie on each other: the topmost first.
        for shape in self.areas.iter().rev() {
            row.entry(&Sample::Area, shape.colour, &shape.name, self.most(&shape.name, SeriesKind::Holder))?;
        }
        row.top += 10;
        for (number, mark) in (1..).zip(self.timeline.marks.iter().take(MOST_MARKS)) {
            row.note(&format!("{number}  {}", mark.text))?;
        }
        let more = self.timeline.marks.len().saturating_sub(MOST_MARKS);
        if more > 0 { row.note(&format!("and {more} more events")) } else { Ok(()) }
    }

    fn most(&self, name: &str, kind: SeriesKind) -> Option<Bytes> {
        let (column, _) = self.columns(kind).find(|(_, known)| *known == name)?;
        self.timeline.values(column).map(|(_, bytes)| bytes).max()
    }
}

/// The highest point of everything that is drawn.
fn highest(timeline: &Timeline) -> Bytes {
    let of_kind = |row: &super::Row, kind: SeriesKind| -> Vec<Bytes> {
        let figures = timeline.series.iter().zip(&row.bytes).filter(|(series, _)| series.kind == kind);
        figures.filter_map(|(_, bytes)| *bytes).collect()
    };
    let stacked = timeline.rows.iter().map(|row| of_kind(row, SeriesKind::Holder).into_iter().sum());
    let lines = timeline.rows.iter().filter_map(|row| of_kind(row, SeriesKind::Line).into_iter().max());
    stacked.chain(lines).chain(timeline.budget).max().unwrap_or_default()
}

/// How large things are.
struct Pen {
    unit: f64,
}

impl Pen {
    fn font(&self, size: u32, colour: RGBColor) -> TextStyle<'static> {
        ("sans-serif", f64::from(size) * self.unit).into_font().color(&colour)
    }

    #[allow(clippy::cast_possible_truncation, reason = "a few thousand pixels")]
    fn px(&self, points: i32) -> i32 {
        (f64::from(points) * self.unit) as i32
    }
}

/// What stands before a name in the legend.
enum Sample {
    Line,
    Area,
    Dashes,
}

/// A place in the legend that moves down as things are written.
struct Row<'a, DB: DrawingBackend> {
    area: &'a DrawingArea<DB, Shift>,
    pen: &'a Pen,
    top: i32,
}

impl<DB: DrawingBackend> Row<'_, DB>
where
    DB::ErrorType: 'static,
{
    fn entry(&mut self, sample: &Sample, colour: RGBColor, name: &str, most: Option<Bytes>) -> Drawn {
        let px = |points| self.pen.px(points);
        let (left, right, middle) = (px(4), px(30), px(self.top + 9));
        let stroke = colour.stroke_width(u32::try_from(px(3)).unwrap_or(3));
        match sample {
            Sample::Line => self.area.draw(&PathElement::new([(left, middle), (right, middle)], stroke))?,
            Sample::Dashes => {
                for from in [4, 14, 24] {
                    self.area
                        .draw(&PathElement::new([(px(from), middle), (px(from + 6), middle)], stroke))?;
                }
            }
            Sample::Area => {
                let corners = [(left, px(self.top + 2)), (right, px(self.top + 16))];
                self.area.draw(&Rectangle::new(corners, colour.filled()))?;
            }
        }
        let at = |x: i32| (px(x), px(self.top + 1));
        let letters = if most.is_some() { 17 } else { 32 };
        self.area.draw(&Text::new(shortened(name, letters), at(38), self.pen.font(14, INK)))?;
        if let Some(most) = most {
            let style = self.pen.font(13, FAINT).pos(Pos::new(HPos::Right, VPos::Top));
            self.area.draw(&Text::new(format!("max {most}"), at(292), style))?;
        }
        self.top += 23;
        Ok(())
    }

    fn note(&mut self, text: &str) -> Drawn {
        let place = (self.pen.px(4), self.pen.px(self.top));
        self.area.draw(&Text::new(shortened(text, 42), place, self.pen.font(13, INK)))?;
        self.top += 20;
        Ok(())
    }
}

/// At most this many letters of a text.
fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Point;
    use super::*;

    /// A run of many layers through a budget of 96 MiB.
    fn run(holders: u32) -> Timeline {
        let mut timeline = Timeline::new("A managed run").with_budget(Bytes::mib(96));
        for n in 0..200u32 {
            let wave = |phase: u32, most: u64| Bytes::mib(u64::from((n + phase) % 25) * most / 24);
            let mut point =
                Point::new().line("resident", Bytes::mib(40) + wave(0, 45)).table("host used", Bytes::gib(9));
            for holder in 0..holders {
                point = point.holder(&format!("layer {holder}"), wave(holder * 3, u64::from(60 / holders)));
            }
            timeline.record(Duration::from_millis(u64::from(n) * 10), point);
        }
        timeline.mark(Duration::from_millis(500), "first pass done");
        timeline.mark(Duration::from_millis(1500), "full: host rose to 90.3 % of everything there is");
        timeline
    }

    #[test]
    fn an_svg_names_everything() {
        let svg = run(3).to_svg().unwrap();
        let texts = [
            "A managed run",
            "time [ms]",
            "memory [MiB]",
            "budget 96.00 MiB",
            "layer 2",
            "first pass done",
            "resident",
        ];
        for text in texts {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("host used"), "a table's figure is drawn");
        assert!(run(12).to_svg().unwrap().contains("3 others"));
    }

    #[test]
    fn a_png_has_the_colours_of_what_is_drawn() {
        let timeline = run(3);
        let png = timeline.to_png().unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(&png)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), SIZE);
        let has = |colour: RGBColor| pixels.chunks(3).any(|pixel| pixel == [colour.0, colour.1, colour.2]);
        for colour in [INK, LIMIT, AREAS[0], AREAS[1], AREAS[2], LINES[0], WHITE] {
            assert!(has(colour), "{colour:?}");
        }
    }

    #[test]
    fn little_is_no_failure() {
        let mut one = Timeline::new("one");
        one.record(Duration::from_secs(7), Point::new().line("x", Bytes(3)));
        let mut huge = Timeline::new("huge").with_budget(Bytes::MAX);
        huge.record(Duration::ZERO, Point::new().holder("x", Bytes::MAX).holder("y", Bytes::MAX));
        huge.record(Duration::from_secs(100_000), Point::new());
        for timeline in [Timeline::new("nothing"), one, huge] {
            assert!(timeline.to_svg().unwrap().contains("</svg>"));
            assert!(timeline.to_png().unwrap().len() > 1000);
        }
    }

    #[test]
    fn the_end_of_the_name_decides() {
        let folder = tempfile::tempdir().unwrap();
        let rows = [
            ("t.svg", true),
            ("t.png", true),
            ("t.PNG", true),
            ("t.jpg", false),
            ("t", false),
            ("no/t.svg", false),
        ];
        for (name, good) in rows {
            let path = folder.path().join(name);
            assert_eq!(run(2).plot(&path).is_ok(), good, "{name}");
            assert_eq!(path.exists(), good, "{name}");
        }
        if let Some(kept) = std::env::var_os("DD_MONITOR_PICTURES") {
            run(5).plot(Path::new(&kept).join("timeline.png")).unwrap();
            run(12).plot(Path::new(&kept).join("many.png")).unwrap();
        }
    }
}
