//! The one place that reads the clock.
#![expect(
    clippy::disallowed_methods,
    reason = "this module owns the clock; everything else is handed the time"
)]

use std::time::Instant;

pub(crate) fn now() -> Instant {
    Instant::now()
}
