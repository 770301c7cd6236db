//! One run for several sandboxes' computes of a graph. The first to come leads: it lets the
//! others that are ready join, then runs what they all brought and hands out the rows. Nobody
//! holds a thread while it waits, and whoever goes away leaves the others as they were.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{mem, slice};

use tokio::sync::{Notify, oneshot};
use wisp_engine::{Failure, Graph, Helpers, Value, Watch, rows, split, stack};

use super::Run;
use crate::cpu;

/// How a graph's computes are batched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batching {
    /// Rows run at once, the least first; all above 1, one or more.
    pub sizes: Vec<usize>,
    /// How long the first may wait for others, beyond those that are ready.
    pub delay: Duration,
}

type Inputs = Vec<Value<'static>>;
type Outcome = Result<Inputs, Failure>;

/// Sizes but for the first, by input: what can be stacked, and how many rows it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    sizes: Vec<Vec<usize>>,
    rows: usize,
}

/// What of these inputs must be the same as others', where they may be run with others'.
pub(super) fn key(graph: &Graph, inputs: &[Value<'_>]) -> Option<Key> {
    let rows = rows(graph, inputs)?;
    let sizes = inputs.iter().map(|value| value.shape[1..].to_vec()).collect();
    Some(Key { sizes, rows })
}

#[derive(Debug)]
pub(super) struct Batcher {
    batching: Batching,
    /// Rows of the smallest batch that took too much memory: none so large is made again.
    too_large: AtomicUsize,
    groups: Mutex<Vec<Group>>,
}

/// Those who wait to run together; the one at the front leads.
#[derive(Debug)]
struct Group {
    sizes: Vec<Vec<usize>>,
    jobs: VecDeque<Job>,
    joined: Arc<Notify>,
}

#[derive(Debug)]
struct Job {
    inputs: Inputs,
    rows: usize,
    run: Arc<Run>,
    /// `None`: it leads, and takes its outcome itself.
    reply: Option<oneshot::Sender<Reply>>,
}

#[derive(Debug)]
enum Reply {
    /// Whoever led has gone or has had enough rows: now lead.
    Lead,
    /// What came of it, and its part of the time.
    Done(Outcome, Duration),
}

impl Batcher {
    pub(super) fn new(batching: Batching) -> Self {
        Self { batching, too_large: AtomicUsize::new(usize::MAX), groups: Mutex::default() }
    }

    /// Runs the graph on `inputs`, with others' where there are any. Returns the outcome and the
    /// time spent for it: its rows' part of a run. `is_alone`: nobody is ready to join.
    pub(super) async fn run(
        &self,
        graph: &Graph,
        key: Key,
        inputs: Inputs,
        run: &Arc<Run>,
        is_alone: bool,
    ) -> (Outcome, Duration) {
        let waiting = self.join(&key, inputs, run);
        let mut seat = Seat { batcher: self, sizes: &key.sizes, waiting, has_left: false };
        if let Some(reply) = &mut seat.waiting {
            match reply.await {
                Ok(Reply::Lead) => seat.waiting = None,
                Ok(Reply::Done(outcome, took)) => return (outcome, took),
                Err(_) => {
                    let reason = "the run that it was part of broke off".to_owned();
                    return (Err(Failure::Failed(reason)), Duration::ZERO);
                }
            }
        }
        seat.wait_for_others(is_alone).await;
        execute(graph, seat.take(), &self.too_large)
    }

    /// Joins those who wait with the same sizes, or becomes the first of them.
    fn join(&self, key: &Key, inputs: Inputs, run: &Arc<Run>) -> Option<oneshot::Receiver<Reply>> {
        let (rows, run) = (key.rows, run.clone());
        let mut groups = self.groups();
        let Some(group) = groups.iter_mut().find(|group| group.sizes == key.sizes) else {
            let jobs = VecDeque::from([Job { inputs, rows, run, reply: None }]);
            groups.push(Group { sizes: key.sizes.clone(), jobs, joined: Arc::default() });
            return None;
        };
        let (sender, receiver) = oneshot::channel();
        group.jobs.push_back(Job { inputs, rows, run, reply: Some(sender) });
        group.joined.notify_one();
        Some(receiver)
    }

    fn groups(&self) -> MutexGuard<'_, Vec<Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn most(&self) -> usize {
        let too_large = self.too_large.load(Ordering::Relaxed);
        let fitting = self.batching.sizes.iter().rev().find(|&&size| size < too_large);
        fitting.copied().unwrap_or(1)
    }
}

/// A place in a group. Left before its rows were run (its client has gone), the others go on.
struct Seat<'a> {
    batcher: &'a Batcher,
    sizes: &'a [Vec<usize>],
    /// `None`: it leads.
    waiting: Option<oneshot::Receiver<Reply>>,
    has_left: bool,
}

impl Seat<'_> {
    /// Until those who are ready have joined, and then for more for as long as may be waited.
    async fn wait_for_others(&self, is_alone: bool) {
        if !is_alone {
            tokio::task::yield_now().await;
        }
        let until = Instant::now() + self.batcher.batching.delay;
        while Instant::now() < until {
            let Some((rows, joined)) = self.look() else { return };
            if rows >= self.batcher.most() {
                return;
            }
            // Late or not: the loop looks at the clock.
            let _ = tokio::time::timeout_at(until.into(), joined.notified()).await;
        }
    }

    fn look(&self) -> Option<(usize, Arc<Notify>)> {
        let groups = self.batcher.groups();
        let group = groups.iter().find(|group| group.sizes == self.sizes)?;
        Some((group.jobs.iter().map(|job| job.rows).sum(), group.joined.clone()))
    }

    /// Takes its own job and as many others' as make a size that pays; the rest get a new leader.
    fn take(mut self) -> Vec<Job> {
        self.has_left = true;
        let most = self.batcher.most();
        let mut groups = self.batcher.groups();
        let Some(index) = groups.iter().position(|group| group.sizes == self.sizes) else {
            return Vec::new();
        };
        let jobs = &mut groups[index].jobs;
        let mut taken: Vec<Job> = jobs.pop_front().into_iter().collect();
        let mut rows: usize = taken.iter().map(|job| job.rows).sum();
        jobs.retain(Job::is_awaited);
        while let Some(job) = jobs.pop_front_if(|job| rows + job.rows <= most) {
            rows += job.rows;
            taken.push(job);
        }
        while taken.len() > 1 && !self.batcher.batching.sizes.contains(&rows) {
            if let Some(job) = taken.pop() {
                rows -= job.rows;
                jobs.push_front(job);
            }
        }
        pass_on(&mut groups, index);
        taken
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let leads = match &mut self.waiting {
            None => !self.has_left,
            // It may have been told to lead just now.
            Some(waiting) => {
                waiting.close();
                matches!(waiting.try_recv(), Ok(Reply::Lead))
            }
        };
        if !leads {
            return;
        }
        let mut groups = self.batcher.groups();
        if let Some(index) = groups.iter().position(|group| group.sizes == self.sizes) {
            groups[index].jobs.pop_front();
            pass_on(&mut groups, index);
        }
    }
}

impl Job {
    fn is_awaited(&self) -> bool {
        self.reply.as_ref().is_none_or(|reply| !reply.is_closed())
    }
}

/// Has the first who is still there lead, or ends the group.
fn pass_on(groups: &mut Vec<Group>, index: usize) {
    let jobs = &mut groups[index].jobs;
    while let Some(first) = jobs.front_mut() {
        let Some(reply) = first.reply.take() else { return };
        if reply.send(Reply::Lead).is_ok() {
            return;
        }
        jobs.pop_front();
    }
    groups.swap_remove(index);
}

/// Runs the jobs, the leader's first, and hands out what came of them.
fn execute(graph: &Graph, mut jobs: Vec<Job>, too_large: &AtomicUsize) -> (Outcome, Duration) {
    let Some(leader) = jobs.first().map(|job| job.run.clone()) else {
        return (Err(Failure::Stopped), Duration::ZERO);
    };
    let rows: usize = jobs.iter().map(|job| job.rows).sum();
    let together = (jobs.len() > 1).then(|| {
        let inputs: Vec<&[Value<'_>]> = jobs.iter().map(|job| job.inputs.as_slice()).collect();
        run(graph, &mut stack(&inputs), &jobs, &leader)
    });
    let spent = together.as_ref().map_or_else(Spent::default, |(_, spent)| *spent);
    if let Some((Err(Failure::OutOfMemory(_)), _)) = &together {
        too_large.fetch_min(rows, Ordering::Relaxed);
    }
    let outcomes = together.and_then(|(outcome, _)| split_up(outcome, &jobs));
    let mut outcomes = outcomes.map(Vec::into_iter);
    let mut own = (Err(Failure::Stopped), Duration::ZERO);
    for job in &mut jobs {
        let is_leader = job.reply.is_none();
        // Its part of a run that failed, too.
        let mut spent = spent.part(job.rows as f64 / rows as f64);
        let outcome = match outcomes.as_mut().and_then(Iterator::next) {
            Some(outcome) => {
                if is_leader {
                    job.run.lead(rows)
                } else {
                    job.run.join()
                }
                outcome
            }
            None => {
                let mut inputs = mem::take(&mut job.inputs);
                let (outcome, alone) = run(graph, &mut inputs, slice::from_ref(job), &leader);
                spent = spent.and(alone);
                outcome
            }
        };
        match is_leader {
            true => job.run.computed_here(spent.cpu),
            false => job.run.computed_by(&leader, spent.cpu),
        }
        match job.reply.take() {
            None => own = (outcome, spent.took),
            // Gone already, where it fails.
            Some(reply) => drop(reply.send(Reply::Done(outcome, spent.took))),
        }
    }
    own
}

/// What a run took: by the clock, and of the CPU.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    took: Duration,
    cpu: Duration,
}

impl Spent {
    fn part(self, part: f64) -> Self {
        Self { took: self.took.mul_f64(part), cpu: self.cpu.mul_f64(part) }
    }

    fn and(self, other: Self) -> Self {
        Self { took: self.took + other.took, cpu: self.cpu + other.cpu }
    }
}

/// Who waits for a run, and who leads it.
struct Together<'a> {
    jobs: &'a [Job],
    leader: &'a Run,
    elsewhere_ns: AtomicU64,
}

impl Watch for Together<'_> {
    fn is_over(&self) -> bool {
        self.jobs.iter().all(|job| job.run.is_over())
    }

    fn memory(&self) -> usize {
        self.leader.memory()
    }

    fn helpers(&self) -> Option<Helpers> {
        self.leader.helpers()
    }

    fn give_way(&self) {
        let until = self.jobs.iter().map(|job| job.run.deadline).max();
        self.leader.give_way_until(until.unwrap_or(self.leader.deadline));
    }

    fn computed_elsewhere(&self, cpu: Duration) {
        self.leader.ran_elsewhere(cpu);
        self.elsewhere_ns.fetch_add(cpu.as_nanos() as u64, Ordering::Relaxed);
    }
}

/// Runs the graph for `jobs`.
fn run(graph: &Graph, inputs: &mut [Value<'_>], jobs: &[Job], leader: &Run) -> (Outcome, Spent) {
    let watch = Together { jobs, leader, elsewhere_ns: AtomicU64::new(0) };
    let (started, before) = (Instant::now(), cpu::of_thread());
    let outcome = graph.run(inputs, &watch);
    let elsewhere = Duration::from_nanos(watch.elsewhere_ns.into_inner());
    let here = cpu::of_thread().saturating_sub(before);
    leader.spent_in_graph(here);
    (outcome, Spent { took: started.elapsed(), cpu: here + elsewhere })
}

/// Each job's part. `None` where they must be run singly: one of them broke it, or the rows got
/// lost.
fn split_up(outcome: Outcome, jobs: &[Job]) -> Option<Vec<Outcome>> {
    let rows: Vec<usize> = jobs.iter().map(|job| job.rows).collect();
    match outcome {
        Ok(outputs) => Some(split(&outputs, &rows)?.into_iter().map(Ok).collect()),
        Err(Failure::Stopped) => Some(jobs.iter().map(|_| Err(Failure::Stopped)).collect()),
        Err(Failure::Refused(_) | Failure::Failed(_) | Failure::OutOfMemory(_)) => None,
    }
}
