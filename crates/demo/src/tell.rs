//! Prints the story: numbered steps, the call that repeats each one, the time it took.

use std::{
    fmt::Display,
    net::SocketAddr,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

static STEPS: AtomicU32 = AtomicU32::new(0);

/// One step of the story, from its headline to its time.
pub(crate) struct Step {
    since: Instant,
}

impl Step {
    /// Prints the headline and starts the clock.
    pub(crate) fn begin(headline: impl Display) -> Self {
        let number = STEPS.fetch_add(1, Ordering::Relaxed) + 1;
        println!("\n── {number}. {headline}");
        Self { since: Instant::now() }
    }

    /// Prints how long it took, and a summary.
    pub(crate) fn end(self, summary: impl Display) {
        println!("   {summary} ({})", span(self.since.elapsed()));
    }
}

/// Prints the `grpcurl` line that makes the same call.
pub(crate) fn grpcurl(address: SocketAddr, method: &str, body: &serde_json::Value) {
    let body = body.to_string().replace('\'', r"'\''");
    println!("   $ grpcurl -plaintext -d '{body}' {address} {method}");
}

/// Prints a detail of the current step.
pub(crate) fn detail(text: impl Display) {
    println!("   {text}");
}

/// A duration as people read it.
pub(crate) fn span(duration: Duration) -> String {
    match duration.as_secs_f64() {
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 60.0 => format!("{s:.1} s"),
        s => format!("{:.0} min {:.0} s", (s / 60.0).floor(), s % 60.0),
    }
}

/// Shortens a text to one line of at most `width` characters.
pub(crate) fn one_line(text: &str, width: usize) -> String {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if flat.chars().count() <= width {
        return flat;
    }
    flat.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}
