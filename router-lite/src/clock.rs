//! The one place that reads the clock; timers are tokio's.

use std::time::Instant;

#[expect(
    clippy::disallowed_methods,
    reason = "this module owns the clock; everything else takes time as an argument"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}
