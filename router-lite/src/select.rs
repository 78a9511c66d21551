//! Which worker gets a request: one pure function over a snapshot.
//!
//! Rules, in this order:
//! - A request that may be split goes to the prefill/decode pool if that pool serves its model; otherwise to a
//!   plain worker. A request that must stay whole goes to a plain worker, or without one whole to a decode worker.
//! - Workers that are down are not asked; unknown ones only if none is up; ones that were tried only if every
//!   other was too.
//! - A worker whose models are known must serve the model; one whose models are not known may.
//! - The fewest requests in flight win. Among equals two are drawn, and of these the one with fewer requests in
//!   its life, so that an idle pool is used evenly.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rand::{Rng, RngExt};

use crate::health::State;

/// What a worker is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// Takes whole requests.
    Worker,
    /// Computes prompts and hands their blocks over.
    Prefill,
    /// Fetches the blocks of a prompt and generates.
    Decode,
}

impl Role {
    /// The word used in flags, metrics and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// Live load of one worker. Snapshots share it, so it is always current.
#[derive(Debug, Default)]
pub struct Load {
    inflight: AtomicUsize,
    dispatched: AtomicU64,
}

impl Load {
    /// Requests in flight.
    #[must_use]
    pub fn inflight(&self) -> usize {
        self.inflight.load(Ordering::Relaxed)
    }

    /// Requests ever sent.
    #[must_use]
    pub fn dispatched(&self) -> u64 {
        self.dispatched.load(Ordering::Relaxed)
    }

    /// Books one request until the guard is dropped.
    #[must_use]
    pub fn book(self: &Arc<Self>) -> Booking {
        self.inflight.fetch_add(1, Ordering::Relaxed);
        self.dispatched.fetch_add(1, Ordering::Relaxed);
        Booking { load: Arc::clone(self) }
    }
}

/// One request's share of a worker's load; given back on drop, on every path.
#[derive(Debug)]
pub struct Booking {
    load: Arc<Load>,
}

impl Drop for Booking {
    fn drop(&mut self) {
        self.load.inflight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One worker as selection sees it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Candidate {
    /// What it is for.
    pub role: Role,
    /// What is known of it.
    pub state: State,
    /// Names of its models; `None` as long as nobody could ask.
    pub models: Option<Arc<[String]>>,
    /// Its load.
    pub load: Arc<Load>,
}

impl Candidate {
    /// A candidate of these values.
    #[must_use]
    pub fn new(role: Role, state: State, models: Option<Arc<[String]>>, load: Arc<Load>) -> Self {
        Self { role, state, models, load }
    }

    fn may_serve(&self, model: Option<&str>) -> bool {
        match (model, &self.models) {
            (Some(model), Some(models)) => models.iter().any(|name| name == model),
            _ => true,
        }
    }
}

/// All workers at one moment, in the order of the configuration; it is replaced as a whole.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Snapshot {
    /// The workers; a worker's index is its name in [`Choice`] and in [`Request::tried`].
    pub candidates: Vec<Candidate>,
}

impl Snapshot {
    /// A snapshot of these workers.
    #[must_use]
    pub fn new(candidates: Vec<Candidate>) -> Self {
        Self { candidates }
    }
}

/// What is to be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Want {
    /// A request that generates, and may run on a prefill and a decode worker.
    Split,
    /// A request that generates and must stay on one worker.
    Whole,
    /// The second half of a split request.
    Decode,
    /// Something any worker can answer, such as `/tokenize`.
    Any,
}

/// One request as selection sees it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Request<'a> {
    /// The model it names, if any.
    pub model: Option<&'a str>,
    /// What is to be placed.
    pub want: Want,
    /// Indices of workers that failed this request already.
    pub tried: &'a [usize],
}

impl<'a> Request<'a> {
    /// A request of these values.
    #[must_use]
    pub fn new(model: Option<&'a str>, want: Want, tried: &'a [usize]) -> Self {
        Self { model, want, tried }
    }
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Choice {
    /// First to this prefill worker; a decode worker exists and is chosen when prefill is done.
    Prefill(usize),
    /// As it is to this worker.
    Whole(usize),
}

/// Why a request goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoChoice {
    /// Every worker's models are known and this one is not among them.
    ModelUnknown {
        /// The models there are, sorted, without duplicates.
        known: Vec<String>,
    },
    /// No usable worker: each is down or has the wrong role or model.
    NoWorker,
}

/// Chooses.
///
/// # Errors
/// [`NoChoice`], with what a caller needs to explain it.
pub fn select<R: Rng>(snapshot: &Snapshot, request: &Request<'_>, rng: &mut R) -> Result<Choice, NoChoice> {
    let mut least = |role: Option<Role>| least_loaded(snapshot, request, role, rng);
    let choice = match request.want {
        Want::Split => match (least(Some(Role::Prefill)), least(Some(Role::Decode))) {
            (Some(prefill), Some(_)) => Some(Choice::Prefill(prefill)),
            _ => least(Some(Role::Worker)).map(Choice::Whole),
        },
        Want::Whole => least(Some(Role::Worker)).or_else(|| least(Some(Role::Decode))).map(Choice::Whole),
        Want::Decode => least(Some(Role::Decode)).map(Choice::Whole),
        Want::Any => least(None).map(Choice::Whole),
    };
    choice.ok_or_else(|| explain(snapshot, request.model))
}

fn least_loaded<R: Rng>(
    snapshot: &Snapshot,
    request: &Request<'_>,
    role: Option<Role>,
    rng: &mut R,
) -> Option<usize> {
    // Lower is better: untried before tried, up before unknown, then the load.
    let rank = |index: usize, c: &Candidate| {
        (request.tried.contains(&index), c.state == State::Unknown, c.load.inflight())
    };
    let usable = snapshot.candidates.iter().enumerate().filter(|(_, c)| {
        c.state != State::Down && role.is_none_or(|role| c.role == role) && c.may_serve(request.model)
    });
    let mut best: Vec<usize> = Vec::new();
    let mut best_rank = None;
    for (index, candidate) in usable {
        let rank = rank(index, candidate);
        if best_rank.is_none_or(|b| rank < b) {
            best.clear();
            best_rank = Some(rank);
        }
        if best_rank == Some(rank) {
            best.push(index);
        }
    }
    of_two(snapshot, &best, rng)
}

/// Two drawn from `equals`, the one with fewer requests in its life wins.
fn of_two<R: Rng>(snapshot: &Snapshot, equals: &[usize], rng: &mut R) -> Option<usize> {
    if equals.len() < 2 {
        return equals.first().copied();
    }
    let first = rng.random_range(0..equals.len());
    let second = (first + rng.random_range(1..equals.len())) % equals.len();
    let life = |index: usize| snapshot.candidates[index].load.dispatched();
    [equals[first], equals[second]].into_iter().min_by_key(|&index| life(index))
}

/// A model is unknown only if every worker has told its models; a worker that is down may serve anything it once
/// served, and one that never answered may serve anything.
fn explain(snapshot: &Snapshot, model: Option<&str>) -> NoChoice {
    if model.is_none() || snapshot.candidates.iter().any(|c| c.may_serve(model)) {
        return NoChoice::NoWorker;
    }
    let mut known: Vec<String> =
        snapshot.candidates.iter().filter_map(|c| c.models.as_deref()).flatten().cloned().collect();
    known.sort_unstable();
    known.dedup();
    NoChoice::ModelUnknown { known }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn candidate(role: Role, state: State, models: &[&str], inflight: usize) -> Candidate {
        let load = Arc::new(Load::default());
        load.inflight.store(inflight, Ordering::Relaxed);
        let models = (!models.is_empty()).then(|| models.iter().map(|&m| m.to_owned()).collect());
        Candidate::new(role, state, models, load)
    }

    fn choose(
        candidates: &[Candidate],
        model: Option<&str>,
        want: Want,
        tried: &[usize],
    ) -> Result<Choice, NoChoice> {
        let snapshot = Snapshot::new(candidates.to_vec());
        select(&snapshot, &Request::new(model, want, tried), &mut StdRng::seed_from_u64(7))
    }

    #[test]
    fn the_pool_comes_first_if_it_serves_the_model() {
        let all = [
            candidate(Role::Worker, State::Up, &["m", "other"], 0),
            candidate(Role::Prefill, State::Up, &["m"], 9),
            candidate(Role::Decode, State::Up, &["m"], 9),
        ];
        assert_eq!(choose(&all, Some("m"), Want::Split, &[]), Ok(Choice::Prefill(1)));
        assert_eq!(choose(&all, Some("other"), Want::Split, &[]), Ok(Choice::Whole(0)));
        assert_eq!(choose(&all, Some("m"), Want::Whole, &[]), Ok(Choice::Whole(0)));
        assert_eq!(choose(&all[1..], Some("m"), Want::Whole, &[]), Ok(Choice::Whole(1)));
        assert_eq!(choose(&all, None, Want::Decode, &[]), Ok(Choice::Whole(2)));
        assert_eq!(choose(&all[..2], Some("m"), Want::Split, &[]), Ok(Choice::Whole(0)));
    }

    #[test]
    fn half_a_pool_is_no_pool() {
        let all =
            [candidate(Role::Prefill, State::Down, &["m"], 0), candidate(Role::Decode, State::Up, &["m"], 0)];
        assert_eq!(choose(&all, Some("m"), Want::Split, &[]), Err(NoChoice::NoWorker));
        assert_eq!(choose(&all, Some("m"), Want::Any, &[]), Ok(Choice::Whole(1)));
    }

    #[test]
    fn up_before_unknown_and_untried_before_tried() {
        let all = [
            candidate(Role::Worker, State::Unknown, &[], 0),
            candidate(Role::Worker, State::Up, &["m"], 50),
            candidate(Role::Worker, State::Down, &["m"], 0),
        ];
        assert_eq!(choose(&all, Some("m"), Want::Split, &[]), Ok(Choice::Whole(1)));
        assert_eq!(choose(&all, Some("m"), Want::Split, &[1]), Ok(Choice::Whole(0)));
        assert_eq!(choose(&all, Some("m"), Want::Split, &[0, 1]), Ok(Choice::Whole(1)));
    }

    #[test]
    fn a_model_is_unknown_only_if_all_have_spoken() {
        let mut all = vec![
            candidate(Role::Worker, State::Up, &["b", "a"], 0),
            candidate(Role::Worker, State::Down, &["c", "a"], 0),
        ];
        let known = ["a", "b", "c"].map(str::to_owned).to_vec();
        assert_eq!(choose(&all, Some("x"), Want::Whole, &[]), Err(NoChoice::ModelUnknown { known }));
        assert_eq!(choose(&all, Some("c"), Want::Whole, &[]), Err(NoChoice::NoWorker));
        all.push(candidate(Role::Worker, State::Down, &[], 0));
        assert_eq!(choose(&all, Some("x"), Want::Whole, &[]), Err(NoChoice::NoWorker));
        assert_eq!(choose(&[], None, Want::Whole, &[]), Err(NoChoice::NoWorker));
    }

    #[test]
    fn an_idle_pool_is_used_evenly() {
        let all: Vec<_> = (0..4).map(|_| candidate(Role::Worker, State::Up, &[], 0)).collect();
        let snapshot = Snapshot::new(all);
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..400 {
            let Ok(Choice::Whole(index)) = select(&snapshot, &Request::new(None, Want::Whole, &[]), &mut rng)
            else {
                panic!("no choice")
            };
            drop(snapshot.candidates[index].load.book());
        }
        for c in &snapshot.candidates {
            assert_eq!(c.load.inflight(), 0);
            assert!((90..=110).contains(&c.load.dispatched()), "{}", c.load.dispatched());
        }
    }

    fn any_candidate() -> impl Strategy<Value = Candidate> {
        let role = prop_oneof![Just(Role::Worker), Just(Role::Prefill), Just(Role::Decode)];
        let state = prop_oneof![Just(State::Unknown), Just(State::Up), Just(State::Down)];
        let models = prop_oneof![Just(&[][..]), Just(&["a"][..]), Just(&["a", "b"][..])];
        (role, state, models, 0..4usize).prop_map(|(r, s, m, load)| candidate(r, s, m, load))
    }

    proptest! {
        /// Whatever is chosen is usable, has the right role, and nothing usable of that role beats it.
        #[test]
        fn the_choice_is_usable_and_least(
            all in proptest::collection::vec(any_candidate(), 0..8),
            tried in proptest::collection::vec(0..8usize, 0..4),
            model in prop_oneof![Just(None), Just(Some("a")), Just(Some("b")), Just(Some("c"))],
            want in prop_oneof![Just(Want::Split), Just(Want::Whole), Just(Want::Decode), Just(Want::Any)],
            seed in any::<u64>(),
        ) {
            let snapshot = Snapshot::new(all.clone());
            let chosen = select(&snapshot, &Request::new(model, want, &tried), &mut StdRng::seed_from_u64(seed));
            let usable = |c: &Candidate| c.state != State::Down && c.may_serve(model);
            let has = |role| all.iter().any(|c| c.role == role && usable(c));
            match chosen {
                Ok(Choice::Prefill(index) | Choice::Whole(index)) => {
                    let c = &all[index];
                    prop_assert!(usable(c));
                    if let Ok(Choice::Prefill(_)) = chosen {
                        prop_assert!(c.role == Role::Prefill && want == Want::Split && has(Role::Decode));
                    } else if want != Want::Any {
                        prop_assert!(c.role != Role::Prefill);
                    }
                    let rank = |i: usize, c: &Candidate| (tried.contains(&i), c.state == State::Unknown, c.load.inflight());
                    for (i, other) in all.iter().enumerate() {
                        if usable(other) && (other.role == c.role || want == Want::Any) {
                            prop_assert!(rank(index, c) <= rank(i, other));
                        }
                    }
                }
                Err(NoChoice::ModelUnknown { known }) => {
                    prop_assert!(all.iter().all(|c| !c.may_serve(model)));
                    prop_assert!(!known.iter().any(|k| Some(k.as_str()) == model));
                }
                Err(NoChoice::NoWorker) => {
                    let split = has(Role::Prefill) && has(Role::Decode);
                    let nobody = match want {
                        Want::Split => !split && !has(Role::Worker),
                        Want::Whole => !has(Role::Worker) && !has(Role::Decode),
                        Want::Decode => !has(Role::Decode),
                        Want::Any => !all.iter().any(usable),
                    };
                    prop_assert!(nobody);
                }
            }
        }
    }
}
