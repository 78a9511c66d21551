//! The workers, and what is known of them. Checks and failed requests bring news; each change builds a new
//! [`Snapshot`] and swaps it in whole, so a request reads one consistent picture and takes no lock.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use hyper::Uri;
use hyper::http::uri::{PathAndQuery, Scheme};
use serde_json::value::RawValue;

use crate::config::{Checked, Endpoint};
use crate::health::{Health, News, State};
use crate::select::{Booking, Candidate, Choice, Load, NoChoice, Request, Role, Snapshot, select};

/// One entry of a worker's `/v1/models`, kept as the worker wrote it.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) id: String,
    pub(crate) raw: Box<RawValue>,
}

/// What never changes about a worker.
#[derive(Debug)]
pub(crate) struct Worker {
    endpoint: Endpoint,
    name: Arc<str>,
    load: Arc<Load>,
}

impl Worker {
    /// Its URL; the name under which it appears in metrics, messages and `/workers`.
    pub(crate) fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    pub(crate) fn role(&self) -> Role {
        self.endpoint.role
    }

    pub(crate) fn load(&self) -> &Load {
        &self.load
    }

    pub(crate) fn book(&self) -> Booking {
        self.load.book()
    }

    /// Where `path_and_query` lies on this worker.
    pub(crate) fn uri(&self, path_and_query: &str) -> Result<Uri, hyper::http::Error> {
        let path: PathAndQuery = format!("{}{path_and_query}", self.endpoint.base).parse()?;
        Uri::builder()
            .scheme(Scheme::HTTP)
            .authority(self.endpoint.authority.clone())
            .path_and_query(path)
            .build()
    }
}

/// What changes about a worker.
#[derive(Clone, Debug)]
struct Knowledge {
    health: Health,
    models: Option<Arc<[Model]>>,
    names: Option<Arc<[String]>>,
}

/// A worker's state as `/workers` and `/v1/models` show it.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) worker: Arc<Worker>,
    pub(crate) state: State,
    pub(crate) since: Instant,
    pub(crate) models: Option<Arc<[Model]>>,
    pub(crate) last_error: Option<String>,
}

/// All workers of one router.
#[derive(Debug)]
pub(crate) struct Fleet {
    workers: Vec<Arc<Worker>>,
    knowledge: Mutex<Vec<Knowledge>>,
    snapshot: ArcSwap<Snapshot>,
}

impl Fleet {
    pub(crate) fn new(checked: &Checked, now: Instant) -> Self {
        let worker = |endpoint: &Endpoint| {
            let name = Arc::from(endpoint.url.as_str());
            Arc::new(Worker { endpoint: endpoint.clone(), name, load: Arc::default() })
        };
        let workers: Vec<_> = checked.endpoints.iter().map(worker).collect();
        let unknown = Knowledge { health: Health::new(checked.policy, now), models: None, names: None };
        let knowledge = vec![unknown; workers.len()];
        let snapshot = ArcSwap::from_pointee(snapshot_of(&workers, &knowledge));
        Self { workers, knowledge: Mutex::new(knowledge), snapshot }
    }

    pub(crate) fn workers(&self) -> &[Arc<Worker>] {
        &self.workers
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    pub(crate) fn select(&self, request: &Request<'_>) -> Result<Choice, NoChoice> {
        select(&self.snapshot.load(), request, &mut rand::rng())
    }

    /// Takes in news of one worker, with its models if it told them; says when to check it next.
    pub(crate) fn tell(&self, index: usize, now: Instant, news: News, models: Option<Vec<Model>>) -> Instant {
        let mut all = self.knowledge.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(one) = all.get_mut(index) else {
            return now;
        };
        let name = self.workers.get(index).map_or_else(|| Arc::from("?"), |w| w.name());
        let changed = one.health.handle(now, news);
        if changed {
            let why = one.health.last_error().unwrap_or("none");
            match one.health.state() {
                State::Down => tracing::warn!(worker = &*name, why, "worker is down"),
                _ => tracing::info!(worker = &*name, "worker is up"),
            }
        }
        if let Some(models) = models {
            one.names = Some(models.iter().map(|m| m.id.clone()).collect());
            one.models = Some(models.into());
        }
        let next = one.health.next_check();
        self.snapshot.store(Arc::new(snapshot_of(&self.workers, &all)));
        next
    }

    pub(crate) fn reports(&self) -> Vec<Report> {
        let all = self.knowledge.lock().unwrap_or_else(PoisonError::into_inner);
        self.workers
            .iter()
            .zip(all.iter())
            .map(|(worker, known)| Report {
                worker: Arc::clone(worker),
                state: known.health.state(),
                since: known.health.since(),
                models: known.models.clone(),
                last_error: known.health.last_error().map(str::to_owned),
            })
            .collect()
    }
}

fn snapshot_of(workers: &[Arc<Worker>], knowledge: &[Knowledge]) -> Snapshot {
    let candidate = |(worker, known): (&Arc<Worker>, &Knowledge)| {
        let load = Arc::clone(&worker.load);
        Candidate::new(worker.role(), known.health.state(), known.names.clone(), load)
    };
    Snapshot::new(workers.iter().zip(knowledge).map(candidate).collect())
}
