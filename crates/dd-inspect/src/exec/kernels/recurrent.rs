//! LSTM and GRU over `[batch, seq, inputs]`, as torch defines them; states begin with zeros.
//!
//! Kept for the gradient: LSTM, the gates i, f, g, o and the cell states; GRU, the gates r, z, n and the recurrent part of n.
#![allow(clippy::indexing_slicing, reason = "places are inside the shapes that shape inference checked")]

use super::{Done, add_scaled, dot, size};
use crate::exec::storage::Args;
use crate::layer::{Cell, Recurrent};
use crate::program::{Slot, Use};

/// Where things lie.
#[derive(Clone, Copy)]
struct Layout {
    batch: usize,
    seq: usize,
    inputs: usize,
    hidden: usize,
    gates: usize,
}

impl Layout {
    fn new(recurrent: &Recurrent, using: &Use) -> Self {
        Self {
            batch: size(&using.output, 0),
            seq: size(&using.output, 1),
            inputs: recurrent.inputs,
            hidden: recurrent.hidden,
            gates: recurrent.cell.gates() * recurrent.hidden,
        }
    }

    fn row(self, sample: usize, step: usize, width: usize) -> std::ops::Range<usize> {
        let start = (sample * self.seq + step) * width;
        start..start + width
    }

    /// Where gates and states of a step are kept: of all steps, or of one.
    fn kept(self, all: bool, sample: usize, step: usize, width: usize) -> std::ops::Range<usize> {
        if all { self.row(sample, step, width) } else { sample * width..(sample + 1) * width }
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

pub(super) fn forward(recurrent: &Recurrent, using: &Use, args: &mut Args<'_>) -> Done {
    let layout = Layout::new(recurrent, using);
    let (x, wi, wh) = (args.read(Slot::X(0)), args.read(Slot::P(0)), args.read(Slot::P(1)));
    let (bi, bh) = (args.read(Slot::P(2)), args.read(Slot::P(3)));
    let y = args.write(Slot::Out);
    let (gates, states) = (args.write(Slot::Aux(0)), args.write(Slot::Aux(1)));
    let all = !gates.is_empty();
    let (gates, states) =
        if all { (gates, states) } else { (args.write(Slot::Scratch(0)), args.write(Slot::Scratch(1))) };
    let h = layout.hidden;
    for (sample, step) in (0..layout.batch).flat_map(|sample| (0..layout.seq).map(move |step| (sample, step)))
    {
        let input = &x[layout.row(sample, step, layout.inputs)];
        let (done, rest) = y.split_at_mut(layout.row(sample, step, h).start);
        let before: &[f32] = if step == 0 { &[] } else { &done[done.len() - h..] };
        let old = if step == 0 { None } else { Some(layout.kept(all, sample, step - 1, h).start) };
        let at = layout.kept(all, sample, step, h).start;
        let gates = &mut gates[layout.kept(all, sample, step, layout.gates)];
        let from_input = |row: usize| {
            dot(input, &wi[row * layout.inputs..][..layout.inputs]) + bi.get(row).unwrap_or(&0.0)
        };
        let from_state = |row: usize| dot(before, &wh[row * h..][..h]) + bh.get(row).unwrap_or(&0.0);
        for unit in 0..h {
            match recurrent.cell {
                Cell::Lstm => {
                    let [i, f, g, o] =
                        [0, 1, 2, 3].map(|gate| from_input(gate * h + unit) + from_state(gate * h + unit));
                    let [i, f, g, o] = [sigmoid(i), sigmoid(f), g.tanh(), sigmoid(o)];
                    [i, f, g, o]
                        .into_iter()
                        .enumerate()
                        .for_each(|(gate, value)| gates[gate * h + unit] = value);
                    let cell = f * old.map_or(0.0, |old| states[old + unit]) + i * g;
                    states[at + unit] = cell;
                    rest[unit] = o * cell.tanh();
                }
                Cell::Gru => {
                    let [r, z] =
                        [0, 1].map(|gate| sigmoid(from_input(gate * h + unit) + from_state(gate * h + unit)));
                    let part = from_state(2 * h + unit);
                    let n = (from_input(2 * h + unit) + r * part).tanh();
                    [r, z, n]
                        .into_iter()
                        .enumerate()
                        .for_each(|(gate, value)| gates[gate * h + unit] = value);
                    states[at + unit] = part;
                    rest[unit] = (1.0 - z) * n + z * before.get(unit).unwrap_or(&0.0);
                }
            }
        }
    }
    Ok(())
}

/// What is added to.
struct Gradients<'m> {
    dx: &'m mut [f32],
    dwi: &'m mut [f32],
    dwh: &'m mut [f32],
    dbi: &'m mut [f32],
    dbh: &'m mut [f32],
}

pub(super) fn backward(recurrent: &Recurrent, using: &Use, args: &mut Args<'_>) -> Done {
    let layout = Layout::new(recurrent, using);
    let (dy, x, y) = (args.read(Slot::Dy), args.read(Slot::X(0)), args.read(Slot::Out));
    let (wi, wh) = (args.read(Slot::P(0)), args.read(Slot::P(1)));
    let (gates, states) = (args.read(Slot::Aux(0)), args.read(Slot::Aux(1)));
    let to = Gradients {
        dx: args.write(Slot::Dx(0)),
        dwi: args.write(Slot::Dp(0)),
        dwh: args.write(Slot::Dp(1)),
        dbi: args.write(Slot::Dp(2)),
        dbh: args.write(Slot::Dp(3)),
    };
    let (dh, dc) = (args.write(Slot::Scratch(0)), args.write(Slot::Scratch(1)));
    let da = args.write(Slot::Scratch(2));
    dh.fill(0.0);
    dc.fill(0.0);
    let h = layout.hidden;
    for (sample, step) in
        (0..layout.batch).flat_map(|sample| (0..layout.seq).rev().map(move |step| (sample, step)))
    {
        let mine = layout.row(sample, step, h);
        let before: &[f32] = if step == 0 { &[] } else { &y[mine.start - h..mine.start] };
        let old: &[f32] = if step == 0 { &[] } else { &states[mine.start - h..mine.start] };
        let gates = &gates[layout.row(sample, step, layout.gates)];
        let state = &states[mine.clone()];
        let dh = &mut dh[sample * h..(sample + 1) * h];
        let dc = &mut dc[sample * h..(sample + 1) * h];
        let da = &mut da[sample * layout.gates..(sample + 1) * layout.gates];
        add_scaled(dh, 1.0, &dy[mine]);
        // By how much the recurrent part of n counts: r for the GRU's third gate, else all of it.
        let part =
            |row: usize| if recurrent.cell == Cell::Gru && row >= 2 * h { gates[row - 2 * h] } else { 1.0 };
        match recurrent.cell {
            Cell::Lstm => lstm_step(h, gates, state, old, dh, dc, da),
            Cell::Gru => gru_step(h, gates, state, before, dh, da),
        }
        for (row, da) in da.iter().enumerate() {
            add_scaled(dh, da * part(row), &wh[row * h..][..h]);
            if let Some(dw) = to.dwi.get_mut(row * layout.inputs..(row + 1) * layout.inputs) {
                add_scaled(dw, *da, &x[layout.row(sample, step, layout.inputs)]);
            }
            if let Some(dw) = to.dwh.get_mut(row * h..(row + 1) * h) {
                add_scaled(dw, da * part(row), before);
            }
            to.dbi.iter_mut().skip(row).take(1).for_each(|db| *db += da);
            to.dbh.iter_mut().skip(row).take(1).for_each(|db| *db += da * part(row));
            if let Some(dx) = to.dx.get_mut(layout.row(sample, step, layout.inputs)) {
                add_scaled(dx, *da, &wi[row * layout.inputs..][..layout.inputs]);
            }
        }
    }
    Ok(())
}

/// Gradients before the gates' functions; `dh` and `dc` become those of the step before, but for what goes through weights.
fn lstm_step(
    h: usize,
    gates: &[f32],
    cell: &[f32],
    old: &[f32],
    dh: &mut [f32],
    dc: &mut [f32],
    da: &mut [f32],
) {
    for unit in 0..h {
        let [i, f, g, o] = [0, 1, 2, 3].map(|gate| gates[gate * h + unit]);
        let bent = cell[unit].tanh();
        dc[unit] += dh[unit] * o * (1.0 - bent * bent);
        da[unit] = dc[unit] * g * i * (1.0 - i);
        da[h + unit] = dc[unit] * old.get(unit).unwrap_or(&0.0) * f * (1.0 - f);
        da[2 * h + unit] = dc[unit] * i * (1.0 - g * g);
        da[3 * h + unit] = dh[unit] * bent * o * (1.0 - o);
        dc[unit] *= f;
        dh[unit] = 0.0;
    }
}

fn gru_step(h: usize, gates: &[f32], part: &[f32], before: &[f32], dh: &mut [f32], da: &mut [f32]) {
    for unit in 0..h {
        let [r, z, n] = [0, 1, 2].map(|gate| gates[gate * h + unit]);
        let old = before.get(unit).unwrap_or(&0.0);
        let dn = dh[unit] * (1.0 - z) * (1.0 - n * n);
        da[2 * h + unit] = dn;
        da[unit] = dn * part[unit] * r * (1.0 - r);
        da[h + unit] = dh[unit] * (old - n) * z * (1.0 - z);
        dh[unit] *= z;
    }
}
