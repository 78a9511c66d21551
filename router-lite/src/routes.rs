//! What the router answers to: which paths go to workers, and which it answers itself.

use hyper::Method;

use crate::fault::Fault;

/// A known path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Goes to a worker; the name is the metrics' label.
    Proxied { name: &'static str, generates: bool },
    /// `/v1/models`, merged over the workers.
    Models,
    /// `/health`
    Health,
    /// `/metrics`
    Metrics,
    /// `/workers`
    Workers,
}

impl Route {
    pub(crate) fn of(method: &Method, path: &str) -> Result<Self, Fault> {
        let proxied = |name, generates| (Method::POST, Self::Proxied { name, generates });
        let (needed, route) = match path {
            "/v1/completions" => proxied("/v1/completions", true),
            "/v1/chat/completions" => proxied("/v1/chat/completions", true),
            "/v1/embeddings" => proxied("/v1/embeddings", false),
            "/tokenize" => proxied("/tokenize", false),
            "/detokenize" => proxied("/detokenize", false),
            "/v1/models" => (Method::GET, Self::Models),
            "/health" => (Method::GET, Self::Health),
            "/metrics" => (Method::GET, Self::Metrics),
            "/workers" => (Method::GET, Self::Workers),
            _ => return Err(Fault::unknown_route(path)),
        };
        if *method == needed {
            return Ok(route);
        }
        let allow = if needed == Method::POST { "POST" } else { "GET" };
        Err(Fault::method(method.as_str(), allow))
    }
}
