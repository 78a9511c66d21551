//! A TCP relay that can stop passing bytes on: it holds a transfer in the middle for as long as a test needs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A relay in front of a server.
pub struct Proxy {
    pub port: u16,
    /// Bytes that the server may still send to its clients.
    credit: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// A relay to `port` on loopback that lets everything through.
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own_port = listener.local_addr().unwrap().port();
        let credit = Arc::new(AtomicU64::new(u64::MAX));
        let shared = Arc::clone(&credit);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(relay(from_client, to_server, Arc::new(AtomicU64::new(u64::MAX))));
                tokio::spawn(relay(from_server, to_client, Arc::clone(&shared)));
            }
        });
        Self { port: own_port, credit, accepting }
    }

    /// Lets the server send so many more bytes, and then holds everything back.
    pub fn stall_after(&self, bytes: u64) {
        self.credit.store(bytes, Relaxed);
    }

    /// Whether the server has sent more than it may.
    pub fn stalled(&self) -> bool {
        self.credit.load(Relaxed) == 0
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Passes bytes on while there is credit; ends when either side does.
async fn relay(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, credit: Arc<AtomicU64>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            let allowed = credit.load(Relaxed);
            let now = rest.len().min(usize::try_from(allowed).unwrap_or(usize::MAX));
            if now == 0 {
                // The other direction still tells when a side is gone.
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                if to.writable().await.is_err() {
                    return;
                }
                continue;
            }
            if allowed != u64::MAX {
                credit.fetch_sub(now as u64, Relaxed);
            }
            let (part, tail) = rest.split_at(now);
            if to.write_all(part).await.is_err() {
                return;
            }
            rest = tail;
        }
    }
}
