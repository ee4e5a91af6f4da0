//! The loop that all engines share: pull, submit, wait, deliver.
//!
//! Every block is at each moment in exactly one place: in the pool, or in flight. What is in flight belongs to the
//! transport and not to the loop, so a source that panics loses nothing: the next run first lets the rest arrive.

use dd_core::Bytes;

use super::blocks::Block;
use super::request::Request;
use super::{Geometry, ReadEngine, ReadSource};
use crate::error::Result;

/// A request on its way, with the block that it fills.
pub(super) struct Flight {
    pub(super) request: Request,
    pub(super) block: Block,
}

/// A way of having several reads in flight.
pub(super) trait Transport: Send {
    /// The blocks that are not in flight.
    fn pool(&mut self) -> &mut Vec<Block>;

    /// How many reads are in flight.
    fn in_flight(&self) -> usize;

    /// Sends one off.
    fn submit(&mut self, flight: Flight) -> Result<()>;

    /// Waits for any one of them: what came back, and whether it was read. Not to be called with none in flight.
    fn wait(&mut self) -> Result<(Flight, Result<()>)>;
}

/// An engine: a transport, driven.
pub(super) struct Engine<T> {
    name: &'static str,
    geometry: Geometry,
    transport: T,
}

impl<T: Transport> Engine<T> {
    pub(super) const fn new(name: &'static str, geometry: Geometry, transport: T) -> Self {
        Self { name, geometry, transport }
    }

    /// Lets the reads of a run that was broken off arrive; nobody wants them any more.
    fn settle(&mut self) -> Result<()> {
        while self.transport.in_flight() > 0 {
            let (flight, _) = self.transport.wait()?;
            self.transport.pool().push(flight.block);
        }
        match self.transport.pool().is_empty() {
            true => Err(broken(self.name)),
            false => Ok(()),
        }
    }

    /// Sends reads off while there are blocks and the source has some.
    fn pull(&mut self, source: &mut dyn ReadSource) -> Result<()> {
        while !self.transport.pool().is_empty() {
            let Some(read) = source.next() else { break };
            match Request::new(read, self.geometry.block) {
                Err((read, error)) => source.complete(read, Err(error)),
                Ok(request) if request.wanted().is_empty() => source.complete(request.into_read(), Ok(&[])),
                Ok(request) => self.send(request)?,
            }
        }
        Ok(())
    }

    fn send(&mut self, request: Request) -> Result<()> {
        let block = self.transport.pool().pop().ok_or_else(|| broken(self.name))?;
        self.transport.submit(Flight { request, block })
    }

    /// Hands over what came back. The block is in the pool again before the source sees it, so nothing is lost if the
    /// source panics.
    fn deliver(&mut self, flight: Flight, outcome: Result<()>, source: &mut dyn ReadSource) {
        let Flight { request, block } = flight;
        let pool = self.transport.pool();
        pool.push(block);
        let (start, span) = request.span();
        request.file().release(start, span);
        let bytes = pool.last().and_then(|block| block.get(request.wanted())).unwrap_or_default();
        source.complete(request.into_read(), outcome.map(|()| bytes));
    }
}

impl<T: Transport> ReadEngine for Engine<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn block_bytes(&self) -> usize {
        self.geometry.block
    }

    fn depth(&self) -> usize {
        self.geometry.depth
    }

    fn memory(&self) -> Bytes {
        self.geometry.memory()
    }

    fn run(&mut self, source: &mut dyn ReadSource) -> Result<()> {
        self.settle()?;
        loop {
            self.pull(source)?;
            if self.transport.in_flight() == 0 {
                return Ok(());
            }
            let (flight, outcome) = self.transport.wait()?;
            self.deliver(flight, outcome, source);
        }
    }
}

/// The engine lost what it reads with; only a new one helps.
pub(super) fn broken(library: &str) -> crate::Error {
    let cause = std::io::Error::other("the engine stopped; make a new one");
    dd_core::Error::library(library, "read", cause).into()
}
