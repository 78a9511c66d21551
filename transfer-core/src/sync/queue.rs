//! Work on its way to those who do it.

use std::fmt;

use super::prim::channel::{Receiver, Sender, bounded};
use super::prim::{AtomicBool, Ordering, fence};

/// Things on their way to whoever takes them, at most so many. Cost: no allocation, no lock.
///
/// It ends when nobody takes them any more. Who puts looks at that afterwards, and who ends it takes what is left
/// afterwards, so one of the two finds each thing: of two who write and then look at what the other wrote, with a
/// sequentially consistent fence between, one sees the other.
pub(crate) struct Queue<T> {
    ends: (Sender<T>, Receiver<T>),
    has_ended: AtomicBool,
}

impl<T> Queue<T> {
    pub(crate) fn new(max: usize) -> Self {
        Self { ends: bounded(max), has_ended: AtomicBool::new(false) }
    }

    /// For whoever takes it, or given back where there is no room. Where the queue [has ended](Queue::has_ended) by
    /// then, the caller has to [take](Queue::take) what there is.
    pub(crate) fn put(&self, thing: T) -> Result<(), T> {
        // The queue has a receiver, here.
        let put = self.ends.0.try_send(thing).map_err(|error| error.into_inner());
        fence(Ordering::SeqCst);
        put
    }

    /// Something, where there is something.
    pub(crate) fn take(&self) -> Option<T> {
        self.ends.1.try_recv().ok()
    }

    /// Nobody takes anything from here on. The caller has to [take](Queue::take) what is left.
    pub(crate) fn end(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Whether nobody takes anything any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed)
    }
}

/// For those who wait.
impl<T> Queue<T> {
    /// The same as [`Queue::put`], but waits for room.
    pub(crate) fn put_when_there_is_room(&self, thing: T) {
        // The queue has a receiver, here.
        let _put = self.ends.0.send(thing);
    }

    /// Something, when there is something.
    pub(crate) fn wait(&self) -> Option<T> {
        self.ends.1.recv().ok()
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("count", &self.ends.1.len()).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_comes_back() {
        let queue = Queue::new(1);
        assert_eq!((queue.put(1), queue.put(2)), (Ok(()), Err(2)));
        assert_eq!((queue.take(), queue.take(), queue.has_ended()), (Some(1), None, false));
        queue.end();
        assert!(queue.has_ended());
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicUsize;

    use super::*;

    /// Two put while the one who takes ends: nothing is left lying, and nothing is taken twice.
    #[test]
    fn nothing_is_put_in_vain() {
        loom::model(|| {
            let (queue, taken) = (Arc::new(Queue::new(4)), Arc::new(AtomicUsize::new(0)));
            let drain = |queue: &Queue<usize>, taken: &AtomicUsize| {
                while let Some(thing) = queue.take() {
                    assert_eq!(taken.fetch_or(thing, Ordering::Relaxed) & thing, 0, "taken twice");
                }
            };
            let putters = [1, 2].map(|thing| {
                let (queue, taken) = (Arc::clone(&queue), Arc::clone(&taken));
                loom::thread::spawn(move || {
                    queue.put(thing).unwrap();
                    if queue.has_ended() {
                        drain(&queue, &taken);
                    }
                })
            });
            drain(&queue, &taken);
            queue.end();
            drain(&queue, &taken);
            putters.into_iter().for_each(|putter| putter.join().unwrap());
            assert_eq!(taken.load(Ordering::Relaxed), 3, "something was left");
        });
    }
}
