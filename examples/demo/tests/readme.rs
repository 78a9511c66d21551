//! The README's code is the code below, so it compiles and does what it says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed test ends by panicking")]
#![allow(clippy::print_stdout, reason = "the README prints")]

#[rustfmt::skip]
fn two_agents() -> Result<(), Box<dyn std::error::Error>> {
    // README begins
    use std::time::Duration;
    use transfer_core::{Agent, Config, Desc, DescList};

    // One agent in each engine; here both in one process.
    let prefill = Agent::new(Config::new("prefill"))?;
    let decode = Agent::new(Config::new("decode"))?;

    // Prefill has KV blocks in memory of its agent, which a peer on the same host maps.
    let blocks = prefill.alloc(1 << 20, "kv")?;
    blocks.write_at(7 * 4096, &[42; 4096])?;

    // Decode connects and prepares both sides once: pages 7 and 3 there, two pages in a row here.
    let peer = decode.connect(&prefill.address().ok_or("prefill does not listen")?)?;
    let region = peer.region("kv").ok_or("prefill has no region kv")?;
    let theirs = peer.prepare(&DescList::from(Desc::paged(region.id, 0, 4096, 4096, vec![7, 3])))?;
    let cache = decode.alloc(2 * 4096, "kv")?;
    let ours = decode.prepare(&DescList::from(Desc::contiguous(cache.id(), 0, 2 * 4096)))?;

    // It reads them, and prefill's application hears when they have landed. Poll, wait or await: as you like.
    let done = peer.read(&ours, &theirs).notify(b"request 1").post()?.wait(Duration::from_secs(5))?;
    println!("{} bytes by {}", done.bytes, done.path);
    println!("{}", peer.explain(&ours, &theirs)?); // this path, why not the others
    // README ends

    let mut first = [0];
    cache.read_at(0, &mut first)?;
    assert_eq!((done.bytes, first), (8192, [42]));
    Ok(())
}

#[test]
fn the_code_runs() {
    two_agents().unwrap();
}

#[test]
fn the_readme_shows_it() {
    let (_, code) = include_str!("readme.rs").split_once("    // README begins\n").unwrap();
    let (code, _) = code.split_once("    // README ends\n").unwrap();
    let code: String =
        code.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect();
    let readme = include_str!("../../../README.md");
    assert!(readme.contains(&format!("```rust\n{code}```\n")), "README.md should have this block:\n{code}");
}
