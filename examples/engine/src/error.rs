//! Why an engine does not start.

use engine_model::ModelError;
use std::io;
use std::path::PathBuf;

/// Why an engine does not start, or stops.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum StartError {
    /// The options contradict each other or the model.
    #[error("{0}")]
    Options(String),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("cannot read {} to identify the model: {source}", path.display())]
    Fingerprint { path: PathBuf, source: io::Error },
    #[error("the transfer agent: {0}")]
    Transfer(#[from] transfer_core::Error),
    #[error("the weights: {0}")]
    Weights(#[from] weight_streamer::Error),
    #[error("cannot open the KV event endpoint {endpoint}: {reason}")]
    Events { endpoint: String, reason: String },
    #[error("cannot listen on {address}: {source}")]
    Listen { address: String, source: io::Error },
    #[error("{what}: {source}")]
    System { what: &'static str, source: io::Error },
}

impl StartError {
    /// A step of the start that failed in the operating system.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}
