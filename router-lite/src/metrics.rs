//! What `/metrics` tells, in Prometheus' text form. Label values are routes, worker URLs and fixed words, so the
//! number of series is bounded by the configuration and not by what clients send.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::clock;
use crate::fleet::Fleet;
use crate::health::State;

/// Status recorded for a request whose client went away before the end.
pub(crate) const CLIENT_GONE: u16 = 499;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    status: u16,
    worker: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LegLabels {
    leg: &'static str,
    outcome: &'static str,
    worker: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CutLabels {
    reason: &'static str,
    worker: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WorkerLabels {
    worker: Arc<str>,
    role: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    direction: &'static str,
}

type Histograms = Family<RouteLabels, Histogram, fn() -> Histogram>;

/// All counters of one router.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    duration: Histograms,
    first_byte: Histograms,
    retries: Family<RouteLabels, Counter>,
    legs: Family<LegLabels, Counter>,
    cuts: Family<CutLabels, Counter>,
    worker_up: Family<WorkerLabels, Gauge>,
    worker_inflight: Family<WorkerLabels, Gauge>,
    inflight_gauge: Gauge,
    bytes_in: Counter,
    bytes_out: Counter,
    inflight: AtomicUsize,
    /// Bytes of request bodies held.
    buffered: AtomicUsize,
}

/// 1 ms to about 9 minutes.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 20))
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let histograms = || Histograms::new_with_constructor(seconds as fn() -> Histogram);
        let bytes = Family::<DirectionLabels, Counter>::default();
        let mut metrics = Self {
            registry: Registry::with_prefix("router"),
            requests: Family::default(),
            duration: histograms(),
            first_byte: histograms(),
            retries: Family::default(),
            legs: Family::default(),
            cuts: Family::default(),
            worker_up: Family::default(),
            worker_inflight: Family::default(),
            inflight_gauge: Gauge::default(),
            bytes_in: bytes.get_or_create_owned(&DirectionLabels { direction: "in" }),
            bytes_out: bytes.get_or_create_owned(&DirectionLabels { direction: "out" }),
            inflight: AtomicUsize::new(0),
            buffered: AtomicUsize::new(0),
        };
        metrics.register(bytes);
        metrics
    }

    fn register(&mut self, bytes: Family<DirectionLabels, Counter>) {
        let r = &mut self.registry;
        r.register("requests", "Requests by their end (status 499: the client left)", self.requests.clone());
        r.register("request_duration_seconds", "From request to last byte", self.duration.clone());
        r.register(
            "time_to_first_byte_seconds",
            "From request to first byte of an answer",
            self.first_byte.clone(),
        );
        r.register("retries", "Requests sent again after a worker failed", self.retries.clone());
        r.register("legs", "Calls to workers by leg and outcome", self.legs.clone());
        r.register("stream_cuts", "Answers that a worker did not finish", self.cuts.clone());
        r.register("worker_up", "1 if the worker is up", self.worker_up.clone());
        r.register(
            "worker_requests_in_flight",
            "Requests booked on the worker",
            self.worker_inflight.clone(),
        );
        r.register("requests_in_flight", "Requests in the router", self.inflight_gauge.clone());
        r.register("body_bytes", "Bytes of request (in) and answer (out) bodies", bytes);
    }

    /// The text for `/metrics`; gauges are brought up to date first.
    pub(crate) fn render(&self, fleet: &Fleet) -> Result<String, std::fmt::Error> {
        self.inflight_gauge.set(i64::try_from(self.inflight.load(Ordering::Relaxed)).unwrap_or(i64::MAX));
        let snapshot = fleet.snapshot();
        for (worker, candidate) in fleet.workers().iter().zip(&snapshot.candidates) {
            let labels = WorkerLabels { worker: worker.name(), role: candidate.role.as_str() };
            self.worker_up.get_or_create(&labels).set(i64::from(candidate.state == State::Up));
            let inflight = i64::try_from(candidate.load.inflight()).unwrap_or(i64::MAX);
            self.worker_inflight.get_or_create(&labels).set(inflight);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    pub(crate) fn retried(&self, route: &'static str) {
        self.retries.get_or_create(&RouteLabels { route }).inc();
    }

    pub(crate) fn leg(&self, leg: &'static str, outcome: &'static str, worker: Arc<str>) {
        self.legs.get_or_create(&LegLabels { leg, outcome, worker }).inc();
    }

    pub(crate) fn cut(&self, reason: &'static str, worker: Arc<str>) {
        self.cuts.get_or_create(&CutLabels { reason, worker }).inc();
    }

    /// Opens a request's entry; as an error if `inflight_max` are in already and it must be refused.
    pub(crate) fn admit(
        self: &Arc<Self>,
        route: &'static str,
        inflight_max: usize,
    ) -> Result<Ticket, Ticket> {
        let before = self.inflight.fetch_add(1, Ordering::Relaxed);
        let ticket = Ticket {
            metrics: Arc::clone(self),
            route,
            start: clock::now(),
            status: CLIENT_GONE,
            worker: Arc::from("none"),
            held: 0,
            bytes_out: 0,
            finished: false,
        };
        if before < inflight_max { Ok(ticket) } else { Err(ticket) }
    }
}

/// One request's entry in the books, from its arrival to the last byte of its answer. Whatever happens to it, the
/// drop of the ticket closes the entry; a request dropped before [`Ticket::finish`] was left by its client.
#[derive(Debug)]
pub(crate) struct Ticket {
    metrics: Arc<Metrics>,
    route: &'static str,
    start: Instant,
    status: u16,
    worker: Arc<str>,
    /// Bytes of the request body held.
    held: usize,
    bytes_out: u64,
    finished: bool,
}

impl Ticket {
    /// Asks to hold `bytes` more of a request body; false if all bodies together would exceed `bytes_max`.
    pub(crate) fn hold(&mut self, bytes: usize, bytes_max: usize) -> bool {
        let before = self.metrics.buffered.fetch_add(bytes, Ordering::Relaxed);
        self.held += bytes;
        self.metrics.bytes_in.inc_by(u64::try_from(bytes).unwrap_or(u64::MAX));
        before + bytes <= bytes_max
    }

    /// The answer begins; the request's body has been sent and is no longer held.
    pub(crate) fn answer(&mut self, status: u16, worker: Option<Arc<str>>) {
        self.status = status;
        self.release();
        if let Some(worker) = worker {
            self.worker = worker;
        }
    }

    fn release(&mut self) {
        self.metrics.buffered.fetch_sub(std::mem::take(&mut self.held), Ordering::Relaxed);
    }

    fn elapsed(&self) -> std::time::Duration {
        clock::now().saturating_duration_since(self.start)
    }

    /// Bytes of the answer pass.
    pub(crate) fn pass(&mut self, bytes: usize) {
        if self.bytes_out == 0 && bytes > 0 {
            let labels = RouteLabels { route: self.route };
            self.metrics.first_byte.get_or_create(&labels).observe(self.elapsed().as_secs_f64());
        }
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.bytes_out += bytes;
        self.metrics.bytes_out.inc_by(bytes);
    }

    /// The answer is at its end, good or bad.
    pub(crate) fn finish(&mut self) {
        self.finished = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let status = if self.finished { self.status } else { CLIENT_GONE };
        let elapsed = self.elapsed();
        self.release();
        let metrics = &self.metrics;
        metrics.inflight.fetch_sub(1, Ordering::Relaxed);
        let worker = Arc::clone(&self.worker);
        metrics.requests.get_or_create(&RequestLabels { route: self.route, status, worker }).inc();
        metrics.duration.get_or_create(&RouteLabels { route: self.route }).observe(elapsed.as_secs_f64());
        tracing::debug!(
            route = self.route,
            status,
            worker = &*self.worker,
            bytes = self.bytes_out,
            ?elapsed,
            "request"
        );
    }
}
