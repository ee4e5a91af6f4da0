//! Windows under a model checker that chooses the order of the threads: whatever the order, everyone gets the right rows, at most two windows
//! are in memory, and nobody waits for ever. Built with `RUSTFLAGS="--cfg dd_shuttle"` only.

use std::collections::VecDeque;
use std::ops::Range;

use shuttle::thread;

use super::*;
use crate::order::Shuffle;

const LEN: u64 = 11;

/// Random schedules of each scenario.
const ROUNDS: usize = 150;

/// A batch in the making: epoch, positions, and whether its epoch was left meanwhile.
type Job = (u64, Range<u64>, bool);

fn order(epoch: u64, shuffle: Shuffle) -> Arc<Order> {
    Arc::new(Order::new(LEN, shuffle, 5, epoch))
}

fn source() -> ForwardSource {
    let desc = TensorDesc::new([1], dd_core::DType::U8).unwrap();
    let byte = |n: u64| [u8::try_from(n).unwrap()];
    ForwardSource::from_blocks(LEN, 2, desc.clone(), desc, move |block| {
        let items = (block * 2..(block * 2 + 2).min(LEN)).map(move |n| Ok((byte(n), byte(n))));
        Ok(items)
    })
}

/// Three threads take batches of three from a queue, over two epochs; every fourth was left by the caller.
fn scenario(shuffle: Shuffle, room: u64) {
    let budget = Budget::new("test", Bytes(room));
    let windows = Arc::new(Windows::new(Arc::new(source()), 1, &order(0, shuffle), &budget).unwrap());
    let queue = Arc::new(Mutex::new(VecDeque::<Job>::new()));
    let mut number = 0;
    for epoch in 0..2 {
        for start in (0..LEN).step_by(3) {
            windows.begin(epoch * LEN + start);
            number += 1;
            queue.lock().unwrap().push_back((epoch, start..(start + 3).min(LEN), number % 4 == 0));
        }
    }
    let work = |windows: Arc<Windows>, queue: Arc<Mutex<VecDeque<Job>>>| {
        move || {
            loop {
                let Some((epoch, positions, left)) = queue.lock().unwrap().pop_front() else { return };
                let mut mark = epoch * LEN + positions.start;
                for position in positions.filter(|_| !left) {
                    let window =
                        windows.get(&|epoch| order(epoch, shuffle), epoch, position, &mut mark).unwrap();
                    let order = order(epoch, shuffle);
                    let place = order.blocks().unwrap().place_in_window(position);
                    let expected = [u8::try_from(order.at(position)).unwrap()];
                    assert_eq!(window.row(place).unwrap(), (expected.as_slice(), expected.as_slice()));
                    assert!(windows.lock().loaded.len() <= windows.most);
                }
                windows.finish(mark);
            }
        }
    };
    let threads: Vec<_> =
        (0..3).map(|_| thread::spawn(work(Arc::clone(&windows), Arc::clone(&queue)))).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(windows.lock().active.is_empty());
}

#[test]
fn nobody_waits_for_ever() {
    let shuffle = Shuffle::Blocks { block: 2, window: 2 };
    shuttle::check_random(move || scenario(shuffle, 16), ROUNDS);
    shuttle::check_pct(move || scenario(shuffle, 16), ROUNDS / 2, 3);
}

#[test]
fn one_window_is_enough() {
    let shuffle = Shuffle::Blocks { block: 2, window: 1 };
    shuttle::check_random(move || scenario(shuffle, 5), ROUNDS);
    shuttle::check_pct(move || scenario(shuffle, 5), ROUNDS / 2, 3);
}
