//! Staging: the few blocks of page-locked memory through which bytes pass on their way to a device or back.
//!
//! A device copies page-locked memory by itself, while the host goes on. So a block must not be overwritten before
//! the copy that was last begun from it is done. [`Ring`] is that rule and nothing else, without a word of any driver:
//! blocks take turns, so the next one is always the one whose copy was begun first, and it is waited for before it is
//! used again. With two blocks the host fills one while the device empties the other.
//!
//! Blocks are made when they are first needed, as large as what is asked of them, up to a limit that holds at every
//! moment. Where the system has no page-locked memory left, smaller blocks are tried, and in the end none.

/// Page-locked memory. Dropping it waits as [`wait`](Self::wait) does.
pub(crate) trait Block {
    /// Why a wait failed.
    type Error;

    /// How many bytes there are.
    fn size(&self) -> usize;

    /// Waits until the copy that was last begun from or to this block is done; returns at once where there is none.
    fn wait(&mut self) -> Result<(), Self::Error>;
}

/// Blocks that take turns.
#[derive(Debug)]
pub(crate) struct Ring<B> {
    blocks: Vec<Option<B>>,
    next: usize,
    least: usize,
    most: usize,
    limit: usize,
}

impl<B: Block> Ring<B> {
    /// A ring of `count` blocks of `least` to `most` bytes, none of them made yet.
    pub(crate) fn new(count: usize, least: usize, most: usize) -> Self {
        let blocks = std::iter::repeat_with(|| None).take(count).collect();
        Self { blocks, next: 0, least: least.min(most), most, limit: most }
    }

    /// How many bytes it has now.
    pub(crate) fn held(&self) -> usize {
        self.blocks.iter().flatten().map(Block::size).sum()
    }

    /// The most that it will ever have.
    pub(crate) const fn limit(&self) -> usize {
        self.blocks.len().saturating_mul(self.limit)
    }

    /// Gives all blocks back, and forgets what was refused.
    pub(crate) fn release(&mut self) {
        self.blocks.iter_mut().for_each(|block| *block = None);
        self.most = self.limit;
    }

    /// Runs `copy` on the block whose turn it is, once the copy that it served last is done. The block has room for
    /// `len` bytes, or for as many as a block may have; `make` makes it where it is not there or too small. Nothing
    /// is run, and the answer is nothing, where `make` refuses every size.
    pub(crate) fn pass<T>(
        &mut self,
        len: usize,
        mut make: impl FnMut(usize) -> Option<B>,
        copy: impl FnOnce(&mut B) -> Result<T, B::Error>,
    ) -> Result<Option<T>, B::Error> {
        let count = self.blocks.len();
        let Some(slot) = self.blocks.get_mut(self.next) else { return Ok(None) };
        if let Some(block) = slot {
            block.wait()?;
        }
        self.next = (self.next + 1) % count; // Also where the copy fails: it may have been begun.
        while self.most > 0 {
            let wanted = len.max(self.least).checked_next_power_of_two().unwrap_or(len).min(self.most);
            if slot.as_ref().is_some_and(|block| block.size() >= wanted) {
                break;
            }
            *slot = None; // Before the next one is made, so that the limit holds at every moment.
            *slot = make(wanted);
            if slot.is_none() {
                self.most = if wanted > self.least { wanted / 2 } else { 0 };
            }
        }
        let Some(block) = slot else { return Ok(None) };
        copy(block).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::convert::Infallible;
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;

    /// What a device would do: it reads a block when it comes to the copy, not when the copy is begun.
    #[derive(Default)]
    struct Stream {
        pending: Vec<Copy>,
        device: Vec<u8>,
        in_order: bool,
        alive: usize,
        made: usize,
    }

    struct Copy {
        block: usize,
        memory: Rc<RefCell<Vec<u8>>>,
        len: usize,
        to: usize,
    }

    impl Stream {
        /// Completes pending copy `number`: where the stream keeps order, after all before it.
        fn complete(&mut self, number: usize) {
            let first = if self.in_order { 0 } else { number };
            for copy in self.pending.drain(first..=number) {
                let place = &mut self.device[copy.to..copy.to + copy.len];
                place.copy_from_slice(&copy.memory.borrow()[..copy.len]);
            }
        }

        fn complete_all(&mut self) {
            (0..self.pending.len()).rev().for_each(|_| self.complete(0));
        }
    }

    struct Fake {
        number: usize,
        memory: Rc<RefCell<Vec<u8>>>,
        stream: Rc<RefCell<Stream>>,
    }

    impl Fake {
        fn make(stream: &Rc<RefCell<Stream>>, len: usize) -> Self {
            let mut state = stream.borrow_mut();
            state.alive += len;
            state.made += 1;
            Self { number: state.made, memory: Rc::new(vec![0; len].into()), stream: Rc::clone(stream) }
        }

        /// Fills the block and begins to copy it.
        fn send(&mut self, piece: &[u8], to: usize) {
            let mut stream = self.stream.borrow_mut();
            let busy = stream.pending.iter().any(|copy| copy.block == self.number);
            assert!(!busy, "block {} is overwritten before its copy is done", self.number);
            self.memory.borrow_mut()[..piece.len()].copy_from_slice(piece);
            let (block, memory) = (self.number, Rc::clone(&self.memory));
            stream.pending.push(Copy { block, memory, len: piece.len(), to });
        }
    }

    impl Block for Fake {
        type Error = Infallible;

        fn size(&self) -> usize {
            self.memory.borrow().len()
        }

        fn wait(&mut self) -> Result<(), Infallible> {
            let mut stream = self.stream.borrow_mut();
            let own = stream.pending.iter().position(|copy| copy.block == self.number);
            own.into_iter().for_each(|number| stream.complete(number));
            Ok(())
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let Ok(()) = self.wait();
            self.stream.borrow_mut().alive -= self.size();
        }
    }

    const DEVICE: usize = 512;

    /// One write of `len` bytes to `to`, during which the device completes copies and the system refuses memory.
    #[derive(Clone, Debug)]
    struct Write {
        to: usize,
        len: usize,
        completes: Vec<prop::sample::Index>,
        refuses_above: usize,
        releases: bool,
    }

    fn write() -> impl Strategy<Value = Write> {
        let place = (0..DEVICE).prop_flat_map(|to| (Just(to), 0..=DEVICE - to));
        let completes = prop::collection::vec(any::<prop::sample::Index>(), 0..4);
        let refuses_above = prop_oneof![4 => Just(usize::MAX), 1 => 0..64usize];
        (place, completes, refuses_above, prop::bool::weighted(0.05)).prop_map(
            |((to, len), completes, refuses_above, releases)| Write {
                to,
                len,
                completes,
                refuses_above,
                releases,
            },
        )
    }

    /// Carries out the write as `cuda` does: piece by piece, and what finds no block without one, after all before.
    fn perform(ring: &mut Ring<Fake>, stream: &Rc<RefCell<Stream>>, write: &Write, bytes: &[u8]) {
        let mut choices = write.completes.iter();
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            let make = |len| (len <= write.refuses_above).then(|| Fake::make(stream, len));
            let Ok(sent) = ring.pass(rest.len(), make, |block| {
                let len = rest.len().min(block.size());
                block.send(&rest[..len], write.to + done);
                Ok(len)
            });
            let mut state = stream.borrow_mut();
            assert!(ring.held() == state.alive && ring.held() <= ring.limit());
            if sent.is_none() {
                state.complete_all();
                state.device[write.to + done..][..rest.len()].copy_from_slice(rest);
            }
            done += sent.unwrap_or(rest.len());
            let pending = state.pending.len();
            let chosen = choices.next().filter(|_| pending > 0);
            chosen.into_iter().for_each(|choice| state.complete(choice.index(pending)));
        }
    }

    fn value(of: usize) -> u8 {
        u8::try_from(of % 255 + 1).unwrap()
    }

    /// Whether all bytes arrive, in the order in which they were written.
    fn check(count: usize, least: usize, most: usize, in_order: bool, writes: &[Write]) {
        let mut stream = Stream { in_order, ..Stream::default() };
        stream.device = vec![0; DEVICE];
        let stream = Rc::new(RefCell::new(stream));
        let mut expected = vec![0; DEVICE];
        let mut ring = Ring::new(count, least, most);
        for (number, write) in writes.iter().enumerate() {
            let bytes: Vec<u8> = (0..write.len).map(|i| value(number * 37 + i * 11)).collect();
            perform(&mut ring, &stream, write, &bytes);
            expected[write.to..][..write.len].copy_from_slice(&bytes);
            if write.releases {
                ring.release();
                assert_eq!(stream.borrow().alive, 0);
            }
            if !in_order {
                stream.borrow_mut().complete_all(); // The next write may overlap this one.
            }
        }
        drop(ring);
        let state = stream.borrow();
        assert!(state.pending.is_empty() && state.alive == 0);
        assert!(state.device == expected, "bytes are lost, or out of order");
    }

    proptest! {
        #[test]
        fn no_block_is_reused_early_and_bytes_arrive_in_order(
            count in 0..4usize,
            least in 1..16usize,
            most in 0..96usize,
            in_order: bool,
            writes in prop::collection::vec(write(), 1..12),
        ) {
            check(count, least, most, in_order, &writes);
        }
    }

    #[test]
    fn blocks_are_as_large_as_what_is_asked_and_no_larger_than_allowed() {
        // What is asked one after the other, and what the one block has then.
        let rows: [(&[usize], usize); 5] =
            [(&[1], 16), (&[17], 32), (&[17, 3], 32), (&[17, 64], 64), (&[usize::MAX], 100)];
        for (asked, size) in rows {
            let stream = Rc::new(RefCell::new(Stream::default()));
            let mut ring = Ring::new(1, 16, 100);
            for len in asked {
                let Ok(passed) = ring.pass(*len, |len| Some(Fake::make(&stream, len)), |_| Ok(()));
                assert!(passed.is_some());
            }
            assert_eq!((ring.held(), ring.limit()), (size, 100), "{asked:?}");
        }
    }

    #[test]
    fn a_refusal_makes_blocks_smaller_until_they_are_given_back() {
        let stream = Rc::new(RefCell::new(Stream::default()));
        let mut ring = Ring::new(2, 16, 64);
        let mut sizes = Vec::new();
        let mut pass = |ring: &mut Ring<Fake>, largest: usize| {
            let make = |len| {
                sizes.push(len);
                (len <= largest).then(|| Fake::make(&stream, len))
            };
            let Ok(passed) = ring.pass(1_000, make, |block| Ok(block.size()));
            passed
        };
        assert_eq!([pass(&mut ring, 40), pass(&mut ring, 40)], [Some(32), Some(32)]);
        ring.release();
        assert_eq!([pass(&mut ring, 0), pass(&mut ring, 100)], [None, None]);
        ring.release();
        assert_eq!(pass(&mut ring, 100), Some(64));
        assert_eq!(sizes, [64, 32, 32, 64, 32, 16, 64]);
    }
}
