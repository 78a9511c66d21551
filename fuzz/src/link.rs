//! A whole control link under a peer that sends anything, cut anywhere, at any time.

use std::time::Duration;

use transfer_proto::id::{Incarnation, RailId, RegionId};
use transfer_proto::proto::control::{Farewell, NOTIF_MAX};
use transfer_proto::proto::link::{Link, LinkConfig, LinkEvent};
use transfer_proto::proto::metadata::AgentMetadata;

use crate::steps::{Steps, at};

fn me() -> AgentMetadata {
    AgentMetadata::new("me".to_owned(), Incarnation::from_bytes([9; 16]))
}

/// What was seen of a link.
#[derive(Default)]
struct Seen {
    hello: bool,
    up: bool,
    closed: bool,
}

impl Seen {
    fn event(&mut self, link: &mut Link, event: LinkEvent) {
        assert!(!self.closed, "{event:?} after the end");
        match event {
            LinkEvent::Hello { metadata, .. } => {
                assert!(!std::mem::replace(&mut self.hello, true), "introduced twice");
                assert_eq!(AgentMetadata::from_blob(&metadata.to_blob()), Ok(metadata));
                if link.role() == transfer_proto::proto::link::Role::Responder {
                    link.introduce(me(), 2);
                }
            }
            LinkEvent::Up => {
                assert!(self.hello && !std::mem::replace(&mut self.up, true), "up without being introduced");
            }
            LinkEvent::Closed(_) => self.closed = true,
            LinkEvent::Notif(bytes) => assert!(self.hello && bytes.len() <= NOTIF_MAX),
            LinkEvent::Sync => link.synced(),
            _ => assert!(self.hello, "{event:?} from a stranger"),
        }
    }
}

/// Steps of one byte, some with a number behind it: bytes come, time passes, the application acts.
pub fn check(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let config = LinkConfig::new(Duration::from_secs(1), Duration::from_secs(4), 1 << 16);
    let mut now = 0;
    let mut link = match steps.byte() % 2 {
        0 => Link::initiator(config, me(), 1, at(now)),
        _ => Link::responder(config, me().incarnation, at(now)),
    };
    let mut seen = Seen::default();
    while let Some(step) = steps.next_step() {
        match step % 10 {
            0 => now += u64::from(steps.wide()),
            1..=3 => {
                let len = usize::from(steps.byte());
                let before = link.unsent().len();
                link.handle_bytes(steps.bytes(len), at(now));
                // Nothing is answered without the owner but a goodbye.
                assert!(link.unsent().len() <= before + 64, "the peer decides what is kept for it");
            }
            4 => link.opened(),
            5 => drop(link.notify(vec![7; usize::from(steps.byte())])),
            6 => link.sent(usize::from(steps.wide()), at(now)),
            7 => drop(link.sync()),
            8 => match steps.byte() % 3 {
                0 => link.rail_closed(RailId::new(u32::from(steps.byte()), 1)),
                1 => link.delete_region(RegionId::new(u32::from(steps.byte()), 1)),
                _ => link.bye(Farewell::Closing),
            },
            _ => link.disconnected(),
        }
        link.handle_timeout(at(now));
        while let Some(event) = link.poll_event() {
            seen.event(&mut link, event);
        }
        assert!(link.is_up() == (seen.up && !seen.closed));
        match link.poll_timeout() {
            Some(next) => assert!(!seen.closed && next > at(now), "it is late already"),
            None => assert!(seen.closed),
        }
    }
}
