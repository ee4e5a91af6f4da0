//! Memory over the steps of a program, by what it is for.

use std::path::Path;
use std::time::Duration;

use deep_dimensions::inspect::Graph;
use deep_dimensions::inspect::liveness::Liveness;
use deep_dimensions::inspect::program::{Op, Program, Role};
use deep_dimensions::monitor::Timeline;
use deep_dimensions::monitor::timeline::Point;

use crate::error::{CliError, Result};

/// More steps than a picture has points for are drawn by their highest.
const MOST: usize = 2000;

/// Draws into an SVG or PNG file, by the end of its name.
pub(super) fn draw(path: &Path, graph: &Graph, program: &Program, live: &Liveness) -> Result<()> {
    let steps = program.steps().len();
    let stride = steps.div_ceil(MOST).max(1);
    let title = format!("Memory of {}: live peak {}", graph.name(), live.peak);
    let mut timeline = Timeline::new(title).over_steps().with_most(2 * MOST);
    let bands = Bands::new(program, live);
    for start in (0..steps).step_by(stride) {
        let within = start..(start + stride).min(steps);
        let highest = within.max_by_key(|step| live.steps.get(*step).copied()).unwrap_or(start);
        let parts = bands.at(highest);
        let all = parts.iter().fold(Point::new(), |point, (role, bytes)| point.holder(role.as_str(), *bytes));
        timeline.record(Duration::from_secs(start as u64), all);
    }
    let at = |step: usize| Duration::from_secs((step / stride * stride) as u64);
    let op = |step: Option<usize>| step.and_then(|step| program.steps().get(step));
    timeline.mark(at(live.peak_step), peak_mark(graph, op(Some(live.peak_step)).and_then(|step| step.node)));
    if let Some(loss) = program.steps().iter().position(|step| matches!(step.op, Op::Loss)) {
        timeline.mark(at(loss), "backward begins");
    }
    if let Some(update) = program.steps().iter().position(|step| matches!(step.op, Op::Update(_))) {
        timeline.mark(at(update), "optimizer begins");
    }
    timeline.plot(path).map_err(|error| {
        CliError::input("--plot", error, "give a .svg or .png file in a folder that is there")
    })
}

fn peak_mark(graph: &Graph, node: Option<usize>) -> String {
    let node = node.and_then(|node| graph.nodes().get(node));
    let module = node.and_then(|node| graph.modules().get(node.module.index()));
    module.map_or_else(|| "peak".to_owned(), |module| format!("peak, at {}", module.name))
}

/// Per role, how much is held at each step: one pass over the buffers for all steps.
struct Bands(Vec<(Role, Vec<i128>)>);

impl Bands {
    fn new(program: &Program, live: &Liveness) -> Self {
        let steps = program.steps().len();
        let mut bands: Vec<(Role, Vec<i128>)> = Role::ALL.map(|role| (role, vec![0; steps + 1])).into();
        for (buffer, span) in program.buffers().iter().zip(&live.spans) {
            let Some((_, band)) = bands.iter_mut().find(|(role, _)| *role == buffer.role) else { continue };
            let (first, end) = match span {
                Some(span) => (span.first, span.last + 1),
                None if buffer.role.is_resident() => (0, steps),
                None => continue,
            };
            for (at, change) in [(first, i128::from(buffer.bytes)), (end, -i128::from(buffer.bytes))] {
                if let Some(slot) = band.get_mut(at) {
                    *slot += change;
                }
            }
        }
        for (_, band) in &mut bands {
            band.iter_mut().fold(0, |sum, change| {
                *change += sum;
                *change
            });
        }
        bands.retain(|(_, band)| band.iter().any(|bytes| *bytes > 0));
        Self(bands)
    }

    fn at(&self, step: usize) -> Vec<(Role, deep_dimensions::core::Bytes)> {
        let bytes =
            |band: &Vec<i128>| u64::try_from(band.get(step).copied().unwrap_or_default()).unwrap_or(0);
        self.0.iter().map(|(role, band)| (*role, bytes(band).into())).collect()
    }
}
