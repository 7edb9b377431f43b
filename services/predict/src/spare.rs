//! Time that nobody else needs.

/// Makes the calling thread take only the processor time that others leave (nice 19), for good; threads that it starts
/// inherit that.
pub fn lower_this_thread() {
    // On Linux the "process" 0 of setpriority is the calling thread, and only that.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, 19) {
        tracing::warn!("shadow work cannot be given a lower priority: {error}");
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn only_the_thread_itself_is_lowered_and_what_it_starts() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        let lowered = std::thread::spawn(move || {
            lower_this_thread();
            (nice(), std::thread::spawn(nice).join().unwrap())
        });
        assert_eq!(lowered.join().unwrap(), (19, 19));
        assert_eq!(nice(), before);
    }
}
