//! The owner of a paged region, in a process of its own: it takes its blocks back and uses them anew all the time,
//! and grants them, as a KV cache does.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use transfer_core::{Agent, Region, RegionOptions};

pub const BLOCKS: u32 = 64;
pub const BLOCK_BYTES: usize = 128 << 10;

/// What stands in a block in one of its uses: every word tells which.
pub fn contents(block: u32, usage: u64) -> Vec<u8> {
    let word = (usage << 16 | u64::from(block)) ^ 0x5EED_0000_0000_0000;
    word.to_le_bytes().repeat(BLOCK_BYTES / 8)
}

/// Where a block starts.
pub fn start(block: u32) -> usize {
    block as usize * BLOCK_BYTES
}

pub struct Owner {
    region: Region,
    /// Use of each block; who holds the lock may grant.
    usage: Mutex<Vec<u64>>,
    stop: AtomicBool,
    reused: AtomicU64,
    written: AtomicU64,
    harmed: AtomicU64,
}

impl Owner {
    pub fn start(agent: &Agent, kind: &str) -> Arc<Self> {
        let options = RegionOptions::new("paged").block_bytes(BLOCK_BYTES as u64);
        let len = BLOCKS as usize * BLOCK_BYTES;
        let region = match kind {
            "allocated" => agent.alloc_with(len, &options).unwrap(),
            _ => agent.adopt_with(vec![0; len], &options).unwrap(),
        };
        (0..BLOCKS).for_each(|block| region.write_at(start(block), &contents(block, 0)).unwrap());
        let (usage, stop) = (Mutex::new(vec![0; BLOCKS as usize]), AtomicBool::new(false));
        let (reused, written, harmed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let owner = Arc::new(Self { region, usage, stop, reused, written, harmed });
        let run = Arc::clone(&owner);
        std::thread::spawn(move || run.churn());
        owner
    }

    fn churn(&self) {
        for round in 0_u32.. {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            self.reuse(round.wrapping_mul(37) % BLOCKS);
            // The readers need a chance, too.
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Takes a block back, uses it for something else, and sees whether anybody disturbs that.
    fn reuse(&self, block: u32) {
        let mut usage = self.usage.lock().unwrap();
        let offset = start(block);
        self.region.revoke(offset, BLOCK_BYTES).unwrap();
        let mut seen = vec![0; BLOCK_BYTES];
        self.region.read_at(offset, &mut seen).unwrap();
        let usage = &mut usage[block as usize];
        self.written.fetch_add(u64::from(seen != contents(block, *usage)), Ordering::SeqCst);
        *usage += 1;
        let mine = contents(block, *usage);
        self.region.write_at(offset, &mine).unwrap();
        let until = Instant::now() + Duration::from_micros(100);
        while Instant::now() < until {
            self.region.read_at(offset, &mut seen).unwrap();
            self.harmed.fetch_add(u64::from(seen != mine), Ordering::SeqCst);
        }
        self.reused.fetch_add(1, Ordering::SeqCst);
    }

    /// The generation, and which use each block is in.
    pub fn grant(&self) -> String {
        let usage = self.usage.lock().unwrap();
        let uses: Vec<String> = usage.iter().map(ToString::to_string).collect();
        format!("{} {}", self.region.generation(), uses.join(" "))
    }

    /// Ends it: how often a block was used anew, was found written by somebody, and was written after that.
    pub fn end(&self) -> String {
        self.stop.store(true, Ordering::SeqCst);
        let count = |of: &AtomicU64| of.load(Ordering::SeqCst);
        format!("{} {} {}", count(&self.reused), count(&self.written), count(&self.harmed))
    }
}

/// A grant, as [`Owner::grant`] tells it.
pub struct Grant {
    pub generation: u64,
    pub usage: Vec<u64>,
}

impl Grant {
    pub fn parse(text: &str) -> Self {
        let mut numbers = text.split(' ').map(|number| number.parse().unwrap());
        Self { generation: numbers.next().unwrap(), usage: numbers.collect() }
    }
}
