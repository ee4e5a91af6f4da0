//! The two system interfaces that paging stands on: anonymous mappings, and userfaultfd.
//!
//! Structures, numbers and semantics are those of `linux/userfaultfd.h` and of the manual pages `userfaultfd(2)`,
//! `ioctl_userfaultfd(2)` and `UFFDIO_MOVE(2const)`. On other systems [`Faults::open`] says that there is no such thing.

pub(crate) mod map;
pub(crate) mod stamp;
#[cfg(target_os = "linux")]
mod uffd;
#[cfg(target_os = "linux")]
pub(crate) use uffd::Faults;
#[cfg(not(target_os = "linux"))]
mod absent;
#[cfg(not(target_os = "linux"))]
pub(crate) use absent::Faults;

/// Bytes of a base page: what every range of a request is a multiple of.
pub(crate) const PAGE: usize = 4096;
/// Bytes of a huge page.
pub(crate) const HUGE: usize = 2 << 20;
