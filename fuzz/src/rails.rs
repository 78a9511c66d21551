//! The rails of a peer, under any order of what the network, the peer and time may do.

use std::collections::HashSet;
use std::time::Duration;

use transfer_proto::id::RailId;
use transfer_proto::proto::rails::{RAILS_MAX, RailEvent, Rails, RailsConfig};

use crate::steps::{Steps, at};

fn rail(steps: &mut Steps<'_>) -> RailId {
    let (slot, generation) = (steps.byte(), steps.byte());
    // Some names are out of range, or at the end of the generations.
    let generation = if generation == 255 { u32::MAX } else { u32::from(generation % 4) };
    RailId::new(u32::from(slot) % (RAILS_MAX + 8), generation)
}

/// A rail is confirmed once and stays closed, only standing ones are chosen, giving up is told once, and time that was
/// handled is not asked for again.
pub fn check(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let config = RailsConfig::new(Duration::from_secs(1), 4);
    let config = if steps.byte() % 2 == 0 { config } else { config.reopening(Duration::from_millis(50)) };
    let (mut rails, mut now) = (Rails::new(config), 0);
    let (mut closed, mut given_up) = (HashSet::new(), false);
    while let Some(step) = steps.next_step() {
        match step % 9 {
            0 => now += u64::from(steps.wide()),
            1 => drop(rails.opened(rail(&mut steps), at(now))),
            2 => rails.lost(rail(&mut steps), at(now)),
            3 => drop(rails.handle_closed(rail(&mut steps), at(now))),
            4 => {
                let bytes = u64::from(steps.wide()) << (steps.byte() % 48);
                if let Some(id) = rails.choose(bytes, at(now)) {
                    assert!(!rails.is_closed(id) && rails.standing() > 0, "{id} does not stand");
                    rails.posted(id, bytes, at(now));
                }
            }
            5 => rails.progressed(rail(&mut steps), at(now)),
            6 => rails.completed(rail(&mut steps), u64::from(steps.wide()), at(now)),
            7 => rails.excuse(at(now)),
            _ => {}
        }
        // What was silent for long is paused first, and lost then.
        for _ in 0..4 {
            rails.handle_timeout(at(now));
        }
        while let Some(event) = rails.poll_event() {
            match event {
                RailEvent::Closed(id) => assert!(closed.insert(id), "{id} was confirmed twice"),
                RailEvent::GiveUp(_) => assert!(!std::mem::replace(&mut given_up, true)),
                _ => {}
            }
        }
        assert!(closed.iter().all(|id| rails.is_closed(*id)), "one opened again");
        assert!(rails.standing() <= usize::try_from(RAILS_MAX).expect("fits"));
        assert!(rails.poll_timeout().is_none_or(|next| next > at(now)), "it is late already");
    }
}
