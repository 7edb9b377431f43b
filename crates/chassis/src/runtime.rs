//! The runtime a process lives on.

use std::process::ExitCode;
use std::time::Duration;

/// How long the end of a process waits for work on threads that block.
const LAST_WORK: Duration = Duration::from_secs(1);

/// Runs the life of the process `name` on a runtime of its own; an error is printed and becomes a failure.
///
/// Work on threads that block and cannot be interrupted (a model being loaded, a long text being split) is left behind
/// after a second. Dropping the runtime would wait for it, and with it the stop of the process.
pub fn block_on(name: &str, life: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let outcome = tokio::runtime::Runtime::new().map_err(anyhow::Error::from).and_then(|runtime| {
        let outcome = runtime.block_on(life);
        runtime.shutdown_timeout(LAST_WORK);
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn work_that_blocks_does_not_hold_the_end_of_the_process() {
        let started = Instant::now();
        block_on("test", async {
            let (begun, beginning) = tokio::sync::oneshot::channel();
            tokio::task::spawn_blocking(move || {
                let _left = begun.send(());
                std::thread::sleep(Duration::from_secs(60));
            });
            Ok(beginning.await?)
        });
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    }
}
