//! Counters, gauges and histograms, and their text form for Prometheus. Names are vLLM's where vLLM has one.

use crate::sched::Load;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Upper bounds of the latency buckets, in seconds.
const LATENCY_BOUNDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// A histogram with the latency buckets.
#[derive(Debug, Default)]
struct Histogram {
    counts: [u64; LATENCY_BOUNDS.len() + 1],
    sum: f64,
}

impl Histogram {
    fn observe(&mut self, seconds: f64) {
        let bucket = LATENCY_BOUNDS.iter().take_while(|&&bound| seconds > bound).count();
        self.counts[bucket] += 1;
        self.sum += seconds;
    }
}

/// What the engine counts. Written by the engine thread, the pulls and the HTTP handlers; read by `/metrics`.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    load: Mutex<Load>,
    prompt_tokens: AtomicU64,
    generation_tokens: AtomicU64,
    finished_stop: AtomicU64,
    finished_length: AtomicU64,
    finished_abort: AtomicU64,
    finished_error: AtomicU64,
    first_token: Mutex<Histogram>,
    request: Mutex<Histogram>,
    leased_blocks: AtomicU64,
    claims: AtomicU64,
    pulls: AtomicU64,
    pull_failures: AtomicU64,
    pulls_active: AtomicU64,
    pulled_blocks: AtomicU64,
    pulled_bytes: AtomicU64,
    pull_seconds: Mutex<Histogram>,
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    Stop,
    Length,
    Abort,
    Error,
}

impl Metrics {
    pub(crate) fn set_load(&self, load: Load) {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner) = load;
    }

    pub(crate) fn count_prompt(&self, tokens: usize) {
        self.prompt_tokens.fetch_add(tokens as u64, Relaxed);
    }

    pub(crate) fn count_token(&self) {
        self.generation_tokens.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_end(&self, end: End) {
        let counter = match end {
            End::Stop => &self.finished_stop,
            End::Length => &self.finished_length,
            End::Abort => &self.finished_abort,
            End::Error => &self.finished_error,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn observe_first_token(&self, seconds: f64) {
        self.first_token.lock().unwrap_or_else(PoisonError::into_inner).observe(seconds);
    }

    pub(crate) fn observe_request(&self, seconds: f64) {
        self.request.lock().unwrap_or_else(PoisonError::into_inner).observe(seconds);
    }

    pub(crate) fn set_leases(&self, blocks: usize, claims: usize) {
        self.leased_blocks.store(blocks as u64, Relaxed);
        self.claims.store(claims as u64, Relaxed);
    }

    pub(crate) fn set_pulls_active(&self, count: usize) {
        self.pulls_active.store(count as u64, Relaxed);
    }

    pub(crate) fn count_pull(&self, blocks: usize, bytes: u64, seconds: f64, landed: bool) {
        if landed {
            self.pulls.fetch_add(1, Relaxed);
            self.pulled_blocks.fetch_add(blocks as u64, Relaxed);
            self.pulled_bytes.fetch_add(bytes, Relaxed);
            self.pull_seconds.lock().unwrap_or_else(PoisonError::into_inner).observe(seconds);
        } else {
            self.pull_failures.fetch_add(1, Relaxed);
        }
    }

    /// The text form, with `model` as the label of every sample.
    pub(crate) fn render(&self, model: &str) -> String {
        let mut text =
            Text { out: String::new(), labels: format!("engine=\"0\",model_name=\"{}\"", escape(model)) };
        let load = *self.load.lock().unwrap_or_else(PoisonError::into_inner);
        let usage = ratio(load.blocks_used, load.blocks_total);
        text.gauge("vllm:num_requests_running", "Requests that take part in the steps.", load.running as f64);
        text.gauge(
            "vllm:num_requests_waiting",
            "Requests that wait for room or for blocks.",
            load.waiting as f64,
        );
        text.gauge("vllm:kv_cache_usage_perc", "Share of the KV blocks in use, 1 is all.", usage);
        text.counter(
            "vllm:prefix_cache_queries",
            "Prompt tokens looked up in the cache.",
            load.prefix_queries,
        );
        text.counter("vllm:prefix_cache_hits", "Prompt tokens found in the cache.", load.prefix_hits);
        text.counter("vllm:num_preemptions", "Sequences that gave way for lack of blocks.", load.preemptions);
        text.counter(
            "vllm:prompt_tokens",
            "Prompt tokens of accepted requests.",
            self.prompt_tokens.load(Relaxed),
        );
        text.counter("vllm:generation_tokens", "Generated tokens.", self.generation_tokens.load(Relaxed));
        text.ends(self);
        text.histogram("vllm:time_to_first_token_seconds", "Time to the first token.", &self.first_token);
        text.histogram("vllm:e2e_request_latency_seconds", "Time of a whole request.", &self.request);
        text.gauge("headrace_kv_blocks_used", "KV blocks in use.", load.blocks_used as f64);
        text.gauge("headrace_kv_blocks_total", "KV blocks there are.", load.blocks_total as f64);
        let leased = self.leased_blocks.load(Relaxed) as f64;
        text.gauge("headrace_kv_leased_blocks", "Blocks kept for decode engines.", leased);
        text.gauge("headrace_kv_claims", "Hand-offs being read by a peer.", self.claims.load(Relaxed) as f64);
        let active = self.pulls_active.load(Relaxed) as f64;
        text.gauge("headrace_kv_pulls_active", "Pulls under way.", active);
        text.counter("headrace_kv_pulls", "Pulls that landed.", self.pulls.load(Relaxed));
        text.counter("headrace_kv_pull_failures", "Pulls that failed.", self.pull_failures.load(Relaxed));
        text.counter("headrace_kv_pulled_blocks", "Blocks pulled.", self.pulled_blocks.load(Relaxed));
        text.counter("headrace_kv_pulled_bytes", "Bytes pulled.", self.pulled_bytes.load(Relaxed));
        text.histogram("headrace_kv_pull_seconds", "Time of the transfer of a pull.", &self.pull_seconds);
        text.out
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Prometheus' text format, line by line. Writing into a string cannot fail.
struct Text {
    out: String,
    labels: String,
}

impl Text {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.head(name, help, "gauge");
        let _ = writeln!(self.out, "{name}{{{}}} {value}", self.labels);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(&format!("{name}_total"), help, "counter");
        let _ = writeln!(self.out, "{name}_total{{{}}} {value}", self.labels);
    }

    fn ends(&mut self, metrics: &Metrics) {
        let name = "vllm:request_success_total";
        self.head(name, "Finished requests by reason.", "counter");
        let ends = [
            ("stop", &metrics.finished_stop),
            ("length", &metrics.finished_length),
            ("abort", &metrics.finished_abort),
            ("error", &metrics.finished_error),
        ];
        for (reason, count) in ends {
            let (labels, count) = (&self.labels, count.load(Relaxed));
            let _ = writeln!(self.out, "{name}{{{labels},finished_reason=\"{reason}\"}} {count}");
        }
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Mutex<Histogram>) {
        self.head(name, help, "histogram");
        let histogram = histogram.lock().unwrap_or_else(PoisonError::into_inner);
        let labels = &self.labels;
        let mut total = 0;
        let bounds = LATENCY_BOUNDS.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(histogram.counts) {
            total += count;
            let _ = writeln!(self.out, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}");
        }
        let _ =
            writeln!(self.out, "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {total}", histogram.sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_has_vllm_names_and_cumulative_buckets() {
        let metrics = Metrics::default();
        metrics.set_load(Load {
            running: 2,
            blocks_used: 1,
            blocks_total: 4,
            prefix_hits: 7,
            ..Load::default()
        });
        metrics.observe_first_token(0.02);
        metrics.observe_first_token(100.0);
        metrics.count_end(End::Stop);
        let text = metrics.render("m\"x");
        for line in [
            "vllm:num_requests_running{engine=\"0\",model_name=\"m\\\"x\"} 2",
            "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\\\"x\"} 0.25",
            "vllm:prefix_cache_hits_total{engine=\"0\",model_name=\"m\\\"x\"} 7",
            "vllm:time_to_first_token_seconds_bucket{engine=\"0\",model_name=\"m\\\"x\",le=\"0.01\"} 0",
            "vllm:time_to_first_token_seconds_bucket{engine=\"0\",model_name=\"m\\\"x\",le=\"0.025\"} 1",
            "vllm:time_to_first_token_seconds_bucket{engine=\"0\",model_name=\"m\\\"x\",le=\"+Inf\"} 2",
            "vllm:time_to_first_token_seconds_count{engine=\"0\",model_name=\"m\\\"x\"} 2",
            "vllm:request_success_total{engine=\"0\",model_name=\"m\\\"x\",finished_reason=\"stop\"} 1",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
    }
}
