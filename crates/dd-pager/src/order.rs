//! [`Order`]: in which order groups of units are used, learned from touches alone.
//!
//! A pager sees only first touches of what is absent or held back. Two facts make an order of that. Model code uses its
//! weights in the same order in every pass, so the touches of one pass predict the next; and whatever is used out of
//! order is a small thing that can wait for its bytes. A *group* is a tensor, or a slice of a large one: threads that
//! share a product touch its units in any order, but they are all done with one product before they start the next.
//!
//! The order begins as a guess (the order of registration, which is how models are built) and is replaced by what the
//! first pass did. A pass ends where a touch goes back towards the start. Groups that should have been touched and were
//! not, two passes long, are taken out: an encoder that ran once, experts that are no longer asked.

/// A group's number.
pub(crate) type Group = usize;

/// Passes without a touch after which a group is no longer expected.
const PATIENCE: u8 = 2;

/// What is known of one group.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Its place in the cycle.
    place: Option<usize>,
    /// Touches in this pass.
    touched: usize,
    /// It is in this pass's record.
    recorded: bool,
    /// Units in all.
    units: usize,
    misses: u8,
    /// Nearly all of it is used in a pass, so that reading ahead pays.
    dense: bool,
}

/// What a touch meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Touch {
    /// The position moved to another group.
    pub(crate) moved: bool,
    /// A pass ended, and the order is another than before.
    pub(crate) changed: bool,
}

/// The learned order, and where in it the program is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Order {
    known: Vec<Known>,
    cycle: Vec<Group>,
    /// Groups in the order in which this pass touched them.
    record: Vec<Group>,
    position: usize,
    /// The place of a far group that a doubtful touch was in, which the next touch may confirm.
    doubtful: Option<usize>,
    passes: u64,
}

impl Order {
    /// Adds the next group, of so many units; it is expected after all others.
    pub(crate) fn add(&mut self, units: usize) -> Group {
        let group = self.known.len();
        let place = Some(self.cycle.len());
        self.known.push(Known { place, units, dense: true, ..Known::default() });
        self.cycle.push(group);
        group
    }

    /// Sets how many units a group has, which grows while it is being registered.
    pub(crate) fn set_units(&mut self, group: Group, units: usize) {
        if let Some(known) = self.known.get_mut(group) {
            known.units = units;
        }
    }

    /// Whether a whole pass has been seen.
    pub(crate) const fn is_learned(&self) -> bool {
        self.passes > 0
    }

    /// Passes that have ended.
    pub(crate) const fn passes(&self) -> u64 {
        self.passes
    }

    /// The groups in the order of their use.
    pub(crate) fn cycle(&self) -> &[Group] {
        &self.cycle
    }

    /// Whether reading ahead in this group pays.
    pub(crate) fn is_dense(&self, group: Group) -> bool {
        self.known.get(group).is_some_and(|known| known.dense)
    }

    /// The group in use.
    pub(crate) fn current(&self) -> Option<Group> {
        self.cycle.get(self.position).copied()
    }

    /// How many groups are used before this one is used again: 0 for the one in use, nothing where none is expected.
    pub(crate) fn distance(&self, group: Group) -> Option<usize> {
        let place = self.known.get(group)?.place?;
        Some((place + self.cycle.len() - self.position) % self.cycle.len())
    }

    /// The groups from the one in use on, once around.
    pub(crate) fn upcoming(&self) -> impl Iterator<Item = Group> {
        let (before, after) = self.cycle.split_at(self.position.min(self.cycle.len()));
        after.iter().chain(before).copied()
    }

    /// One more unit of `group` was touched. `sure` says that it holds no part of another range: what is shared may be
    /// touched for the sake of another group. `mapped` says how many of a group's units are where a touch goes unseen.
    pub(crate) fn touch(&mut self, group: Group, sure: bool, mapped: &dyn Fn(Group) -> usize) -> Touch {
        let Some(known) = self.known.get_mut(group) else { return Touch::default() };
        known.touched += 1;
        let (place, first) = (known.place, !known.recorded);
        if !sure && self.is_doubtful(place) {
            self.doubtful = place;
            return Touch::default();
        }
        self.doubtful = None;
        let Some(place) = place else {
            return self.insert(group);
        };
        if place < self.position && self.is_new_pass(place, first) {
            return Touch { moved: true, changed: self.end_pass(group, mapped) };
        }
        self.note(group);
        // A thread that lags behind does not take the others back.
        let moved = place > self.position;
        self.position = self.position.max(place);
        Touch { moved, changed: false }
    }

    /// Whether a shared unit's touch says little: its group is not near, and the touch before did not point there.
    fn is_doubtful(&self, place: Option<usize>) -> bool {
        let Some(place) = place else { return true };
        let near = |other: usize| place == other || place == other + 1;
        !near(self.position) && !self.doubtful.is_some_and(near)
    }

    /// So many more units of a group are in their places without a touch.
    pub(crate) fn count(&mut self, group: Group, units: usize) {
        if let Some(known) = self.known.get_mut(group) {
            known.touched += units;
        }
    }

    /// Puts a group into this pass's record, once.
    fn note(&mut self, group: Group) {
        if let Some(known) = self.known.get_mut(group)
            && !std::mem::replace(&mut known.recorded, true)
        {
            self.record.push(group);
        }
    }

    /// A step back is a new pass unless it is a small one: a thread that is still busy with the groups before, or, while
    /// the order is only a guess, one that it had wrong.
    fn is_new_pass(&self, place: usize, first: bool) -> bool {
        if !self.is_learned() && first {
            return false;
        }
        let back = self.position - place;
        let slack = (self.cycle.len() / 4).min(4);
        back > slack
    }

    /// A group that nobody expected comes after the one in use.
    fn insert(&mut self, group: Group) -> Touch {
        let at = (self.position + 1).min(self.cycle.len());
        self.cycle.insert(at, group);
        self.note(group);
        self.number();
        if let Some(known) = self.known.get_mut(group) {
            known.misses = 0;
        }
        self.position = at;
        Touch { moved: true, changed: true }
    }

    /// Closes the pass that ended with the touch of `next`, which begins the new one.
    fn end_pass(&mut self, next: Group, mapped: &dyn Fn(Group) -> usize) -> bool {
        let before = self.cycle.clone();
        let judged = self.judge(next, mapped);
        let kept = |known: &[Known], group: Group| known.get(group).is_some_and(|k| k.misses < PATIENCE);
        let record: Vec<Group> = std::mem::take(&mut self.record);
        let rising = record.is_sorted_by_key(|group| self.known.get(*group).and_then(|known| known.place));
        if !(rising && self.is_learned()) {
            self.cycle = merged(&self.cycle, &record, &self.known, self.is_learned());
        }
        let known = &self.known;
        self.cycle.retain(|group| kept(known, *group));
        self.number();
        let place = self.known.get(next).and_then(|known| known.place).unwrap_or(0);
        self.position = place;
        self.known.iter_mut().for_each(|known| known.recorded = false);
        self.note(next);
        if let Some(known) = self.known.get_mut(next) {
            known.touched = 1;
        }
        self.passes += 1;
        judged || before != self.cycle || self.passes == 1
    }

    /// Counts what was missed, and what was used sparsely, and forgets this pass's touches. Whether reading ahead pays is
    /// another answer than before for some group.
    fn judge(&mut self, next: Group, mapped: &dyn Fn(Group) -> usize) -> bool {
        let (learned, mut changed) = (self.is_learned(), false);
        let mut missed = false; // What cannot be seen is taken to be as what came before it.
        for group in &self.cycle {
            let Some(known) = self.known.get_mut(*group) else { continue };
            // The touch that began the new pass is none of the old one.
            let touched = std::mem::take(&mut known.touched) - usize::from(*group == next);
            let unseen = mapped(*group) >= known.units;
            if touched > 0 || !unseen {
                missed = touched == 0;
            }
            if touched > 0 {
                // A small part of a large group, as rows of a table: what a pass will want of it nobody knows.
                let cold = known.units.saturating_sub(mapped(*group) + touched);
                let dense = known.units < 4 || cold * 2 <= known.units;
                changed |= std::mem::replace(&mut known.dense, dense) != dense;
            }
            known.misses = match missed && *group != next {
                true if learned => known.misses.saturating_add(1),
                true => PATIENCE,
                false => 0,
            };
        }
        changed
    }

    fn number(&mut self) {
        self.known.iter_mut().for_each(|known| known.place = None);
        for (place, group) in self.cycle.iter().enumerate() {
            if let Some(known) = self.known.get_mut(*group) {
                known.place = Some(place);
            }
        }
    }
}

/// The recorded order, with what could not be seen left behind what it came after.
fn merged(cycle: &[Group], record: &[Group], known: &[Known], learned: bool) -> Vec<Group> {
    let mut after: Vec<Vec<Group>> = vec![Vec::new(); known.len() + 1];
    let mut last = known.len();
    let mut seen = vec![false; known.len()];
    record.iter().for_each(|group| {
        if let Some(seen) = seen.get_mut(*group) {
            *seen = true;
        }
    });
    for group in cycle {
        if seen.get(*group).copied().unwrap_or(false) {
            last = *group;
        } else if learned && let Some(list) = after.get_mut(last) {
            list.push(*group);
        }
    }
    let mut order = after.last().cloned().unwrap_or_default();
    for group in record {
        order.push(*group);
        order.extend(after.get(*group).into_iter().flatten());
    }
    order
}

/// Which of `units`, in the order of use, stay in memory if `resident` of them can: spread evenly, so that reading goes on
/// all the time.
pub(crate) fn spread(units: usize, resident: usize) -> impl Iterator<Item = bool> {
    let share =
        move |k: usize| (k as u128 * resident.min(units) as u128).checked_div(units as u128).unwrap_or(0);
    (0..units).map(move |k| share(k + 1) > share(k))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs passes, each a list of groups of which every unit is touched.
    fn run(order: &mut Order, passes: &[&[Group]]) -> Vec<bool> {
        let mut changed = Vec::new();
        for pass in passes {
            let mut any = false;
            for group in *pass {
                for _ in 0..order.known[*group].units {
                    any |= order.touch(*group, true, &|_| 0).changed;
                }
            }
            changed.push(any);
        }
        changed
    }

    fn order(groups: usize) -> Order {
        let mut order = Order::default();
        (0..groups).for_each(|_| {
            order.add(4);
        });
        order
    }

    #[test]
    fn learns_what_passes_do() {
        let plain: Vec<Group> = (0..12).collect();
        let head_last: Vec<Group> = [0].into_iter().chain(2..12).chain([1]).collect();
        let decoder: Vec<Group> = (6..12).collect();
        type Row<'a> = (&'a str, Vec<&'a [Group]>, Vec<Group>);
        let rows: [Row<'_>; 4] = [
            ("as registered", vec![&plain, &plain, &plain], plain.clone()),
            ("built in another order", vec![&head_last, &head_last, &head_last], head_last.clone()),
            (
                "an encoder that runs once",
                vec![&plain, &decoder, &decoder, &decoder, &decoder],
                decoder.clone(),
            ),
            ("a group never used", vec![&plain[1..], &plain[1..], &plain[1..]], plain[1..].to_vec()),
        ];
        for (name, passes, expected) in rows {
            let mut order = order(12);
            run(&mut order, &passes);
            assert_eq!(order.cycle(), expected, "{name}");
            assert!(order.is_learned());
        }
    }

    #[test]
    fn is_quiet_once_learned() {
        let plain: Vec<Group> = (0..12).collect();
        let mut order = order(12);
        assert_eq!(run(&mut order, &[&plain, &plain, &plain, &plain]), [false, true, false, false]);
        assert_eq!(order.passes(), 3);
    }

    #[test]
    fn laggards_do_not_end_a_pass() {
        let mut order = order(16);
        let plain: Vec<Group> = (0..16).collect();
        run(&mut order, &[&plain, &plain]);
        order.touch(0, true, &|_| 0);
        let passes = order.passes();
        for group in [0, 1, 0, 2, 1, 2, 3, 5, 4, 3] {
            order.touch(group, true, &|_| 0);
        }
        assert_eq!((order.passes(), order.current()), (passes, Some(5)));
    }

    #[test]
    fn sparse_groups_are_not_dense() {
        let mut order = Order::default();
        order.add(100);
        (0..8).for_each(|_| {
            order.add(4);
        });
        for _ in 0..3 {
            order.touch(0, true, &|_| 0);
            for group in 1..9 {
                (0..4).for_each(|_| {
                    order.touch(group, true, &|_| 0);
                });
            }
        }
        assert!(!order.is_dense(0) && order.is_dense(1));
        assert_eq!(order.cycle().first(), Some(&0));
    }

    #[test]
    fn distances_go_around() {
        let mut order = order(12);
        order.touch(3, true, &|_| 0);
        let distances: Vec<_> = (0..12).map(|group| order.distance(group).unwrap()).collect();
        assert_eq!(distances, [9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(order.upcoming().take(3).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(Order::default().upcoming().count(), 0);
    }

    #[test]
    fn residents_are_spread_evenly() {
        for (units, resident) in [(0, 0), (1, 0), (1, 1), (7, 3), (100, 99), (64, 32), (5, 9)] {
            let marks: Vec<bool> = spread(units, resident).collect();
            assert_eq!(marks.iter().filter(|m| **m).count(), resident.min(units));
            // Any stretch holds its share, to within one.
            for end in 0..=units {
                let have = marks[..end].iter().filter(|m| **m).count();
                assert_eq!(have, end * resident.min(units) / units.max(1));
            }
        }
    }
}
