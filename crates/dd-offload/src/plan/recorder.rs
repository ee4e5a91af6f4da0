//! [`OrderRecorder`]: finds the pass in the units as they are acquired.
//!
//! Each thread's acquisitions are a stream of their own. A stream is *learning* or *following*.
//!
//! Learning, it keeps the history and, with each new unit, the longest border of it (Knuth, Morris and Pratt), hence
//! its shortest period, in constant time on average. Once two full passes are there, the period is theirs for sure; the
//! first order is proposed earlier, as soon as the history has begun to repeat by a few units. A history that does not
//! repeat from its beginning (a warm-up, a change of order) is searched for the longest repetition at its *end*, each
//! time that it has grown by a half.
//!
//! Following, it compares each unit with the one expected, and once the order has proved itself drops the history. A unit
//! that is not expected sends it back to learning, with the history or the pass so far; the last order remains the best guess until there is a better one.

use std::collections::{HashMap, VecDeque};

use super::OrderKind;
use super::order::next_border;

/// Histories that reach this many units are cut to half of it; passes of up to half of that are recognised. It bounds the
/// memory of a stream to 1.5 MiB.
const LONGEST_HISTORY: usize = 1 << 16;
/// An order is young until it was kept to for this many units and four passes.
const YOUNG: usize = 64;
/// Streams that are remembered; the longest unused one is forgotten first.
const MOST_STREAMS: usize = 64;

/// Recognises the repeating order of use from the units that are acquired. See the module's description.
///
/// ```
/// use dd_offload::plan::OrderRecorder;
///
/// let mut recorder = OrderRecorder::new();
/// for unit in [0, 1, 2, 0, 1, 2] {
///     recorder.record(7, unit);
/// }
/// assert_eq!(recorder.order(), Some(&[0, 1, 2][..]));
/// assert_eq!(recorder.next_after(2), Some(0));
/// ```
#[derive(Clone, Debug, Default)]
pub struct OrderRecorder {
    /// Most recently used last.
    streams: VecDeque<(u64, Stream)>,
    order: Option<Vec<usize>>,
    /// What followed each unit last, in any stream.
    successors: HashMap<usize, usize>,
}

impl OrderRecorder {
    /// A recorder that knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that a thread acquired a unit. Returns whether [`order`](Self::order) changed by it.
    pub fn record(&mut self, thread: u64, unit: usize) -> bool {
        let mut stream = self.take(thread);
        if let Some(last) = stream.last.replace(unit) {
            self.successors.insert(last, unit);
        }
        let found = stream.record(unit);
        self.streams.push_back((thread, stream));
        found.is_some_and(|order| self.adopt(order))
    }

    /// Ends a pass for all threads: what each recorded since the last end is its order. The longest of them, if any
    /// thread recorded anything, becomes the order. Returns whether [`order`](Self::order) changed by it.
    pub fn end_pass(&mut self) -> bool {
        let ended = self.streams.iter_mut().filter_map(|(_, stream)| stream.end_pass());
        let longest = ended.max_by_key(Vec::len);
        longest.is_some_and(|order| self.adopt(order))
    }

    /// The units of one pass, beginning where the first pass began, once one is known; while the order changes, the
    /// best guess.
    #[must_use]
    pub fn order(&self) -> Option<&[usize]> {
        self.order.as_deref()
    }

    /// The shape of the order, once there is one.
    #[must_use]
    pub fn kind(&self) -> Option<OrderKind> {
        self.order().map(OrderKind::of)
    }

    /// Whether every remembered thread does now what was expected of it.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.order.is_some() && self.streams.iter().all(|(_, stream)| stream.followed.is_some())
    }

    /// The unit that will probably be acquired after `unit`: by the thread that acquired it last, if that follows an
    /// order; else what came after it in the order, or the last time.
    #[must_use]
    pub fn next_after(&self, unit: usize) -> Option<usize> {
        let latest = self.streams.iter().rev().find(|(_, stream)| stream.last == Some(unit));
        let expected = latest.and_then(|(_, stream)| stream.expected());
        let seen = || self.successors.get(&unit).copied();
        expected.or_else(seen).or_else(|| self.next_in_order(unit))
    }

    /// The position in [`order`](Self::order) of the unit that a thread acquired last, if it follows that order.
    #[must_use]
    pub fn position(&self, thread: u64) -> Option<usize> {
        let (_, stream) = self.streams.iter().find(|(id, _)| *id == thread)?;
        let followed =
            stream.followed.as_ref().filter(|followed| Some(&followed.order) == self.order.as_ref())?;
        (followed.next + followed.order.len()).checked_sub(1)?.checked_rem(followed.order.len())
    }

    fn next_in_order(&self, unit: usize) -> Option<usize> {
        let order = self.order()?;
        let position = order.iter().position(|&other| other == unit)?;
        order.get(position + 1).or_else(|| order.first()).copied()
    }

    fn take(&mut self, thread: u64) -> Stream {
        let known = self.streams.iter().position(|(id, _)| *id == thread);
        let stream = known.and_then(|index| self.streams.remove(index)).map(|(_, stream)| stream);
        if self.streams.len() >= MOST_STREAMS {
            self.streams.pop_front();
        }
        stream.unwrap_or_default()
    }

    fn adopt(&mut self, order: Vec<usize>) -> bool {
        if self.order.as_ref() == Some(&order) {
            return false;
        }
        tracing::debug!(steps = order.len(), kind = ?OrderKind::of(&order), "order of use recorded");
        self.order = Some(order);
        true
    }
}

/// An order that the stream keeps to, and the position that comes next.
#[derive(Clone, Debug)]
struct Followed {
    order: Vec<usize>,
    next: usize,
}

/// What one thread acquired.
#[derive(Clone, Debug, Default)]
struct Stream {
    /// While learning: all units since the beginning, and the longest border of each prefix.
    history: Vec<usize>,
    borders: Vec<usize>,
    /// The length of history at which its end is searched next.
    search_at: usize,
    /// The last unit.
    last: Option<usize>,
    /// What was recorded since the explicit end of a pass, and whether that became too long to be one.
    since_end: Vec<usize>,
    too_long: bool,
    /// The unit with which the first pass began.
    beginning: Option<usize>,
    followed: Option<Followed>,
    followed_before: bool,
    /// The length of the last proposed order, so that it is proposed once.
    proposed: usize,
}

impl Stream {
    /// Takes a unit; returns an order where a new one was found.
    fn record(&mut self, unit: usize) -> Option<Vec<usize>> {
        self.beginning.get_or_insert(unit);
        self.too_long |= self.since_end.len() >= LONGEST_HISTORY;
        if self.too_long {
            self.since_end = Vec::new();
        } else {
            self.since_end.push(unit);
        }
        if self.follow(unit) {
            return None;
        }
        self.push(unit);
        self.repeats_from_the_beginning().or_else(|| self.repeats_at_the_end())
    }

    /// Whether the unit was expected. If not, and the history was dropped, the pass so far becomes the history.
    fn follow(&mut self, unit: usize) -> bool {
        let Some(followed) = &mut self.followed else { return false };
        let (expected, period) = (followed.order.get(followed.next) == Some(&unit), followed.order.len());
        if expected {
            followed.next = (followed.next + 1) % period;
            self.grow(unit, period);
            return true;
        }
        let so_far = followed.order.get(..followed.next).unwrap_or_default().to_vec();
        self.followed = None;
        self.followed_before = true;
        if self.history.is_empty() {
            self.restart(&so_far);
        }
        false
    }

    /// While an order is young, the history grows on: what looks like one may be a repetition within a longer one.
    fn grow(&mut self, unit: usize, period: usize) {
        if self.history.is_empty() {
            return;
        }
        self.push(unit);
        if self.history.len() >= YOUNG.max(4 * period) {
            self.restart(&[]);
        }
    }

    fn restart(&mut self, history: &[usize]) {
        self.history.clear();
        self.borders.clear();
        (self.search_at, self.proposed) = (8, 0);
        history.iter().for_each(|&unit| self.push(unit));
    }

    fn push(&mut self, unit: usize) {
        if self.history.len() >= LONGEST_HISTORY {
            let recent = self.history.split_off(LONGEST_HISTORY / 2);
            self.restart(&recent);
        }
        self.history.push(unit);
        let border = next_border(&self.history, &self.borders, self.history.len() - 1);
        self.borders.push(border);
    }

    /// The order of a history that repeats its beginning: proposed after a few repeated units, followed after a pass.
    fn repeats_from_the_beginning(&mut self) -> Option<Vec<usize>> {
        let repeated = self.borders.last().copied().unwrap_or(0);
        let period = self.history.len() - repeated;
        // Where there is an order already, a guess does not replace it.
        let enough = if self.followed_before { period } else { period.min(2 + period / 8) };
        if repeated < enough || (self.proposed == period && repeated < period) {
            return None;
        }
        self.proposed = period;
        let order = self.history.get(..period)?.to_vec();
        if repeated >= period {
            self.followed = Some(Followed { order: order.clone(), next: repeated % period });
        }
        Some(order)
    }

    /// The order of the longest repetition, of at least two passes, at the end of the history.
    fn repeats_at_the_end(&mut self) -> Option<Vec<usize>> {
        if self.history.len() < self.search_at.max(8) {
            return None;
        }
        self.search_at = self.history.len() + self.history.len() / 2;
        let backward: Vec<usize> = self.history.iter().rev().copied().collect();
        let reach = prefix_matches(&backward);
        let squares = (1..=backward.len() / 2).filter(|&period| matched(&reach, period) >= period);
        let period =
            squares.max_by_key(|&period| (period + matched(&reach, period), std::cmp::Reverse(period)))?;
        if (period + matched(&reach, period)) * 2 < backward.len() {
            return None; // Too little of what was seen.
        }
        let pass = self.history.get(self.history.len() - period..)?;
        let start = pass.iter().position(|&unit| Some(unit) == self.beginning).unwrap_or(0);
        let order: Vec<usize> = pass.iter().cycle().skip(start).take(period).copied().collect();
        self.followed = Some(Followed { order: order.clone(), next: (period - start) % period });
        Some(order)
    }

    /// What was recorded since the last end is the order from now on.
    fn end_pass(&mut self) -> Option<Vec<usize>> {
        let order = std::mem::take(&mut self.since_end);
        self.too_long = false;
        if order.is_empty() {
            return None;
        }
        self.beginning = order.first().copied();
        self.restart(&[]);
        self.followed = Some(Followed { order: order.clone(), next: 0 });
        Some(order)
    }

    fn expected(&self) -> Option<usize> {
        let followed = self.followed.as_ref()?;
        followed.order.get(followed.next).copied()
    }
}

fn matched(reach: &[usize], index: usize) -> usize {
    reach.get(index).copied().unwrap_or(0)
}

/// For each index, how many items from there on equal those from the beginning on (the Z function).
fn prefix_matches(items: &[usize]) -> Vec<usize> {
    let mut reach = vec![0; items.len()];
    let (mut left, mut right) = (0, 0); // The match that reaches furthest.
    for index in 1..items.len() {
        let known = if index < right { matched(&reach, index - left).min(right - index) } else { 0 };
        let more = items.iter().skip(index + known).zip(items.iter().skip(known));
        let length = known + more.take_while(|(a, b)| a == b).count();
        super::problem::set(&mut reach, index, length);
        if index + length > right {
            (left, right) = (index, index + length);
        }
    }
    reach
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fed(units: impl IntoIterator<Item = usize>) -> OrderRecorder {
        let mut recorder = OrderRecorder::new();
        units.into_iter().for_each(|unit| _ = recorder.record(1, unit));
        recorder
    }

    /// The shortest word of which `pass` is a repetition.
    fn primitive(pass: &[usize]) -> Vec<usize> {
        let repeats = |period: &usize| {
            pass.len().is_multiple_of(*period) && pass.chunks(*period).all(|part| part == &pass[..*period])
        };
        pass[..(1..=pass.len()).find(repeats).unwrap()].to_vec()
    }

    fn is_rotation(a: &[usize], b: &[usize]) -> bool {
        a.len() == b.len() && (0..a.len()).any(|start| [&a[start..], &a[..start]].concat() == b)
    }

    fn passes() -> impl Strategy<Value = Vec<usize>> {
        prop_oneof![
            (1_usize..12).prop_map(|count| (0..count).collect()),
            (1_usize..12).prop_map(|count| (0..count).chain((0..count).rev()).collect()),
            (3_usize..12).prop_map(|count| (0..count).chain((1..count - 1).rev()).collect()),
            prop::collection::vec(0_usize..5, 1..16),
        ]
    }

    proptest! {
        #[test]
        fn two_passes_are_enough_for_any_order(pass in passes(), more in 0_usize..40) {
            let recorder = fed(pass.iter().copied().cycle().take(2 * pass.len() + more));
            let order = primitive(&pass);
            prop_assert_eq!(recorder.order(), Some(&order[..]));
            prop_assert_eq!(recorder.kind(), Some(OrderKind::of(&order)));
            prop_assert!(recorder.is_settled());
            let used = 2 * pass.len() + more;
            prop_assert_eq!(recorder.next_after(pass[(used - 1) % pass.len()]), Some(pass[used % pass.len()]));
            prop_assert_eq!(recorder.position(1), Some((used - 1) % order.len()));
        }

        #[test]
        fn an_explicit_end_makes_the_first_pass_the_order(pass in passes(), threads in 1_u64..4) {
            let mut recorder = OrderRecorder::new();
            pass.iter().for_each(|&unit| (0..threads).for_each(|thread| _ = recorder.record(thread, unit)));
            recorder.end_pass();
            prop_assert_eq!(recorder.order(), Some(&pass[..]));
            prop_assert!(!recorder.end_pass(), "an empty pass changes nothing");
            for (position, &unit) in pass.iter().enumerate() {
                recorder.record(0, unit);
                prop_assert_eq!(recorder.position(0), Some(position));
                prop_assert_eq!(recorder.next_after(unit), Some(pass[(position + 1) % pass.len()]));
            }
        }

        #[test]
        fn streams_of_several_threads_do_not_mix(pass in passes(), lags in prop::collection::vec(0_usize..30, 1..5)) {
            let mut recorder = OrderRecorder::new();
            let order = primitive(&pass);
            for now in 0..3 * pass.len() + 30 {
                for (thread, &lag) in lags.iter().enumerate().filter(|(_, lag)| now >= **lag) {
                    recorder.record(thread as u64, order[(now - lag) % order.len()]);
                }
            }
            prop_assert_eq!(recorder.order(), Some(&order[..]));
        }

        #[test]
        fn a_changed_order_is_found(before in prop::collection::vec(0_usize..9, 0..40), pass in passes()) {
            let length = before.len();
            let repeats = 8 + 4 * length / pass.len();
            let recorder = fed(before.into_iter().chain(pass.iter().copied().cycle().take(repeats * pass.len() + 40)));
            let order = recorder.order().unwrap();
            prop_assert!(is_rotation(order, &primitive(&pass)), "{order:?} for {pass:?}");
        }
    }

    #[test]
    fn a_cyclic_order_is_proposed_soon_after_its_first_pass() {
        let recorder = fed((0..24).chain(0..5));
        assert_eq!(recorder.order(), Some(&(0..24).collect::<Vec<_>>()[..]));
        assert_eq!((recorder.next_after(4), recorder.next_after(23)), (Some(5), Some(0)));
        assert!(!recorder.is_settled());
    }

    #[test]
    fn one_detour_leaves_the_old_order_as_the_guess() {
        let mut recorder = fed((0..6).cycle().take(20));
        assert!(!recorder.record(1, 9));
        assert_eq!(recorder.order(), Some(&[0, 1, 2, 3, 4, 5][..]));
        (2..6).chain((0..6).cycle().take(60)).for_each(|unit| _ = recorder.record(1, unit));
        assert!(recorder.is_settled());
        assert_eq!(recorder.order(), Some(&[0, 1, 2, 3, 4, 5][..]));
    }

    #[test]
    fn many_threads_and_no_units_are_no_trouble() {
        let mut recorder = OrderRecorder::new();
        assert!(!recorder.end_pass());
        assert_eq!((recorder.order(), recorder.next_after(0)), (None, None));
        (0..1000).for_each(|thread| _ = recorder.record(thread, 3));
        assert_eq!(recorder.streams.len(), MOST_STREAMS);
    }
}
