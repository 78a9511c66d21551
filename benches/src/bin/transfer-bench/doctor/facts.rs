//! What this machine has, as `/proc` and `/sys` tell (proc(5), sysfs(5)). What cannot be read is `None`: a container
//! may hide anything.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::machine;

/// Everything that matters to the paths.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Facts {
    pub(crate) cpu: String,
    pub(crate) arch: String,
    pub(crate) cores: usize,
    /// Cores that the control group may use.
    pub(crate) cpu_quota: Option<f64>,
    pub(crate) governor: Option<String>,
    pub(crate) l1d_bytes: Option<u64>,
    pub(crate) l2_bytes: Option<u64>,
    pub(crate) l3_bytes: Option<u64>,
    /// The engine's kernel for copies that exceed the caches.
    pub(crate) copy_kernel: &'static str,
    /// What the CPU has for copying.
    pub(crate) copy_features: Vec<&'static str>,
    pub(crate) numa_nodes: usize,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) available_bytes: Option<u64>,
    /// What the control group may use.
    pub(crate) memory_limit_bytes: Option<u64>,
    /// Mode of transparent huge pages of ordinary memory, and of shared memory.
    pub(crate) huge_pages: Option<String>,
    pub(crate) huge_pages_shared: Option<String>,
    pub(crate) memlock_bytes: Option<u64>,
    pub(crate) open_files: Option<u64>,
    pub(crate) kernel: String,
    pub(crate) pidfd_open: bool,
    pub(crate) populate_write: bool,
    pub(crate) memfd_seals: bool,
    /// `kernel.yama.ptrace_scope`; absent where the kernel has no Yama.
    pub(crate) ptrace_scope: Option<u32>,
    /// Names of the network and PID namespaces: processes with others reach each other by tcp only.
    pub(crate) network_namespace: Option<String>,
    pub(crate) pid_namespace: Option<String>,
    pub(crate) abstract_sockets: bool,
    /// Smallest, default and largest buffer of a socket.
    pub(crate) tcp_rmem: Option<[u64; 3]>,
    pub(crate) tcp_wmem: Option<[u64; 3]>,
    pub(crate) rmem_max: Option<u64>,
    pub(crate) wmem_max: Option<u64>,
    pub(crate) congestion_control: Option<String>,
    pub(crate) loopback_mtu: Option<u64>,
    pub(crate) rdma_devices: Vec<String>,
    pub(crate) gpus: Vec<String>,
    pub(crate) iperf3: bool,
    pub(crate) debug_build: bool,
}

impl Facts {
    /// Looks around.
    pub(crate) fn read() -> Self {
        let kernel = line("/proc/sys/kernel/osrelease").unwrap_or_default();
        let since = |major, minor| version(&kernel).is_some_and(|found| found >= (major, minor));
        Self {
            cpu: machine::cpu_name(),
            arch: std::env::consts::ARCH.to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu_quota: line("/sys/fs/cgroup/cpu.max").and_then(|text| quota(&text)),
            governor: line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            l1d_bytes: cache(1),
            l2_bytes: cache(2),
            l3_bytes: cache(3),
            copy_kernel: transfer_sys::copy::streaming_kernel(),
            copy_features: copy_features(),
            numa_nodes: names("/sys/devices/system/node", "node").len().max(1),
            memory_bytes: machine::meminfo("MemTotal"),
            available_bytes: machine::meminfo("MemAvailable"),
            memory_limit_bytes: number("/sys/fs/cgroup/memory.max"),
            huge_pages: line("/sys/kernel/mm/transparent_hugepage/enabled").and_then(|text| chosen(&text)),
            huge_pages_shared: line("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
                .and_then(|text| chosen(&text)),
            memlock_bytes: limit("Max locked memory"),
            open_files: limit("Max open files"),
            pidfd_open: since(5, 3),
            populate_write: since(5, 14),
            memfd_seals: since(3, 17),
            kernel,
            ptrace_scope: number("/proc/sys/kernel/yama/ptrace_scope").and_then(|n| u32::try_from(n).ok()),
            network_namespace: namespace("net"),
            pid_namespace: namespace("pid"),
            abstract_sockets: abstract_sockets(),
            tcp_rmem: line("/proc/sys/net/ipv4/tcp_rmem").and_then(|text| three(&text)),
            tcp_wmem: line("/proc/sys/net/ipv4/tcp_wmem").and_then(|text| three(&text)),
            rmem_max: number("/proc/sys/net/core/rmem_max"),
            wmem_max: number("/proc/sys/net/core/wmem_max"),
            congestion_control: line("/proc/sys/net/ipv4/tcp_congestion_control"),
            loopback_mtu: number("/sys/class/net/lo/mtu"),
            rdma_devices: names("/sys/class/infiniband", ""),
            gpus: gpus(),
            iperf3: std::process::Command::new("iperf3").arg("--version").output().is_ok(),
            debug_build: cfg!(debug_assertions),
        }
    }
}

/// The first line of a file.
fn line(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.lines().next()?.trim().to_owned())
}

fn number(path: &str) -> Option<u64> {
    line(path)?.parse().ok()
}

/// Entries of a folder that begin like that, sorted; of `node` also `node0`, but not `node_x`.
fn names(folder: &str, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let fits = |name: &String| {
        let rest = name.strip_prefix(prefix);
        rest.is_some_and(|rest| prefix.is_empty() || rest.parse::<u32>().is_ok())
    };
    let mut names: Vec<String> = names.filter(fits).collect();
    names.sort_unstable();
    names
}

/// `5.10` of `5.10.0-26-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// `madvise` of `always [madvise] never`.
fn chosen(modes: &str) -> Option<String> {
    Some(modes.split_once('[')?.1.split_once(']')?.0.to_owned())
}

/// Cores of `200000 100000`; none of `max 100000`.
fn quota(text: &str) -> Option<f64> {
    let (used, period) = text.split_once(' ')?;
    let (used, period) = (used.parse::<f64>().ok()?, period.parse::<f64>().ok()?);
    (period > 0.0).then(|| used / period)
}

fn three(text: &str) -> Option<[u64; 3]> {
    let numbers: Vec<u64> = text.split_whitespace().map_while(|word| word.parse().ok()).collect();
    numbers.try_into().ok()
}

/// The soft limit of a line of `/proc/self/limits`; none where there is no limit.
fn limit(name: &str) -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Bytes of the data or common cache of a level, of the first core.
fn cache(level: u32) -> Option<u64> {
    let folder = Path::new("/sys/devices/system/cpu/cpu0/cache");
    let caches = names(folder.to_str()?, "index").into_iter().map(|name| folder.join(name));
    let of_level = caches.into_iter().find(|cache| {
        line(cache.join("level")).is_some_and(|found| found == level.to_string())
            && line(cache.join("type")).is_some_and(|kind| kind != "Instruction")
    })?;
    let size = line(of_level.join("size"))?;
    let (digits, unit) = size.split_at(size.find(|c: char| !c.is_ascii_digit()).unwrap_or(size.len()));
    let unit = match unit {
        "K" => 1 << 10,
        "M" => 1 << 20,
        _ => 1,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(target_arch = "x86_64")]
fn copy_features() -> Vec<&'static str> {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = flags.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    let has = |name: &&str| flags.split_whitespace().any(|flag| flag == *name);
    ["avx512f", "avx2", "erms", "fsrm"].into_iter().filter(has).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn copy_features() -> Vec<&'static str> {
    if cfg!(target_arch = "aarch64") { vec!["neon"] } else { Vec::new() }
}

fn namespace(kind: &str) -> Option<String> {
    let link = fs::read_link(Path::new("/proc/self/ns").join(kind)).ok()?;
    Some(link.to_string_lossy().into_owned())
}

fn abstract_sockets() -> bool {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let name = format!("transfer-bench-doctor-{}", std::process::id());
    SocketAddr::from_abstract_name(name).and_then(|address| UnixListener::bind_addr(&address)).is_ok()
}

fn gpus() -> Vec<String> {
    let mut found: Vec<String> =
        names("/proc/driver/nvidia/gpus", "").into_iter().map(|id| format!("nvidia {id}")).collect();
    if Path::new("/dev/kfd").exists() {
        found.push("amd".to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_the_kernel_are_understood() {
        assert_eq!(version("5.10.0-26-amd64"), Some((5, 10)));
        assert_eq!(version("6.18-rc1"), Some((6, 18)));
        assert_eq!(version("linux"), None);
        assert_eq!(chosen("always [madvise] never").as_deref(), Some("madvise"));
        assert_eq!(quota("150000 100000"), Some(1.5));
        assert_eq!(quota("max 100000"), None);
        assert_eq!(three("4096\t131072\t6291456"), Some([4096, 131_072, 6_291_456]));
        assert_eq!(three("1 2"), None);
    }

    #[test]
    fn this_machine_has_a_kernel_memory_and_files() {
        let facts = Facts::read();
        assert!(facts.cores > 0 && facts.memory_bytes.is_some_and(|bytes| bytes > 1 << 20));
        assert!(facts.pidfd_open && facts.memfd_seals && facts.network_namespace.is_some());
        assert_eq!(facts.arch, std::env::consts::ARCH);
    }
}
