//! The way between two agents with a brake on it: it carries everything up to a chosen byte of a chosen connection,
//! stops there, tells the test, and goes on when it is told to.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use transfer_core::Address;

use crate::support::WAIT;

/// Which connection, by its preamble.
pub const CONTROL: u8 = 1;
pub const DATA: u8 = 3;
/// The preamble's byte that says so.
const KIND: usize = 5;

/// Where to stop: the first connection of that kind, behind so many bytes from the side that opened it (or the other).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    pub kind: u8,
    pub forth: bool,
    pub bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ahead,
    Reached,
    Released,
}

struct Way {
    target: SocketAddr,
    stop: Option<Stop>,
    /// A connection of the kind has come.
    taken: AtomicBool,
    over: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

pub struct Brake {
    pub address: Address,
    way: Arc<Way>,
    accepting: Option<JoinHandle<()>>,
}

impl Brake {
    pub fn start(target: &Address, stop: Option<Stop>) -> Self {
        let Address::Tcp { port, .. } = target else { panic!("it listens") };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let way = Arc::new(Way {
            target: ([127, 0, 0, 1], *port).into(),
            stop,
            taken: AtomicBool::new(false),
            over: AtomicBool::new(false),
            state: Mutex::new(State::Ahead),
            changed: Condvar::new(),
        });
        let accepting = Arc::clone(&way);
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if accepting.over.load(Ordering::SeqCst) {
                    return;
                }
                let way = Arc::clone(&accepting);
                // It ends with its connections.
                std::thread::spawn(move || way.carry(stream));
            }
        });
        Self { address: address.into(), way, accepting: Some(accepting) }
    }

    /// Returns when it has stopped; whether it did in time.
    pub fn reached(&self) -> bool {
        let state = self.way.state.lock().unwrap();
        let ahead = |state: &mut State| *state == State::Ahead;
        *self.way.changed.wait_timeout_while(state, WAIT, ahead).unwrap().0 == State::Reached
    }

    /// Whether it has stopped and holds.
    pub fn holds(&self) -> bool {
        *self.way.state.lock().unwrap() == State::Reached
    }

    pub fn release(&self) {
        *self.way.state.lock().unwrap() = State::Released;
        self.way.changed.notify_all();
    }
}

impl Drop for Brake {
    fn drop(&mut self) {
        self.release();
        self.way.over.store(true, Ordering::SeqCst);
        let Address::Tcp { port, .. } = self.address else { return };
        // So that it looks.
        let _woken = TcpStream::connect(("127.0.0.1", port));
        self.accepting.take().into_iter().for_each(|thread| thread.join().unwrap());
    }
}

impl Way {
    fn carry(&self, mut from: TcpStream) {
        let mut preamble = [0; 8];
        if from.read_exact(&mut preamble).is_err() {
            return;
        }
        let kind = preamble[KIND];
        let stop = self.stop.filter(|stop| stop.kind == kind && !self.taken.swap(true, Ordering::SeqCst));
        let at = |forth| stop.filter(|stop| stop.forth == forth).map(|stop| stop.bytes);
        if at(true) == Some(0) {
            self.hold();
        }
        let Ok(mut to) = TcpStream::connect(self.target) else { return };
        from.set_nodelay(true).unwrap();
        to.set_nodelay(true).unwrap();
        if to.write_all(&preamble).is_err() {
            return;
        }
        std::thread::scope(|scope| {
            scope.spawn(|| self.pump(&from, &to, preamble.len(), at(true).filter(|&at| at > 0)));
            self.pump(&to, &from, 0, at(false));
        });
    }

    fn hold(&self) {
        let mut state = self.state.lock().unwrap();
        if *state == State::Ahead {
            *state = State::Reached;
            self.changed.notify_all();
        }
        while *state == State::Reached {
            state = self.changed.wait(state).unwrap();
        }
    }

    /// Carries one direction, of which `passed` bytes have gone.
    fn pump(&self, mut from: &TcpStream, mut to: &TcpStream, mut passed: usize, mut stop: Option<usize>) {
        let mut part = vec![0; 64 << 10];
        while let Ok(came) = from.read(&mut part)
            && came > 0
        {
            let before = stop.map_or(came, |at| at.saturating_sub(passed).min(came));
            if to.write_all(&part[..before]).is_err() {
                break;
            }
            if before < came {
                self.hold();
                stop = None;
                if to.write_all(&part[before..came]).is_err() {
                    break;
                }
            }
            passed += came;
        }
        // Neither end has anything to say to one that is gone.
        let _ended = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
    }
}
