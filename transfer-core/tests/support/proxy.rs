//! The way between two agents, which the test owns: it counts the bytes of each data connection, and cuts or blocks
//! it at a chosen place.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use transfer_core::Address;

/// The preamble's byte that says what a connection is for, and its value for data.
const KIND: usize = 5;
const DATA: u8 = 3;

/// What becomes of a data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Stays,
    /// Both ends are closed after so many bytes, of both directions together.
    Cut(u64),
    /// Nothing goes on after so many bytes, and nobody is told.
    Stalls(u64),
    /// After so many bytes the opener's end is closed; what it had sent is kept back, and delivered on
    /// [`Proxy::deliver`].
    KeepsBack(u64),
}

struct Way {
    target: SocketAddr,
    /// For data connections in the order in which they are opened; those behind the last stay.
    fates: Vec<Fate>,
    opened: AtomicUsize,
    cut: AtomicUsize,
    delivers: Mutex<bool>,
    changed: Condvar,
}

pub struct Proxy {
    way: Arc<Way>,
    pub address: Address,
}

impl Proxy {
    pub fn start(target: &Address, fates: &[Fate]) -> Self {
        let Address::Tcp { port, .. } = target else { panic!("it listens") };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().into();
        let way = Arc::new(Way {
            target: ([127, 0, 0, 1], *port).into(),
            fates: fates.to_vec(),
            opened: AtomicUsize::new(0),
            cut: AtomicUsize::new(0),
            delivers: Mutex::new(false),
            changed: Condvar::new(),
        });
        let accepting = Arc::clone(&way);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let way = Arc::clone(&accepting);
                std::thread::spawn(move || way.carry(stream));
            }
        });
        Self { way, address }
    }

    /// How many connections were cut so far.
    pub fn cut(&self) -> usize {
        self.way.cut.load(Ordering::SeqCst)
    }

    /// How many data connections were opened so far.
    pub fn opened(&self) -> usize {
        self.way.opened.load(Ordering::SeqCst)
    }

    /// Delivers what was kept back; returns when the target has it or has closed its end.
    pub fn deliver(&self) {
        *self.way.delivers.lock().unwrap() = true;
        self.way.changed.notify_all();
    }
}

impl Way {
    fn carry(&self, mut from: TcpStream) {
        let mut preamble = [0; 8];
        if from.read_exact(&mut preamble).is_err() {
            return;
        }
        let Ok(mut to) = TcpStream::connect(self.target) else { return };
        from.set_nodelay(true).unwrap();
        to.set_nodelay(true).unwrap();
        if to.write_all(&preamble).is_err() {
            return;
        }
        let fate = if preamble[KIND] == DATA {
            let at = self.opened.fetch_add(1, Ordering::SeqCst);
            self.fates.get(at).copied().unwrap_or(Fate::Stays)
        } else {
            Fate::Stays
        };
        let left = match fate {
            Fate::Stays => i64::MAX,
            Fate::Cut(bytes) | Fate::Stalls(bytes) | Fate::KeepsBack(bytes) => i64::try_from(bytes).unwrap(),
        };
        let (left, over) = (AtomicI64::new(left), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| self.pump(&from, &to, (&left, &over), fate, true));
            self.pump(&to, &from, (&left, &over), fate, false);
        });
    }

    /// Carries one direction.
    fn pump(
        &self,
        mut from: &TcpStream,
        mut to: &TcpStream,
        (left, over): (&AtomicI64, &AtomicBool),
        fate: Fate,
        forth: bool,
    ) {
        let mut part = vec![0; 16 << 10];
        while let Ok(came) = from.read(&mut part)
            && came > 0
        {
            if left.fetch_sub(i64::try_from(came).unwrap(), Ordering::SeqCst) < 0 {
                self.end(from, to, &part[..came], (fate, forth), over);
                return;
            }
            if to.write_all(&part[..came]).is_err() {
                break;
            }
        }
        let _half = to.shutdown(Shutdown::Write);
        let _half = from.shutdown(Shutdown::Read);
    }

    fn end(
        &self,
        from: &TcpStream,
        mut to: &TcpStream,
        last: &[u8],
        (fate, forth): (Fate, bool),
        over: &AtomicBool,
    ) {
        let first = !over.swap(true, Ordering::SeqCst);
        match fate {
            Fate::Cut(_) => {
                let _closed = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                self.cut.fetch_add(usize::from(first), Ordering::SeqCst);
            }
            Fate::KeepsBack(_) if forth => {
                let _closed = from.shutdown(Shutdown::Both);
                self.cut.fetch_add(1, Ordering::SeqCst);
                let mut delivers = self.delivers.lock().unwrap();
                while !*delivers {
                    delivers = self.changed.wait(delivers).unwrap();
                }
                let _late = to.write_all(last);
            }
            // Nobody reads any more, so what is sent piles up.
            _ => {
                self.cut.fetch_add(usize::from(first), Ordering::SeqCst);
                loop {
                    std::thread::park();
                }
            }
        }
    }
}
