//! Several threads on one short input: each computes its shard of every layer, and all meet twice a layer to add up what
//! they have.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, RwLock};
use std::thread;

/// Turns a member waits for the others before it offers its processor to somebody else.
const SPINS: usize = 2_000;

/// Threads that stand by to help whoever asks first; dropping it ends them.
pub(super) struct Crew<J> {
    helpers: Mutex<Vec<SyncSender<J>>>,
    meeting: Arc<Meeting>,
    /// Calls being computed now, with help or without.
    calls: AtomicUsize,
}

/// Where the members of a crew exchange their sums.
pub(super) struct Meeting {
    members: usize,
    arrived: AtomicUsize,
    round: AtomicUsize,
    broken: AtomicBool,
    /// What each member has added up so far, in the even and in the odd rounds.
    sums: Vec<[RwLock<Vec<f32>>; 2]>,
}

/// One member's side of one run.
pub(super) struct Member<'a> {
    meeting: &'a Meeting,
    number: usize,
    odd: bool,
}

/// Says on the way out of a panic that the others would wait in vain.
struct Breaks<'a>(&'a Meeting);

impl<J: Send + 'static> Crew<J> {
    /// Starts `members - 1` helpers, each doing its jobs by `work(job, member)`.
    pub(super) fn start(members: usize, work: impl Fn(J, Member<'_>) + Send + Sync + Clone + 'static) -> Self {
        let sums = || [RwLock::default(), RwLock::default()];
        let meeting = Arc::new(Meeting {
            members,
            arrived: AtomicUsize::new(0),
            round: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
            sums: std::iter::repeat_with(sums).take(members).collect(),
        });
        let helper = |number: usize| {
            let (sender, jobs): (SyncSender<J>, Receiver<J>) = sync_channel(1);
            let (meeting, work) = (meeting.clone(), work.clone());
            let builder = thread::Builder::new().name(format!("encoder-{number}"));
            let run = move || {
                while let Ok(job) = jobs.recv() {
                    let _breaks = Breaks(&meeting);
                    work(job, Member { meeting: &meeting, number, odd: false });
                }
            };
            builder.spawn(run).is_ok().then_some(sender)
        };
        // Without all its helpers a crew does without any.
        let helpers: Option<Vec<_>> = (1..members).map(helper).collect();
        Self { helpers: Mutex::new(helpers.unwrap_or_default()), meeting, calls: AtomicUsize::new(0) }
    }

    /// Calls `compute` as a member, with helpers at work on `job()`, where all of them are idle and no other call runs;
    /// else without.
    pub(super) fn run<T>(&self, job: impl Fn() -> J, compute: impl FnOnce(Option<Member<'_>>) -> T) -> T {
        let _call = Call::begin(&self.calls);
        if self.calls.load(Ordering::Acquire) > 1 || self.meeting.broken.load(Ordering::Acquire) {
            return compute(None);
        }
        let Ok(helpers) = self.helpers.try_lock() else { return compute(None) };
        if helpers.len() + 1 != self.meeting.members {
            return compute(None);
        }
        // A helper's place for one job is empty: it takes each job before the run that brought it ends.
        if helpers.iter().any(|helper| helper.try_send(job()).is_err()) {
            self.meeting.broken.store(true, Ordering::Release);
            return compute(None);
        }
        let _breaks = Breaks(&self.meeting);
        compute(Some(Member { meeting: &self.meeting, number: 0, odd: false }))
    }

    /// Counts a call that needs no help, and so is none for others to find all processors idle.
    pub(super) fn busy(&self) -> impl Drop + '_ {
        Call::begin(&self.calls)
    }
}

/// Counts a call while it runs.
struct Call<'a>(&'a AtomicUsize);

impl<'a> Call<'a> {
    fn begin(calls: &'a AtomicUsize) -> Self {
        calls.fetch_add(1, Ordering::AcqRel);
        Self(calls)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Breaks<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.broken.store(true, Ordering::Release);
        }
    }
}

impl Member<'_> {
    /// Which shard is this member's.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// Lets `fill` write this member's `length` sums (given as zeros), waits for all, and adds everybody's to `to`.
    pub(super) fn exchange(&mut self, to: &mut [f32], fill: impl FnOnce(&mut [f32])) {
        let side = usize::from(self.odd);
        {
            let own = &self.meeting.sums[self.number][side];
            // Nobody reads these sums now: the meeting of the round between has seen everybody done with them.
            let mut own = own.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            own.clear();
            own.resize(to.len(), 0.0);
            fill(&mut own);
        }
        self.meeting.wait();
        for sums in &self.meeting.sums {
            let sums = sums[side].read().unwrap_or_else(std::sync::PoisonError::into_inner);
            to.iter_mut().zip(&*sums).for_each(|(to, sum)| *to += sum);
        }
        self.odd = !self.odd;
    }
}

impl Meeting {
    /// Returns when all members are here; panics when one of them has panicked.
    fn wait(&self) {
        let round = self.round.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.members {
            self.arrived.store(0, Ordering::Release);
            self.round.store(round.wrapping_add(1), Ordering::Release);
            return;
        }
        let mut turns = 0;
        while self.round.load(Ordering::Acquire) == round {
            assert!(!self.broken.load(Ordering::Acquire), "another thread of this computation panicked");
            turns += 1;
            if turns < SPINS { std::hint::spin_loop() } else { thread::yield_now() }
        }
    }
}
