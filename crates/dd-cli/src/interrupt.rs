//! Tidies up when the user presses Ctrl-C.
//!
//! The signals are blocked, and a thread waits for them: so what is done then is ordinary code, not a signal handler.
#![allow(unsafe_code, reason = "signals are blocked and awaited through the C library")]

use std::sync::atomic::{AtomicBool, Ordering};

/// How the process ends after an interrupt.
pub const CODE: i32 = 130;

/// An interrupt was asked for: from then on how the process ends is the waiting thread's affair.
static ASKED: AtomicBool = AtomicBool::new(false);

/// Once an interrupt or a termination is asked for: does `tidy`, then ends the process with exit code 130 ([`CODE`]). To be
/// called before other threads are started; processes that are started later are not affected.
pub fn tidy_then_exit(tidy: impl FnOnce() + Send + 'static) {
    #[cfg(unix)]
    {
        let Some(signals) = blocked() else { return };
        let wait = move || {
            let mut signal = 0;
            // SAFETY: both pointers are to initialised values that live during the call.
            if unsafe { libc::sigwait(&raw const signals, &raw mut signal) } == 0 {
                ASKED.store(true, Ordering::SeqCst);
                tidy();
                std::process::exit(CODE);
            }
        };
        if let Err(error) =
            std::thread::Builder::new().name("interrupt".to_owned()).stack_size(256 << 10).spawn(wait)
        {
            tracing::warn!(%error, "an interrupt will leave files behind");
        }
    }
    #[cfg(not(unix))]
    drop(tidy);
}

/// Does not come back where an interrupt is being tidied up after: what failed meanwhile failed because its files went
/// away, which is nothing to tell the user, and no reason to end with another exit code.
pub fn leave_to_it_if_asked() {
    while ASKED.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

/// Blocks the two signals in this thread and those that it starts; nothing where the system refuses.
#[cfg(unix)]
fn blocked() -> Option<libc::sigset_t> {
    let mut signals = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set before anything reads it; the old mask is not asked for.
    unsafe {
        libc::sigemptyset(signals.as_mut_ptr());
        libc::sigaddset(signals.as_mut_ptr(), libc::SIGINT);
        libc::sigaddset(signals.as_mut_ptr(), libc::SIGTERM);
        let done = libc::pthread_sigmask(libc::SIG_BLOCK, signals.as_ptr(), std::ptr::null_mut());
        (done == 0).then(|| signals.assume_init())
    }
}
