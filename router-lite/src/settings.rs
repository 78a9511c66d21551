//! What can be set from outside. One struct is both the command line's options and the TOML file's keys, so the
//! two cannot drift apart: `--idle-timeout-ms 5000` is `idle_timeout_ms = 5000`.

use std::time::Duration;

use clap::Args;
use serde::Deserialize;

use crate::config::Config;

/// Settings as given by a command line or a file; what is absent keeps its value.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Settings {
    /// A prefill worker; repeat for more. In a file: prefill = ["URL", ...]
    #[arg(long, value_name = "URL", help_heading = "Workers")]
    pub prefill: Vec<String>,
    /// A decode worker; repeat for more
    #[arg(long, value_name = "URL", help_heading = "Workers")]
    pub decode: Vec<String>,
    /// A worker that takes whole requests; repeat for more
    #[arg(long, value_name = "URL", help_heading = "Workers")]
    pub worker: Vec<String>,
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", help_heading = "Listening")]
    pub host: Option<String>,
    /// Port to listen on; 0 takes a free one and the first line of stdout tells which [default: 8000]
    #[arg(long, help_heading = "Listening")]
    pub port: Option<u16>,
    /// Longest request body, else 413 [default: 33554432]
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub body_bytes_max: Option<usize>,
    /// All request bodies held at one time, else 429 [default: 1073741824]
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub buffered_bytes_max: Option<usize>,
    /// Longest answer of a prefill worker [default: 16777216]
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub prefill_answer_bytes_max: Option<usize>,
    /// Requests in flight, else 429 [default: 4096]
    #[arg(long, value_name = "COUNT", help_heading = "Limits")]
    pub inflight_max: Option<usize>,
    /// Open client connections; further ones wait [default: 8192]
    #[arg(long, value_name = "COUNT", help_heading = "Limits")]
    pub connections_max: Option<usize>,
    /// How often a request goes out again after a worker failed before its first byte [default: 2]
    #[arg(long, value_name = "COUNT", help_heading = "Limits")]
    pub retries_max: Option<u32>,
    /// Opening a connection to a worker [default: 2000]
    #[arg(long, value_name = "MS", help_heading = "Timeouts")]
    pub connect_timeout_ms: Option<u64>,
    /// A client sending its request, else 408 [default: 60000]
    #[arg(long, value_name = "MS", help_heading = "Timeouts")]
    pub request_timeout_ms: Option<u64>,
    /// A prefill worker's whole answer, else 504 [default: 300000]
    #[arg(long, value_name = "MS", help_heading = "Timeouts")]
    pub prefill_timeout_ms: Option<u64>,
    /// Until the first byte of an answer's body, else 504; covers all of an answer that does not stream
    /// [default: 600000]
    #[arg(long, value_name = "MS", help_heading = "Timeouts")]
    pub first_byte_timeout_ms: Option<u64>,
    /// Between two chunks of an answer, else it is cut [default: 120000]
    #[arg(long, value_name = "MS", help_heading = "Timeouts")]
    pub idle_timeout_ms: Option<u64>,
    /// Running streams are cut this long after SIGTERM or SIGINT [default: 30000]
    #[arg(long, value_name = "MS", help_heading = "Timeouts")]
    pub drain_timeout_ms: Option<u64>,
    /// Idle connections to workers are closed after this; keep it below the workers' own limit [default: 4000]
    #[arg(long, value_name = "MS", help_heading = "Timeouts")]
    pub pool_idle_timeout_ms: Option<u64>,
    /// Between checks of a worker that is up [default: 2000]
    #[arg(long, value_name = "MS", help_heading = "Health checks")]
    pub health_interval_ms: Option<u64>,
    /// Between checks of a worker that is not [default: 500]
    #[arg(long, value_name = "MS", help_heading = "Health checks")]
    pub health_recheck_ms: Option<u64>,
    /// One check [default: 5000]
    #[arg(long, value_name = "MS", help_heading = "Health checks")]
    pub health_timeout_ms: Option<u64>,
    /// Failed checks in a row that bring a worker down [default: 2]
    #[arg(long, value_name = "COUNT", help_heading = "Health checks")]
    pub health_down_after: Option<u32>,
    /// Passed checks in a row that bring it up again [default: 1]
    #[arg(long, value_name = "COUNT", help_heading = "Health checks")]
    pub health_up_after: Option<u32>,
}

impl Settings {
    /// Reads a TOML file's text.
    ///
    /// # Errors
    /// What the TOML parser says, with line and column.
    pub fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// Lays these settings over `config`. A list of workers that is given replaces the one that is there.
    pub fn apply(self, config: &mut Config) {
        set_list(&mut config.worker, self.worker);
        set_list(&mut config.prefill, self.prefill);
        set_list(&mut config.decode, self.decode);
        set(&mut config.host, self.host);
        set(&mut config.port, self.port);
        set(&mut config.body_bytes_max, self.body_bytes_max);
        set(&mut config.buffered_bytes_max, self.buffered_bytes_max);
        set(&mut config.prefill_answer_bytes_max, self.prefill_answer_bytes_max);
        set(&mut config.inflight_max, self.inflight_max);
        set(&mut config.connections_max, self.connections_max);
        set(&mut config.retries_max, self.retries_max);
        set_ms(&mut config.connect_timeout, self.connect_timeout_ms);
        set_ms(&mut config.request_timeout, self.request_timeout_ms);
        set_ms(&mut config.prefill_timeout, self.prefill_timeout_ms);
        set_ms(&mut config.first_byte_timeout, self.first_byte_timeout_ms);
        set_ms(&mut config.idle_timeout, self.idle_timeout_ms);
        set_ms(&mut config.drain_timeout, self.drain_timeout_ms);
        set_ms(&mut config.pool_idle_timeout, self.pool_idle_timeout_ms);
        set_ms(&mut config.health_interval, self.health_interval_ms);
        set_ms(&mut config.health_recheck, self.health_recheck_ms);
        set_ms(&mut config.health_timeout, self.health_timeout_ms);
        set(&mut config.health_down_after, self.health_down_after);
        set(&mut config.health_up_after, self.health_up_after);
    }
}

fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

fn set_ms(target: &mut Duration, ms: Option<u64>) {
    set(target, ms.map(Duration::from_millis));
}

fn set_list(target: &mut Vec<String>, list: Vec<String>) {
    if !list.is_empty() {
        *target = list;
    }
}
