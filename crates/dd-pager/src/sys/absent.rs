//! Where the system has no userfaultfd.

use std::convert::Infallible;
use std::io;

use crate::error::{Error, Result};

/// Cannot be made here.
#[derive(Debug)]
pub(crate) struct Faults(Infallible);

impl Faults {
    pub(crate) fn open(_copying: bool) -> Result<Self> {
        Err(Error::Unsupported { reason: "only Linux lets a program serve its own page faults".to_owned() })
    }

    pub(crate) fn moves(&self) -> bool {
        match self.0 {}
    }

    pub(crate) fn register(&self, _at: usize, _len: usize) -> Result<()> {
        match self.0 {}
    }

    pub(crate) fn wake(&self, _at: usize, _len: usize) -> io::Result<()> {
        match self.0 {}
    }

    pub(crate) fn copy(&self, _to: usize, _from: usize, _len: usize) -> io::Result<()> {
        match self.0 {}
    }

    pub(crate) fn shift(&self, _to: usize, _from: usize, _len: usize) -> Result<(), usize> {
        match self.0 {}
    }

    pub(crate) fn stop(&self) {
        match self.0 {}
    }

    pub(crate) fn wait(&self, _faults: &mut Vec<usize>) -> io::Result<bool> {
        match self.0 {}
    }
}
