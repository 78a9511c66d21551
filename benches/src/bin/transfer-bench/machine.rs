//! What machine this is, and what its processes use of it, as `/proc` tells (proc(5)).

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use transfer_bench::shape::size;

/// The machine in one line.
pub(crate) fn describe() -> String {
    let first_line = |path: &str| {
        let text = fs::read_to_string(path).ok()?;
        Some(text.lines().next()?.trim().to_owned())
    };
    let cpu = cpu_name();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = meminfo("MemTotal").map_or_else(String::new, |bytes| format!(", {} GiB", bytes >> 30));
    let kernel = first_line("/proc/sys/kernel/osrelease").unwrap_or_default();
    let arch = std::env::consts::ARCH;
    let pages = first_line("/sys/kernel/mm/transparent_hugepage/enabled")
        .and_then(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned()))
        .map_or_else(String::new, |mode| format!(", huge pages: {mode}"));
    format!("{cpu} ({arch}), {cores} cores{memory}, Linux {kernel}{pages}")
}

/// The machine in a few words.
pub(crate) fn describe_briefly() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores", cpu_name())
}

/// What the CPU calls itself.
pub(crate) fn cpu_name() -> String {
    field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown CPU".to_owned())
}

/// The name of this host.
pub(crate) fn hostname() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// The value of the first `name: value` line of a file.
fn field(path: impl AsRef<Path>, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let values = text.lines().filter_map(|line| line.split_once(':'));
    values.into_iter().find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
}

/// A line of `/proc/meminfo`, in bytes.
pub(crate) fn meminfo(name: &str) -> Option<u64> {
    let value = field("/proc/meminfo", name)?;
    value.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Says how much is missing where a run needs more memory than there is.
pub(crate) fn check_memory(needed: u64) -> Result<()> {
    match meminfo("MemAvailable") {
        Some(available) if needed > available => anyhow::bail!(
            "this run needs {} of memory and {} MiB are available; take a smaller --len or --count",
            size(needed.next_multiple_of(1 << 20)),
            available >> 20
        ),
        _ => Ok(()),
    }
}

/// Keeps this thread, and all that it starts from now on, on one core.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    let pinned = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    pinned.with_context(|| format!("cannot run on core {cpu}; `nproc` tells how many there are"))
}

/// Clock ticks of `/proc/PID/stat` in a second; fixed for user space on Linux, whatever the kernel's own clock.
const TICKS_PER_SECOND: u64 = 100;

/// CPU time of this process so far. Threads that have ended may be missing, so it is for spans in which none does.
pub(crate) fn cpu_time() -> Result<Duration> {
    let process = Path::new("/proc/self");
    match thread_times(process) {
        Some(time) => Ok(time),
        None => process_time(process).context("cannot read the CPU time of this process"),
    }
}

/// Nanoseconds, thread by thread: `/proc/PID/task/TID/schedstat`, where the kernel keeps it.
fn thread_times(process: &Path) -> Option<Duration> {
    let mut sum = 0_u64;
    for task in fs::read_dir(process.join("task")).ok()? {
        let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        sum += text.split_whitespace().next()?.parse::<u64>().ok()?;
    }
    Some(Duration::from_nanos(sum))
}

/// Hundredths of a second: fields 14 and 15 of `/proc/PID/stat`.
fn process_time(process: &Path) -> Result<Duration> {
    let text = fs::read_to_string(process.join("stat"))?;
    // The name in the second field may hold anything, but nothing after it has a parenthesis.
    let after_name = text.rsplit_once(')').context("no name in it")?.1;
    let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let ticks = ticks.sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described() {
        let told = describe();
        assert!(told.contains("cores") && told.contains("Linux "), "{told}");
        assert!(check_memory(1 << 20).is_ok());
        assert!(check_memory(1 << 60).unwrap_err().to_string().contains("available"));
    }

    #[test]
    fn both_clocks_see_this_process_work() {
        let process = Path::new("/proc/self");
        let clocks = || (thread_times(process).unwrap_or_default(), process_time(process).unwrap());
        let before = clocks();
        let mut x = 1_u64;
        while clocks().1 < before.1 + Duration::from_millis(30) {
            x = std::hint::black_box(x).wrapping_mul(3);
        }
        let after = clocks();
        if thread_times(process).is_some() {
            assert!(after.0 > before.0 + Duration::from_millis(10), "{before:?} {after:?}");
        }
    }
}
