//! The signals that end a process.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Returns a token that SIGTERM or SIGINT cancels; a second signal ends the process at once, as the system does by default.
///
/// Must be called inside a tokio runtime. Where a handler can't be installed the token stays as it is and the error is
/// logged: the system's own default then ends the process.
pub fn on_signal() -> CancellationToken {
    let token = CancellationToken::new();
    let cancelled = token.clone();
    let (mut terminate, mut interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(error = %error, "can't listen for signals; the process will end without a drain");
            return token;
        }
    };
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => ("SIGTERM", 143),
                _ = interrupt.recv() => ("SIGINT", 130),
            }
        };
        let (name, _) = next().await;
        tracing::info!(signal = name, "stopping on {name}");
        cancelled.cancel();
        let (name, code) = next().await;
        tracing::warn!(signal = name, "{name} again: ending without a drain");
        #[expect(clippy::disallowed_methods, reason = "the second signal asks for exactly this")]
        std::process::exit(code);
    });
    token
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn sigterm_cancels_the_token() {
        let token = on_signal();
        assert!(!token.is_cancelled());
        // One signal only: a second one would end the test process, as it should.
        let kill = format!("kill -TERM {}", std::process::id());
        assert!(std::process::Command::new("sh").arg("-c").arg(kill).status().unwrap().success());
        tokio::time::timeout(Duration::from_secs(10), token.cancelled()).await.expect("the signal arrives");
    }
}
