//! What control connections send and receive: bytes as they are, or records where the agents have a key.

use transfer_proto::proto::link::Link;
use transfer_proto::proto::time::Time;

use super::stream::READ_BYTES;
use crate::secure::Records;
use crate::shared::Stream;

/// A connection past its handshake.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(super) stream: Stream,
    records: Option<Records>,
    /// The record that is being sent; the next one is sealed after it, so that what waits, waits in the link.
    sealed: Vec<u8>,
}

impl Wire {
    pub(crate) fn new(stream: Stream, records: Option<Records>) -> Self {
        Self { stream, records, sealed: Vec::new() }
    }

    /// Gives the link what has come, up to a part's worth.
    pub(super) fn receive(&mut self, link: &mut Link, now: Time) {
        let mut part = [0; READ_BYTES];
        let bytes = match self.stream.receive(&mut part) {
            Ok(Some([])) | Err(_) => return link.disconnected(),
            Ok(None) => return,
            Ok(Some(bytes)) => bytes,
        };
        let Some(records) = &mut self.records else { return link.handle_bytes(bytes, now) };
        let mut plain = Vec::new();
        let opened = records.open(bytes, &mut plain);
        // Only what was sealed by the peer shows that it lives.
        if !plain.is_empty() {
            link.handle_bytes(&plain, now);
        }
        if opened.is_err() {
            link.tampered();
        }
    }

    /// Sends what the link has to say, as far as it goes.
    pub(super) fn send(&mut self, link: &mut Link, now: Time) {
        // A connection that takes nothing any more has ended; the reading side sees that too, and tells it.
        let Some(records) = &mut self.records else {
            let sent = self.stream.send(link.unsent()).unwrap_or_else(|_| link.unsent().len());
            return link.sent(sent, now);
        };
        loop {
            if self.sealed.is_empty() {
                if link.unsent().is_empty() {
                    return;
                }
                let taken = records.seal(link.unsent(), &mut self.sealed);
                link.sent(taken, now);
            }
            let sent = self.stream.send(&self.sealed).unwrap_or(self.sealed.len());
            self.sealed.drain(..sent);
            if !self.sealed.is_empty() {
                return;
            }
        }
    }

    /// Whether something waits until the connection takes it.
    pub(super) fn is_waiting(&self, link: &Link) -> bool {
        !self.sealed.is_empty() || !link.unsent().is_empty()
    }
}
