//! The light router: a byte-transparent reverse proxy for OpenAI-style HTTP in front of inference engines, which
//! runs a prompt's prefill on one engine and its decode on another.
//!
//! # Quick start
//! ```no_run
//! # async fn example() -> Result<(), router_lite::ServeError> {
//! let mut config = router_lite::Config::default();
//! config.prefill.push("http://127.0.0.1:8101".to_owned());
//! config.decode.push("http://127.0.0.1:8102".to_owned());
//! let router = router_lite::Router::bind(config).await?;
//! eprintln!("http://{}", router.local_addr());
//! router.run(std::future::pending()).await
//! # }
//! ```
//!
//! # The way of a request
//! [`server`] accepts a connection; `intake` reads the request within its limits; [`splice`] finds its top-level
//! keys and [`inspect`] asks for the few that matter; [`select`] chooses a worker from a snapshot that `fleet`
//! keeps; [`dance`] writes the bodies of the two legs; `forward` sends them and decides what a failure means;
//! `relay` streams the answer. `probe` and [`health`] keep the picture of the workers.
//!
//! # What passes unchanged
//! Request bodies, byte for byte, except the keys that the hand-off requires; answers, byte for byte and chunk by
//! chunk; all header fields but those of one connection. `X-Request-Id` is added if absent and is the same on
//! both legs (a repeated attempt appends `-r1`, `-r2`). A client that leaves closes the worker's connection.
//!
//! # What the router refuses itself
//! Bodies that are no JSON object (400), too long (413) or compressed (415), unknown paths (404), unknown models
//! (404 `model_not_found`, only once every worker has told its models), requests above a limit (429), requests that
//! no worker can take (503), workers that fail (502) or are late (504). Errors are OpenAI's
//! `{"error":{"message","type","code","param"}}`; a worker's own errors pass as they are.
//!
//! # Safety and cleanup
//! No unsafe code. All tasks belong to [`Router::run`] and end with it.
#![forbid(unsafe_code)]

pub mod cli;
mod clock;
pub mod config;
pub mod dance;
mod fault;
mod fleet;
mod forward;
mod headers;
pub mod health;
pub mod inspect;
mod intake;
mod local;
mod metrics;
mod probe;
mod relay;
mod routes;
pub mod select;
pub mod server;
pub mod settings;
pub mod splice;
pub mod sse;
mod upstream;

pub use config::{Config, ConfigError};
pub use server::{Router, ServeError, serve};
