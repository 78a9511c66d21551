//! What is wrong with a machine, and what mends it. Pure: facts in, sentences out.

use serde::Serialize;
use transfer_bench::path::PathName;
use transfer_bench::shape::size;

use super::facts::Facts;
use super::paths::PathReport;

/// One thing to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What is the matter.
    pub(crate) what: String,
    /// What it costs.
    pub(crate) why: String,
    /// The command that mends it, where one does.
    pub(crate) fix: Option<String>,
}

/// Below this, a connection over a long way cannot fill it.
const TCP_BUFFER_WANTED: u64 = 4 << 20;
/// What the kernel gives loopback by default.
const LOOPBACK_MTU: u64 = 65_536;
const OPEN_FILES_WANTED: u64 = 1024;
const MEMORY_WANTED: u64 = 2 << 30;

/// Everything worth saying.
pub(crate) fn findings(facts: &Facts, paths: &[PathReport]) -> Vec<Finding> {
    let mut list = List(Vec::new());
    for path in paths.iter().filter(|path| !path.usable) {
        list.unusable(facts, path);
    }
    list.kernel(facts);
    list.network(facts);
    list.memory(facts);
    list.processor(facts);
    list.hardware(facts);
    list.tools(facts);
    list.0
}

struct List(Vec<Finding>);

impl List {
    fn add(&mut self, what: impl Into<String>, why: &str, fix: Option<&str>) {
        self.0.push(Finding { what: what.into(), why: why.to_owned(), fix: fix.map(str::to_owned) });
    }

    fn unusable(&mut self, facts: &Facts, path: &PathReport) {
        let why = path.why.as_deref().unwrap_or("it did not say why");
        match (path.path, facts.ptrace_scope) {
            (PathName::ProcessVm, Some(scope)) if scope > 0 => self.add(
                format!("processes may not reach each other's memory (kernel.yama.ptrace_scope is {scope})"),
                "memory that the application brought along goes over tcp; memory of Agent::alloc is not concerned",
                Some("sysctl -w kernel.yama.ptrace_scope=0"),
            ),
            (PathName::ProcessVm, _) => self.add(
                format!("process_vm calls between two processes fail: {why}"),
                "memory that the application brought along goes over tcp; a container may lack the right",
                Some("docker run --cap-add SYS_PTRACE ..."),
            ),
            (name, _) => self.add(format!("{name} does not work: {why}"), "peers take the next best path", None),
        }
    }

    fn kernel(&mut self, facts: &Facts) {
        if !facts.pidfd_open || !facts.memfd_seals {
            let what = format!("Linux {} has no pidfd_open or memfd seals", facts.kernel);
            self.add(what, "without them agents on one host meet by tcp only; 5.3 has both", None);
        }
        if !facts.populate_write {
            let what = format!("Linux {} has no MADV_POPULATE_WRITE", facts.kernel);
            self.add(what, "regions are filled page by page instead; 5.14 has it", None);
        }
        if !facts.abstract_sockets {
            let why = "peers on this host cannot hand each other memory, and take tcp";
            self.add("abstract Unix sockets cannot be used", why, None);
        }
        if facts.open_files.is_some_and(|files| files < OPEN_FILES_WANTED) {
            let what = format!("{} open files are allowed", facts.open_files.unwrap_or(0));
            self.add(what, "a peer takes about five, and one for each region", Some("ulimit -n 65536"));
        }
    }

    fn network(&mut self, facts: &Facts) {
        let buffers = [("tcp_rmem", facts.tcp_rmem), ("tcp_wmem", facts.tcp_wmem)];
        for (name, sizes) in buffers {
            let Some([smallest, default, largest]) = sizes.filter(|sizes| sizes[2] < TCP_BUFFER_WANTED)
            else {
                continue;
            };
            let what = format!("net.ipv4.{name} ends at {}", size(largest));
            let fix = format!("sysctl -w net.ipv4.{name}='{smallest} {default} 16777216'");
            self.add(what, "a connection over a long way cannot keep it full", Some(&fix));
        }
        if facts.loopback_mtu.is_some_and(|mtu| mtu < LOOPBACK_MTU) {
            let what = format!("the MTU of loopback is {}", facts.loopback_mtu.unwrap_or(0));
            let why = "tcp within this host costs more CPU for each byte";
            self.add(what, why, Some("ip link set lo mtu 65536"));
        }
    }

    fn memory(&mut self, facts: &Facts) {
        if facts.huge_pages_shared.as_deref().is_some_and(|mode| matches!(mode, "never" | "deny")) {
            self.add(
                "shared memory gets no huge pages",
                "long copies and scattered pages wait for the page table more often",
                Some("echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled"),
            );
        }
        if let Some(limit) = facts.memory_limit_bytes.filter(|limit| *limit < MEMORY_WANTED) {
            let what = format!("the control group may use {} of memory", size(limit));
            self.add(what, "the default table needs up to 1 GiB; take --quick, or smaller --len", None);
        }
        if !facts.rdma_devices.is_empty() && facts.memlock_bytes.is_some_and(|bytes| bytes < 1 << 30) {
            let what = format!("{} may be locked in memory", size(facts.memlock_bytes.unwrap_or(0)));
            self.add(what, "an RDMA device needs its regions locked", Some("ulimit -l unlimited"));
        }
        if facts.numa_nodes > 1 {
            let what = format!("memory is in {} NUMA nodes", facts.numa_nodes);
            let why = "a process far from its memory copies slower; bind both ends to one node to compare";
            self.add(what, why, Some("numactl --cpunodebind=0 --membind=0 transfer-bench run"));
        }
    }

    fn processor(&mut self, facts: &Facts) {
        if facts.cores < 2 || facts.cpu_quota.is_some_and(|quota| quota < 2.0) {
            let why = "both ends of a transfer take turns, so tcp and latency show the scheduler";
            self.add("less than two cores may be used", why, None);
        }
        if facts.governor.as_deref() == Some("powersave") {
            let fix = "cpupower frequency-set -g performance";
            self.add("the CPU saves power", "short transfers run at a low clock", Some(fix));
        }
    }

    fn hardware(&mut self, facts: &Facts) {
        let found = [("RDMA", &facts.rdma_devices), ("GPU", &facts.gpus)];
        for (name, devices) in found.into_iter().filter(|(_, devices)| !devices.is_empty()) {
            let what = format!("{name} found ({}) and not used", devices.join(", "));
            self.add(what, "this version has no backend for it; host memory goes over the paths above", None);
        }
    }

    fn tools(&mut self, facts: &Facts) {
        if !facts.iperf3 {
            let fix = Some("apt-get install iperf3");
            self.add("iperf3 is not installed", "--roof iperf3 needs it at both ends", fix);
        }
        if facts.debug_build {
            let fix = Some("cargo build --release -p transfer-bench");
            self.add("this is a debug build", "its figures say nothing", fix);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            cores: 8,
            pidfd_open: true,
            populate_write: true,
            memfd_seals: true,
            abstract_sockets: true,
            iperf3: true,
            numa_nodes: 1,
            loopback_mtu: Some(65_536),
            tcp_rmem: Some([4096, 131_072, 6 << 20]),
            ..Facts::default()
        }
    }

    fn usable(path: PathName) -> PathReport {
        PathReport { path, usable: true, why: None, gbps: None, roof: None, share: None, p50_us: None }
    }

    fn unusable(path: PathName) -> PathReport {
        PathReport { path, usable: false, why: Some("Operation not permitted".to_owned()), ..usable(path) }
    }

    #[test]
    fn a_good_machine_has_nothing_to_mend() {
        assert_eq!(findings(&good(), &[usable(PathName::Shm)]), []);
    }

    #[test]
    fn each_fault_is_told_with_what_mends_it() {
        let told = |facts: Facts, paths: &[PathReport]| {
            let found = findings(&facts, paths);
            assert_eq!(found.len(), 1, "{found:?}");
            (found[0].what.clone(), found[0].fix.clone().unwrap_or_default())
        };
        let paths = [unusable(PathName::ProcessVm)];
        let (what, fix) = told(Facts { ptrace_scope: Some(1), ..good() }, &paths);
        assert!(what.contains("ptrace_scope is 1") && fix.contains("ptrace_scope=0"), "{what} {fix}");
        let (what, fix) = told(good(), &paths);
        assert!(what.contains("not permitted") && fix.contains("SYS_PTRACE"), "{what} {fix}");
        let (what, fix) = told(Facts { loopback_mtu: Some(1500), ..good() }, &[]);
        assert!(what.contains("1500") && fix.contains("mtu 65536"), "{what} {fix}");
        let (what, fix) = told(Facts { tcp_rmem: Some([4096, 8192, 1 << 20]), ..good() }, &[]);
        assert!(what.contains("1 MiB") && fix.contains("'4096 8192 16777216'"), "{what} {fix}");
        let (what, fix) = told(Facts { huge_pages_shared: Some("never".to_owned()), ..good() }, &[]);
        assert!(what.contains("huge") && fix.contains("shmem_enabled"), "{what} {fix}");
        let (what, _) = told(Facts { rdma_devices: vec!["mlx5_0".to_owned()], ..good() }, &[]);
        assert!(what.contains("mlx5_0") && what.contains("not used"), "{what}");
        let (what, _) = told(Facts { cpu_quota: Some(0.5), ..good() }, &[]);
        assert!(what.contains("two cores"), "{what}");
        let (_, fix) = told(Facts { iperf3: false, ..good() }, &[]);
        assert!(fix.contains("iperf3"), "{fix}");
    }
}
