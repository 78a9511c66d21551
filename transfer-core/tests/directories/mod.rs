//! What every directory must do, whatever it is made of. Each check is given a [`Place`] of its own.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use transfer_core::directory::{Change, Directory, DirectoryError, Listing, Registration, Watch};
use transfer_core::{Agent, Config, Desc, DescList, Error, Incarnation};
use transfer_proto::proto::metadata::AgentMetadata;

/// For everything that happens at last.
pub const WAIT: Duration = Duration::from_secs(30);
/// Of entries whose end no test waits for.
pub const LONG: Duration = Duration::from_secs(60);

/// Something that several clients can reach.
pub trait Place {
    /// A new client, as another process would have it.
    fn client(&self) -> Arc<dyn Directory>;
    /// The shortest time to live that makes sense there.
    fn short(&self) -> Duration;
}

pub fn life(number: u8) -> Incarnation {
    Incarnation::from_bytes([number; 16])
}

/// Metadata of that life of an agent, told apart by `detail`.
pub fn blob(name: &str, number: u8, detail: u8) -> Vec<u8> {
    let mut metadata = AgentMetadata::new(name.to_owned(), life(number));
    metadata.app = vec![detail];
    metadata.to_blob()
}

/// Waits until `what` holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + WAIT;
    while !holds() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The next change, told shortly.
pub fn next(watch: &mut Watch) -> String {
    let event = watch.next(WAIT).unwrap().expect("a change in time");
    match event.change {
        Change::Added(entry) => format!("added {} {:?}", entry.name, entry.incarnation.to_bytes()[0]),
        Change::Changed(entry) => format!("changed {} {:?}", entry.name, entry.incarnation.to_bytes()[0]),
        Change::Removed { name, incarnation } => format!("removed {name} {:?}", incarnation.to_bytes()[0]),
        Change::Corrupt(corrupt) => format!("corrupt {}", corrupt.name),
        other => panic!("unknown change {other:?}"),
    }
}

pub fn not_found(result: Result<impl std::fmt::Debug, DirectoryError>) -> bool {
    matches!(result, Err(DirectoryError::NotFound { .. }))
}

pub fn superseded(result: Result<(), DirectoryError>, by: u8) -> bool {
    matches!(result, Err(DirectoryError::Superseded { by: who, .. }) if who == life(by))
}

/// An agent comes, says more, and leaves; another client sees each.
pub fn comes_and_goes(place: &impl Place) {
    let (here, there) = (place.client(), place.client());
    assert!(not_found(there.lookup("a")));
    let mut watch = there.watch("", &Listing::default()).unwrap();
    let registration = here.publish(&blob("a", 1, 0), LONG).unwrap();
    assert_eq!((registration.name(), registration.incarnation()), ("a", life(1)));

    let found = there.lookup("a").unwrap();
    assert_eq!((found.name.as_str(), found.incarnation, found.ttl), ("a", life(1), LONG));
    assert_eq!(found.blob, blob("a", 1, 0));
    assert_eq!(next(&mut watch), "added a 1");

    registration.update(&blob("a", 1, 1)).unwrap();
    assert_eq!(there.lookup("a").unwrap().blob, blob("a", 1, 1));
    assert_eq!(next(&mut watch), "changed a 1");
    assert!(matches!(registration.update(&blob("a", 2, 0)), Err(DirectoryError::OtherAgent { .. })));
    assert!(matches!(registration.update(&blob("b", 1, 0)), Err(DirectoryError::OtherAgent { .. })));
    assert!(matches!(registration.update(b"?"), Err(DirectoryError::InvalidBlob(_))));

    registration.check().unwrap();
    drop(registration);
    assert!(not_found(there.lookup("a")));
    assert_eq!(next(&mut watch), "removed a 1");
    assert_eq!(watch.next(Duration::ZERO).unwrap(), None);
}

/// A restarted agent replaces its former life, which can do it no harm, however late.
pub fn the_latest_life_wins(place: &impl Place) {
    let (old_client, new_client, reader) = (place.client(), place.client(), place.client());
    let mut watch = reader.watch("", &Listing::default()).unwrap();
    let ttl = place.short();
    let renewing = old_client.publish(&blob("a", 1, 0), ttl).unwrap();
    assert_eq!(next(&mut watch), "added a 1");
    let new = new_client.publish(&blob("a", 2, 0), ttl).unwrap();
    assert_eq!(next(&mut watch), "changed a 2");

    eventually("the old registration notices", || superseded(renewing.check(), 2));
    assert!(superseded(renewing.update(&blob("a", 1, 9)), 2));
    drop(renewing);
    assert_eq!(reader.lookup("a").unwrap().incarnation, life(2));
    new.check().unwrap();

    // One that has not noticed yet is refused as well.
    let newer = old_client.publish(&blob("a", 3, 0), LONG).unwrap();
    assert_eq!(next(&mut watch), "changed a 3");
    assert!(superseded(new.update(&blob("a", 2, 9)), 3));
    new.close().unwrap();
    assert_eq!(reader.lookup("a").unwrap().incarnation, life(3));
    newer.close().unwrap();
    assert_eq!(next(&mut watch), "removed a 3");
}

/// A name that another life took does not come back to the older one, also when that life has left before the older one
/// looked; whoever publishes after both has it.
pub fn a_name_that_was_taken_stays_taken(place: &impl Place) {
    let (old_client, new_client, reader) = (place.client(), place.client(), place.client());
    let asked = old_client.publish(&blob("asked", 1, 0), LONG).unwrap();
    let renewing = old_client.publish(&blob("renewing", 1, 0), place.short()).unwrap();
    for name in ["asked", "renewing"] {
        new_client.publish(&blob(name, 2, 0), LONG).unwrap().close().unwrap();
    }
    assert!(superseded(asked.update(&blob("asked", 1, 9)), 2));
    eventually("the old registration notices", || superseded(renewing.check(), 2));
    assert!(not_found(reader.lookup("asked")) && not_found(reader.lookup("renewing")));
    asked.close().unwrap();
    let newest = new_client.publish(&blob("asked", 3, 0), LONG).unwrap();
    assert!(superseded(renewing.update(&blob("renewing", 1, 9)), 2));
    newest.update(&blob("asked", 3, 1)).unwrap();
    assert_eq!(reader.lookup("asked").unwrap().incarnation, life(3));
}

/// An entry ends when nobody renews it, and not while somebody does.
pub fn time_to_live(place: &impl Place) {
    let (here, there) = (place.client(), place.client());
    let mut watch = there.watch("", &Listing::default()).unwrap();
    let left = here.publish(&blob("left", 1, 0), place.short()).unwrap();
    let held = here.publish(&blob("held", 2, 0), Duration::from_secs(3)).unwrap();
    assert_eq!(
        [next(&mut watch), next(&mut watch)].iter().filter(|told| told.starts_with("added")).count(),
        2
    );
    left.abandon().unwrap();
    assert_eq!(next(&mut watch), "removed left 1");
    assert!(not_found(there.lookup("left")));
    assert_eq!(watch.next(Duration::from_millis(4500)).unwrap(), None, "nobody left");
    held.check().unwrap();
    assert_eq!(there.lookup("held").unwrap().incarnation, life(2));
    // The name is free for whoever comes next.
    let next_life = here.publish(&blob("left", 3, 0), LONG).unwrap();
    assert_eq!(next(&mut watch), "added left 3");
    drop((held, next_life));
}

/// Names that mean something to file systems and key spaces mean nothing here.
pub fn any_name(place: &impl Place) {
    let client = place.client();
    let names = ["../../x", "..", ".", "a/b", "a%2Fb", "a\0b", " ", "-", "é", "日本", "A", "a", "\u{10FFFF}"];
    let publish = |name: &&str| client.publish(&blob(name, 1, 0), LONG).unwrap();
    let registrations: Vec<_> = names.iter().map(publish).collect();
    let other = place.client();
    for name in names {
        assert_eq!(other.lookup(name).unwrap().name, name);
    }
    let mut sorted = names.map(str::to_owned);
    sorted.sort();
    let listed = |prefix| {
        let listing = other.list(prefix).unwrap();
        assert_eq!(listing.corrupt, []);
        listing.entries.into_iter().map(|entry| entry.name).collect::<Vec<_>>()
    };
    assert_eq!(listed(""), sorted);
    assert_eq!(listed("a"), ["a", "a\0b", "a%2Fb", "a/b"]);
    assert_eq!(listed("."), [".", "..", "../../x"]);
    assert_eq!(listed("\u{10FFFF}"), ["\u{10FFFF}"]);
    assert_eq!(listed("b"), [""; 0]);
    drop(registrations);
    assert_eq!(listed(""), [""; 0]);
    assert!(matches!(other.lookup(""), Err(DirectoryError::InvalidName { .. })));
    assert!(matches!(other.lookup(&"n".repeat(256)), Err(DirectoryError::InvalidName { .. })));
}

/// A watch that goes on from a listing tells what happened since, and nothing else.
pub fn resumes_from_a_listing(place: &impl Place) {
    let (here, there) = (place.client(), place.client());
    let [gone, _kept, changed] =
        ["gone", "kept", "changed"].map(|name| here.publish(&blob(name, 1, 0), LONG).unwrap());
    let mut listing = there.list("").unwrap();
    assert_eq!(listing.entries.len(), 3);
    drop(gone);
    changed.update(&blob("changed", 1, 1)).unwrap();
    let _added = here.publish(&blob("added", 2, 0), LONG).unwrap();
    let mut watch = there.watch("", &listing).unwrap();
    for _ in 0..3 {
        listing.apply(watch.next(WAIT).unwrap().expect("a change in time"));
    }
    assert_eq!(watch.next(Duration::ZERO).unwrap(), None);
    assert_eq!(listing.entries, there.list("").unwrap().entries);
    assert_eq!(
        listing.entries.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(),
        ["added", "changed", "kept"]
    );
    assert_eq!(listing.get("added").unwrap().incarnation, life(2));
    assert_eq!(listing.get("gone"), None);
}

/// Many take one name at once: one has it in the end, and everybody else knows.
pub fn one_of_many_wins(place: &(impl Place + Sync)) {
    const MANY: u8 = 8;
    let barrier = Barrier::new(usize::from(MANY));
    let publish = |number: u8| {
        let client = place.client();
        barrier.wait();
        match client.publish(&blob("a", number, 0), Duration::from_secs(3)) {
            Ok(registration) => Some(registration),
            Err(DirectoryError::Superseded { .. }) => None,
            Err(error) => panic!("{error}"),
        }
    };
    let client = place.client();
    std::thread::scope(|scope| {
        let publish = &publish;
        let threads: Vec<_> = (1..=MANY).map(|number| scope.spawn(move || publish(number))).collect();
        let held: Vec<Registration> =
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect();
        let winner = client.lookup("a").unwrap().incarnation;
        let (won, lost): (Vec<_>, Vec<_>) = held.into_iter().partition(|held| held.incarnation() == winner);
        assert_eq!(won.len(), 1);
        for held in lost {
            eventually("losers notice", || matches!(held.check(), Err(DirectoryError::Superseded { .. })));
        }
        won[0].check().unwrap();
        assert_eq!(client.lookup("a").unwrap().incarnation, winner);
    });
}

/// Two agents that know nothing but a name move bytes; and a stale entry is told as such.
pub fn agents_meet(place: &impl Place) {
    let prefill = Agent::new(Config::new("prefill")).unwrap();
    let theirs = prefill.alloc(4096, "kv").unwrap();
    theirs.write_at(0, &[7; 4096]).unwrap();
    let registration = place.client().publish(&prefill.metadata(), place.short()).unwrap();

    let decode = Agent::new(Config::new("decode")).unwrap();
    let directory = place.client();
    let peer = decode.connect_by_name(&*directory, "prefill").unwrap();
    let again = decode.connect_by_name(&*directory, "prefill").unwrap();
    assert_eq!(peer.incarnation(), again.incarnation());
    assert_eq!(decode.peers().len(), 1);

    let ours = decode.alloc(4096, "kv").unwrap();
    let whole = |id| DescList::from(Desc::contiguous(id, 0, 4096));
    let local = decode.prepare(&whole(ours.id())).unwrap();
    let remote = peer.prepare(&whole(peer.region("kv").unwrap().id)).unwrap();
    peer.read(&local, &remote).post().unwrap().wait(WAIT).unwrap();
    let mut bytes = [0; 4096];
    ours.read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 4096]);

    // The agent goes, its entry does not: one failed attempt, and nothing that loops.
    drop((peer, again, remote, theirs, prefill));
    let stranger = Agent::new(Config::new("stranger")).unwrap();
    let error = stranger.connect_by_name(&*directory, "prefill").unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && error.is_retryable(), "{error}");

    // It restarts under its name. Whoever watches has something new to try.
    let mut watch = directory.watch("prefill", &directory.list("prefill").unwrap()).unwrap();
    let restarted = Agent::new(Config::new("prefill")).unwrap();
    let _new = place.client().publish(&restarted.metadata(), LONG).unwrap();
    assert!(next(&mut watch).starts_with("changed prefill"));
    drop(registration);
    let peer = stranger.connect_by_name(&*directory, "prefill").unwrap();
    assert_eq!(peer.incarnation(), restarted.incarnation());
    let error = stranger.connect_by_name(&*directory, "nobody").unwrap_err();
    assert!(matches!(error, Error::Directory(DirectoryError::NotFound { .. })), "{error}");
}

/// What can happen to a directory.
#[derive(Clone, Debug)]
pub enum Operation {
    /// A new life of one of three agents registers.
    Publish { name: usize },
    /// A registration tells something new.
    Update { which: usize },
    /// A registration is dropped.
    Drop { which: usize },
    /// A process dies, and its entry expires.
    Expire { which: usize },
}

pub fn operations(max: usize) -> impl Strategy<Value = Vec<Operation>> {
    let operation = prop_oneof![
        4 => (0_usize..3).prop_map(|name| Operation::Publish { name }),
        2 => any::<usize>().prop_map(|which| Operation::Update { which }),
        2 => any::<usize>().prop_map(|which| Operation::Drop { which }),
        1 => any::<usize>().prop_map(|which| Operation::Expire { which }),
    ];
    prop::collection::vec(operation, 1..=max)
}

/// The model: who has each name, and what it says.
#[derive(Default)]
struct Model {
    entries: BTreeMap<String, (u8, u8)>,
    held: Vec<(Registration, u8)>,
    lives: u8,
    details: u8,
}

impl Model {
    fn run(&mut self, place: &impl Place, operation: &Operation) {
        match *operation {
            Operation::Publish { name } => {
                let name = ["a", "a/b", "c"][name];
                self.lives += 1;
                let held = place.client().publish(&blob(name, self.lives, 0), place.short()).unwrap();
                self.entries.insert(name.to_owned(), (self.lives, 0));
                for (old, _) in self.held.iter().filter(|(old, _)| old.name() == name) {
                    // Else it could take the name back when the new life has left.
                    eventually("the old life notices", || old.check().is_err());
                }
                self.held.push((held, self.lives));
            }
            Operation::Update { which } => {
                let Some(index) = which.checked_rem(self.held.len()) else { return };
                let (held, number) = &self.held[index];
                self.details += 1;
                let result = held.update(&blob(held.name(), *number, self.details));
                match self.entries.get_mut(held.name()).filter(|(now, _)| now == number) {
                    Some(entry) => {
                        result.unwrap();
                        entry.1 = self.details;
                    }
                    None => assert!(matches!(result, Err(DirectoryError::Superseded { .. })), "{result:?}"),
                }
            }
            Operation::Drop { which } | Operation::Expire { which } => {
                let Some(index) = which.checked_rem(self.held.len()) else { return };
                let (held, number) = self.held.swap_remove(index);
                let name = held.name().to_owned();
                if matches!(operation, Operation::Drop { .. }) {
                    held.close().unwrap();
                } else {
                    held.abandon().unwrap();
                }
                if self.entries.get(&name).is_some_and(|(now, _)| *now == number) {
                    self.entries.remove(&name);
                }
                let client = place.client();
                let expected = self.entries.get(&name).map(|&(now, _)| life(now));
                eventually("expiry", || client.lookup(&name).ok().map(|entry| entry.incarnation) == expected);
            }
        }
    }

    fn compare(&self, listing: &Listing) -> bool {
        let listed: Vec<_> =
            listing.entries.iter().map(|entry| (entry.name.clone(), entry.blob.clone())).collect();
        let model =
            self.entries.iter().map(|(name, &(life, detail))| (name.clone(), blob(name, life, detail)));
        listed == model.collect::<Vec<_>>()
    }
}

/// Any sequence of operations, as a second client sees it by asking, by watching from the beginning, and by watching
/// from the middle, is what the model says.
pub fn like_the_model(place: &impl Place, operations: &[Operation]) {
    let reader = place.client();
    let mut model = Model::default();
    let mut told = Listing::default();
    let mut watches = vec![(reader.watch("", &told).unwrap(), told.clone())];
    for (index, operation) in operations.iter().enumerate() {
        model.run(place, operation);
        told = reader.list("").unwrap();
        assert!(model.compare(&told), "after {operation:?}: {told:?}");
        if index == operations.len() / 2 {
            watches.push((reader.watch("", &told).unwrap(), told.clone()));
        }
        for (watch, seen) in &mut watches {
            eventually("the watch agrees", || {
                while let Some(event) = watch.next(Duration::from_millis(1)).unwrap() {
                    seen.apply(event);
                }
                model.compare(seen)
            });
        }
    }
}
