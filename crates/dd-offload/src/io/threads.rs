//! Several reads in flight by several threads, each waiting in `pread`: works everywhere.

use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::Geometry;
use super::blocks::{self, Block};
use super::drive::{Flight, Transport, broken};
use super::request::Step;
use crate::error::Result;

const STACK: usize = 128 << 10; // A read needs next to none; the default of 2 MiB times the depth would be address space for nothing.

type Landed = (Flight, Result<()>);

/// As many threads as blocks. They end, and are waited for, when this is dropped.
pub(super) struct Threads {
    pool: Vec<Block>,
    in_flight: usize,
    departures: Option<Sender<Flight>>, // None only while being dropped: hanging up is what ends the threads.
    arrivals: Receiver<Landed>,
    workers: Vec<JoinHandle<()>>,
}

impl Threads {
    /// # Errors
    /// Out of memory for the blocks, or no more threads.
    pub(super) fn start(geometry: Geometry) -> Result<Self> {
        let pool = blocks::allocate(geometry)?;
        let (departures, jobs) = bounded(geometry.depth);
        let (landed, arrivals) = bounded(geometry.depth);
        let mut threads =
            Self { pool, in_flight: 0, departures: Some(departures), arrivals, workers: Vec::new() };
        for _ in 0..geometry.depth {
            let (jobs, landed) = (jobs.clone(), landed.clone());
            threads.workers.push(spawn(move || work(&jobs, &landed))?);
        }
        Ok(threads)
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let builder = std::thread::Builder::new().name("dd-read".to_owned()).stack_size(STACK);
    Ok(builder.spawn(work).map_err(|cause| dd_core::Error::library("the system", "start a thread", cause))?)
}

fn work(jobs: &Receiver<Flight>, landed: &Sender<Landed>) {
    for mut flight in jobs {
        let outcome = fly(&mut flight);
        if landed.send((flight, outcome)).is_err() {
            return;
        }
    }
}

/// Reads until all that was wanted is there, or never will be.
fn fly(flight: &mut Flight) -> Result<()> {
    loop {
        let (range, offset) = flight.request.rest();
        let buffer = flight.block.get_mut(range).unwrap_or_default();
        let answer = flight.request.file().read_at(buffer, offset);
        if let Step::Done(outcome) = flight.request.advance(answer) {
            return outcome;
        }
    }
}

impl Transport for Threads {
    fn pool(&mut self) -> &mut Vec<Block> {
        &mut self.pool
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn submit(&mut self, flight: Flight) -> Result<()> {
        let departures = self.departures.as_ref().ok_or_else(|| broken("threads"))?;
        departures.send(flight).map_err(|_| broken("threads"))?;
        self.in_flight += 1;
        Ok(())
    }

    fn wait(&mut self) -> Result<Landed> {
        let landed = self.arrivals.recv().map_err(|_| broken("threads"))?;
        self.in_flight -= 1;
        Ok(landed)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.departures = None;
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                tracing::error!("a reading thread panicked");
            }
        }
    }
}
