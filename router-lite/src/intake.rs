//! A client's request on its way in: admitted, read whole within its limits, understood, and handed on.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Incoming};
use hyper::header::CONTENT_ENCODING;
use hyper::{Request, Response, StatusCode};

use crate::fault::Fault;
use crate::forward::{Call, Reply, forward, refuse};
use crate::headers::request_id;
use crate::inspect::Wish;
use crate::local;
use crate::metrics::Ticket;
use crate::routes::Route;
use crate::server::State;
use crate::splice::Object;

/// Of a body that is refused for its length, so much more is read and thrown away, because a connection closed with
/// unread bytes would take the answer down with it.
const LINGER_BYTES_MAX: usize = 4 << 20;
const LINGER: Duration = Duration::from_secs(2);

/// Answers one request.
pub(crate) async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Infallible> {
    let own = |response: Response<Full<Bytes>>| response.map(Either::Left);
    Ok(match Route::of(request.method(), request.uri().path()) {
        Ok(Route::Proxied { name, generates }) => proxied(&state, name, generates, request).await,
        Ok(Route::Models) => own(local::models(&state)),
        Ok(Route::Health) => own(local::health(&state)),
        Ok(Route::Metrics) => own(local::metrics(&state)),
        Ok(Route::Workers) => own(local::workers(&state)),
        Err(fault) => own(fault.into_response()),
    })
}

async fn proxied(
    state: &State,
    route: &'static str,
    generates: bool,
    request: Request<Incoming>,
) -> Response<Reply> {
    let (parts, body) = request.into_parts();
    let id = request_id(&parts.headers);
    let max = state.config.inflight_max;
    let mut ticket = match state.metrics.admit(route, max) {
        Ok(ticket) => ticket,
        Err(ticket) => return refuse(Fault::busy("requests in flight", max), &id, ticket),
    };
    if parts.headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        let message = "request bodies must not be compressed: the router reads the model's name in them";
        let fault = Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", message);
        return refuse(fault, &id, ticket);
    }
    let body = match read(state, body, &mut ticket).await {
        Ok(body) => body,
        Err(fault) => return refuse(fault, &id, ticket),
    };
    let object = match Object::parse(&body) {
        Ok(object) => object,
        Err(error) => return refuse(Fault::bad_json(&error), &id, ticket),
    };
    let wish = Wish::of(&object, generates);
    let path_and_query = parts.uri.path_and_query().map_or(route, |p| p.as_str());
    let call = Call {
        route,
        generates,
        path_and_query,
        headers: &parts.headers,
        id: &id,
        body: body.clone(),
        object: &object,
        wish: &wish,
    };
    forward(state, &call, ticket).await
}

async fn read(state: &State, mut body: Incoming, ticket: &mut Ticket) -> Result<Bytes, Fault> {
    let within = state.config.request_timeout;
    let read = tokio::time::timeout(within, read_bounded(state, &mut body, ticket)).await;
    let result = read.unwrap_or_else(|_| {
        let message = format!("the request body did not arrive within {within:?}");
        Err(Fault::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message))
    });
    if let Err(fault) = &result
        && fault.status != StatusCode::REQUEST_TIMEOUT
    {
        // It does not matter whether this comes to its end.
        tokio::time::timeout(LINGER, discard(&mut body)).await.unwrap_or_default();
    }
    result
}

async fn read_bounded(state: &State, body: &mut Incoming, ticket: &mut Ticket) -> Result<Bytes, Fault> {
    let bytes_max = state.config.body_bytes_max;
    let declared = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if declared > bytes_max {
        return Err(Fault::too_large(bytes_max));
    }
    let mut whole = Vec::with_capacity(declared);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| {
            Fault::new(
                StatusCode::BAD_REQUEST,
                "incomplete_request",
                format!("the request body is incomplete: {e}"),
            )
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if whole.len() + data.len() > bytes_max {
            return Err(Fault::too_large(bytes_max));
        }
        if !ticket.hold(data.len(), state.config.buffered_bytes_max) {
            return Err(Fault::busy("bytes of request bodies", state.config.buffered_bytes_max));
        }
        whole.extend_from_slice(&data);
    }
    Ok(Bytes::from(whole))
}

async fn discard(body: &mut Incoming) {
    let mut left = LINGER_BYTES_MAX;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(length) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}
