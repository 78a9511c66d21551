//! Room for strangers: connections whose other end has not shown yet that it is a peer.
//!
//! There is room for a fixed number. When it is full, the source that has most of them loses its oldest, so a flood
//! from one address pushes out itself; and one from everywhere leaves everybody the time in which it fills the room.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use transfer_proto::proto::time::Time;

use super::{Conn, Driver};

/// Strangers that may be there at once.
const STRANGERS_MAX: usize = 1024;
/// Strangers that may be about to introduce themselves: with many regions that is a message of some MiB. With a key
/// they are no strangers by then, but who has it is not held to more than others.
const INTRODUCING_MAX: usize = 64;
/// Strangers that go when descriptors or memory are short.
const DROPPED_AT_ONCE: usize = 16;
/// At most one refusal in this time is told in the log.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// Where a connection comes from, as far as it is held against others from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// An IPv4 address, or an IPv6 network: a host has as many addresses in it as it likes.
    Host(IpAddr),
    /// A process of this host.
    Process(i32),
}

impl Source {
    pub(super) fn host(address: IpAddr) -> Self {
        Self::Host(match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(address) => write!(f, "host {address}"),
            Self::Process(pid) => write!(f, "process {pid}"),
        }
    }
}

/// What is to be told of connections that were refused.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    quiet_until: Option<Time>,
    untold: u64,
}

impl Refusals {
    /// How many were not told before this one; `None` where this one is not to be told either.
    fn tell(&mut self, now: Time) -> Option<u64> {
        if self.quiet_until.is_some_and(|until| now < until) {
            self.untold += 1;
            return None;
        }
        self.quiet_until = Some(now + TOLD_EVERY);
        Some(std::mem::take(&mut self.untold))
    }
}

/// Whether there is nothing left to accept a connection with (accept(2)).
pub(super) fn out_of_room(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENFILE | libc::EMFILE | libc::ENOBUFS))
}

/// Whose connection goes: the oldest of the source that has most. Tokens are in the order of their connections.
fn victim(strangers: impl Iterator<Item = (u64, Source)>) -> Option<u64> {
    let mut sources: HashMap<Source, (usize, u64)> = HashMap::new();
    for (token, source) in strangers {
        let (count, oldest) = sources.entry(source).or_insert((0, token));
        *count += 1;
        *oldest = token.min(*oldest);
    }
    sources.into_values().max_by_key(|&(count, oldest)| (count, std::cmp::Reverse(oldest))).map(|(_, t)| t)
}

fn any_stranger(conn: &Conn) -> Option<Source> {
    match conn {
        Conn::Fresh(conn) => Some(conn.source),
        Conn::Control(conn) => conn.stranger(),
        Conn::Local(_) => None,
    }
}

fn introducing(conn: &Conn) -> Option<Source> {
    if let Conn::Control(conn) = conn { conn.stranger() } else { None }
}

impl Driver {
    fn drop_stranger(&mut self, max: usize, which: fn(&Conn) -> Option<Source>) -> bool {
        let strangers = || self.conns.iter().filter_map(|(token, conn)| Some((*token, which(conn)?)));
        if self.conns.len() <= max || strangers().count() <= max {
            return false;
        }
        let Some(token) = victim(strangers()) else { return false };
        self.drop_conn(token);
        true
    }

    /// Called before a connection is accepted.
    pub(super) fn make_room_for_stranger(&mut self) {
        self.drop_stranger(STRANGERS_MAX - 1, any_stranger);
    }

    /// Called when a stranger is through with the handshake.
    pub(super) fn make_room_for_introduction(&mut self) {
        self.drop_stranger(INTRODUCING_MAX - 1, introducing);
    }

    /// Gives descriptors back. Whether there were any strangers.
    pub(super) fn drop_some_strangers(&mut self) -> bool {
        (0..DROPPED_AT_ONCE).filter(|_| self.drop_stranger(0, any_stranger)).count() > 0
    }

    /// Tells that a connection was refused, unless too many are.
    pub(super) fn refused(&mut self, from: &dyn fmt::Display, why: &dyn fmt::Display) {
        if let Some(untold) = self.refusals.tell(self.shared.clock.now()) {
            tracing::warn!(%from, untold, "refused a connection: {why}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Source {
        Source::host(text.parse().unwrap())
    }

    #[test]
    fn a_flood_from_one_source_pushes_out_itself() {
        let (flood, good) = (host("10.0.0.1"), host("10.0.0.2"));
        let mut strangers = vec![(1, good)];
        for token in 2..5000 {
            strangers.push((token, flood));
            if strangers.len() > 100 {
                let gone = victim(strangers.iter().copied()).unwrap();
                strangers.retain(|(token, _)| *token != gone);
            }
        }
        assert_eq!(strangers[0], (1, good), "it came first, and is still there");
        assert_eq!(strangers[1].0, 4901, "the oldest of the flood are gone");
        assert_eq!(victim([].into_iter()), None);
    }

    #[test]
    fn a_host_is_one_source_whatever_its_address() {
        assert_eq!(host("2001:db8::1"), host("2001:db8::ffff:2"));
        assert_ne!(host("2001:db8::1"), host("2001:db8:0:1::1"));
        assert_eq!(host("::ffff:10.0.0.1"), host("10.0.0.1"));
        assert_ne!(host("10.0.0.1"), host("10.0.0.2"));
    }

    #[test]
    fn refusals_are_told_once_in_a_while_and_none_is_lost() {
        let mut refusals = Refusals::default();
        let at = |ms| Time::at(Duration::from_millis(ms));
        assert_eq!(refusals.tell(at(0)), Some(0));
        assert_eq!((refusals.tell(at(1)), refusals.tell(at(999))), (None, None));
        assert_eq!(refusals.tell(at(1000)), Some(2));
        assert_eq!(refusals.tell(at(1001)), None);
    }
}
