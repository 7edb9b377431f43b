//! Time that nobody else needs.

/// Makes the calling thread run only while a core has nothing else to do (`SCHED_IDLE`), for good; threads that it starts
/// inherit that. Elsewhere than on Linux it stays as it is.
pub fn lower_this_thread() {
    #[cfg(target_os = "linux")]
    {
        use thread_priority::{
            NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
            thread_native_id,
        };
        let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
        if let Err(error) = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle) {
            tracing::warn!("shadow work cannot be given a lower priority: {error}");
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use thread_priority::{NormalThreadSchedulePolicy, ThreadSchedulePolicy, thread_schedule_policy};

    use super::*;

    #[test]
    fn only_the_thread_itself_is_lowered_and_what_it_starts() {
        let policy = || thread_schedule_policy().unwrap();
        let (before, idle) = (policy(), ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle));
        assert_ne!(before, idle);
        let lowered = std::thread::spawn(move || {
            lower_this_thread();
            (policy(), std::thread::spawn(policy).join().unwrap())
        });
        assert_eq!(lowered.join().unwrap(), (idle, idle));
        assert_eq!(policy(), before);
    }
}
