//! Progress for people: one line a step with its time, on stderr. On a
//! terminal a running step shows at once; elsewhere lines are plain and final.
#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "the one place that talks"
)]

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use anyhow::Result;

/// Announces a part of the work.
pub(crate) fn heading(text: &str) {
    if stderr().is_terminal() {
        eprintln!("\x1b[1m{text}\x1b[0m");
    } else {
        eprintln!("== {text}");
    }
}

/// Runs one step and reports it; the closure's text says what was done or found.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> Result<(T, String)>) -> Result<T> {
    let terminal = stderr().is_terminal();
    if terminal {
        eprint!("  .. {name}");
        // A terminal that cannot be flushed shows the line late, nothing worse.
        drop(stderr().flush());
    }
    let started = Instant::now();
    let result = work();
    let took = seconds(started.elapsed());
    let clear = if terminal { "\r\x1b[K" } else { "" };
    match &result {
        Ok((_, detail)) if detail.is_empty() => eprintln!("{clear}  ok {name} ({took})"),
        Ok((_, detail)) => eprintln!("{clear}  ok {name}: {detail} ({took})"),
        Err(_) => eprintln!("{clear}FAIL {name} ({took})"),
    }
    result.map(|(value, _)| value)
}

/// As [`step`], for work that prints a lot by itself: said before and after.
pub(crate) fn streamed(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    heading(name);
    let started = Instant::now();
    let result = work();
    let took = seconds(started.elapsed());
    match &result {
        Ok(()) => eprintln!("  ok {name} ({took})"),
        Err(_) => eprintln!("FAIL {name} ({took})"),
    }
    result
}

/// A remark below a step.
pub(crate) fn note(text: &str) {
    eprintln!("     {text}");
}

pub(crate) fn error(text: &str) {
    eprintln!("error: {text}");
}

/// Data: what may be piped to another program.
pub(crate) fn data(text: &str) {
    println!("{text}");
}

pub(crate) fn seconds(time: Duration) -> String {
    if time.as_secs() >= 100 {
        format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}
