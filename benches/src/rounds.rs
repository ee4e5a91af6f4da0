//! Contestants that take turns. What is compared is measured side by side, so that a machine that is busy for a while is
//! busy for all of them; what they took is handed to criterion afterwards, which does the statistics.

use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput};
use deep_dimensions::core::Bytes;

use crate::Result;
use crate::settings::FEWEST;

/// One who takes part: prepares, works, and says how long the work took.
pub struct Contestant<'a> {
    name: String,
    turn: Box<dyn FnMut() -> Result<Duration> + 'a>,
}

impl<'a> Contestant<'a> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A contestant whose `turn` says what counts of it.
    pub fn new(name: impl Into<String>, turn: impl FnMut() -> Result<Duration> + 'a) -> Self {
        Self { name: name.into(), turn: Box::new(turn) }
    }
}

/// What everyone took in each round.
#[derive(Clone, Debug)]
pub struct Rounds {
    names: Vec<String>,
    /// Per contestant, the time of each round.
    times: Vec<Vec<Duration>>,
}

impl Rounds {
    /// Lets everyone have a turn in each round. Who begins changes from round to round.
    ///
    /// # Errors
    /// The first that a contestant reports.
    pub fn run(rounds: usize, contestants: &mut [Contestant<'_>]) -> Result<Self> {
        let count = contestants.len();
        let mut times = vec![Vec::with_capacity(rounds); count];
        for round in 0..rounds {
            for turn in 0..count {
                let who = (round + turn) % count;
                let (Some(contestant), Some(times)) = (contestants.get_mut(who), times.get_mut(who)) else {
                    continue;
                };
                times.push((contestant.turn)()?);
            }
        }
        Ok(Self { names: contestants.iter().map(|contestant| contestant.name.clone()).collect(), times })
    }

    /// The times of one contestant, round by round; none for a name that did not take part.
    #[must_use]
    pub fn times(&self, name: &str) -> &[Duration] {
        let index = self.names.iter().position(|own| own == name);
        index.and_then(|index| self.times.get(index)).map_or(&[], Vec::as_slice)
    }

    /// One contestant's median in seconds.
    #[must_use]
    pub fn median(&self, name: &str) -> f64 {
        median(self.times(name).iter().map(Duration::as_secs_f64))
    }

    /// The median of `f` over the rounds, for what compares two contestants within a round.
    pub fn median_of(&self, first: &str, second: &str, f: impl Fn(f64, f64) -> f64) -> f64 {
        let pairs = self.times(first).iter().zip(self.times(second));
        median(pairs.map(|(first, second)| f(first.as_secs_f64(), second.as_secs_f64())))
    }

    /// Hands each contestant's times to criterion: its samples are the rounds, nothing runs again.
    pub fn report(&self, criterion: &mut Criterion, group: &str, moved: impl Fn(&str) -> Option<Bytes>) {
        let mut group = criterion.benchmark_group(group);
        group.sampling_mode(SamplingMode::Flat);
        group.sample_size(self.times.first().map_or(0, Vec::len).max(FEWEST));
        // These only bound how often criterion asks; a replay takes no time.
        group.warm_up_time(Duration::from_nanos(1)).measurement_time(Duration::from_millis(50));
        for (name, times) in self.names.iter().zip(&self.times) {
            if let Some(bytes) = moved(name) {
                group.throughput(Throughput::Bytes(bytes.0));
            }
            let mut replay = times.iter().cycle().copied();
            let warm_up = replay.next();
            let mut replay = warm_up.into_iter().chain(times.iter().cycle().copied());
            group.bench_function(name, |bencher| {
                bencher
                    .iter_custom(|iterations| replay.next().unwrap_or_default().mul_f64(iterations as f64));
            });
        }
        group.finish();
    }
}

/// The middle one; the mean of the two in the middle of an even number; NaN of none.
#[must_use]
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    match values.len() {
        0 => f64::NAN,
        count => f64::midpoint(at((count - 1) / 2), at(count / 2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let rows: [(&[f64], f64); 3] = [(&[3.0], 3.0), (&[9.0, 1.0, 2.0], 2.0), (&[4.0, 1.0, 2.0, 9.0], 3.0)];
        for (values, expected) in rows {
            assert!((median(values.iter().copied()) - expected).abs() < 1e-12, "{values:?}");
        }
        assert!(median(std::iter::empty()).is_nan());
    }

    #[test]
    fn everyone_has_a_turn_in_every_round_and_another_begins() {
        let log = std::cell::RefCell::new(String::new());
        let contestant = |name: &'static str, millis| {
            let log = &log;
            Contestant::new(name, move || {
                log.borrow_mut().push_str(name);
                Ok(Duration::from_millis(millis))
            })
        };
        let rounds = Rounds::run(3, &mut [contestant("a", 10), contestant("b", 20)]).unwrap();
        assert_eq!(*log.borrow(), "abbaab");
        assert!((rounds.median("b") - 0.02).abs() < 1e-12);
        assert!((rounds.median_of("b", "a", |b, a| b / a) - 2.0).abs() < 1e-12);
        assert!(rounds.times("c").is_empty());
    }
}
