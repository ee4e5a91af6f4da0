//! Scaled dot-product attention, its scores held at once or row by row.
#![allow(clippy::indexing_slicing, reason = "places are inside the shapes that shape inference checked")]

use super::norm::softmax_row;
use super::{Done, add_scaled, dot, size};
use crate::exec::storage::Args;
use crate::layer::Attention;
use crate::program::{Slot, Use};

/// Where things lie.
struct Layout {
    attention: Attention,
    batch: usize,
    seq: usize,
    positions: usize,
}

impl Layout {
    fn new(attention: &Attention, using: &Use) -> Result<Self, String> {
        let of = |input: usize, axis: usize| using.inputs.get(input).map_or(0, |shape| size(shape, axis));
        let layout = Self { attention: *attention, batch: of(0, 0), seq: of(0, 1), positions: of(1, 1) };
        if attention.window.is_some() && layout.positions > layout.seq {
            return Err("a cache that slides is planned, not run; run without a window".to_owned());
        }
        Ok(layout)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.attention.head_dim.max(1) as f32).sqrt()
    }

    /// The range of a query head of a row, and that of its key head at a position.
    fn query(&self, sample: usize, row: usize, head: usize) -> std::ops::Range<usize> {
        let start = ((sample * self.seq + row) * self.attention.heads + head) * self.attention.head_dim;
        start..start + self.attention.head_dim
    }

    fn key(&self, sample: usize, at: usize, head: usize) -> std::ops::Range<usize> {
        let shared = head / (self.attention.heads / self.attention.kv_heads.max(1)).max(1);
        let start =
            ((sample * self.positions + at) * self.attention.kv_heads + shared) * self.attention.head_dim;
        start..start + self.attention.head_dim
    }

    /// Whether a row sees a position.
    fn sees(&self, row: usize, at: usize) -> bool {
        let row = row + self.positions - self.seq.min(self.positions);
        let near = self.attention.window.is_none_or(|window| at + window > row);
        !self.attention.causal || at <= row && near
    }

    fn rows(&self) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        let (batch, heads, seq) = (self.batch, self.attention.heads, self.seq);
        (0..batch).flat_map(move |b| (0..heads).flat_map(move |h| (0..seq).map(move |row| (b, h, row))))
    }

    /// The shares of one row.
    fn shares(&self, (sample, head, row): (usize, usize, usize), q: &[f32], k: &[f32], shares: &mut [f32]) {
        let query = &q[self.query(sample, row, head)];
        for (at, share) in shares.iter_mut().enumerate() {
            let seen = self.sees(row, at);
            *share = if seen {
                dot(query, &k[self.key(sample, at, head)]) * self.scale()
            } else {
                f32::NEG_INFINITY
            };
        }
        softmax_row(shares);
    }
}

pub(super) fn forward(attention: &Attention, using: &Use, args: &mut Args<'_>) -> Done {
    let layout = Layout::new(attention, using)?;
    let (q, k, v) = (args.read(Slot::X(0)), args.read(Slot::X(1)), args.read(Slot::X(2)));
    let (y, kept, scratch) = (args.write(Slot::Out), args.write(Slot::Aux(0)), args.write(Slot::Scratch(0)));
    let all = if kept.is_empty() { scratch } else { kept };
    let width = layout.positions;
    for (index, place) in layout.rows().enumerate() {
        let start = if attention.scores { index * width } else { 0 };
        let shares = &mut all[start..start + width];
        layout.shares(place, q, k, shares);
        let (sample, head, row) = place;
        let out = &mut y[layout.query(sample, row, head)];
        out.fill(0.0);
        for (at, share) in shares.iter().enumerate() {
            add_scaled(out, *share, &v[layout.key(sample, at, head)]);
        }
    }
    Ok(())
}

pub(super) fn backward(attention: &Attention, using: &Use, args: &mut Args<'_>) -> Done {
    let layout = Layout::new(attention, using)?;
    let (q, k, v) = (args.read(Slot::X(0)), args.read(Slot::X(1)), args.read(Slot::X(2)));
    let (dy, kept) = (args.read(Slot::Dy), args.read(Slot::Aux(0)));
    let (dq, dk, dv) = (args.write(Slot::Dx(0)), args.write(Slot::Dx(1)), args.write(Slot::Dx(2)));
    let (through, again) = (args.write(Slot::Scratch(0)), args.write(Slot::Scratch(1)));
    let (width, scale) = (layout.positions, layout.scale());
    for (index, place) in layout.rows().enumerate() {
        let shares: &[f32] = if attention.scores {
            &kept[index * width..(index + 1) * width]
        } else {
            layout.shares(place, q, k, &mut again[..width]);
            &again[..width]
        };
        let (sample, head, row) = place;
        let mine = layout.query(sample, row, head);
        let out = &dy[mine.clone()];
        for (at, slot) in through[..width].iter_mut().enumerate() {
            let theirs = layout.key(sample, at, head);
            *slot = dot(out, &v[theirs.clone()]);
            if !dv.is_empty() {
                add_scaled(&mut dv[theirs], shares[at], out);
            }
        }
        let along = dot(&through[..width], shares);
        for at in 0..width {
            let score = shares[at] * (through[at] - along) * scale;
            let theirs = layout.key(sample, at, head);
            if !dq.is_empty() {
                add_scaled(&mut dq[mine.clone()], score, &k[theirs.clone()]);
            }
            if !dk.is_empty() {
                add_scaled(&mut dk[theirs], score, &q[mine.clone()]);
            }
        }
    }
    Ok(())
}
