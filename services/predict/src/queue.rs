//! The order in which waiting work is done: what is urgent first, and within that every tenant its share.
//!
//! Tenants share by start-time fair queueing (Goyal, Vin and Cheng, 1996): each tenant's next job has a tag that grows
//! by the cost of what the tenant was given, and the smallest tag is next. Between two tenants that always have work
//! waiting, what they were given differs by at most one job of each. Of batch work that waits beside interactive work
//! one part in [`BATCH_SHARE`] is done, so neither starves. Pure: no clock, no threads.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use crate::{
    admission::Priority,
    cut::{Budget, Cut},
};

/// One of so many parts of the work is batch work while both kinds wait.
pub const BATCH_SHARE: usize = 16;
/// Tenants without waiting work whose last share is remembered.
const REMEMBERED: usize = 4096;

/// Waiting jobs.
#[derive(Debug)]
pub struct Queue<J> {
    interactive: Lane<J>,
    batch: Lane<J>,
    shadow: Lane<J>,
    /// Cost that interactive work was given while batch work waited, less what batch work had for it.
    credit: usize,
    calls: u64,
}

/// The jobs of one priority.
#[derive(Debug)]
struct Lane<J> {
    flows: HashMap<Arc<str>, Flow<J>>,
    /// Tag and number of each flow: the first is next.
    order: BTreeSet<(u64, u64, Arc<str>)>,
    /// Tags of tenants that have nothing waiting and were given more than their share.
    ahead: HashMap<Arc<str>, u64>,
    /// Tag of the job that was taken last.
    now: u64,
    numbers: u64,
    items: usize,
    cost: usize,
}

/// The jobs of one tenant, first come first.
#[derive(Debug)]
struct Flow<J> {
    jobs: VecDeque<Entry<J>>,
    cost: usize,
    tag: u64,
    number: u64,
}

#[derive(Debug)]
struct Entry<J> {
    job: J,
    cost: usize,
    /// Jobs that came together have the same.
    call: u64,
}

impl<J> Default for Queue<J> {
    fn default() -> Self {
        Self { interactive: Lane::new(), batch: Lane::new(), shadow: Lane::new(), credit: 0, calls: 0 }
    }
}

impl<J> Queue<J> {
    /// Returns how many jobs of `priority` wait.
    pub fn items(&self, priority: Priority) -> usize {
        self.lane(priority).items
    }

    /// Returns how many jobs wait that somebody waits for, and their cost.
    pub fn waiting(&self) -> (usize, usize) {
        (self.interactive.items + self.batch.items, self.interactive.cost.saturating_add(self.batch.cost))
    }

    /// Returns how many jobs wait: interactive, batch, shadow.
    pub fn depth(&self) -> [usize; 3] {
        [self.interactive.items, self.batch.items, self.shadow.items]
    }

    /// Puts jobs that came together at the end of their tenant's.
    pub fn push(&mut self, priority: Priority, tenant: &Arc<str>, jobs: impl IntoIterator<Item = (J, usize)>) {
        self.calls += 1;
        let call = self.calls;
        let lane = self.lane_mut(priority);
        for (job, cost) in jobs {
            lane.push(tenant, Entry { job, cost, call });
        }
    }

    /// Takes the next batch of what somebody waits for: jobs of one priority, in the order they are to run.
    pub fn take(&mut self, idle: usize, budget: Budget) -> Vec<J> {
        let is_batch = self.batch_is_next();
        let is_contended = self.interactive.items > 0 && self.batch.items > 0;
        let lane = if is_batch { &self.batch } else { &self.interactive };
        let mut cut = Cut::new(lane.cost, idle, budget);
        let mut taken = Vec::new();
        while let Some(cost) = self.lane(if is_batch { Priority::Batch } else { Priority::Interactive }).next_cost() {
            // The turn of batch work beside interactive work is over when it had its share.
            if is_batch && is_contended && !taken.is_empty() && self.credit < cost.saturating_mul(BATCH_SHARE - 1) {
                break;
            }
            if !cut.takes(cost) {
                break;
            }
            let lane = if is_batch { &mut self.batch } else { &mut self.interactive };
            taken.extend(lane.pop());
            self.credit = match (is_batch, self.batch.items) {
                (_, 0) => 0,
                (true, _) => self.credit.saturating_sub(cost.saturating_mul(BATCH_SHARE - 1)),
                (false, _) => self.credit.saturating_add(cost),
            };
        }
        taken
    }

    /// Takes the next batch of what nobody waits for.
    pub fn take_shadow(&mut self, budget: Budget) -> Vec<J> {
        let mut cut = Cut::new(self.shadow.cost, 1, budget);
        let mut taken = Vec::new();
        while self.shadow.next_cost().is_some_and(|cost| cut.takes(cost)) {
            taken.extend(self.shadow.pop());
        }
        taken
    }

    /// Returns how much cost would be done before the last of a tenant's jobs, were `cost` more of them put in now, and
    /// nothing came later. Without those jobs themselves.
    pub fn ahead(&self, priority: Priority, tenant: &str, cost: usize) -> usize {
        let lane = self.lane(priority);
        let own = lane.flows.get(tenant).map_or(0, |flow| flow.cost).saturating_add(cost);
        let others = lane.flows.iter().filter(|(other, _)| &***other != tenant);
        let shared = others.map(|(_, flow)| flow.cost.min(own)).fold(own, usize::saturating_add);
        let beside = match priority {
            Priority::Interactive => self.batch.cost.min(shared / (BATCH_SHARE - 1)),
            Priority::Batch => self.interactive.cost.min(shared.saturating_mul(BATCH_SHARE - 1)),
            Priority::Shadow => 0,
        };
        shared.saturating_add(beside).saturating_sub(cost)
    }

    /// Makes room for `items` more of a tenant's jobs, so that at most `most` wait, by pushing out whole calls, the
    /// newest first: batch work for interactive work, and within a priority those of tenants that even then have no
    /// fewer jobs waiting than this one will. Returns what was pushed out; `None`, and nothing changes, when there is
    /// not enough of it.
    pub fn make_room(&mut self, priority: Priority, tenant: &Arc<str>, items: usize, most: usize) -> Option<Vec<J>> {
        let own = self.lane(priority).flows.get(tenant).map_or(0, |flow| flow.jobs.len()) + items;
        let mut out: Vec<(Priority, Arc<str>, Vec<Entry<J>>)> = Vec::new();
        while self.waiting().0 + items > most {
            let from_batch = (priority == Priority::Interactive)
                .then(|| Some((Priority::Batch, self.batch.longest(|_, _| true)?)))
                .flatten();
            let from_own_lane = || {
                let fair = |other: &Arc<str>, flow: &Flow<J>| {
                    other != tenant && flow.jobs.len() >= own + flow.last_call().count()
                };
                Some((priority, self.lane(priority).longest(fair)?))
            };
            match from_batch.or_else(from_own_lane) {
                Some((lane, victim)) => {
                    let jobs = self.lane_mut(lane).pop_last_call(&victim);
                    out.push((lane, victim, jobs));
                }
                None => {
                    for (lane, victim, jobs) in out.into_iter().rev() {
                        for entry in jobs {
                            self.lane_mut(lane).push(&victim, entry);
                        }
                    }
                    return None;
                }
            }
        }
        Some(out.into_iter().flat_map(|(_, _, jobs)| jobs).map(|entry| entry.job).collect())
    }

    /// Keeps the jobs for which `keep` returns them.
    pub fn retain(&mut self, mut keep: impl FnMut(J) -> Option<J>) {
        for lane in [&mut self.interactive, &mut self.batch, &mut self.shadow] {
            lane.retain(&mut keep);
        }
        if self.batch.items == 0 {
            self.credit = 0;
        }
    }

    /// Looks at every job somebody waits for.
    pub fn iter(&self) -> impl Iterator<Item = &J> {
        let flows = self.interactive.flows.values().chain(self.batch.flows.values());
        flows.flat_map(|flow| flow.jobs.iter().map(|entry| &entry.job))
    }

    fn batch_is_next(&self) -> bool {
        match (self.interactive.items, self.batch.next_cost()) {
            (_, None) => false,
            (0, Some(_)) => true,
            (_, Some(cost)) => self.credit >= cost.saturating_mul(BATCH_SHARE - 1),
        }
    }

    fn lane(&self, priority: Priority) -> &Lane<J> {
        match priority {
            Priority::Interactive => &self.interactive,
            Priority::Batch => &self.batch,
            Priority::Shadow => &self.shadow,
        }
    }

    fn lane_mut(&mut self, priority: Priority) -> &mut Lane<J> {
        match priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Batch => &mut self.batch,
            Priority::Shadow => &mut self.shadow,
        }
    }
}

impl<J> Lane<J> {
    fn new() -> Self {
        Self {
            flows: HashMap::new(),
            order: BTreeSet::new(),
            ahead: HashMap::new(),
            now: 0,
            numbers: 0,
            items: 0,
            cost: 0,
        }
    }

    fn push(&mut self, tenant: &Arc<str>, entry: Entry<J>) {
        self.items += 1;
        self.cost = self.cost.saturating_add(entry.cost);
        let flow = self.flows.entry(tenant.clone()).or_insert_with(|| {
            let tag = self.ahead.remove(tenant).unwrap_or(0).max(self.now);
            self.numbers += 1;
            self.order.insert((tag, self.numbers, tenant.clone()));
            Flow { jobs: VecDeque::new(), cost: 0, tag, number: self.numbers }
        });
        flow.cost = flow.cost.saturating_add(entry.cost);
        flow.jobs.push_back(entry);
    }

    fn next_cost(&self) -> Option<usize> {
        let (_, _, tenant) = self.order.first()?;
        Some(self.flows.get(tenant)?.jobs.front()?.cost)
    }

    fn pop(&mut self) -> Option<J> {
        let (tag, number, tenant) = self.order.pop_first()?;
        let flow = self.flows.get_mut(&tenant)?;
        let Entry { job, cost, .. } = flow.jobs.pop_front()?;
        flow.cost = flow.cost.saturating_sub(cost);
        self.items -= 1;
        self.cost = self.cost.saturating_sub(cost);
        self.now = tag;
        flow.tag = tag.saturating_add(cost as u64);
        if flow.jobs.is_empty() {
            self.leave(&tenant);
        } else {
            self.order.insert((flow.tag, number, tenant));
        }
        Some(job)
    }

    /// Forgets a flow that has no jobs, but for the share it was given.
    fn leave(&mut self, tenant: &Arc<str>) {
        let Some(flow) = self.flows.remove(tenant) else { return };
        self.order.remove(&(flow.tag, flow.number, tenant.clone()));
        if self.flows.is_empty() {
            // Nobody waits: from here on all are equal again.
            self.ahead.clear();
            self.now = 0;
            return;
        }
        if flow.tag > self.now {
            if self.ahead.len() >= REMEMBERED {
                let now = self.now;
                self.ahead.retain(|_, tag| *tag > now);
            }
            if self.ahead.len() >= REMEMBERED {
                self.ahead.clear();
            }
            self.ahead.insert(tenant.clone(), flow.tag);
        }
    }

    fn longest(&self, fits: impl Fn(&Arc<str>, &Flow<J>) -> bool) -> Option<Arc<str>> {
        let fitting = self.flows.iter().filter(|(tenant, flow)| fits(tenant, flow));
        let longest = fitting.max_by(|(a, one), (b, other)| one.jobs.len().cmp(&other.jobs.len()).then(a.cmp(b)));
        longest.map(|(tenant, _)| tenant.clone())
    }

    fn pop_last_call(&mut self, tenant: &Arc<str>) -> Vec<Entry<J>> {
        let Some(flow) = self.flows.get_mut(tenant) else { return Vec::new() };
        let first = flow.jobs.len() - flow.last_call().count();
        let jobs: Vec<_> = flow.jobs.split_off(first).into();
        let cost = jobs.iter().map(|entry| entry.cost).fold(0, usize::saturating_add);
        flow.cost = flow.cost.saturating_sub(cost);
        self.items -= jobs.len();
        self.cost = self.cost.saturating_sub(cost);
        if flow.jobs.is_empty() {
            self.leave(tenant);
        }
        jobs
    }

    fn retain(&mut self, keep: &mut impl FnMut(J) -> Option<J>) {
        for flow in self.flows.values_mut() {
            let jobs = std::mem::take(&mut flow.jobs).into_iter();
            flow.jobs =
                jobs.filter_map(|Entry { job, cost, call }| keep(job).map(|job| Entry { job, cost, call })).collect();
            flow.cost = flow.jobs.iter().map(|entry| entry.cost).fold(0, usize::saturating_add);
        }
        self.items = self.flows.values().map(|flow| flow.jobs.len()).sum();
        self.cost = self.flows.values().map(|flow| flow.cost).fold(0, usize::saturating_add);
        let empty = self.flows.iter().filter(|(_, flow)| flow.jobs.is_empty());
        let empty: Vec<_> = empty.map(|(tenant, _)| tenant.clone()).collect();
        for tenant in empty {
            self.leave(&tenant);
        }
    }
}

impl<J> Flow<J> {
    /// The jobs at the end that came together.
    fn last_call(&self) -> impl Iterator<Item = &Entry<J>> {
        let last = self.jobs.back().map(|entry| entry.call);
        self.jobs.iter().rev().take_while(move |entry| Some(entry.call) == last)
    }
}

#[cfg(test)]
mod tests;
