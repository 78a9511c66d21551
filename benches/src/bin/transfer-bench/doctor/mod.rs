//! `transfer-bench doctor`: what this machine has, what each path gives, what is wrong and what mends it.

mod facts;
mod findings;
mod paths;

use anyhow::Result;
use serde::Serialize;
use transfer_bench::path::PathName;
use transfer_bench::report::Wait;
use transfer_bench::shape::size;

use crate::child::TargetProcess;
use crate::cli::{DoctorArgs, Trust};
use crate::key::KeyFile;
use facts::Facts;
use findings::Finding;
use paths::{Agents, PathReport};

/// Everything that the doctor knows; its JSON.
#[derive(Debug, Serialize)]
struct Report {
    machine: Facts,
    paths: Vec<PathReport>,
    agents: Agents,
    findings: Vec<Finding>,
}

/// Looks, measures and tells; whether shared memory and tcp work.
pub(crate) fn run(args: &DoctorArgs) -> Result<bool> {
    if !args.json {
        println!("transfer-bench {}: looking around, a few seconds\n", env!("CARGO_PKG_VERSION"));
    }
    let machine = Facts::read();
    let target = TargetProcess::start(Wait::Block, None, &Trust::default())?;
    let paths = PathName::ALL.into_iter().map(|path| paths::measure(path, target.address()));
    let paths = paths.collect::<Result<Vec<_>>>()?;
    let key = KeyFile::make()?;
    let keyed = TargetProcess::start(Wait::Block, None, key.trust())?;
    let agents = paths::agents(target.address(), (keyed.address(), key.trust()))?;
    drop(keyed);
    let findings = findings::findings(&machine, &paths);
    let good = paths.iter().all(|path| path.usable || path.path == PathName::ProcessVm);
    let report = Report { machine, paths, agents, findings };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", told(&report));
    }
    Ok(good)
}

/// The report for people.
fn told(report: &Report) -> String {
    let mut lines: Vec<(&str, String)> = Vec::new();
    about_machine(&report.machine, &mut lines);
    about_kernel(&report.machine, &mut lines);
    lines.push(("", String::new()));
    for path in &report.paths {
        lines.push(("", about_path(path)));
    }
    let missing = |devices: &[String]| {
        if devices.is_empty() { "not found".to_owned() } else { format!("found: {}", devices.join(", ")) }
    };
    let none = "this version has no backend for it";
    lines.push(("", format!("{:<11} {}; {none}", "RDMA", missing(&report.machine.rdma_devices))));
    lines.push(("", format!("{:<11} {}; {none}", "GPU", missing(&report.machine.gpus))));
    lines.push(("", String::new()));
    let agents = report.agents;
    let set_up = format!(
        "a new agent reads its first byte from a new peer after {:.2} ms, with a key {:.2} ms",
        agents.setup_ms, agents.setup_keyed_ms
    );
    lines.push(("agents", set_up));
    lines.push(("", format!("idle, one uses {:.3} % of a core", agents.idle_cpu_percent)));
    if let Some(line) = lines.iter_mut().find(|(_, line)| line.starts_with("shm")) {
        line.0 = "paths";
    }
    let mut out: String = lines
        .into_iter()
        .map(|(name, line)| format!("{name:<9} {line}").trim_end().to_owned() + "\n")
        .collect();
    out.push_str(if report.findings.is_empty() { "\nNothing to mend.\n" } else { "\nTo know or to mend:\n" });
    for (finding, number) in report.findings.iter().zip(1..) {
        out.push_str(&format!("  {number}. {}: {}\n", finding.what, finding.why));
        if let Some(fix) = &finding.fix {
            out.push_str(&format!("     $ {fix}\n"));
        }
    }
    out
}

fn about_machine(machine: &Facts, lines: &mut Vec<(&'static str, String)>) {
    let known = |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), size);
    let gib =
        |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), |bytes| format!("{} GiB", bytes >> 30));
    let quota = machine.cpu_quota.map_or_else(String::new, |quota| format!(" (a quota of {quota:.1})"));
    let copies = format!("{} (there is {})", machine.copy_kernel, machine.copy_features.join(" "));
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "?".to_owned());
    let caches = [machine.l1d_bytes, machine.l2_bytes, machine.l3_bytes].map(known);
    lines.push(("CPU", format!("{} ({}), {} cores{quota}", machine.cpu, machine.arch, machine.cores)));
    lines.push(("", format!("caches {}, {}, {}; copy kernel: {copies}", caches[0], caches[1], caches[2])));
    let nodes = if machine.numa_nodes == 1 {
        "one NUMA node".to_owned()
    } else {
        format!("{} NUMA nodes", machine.numa_nodes)
    };
    let limit =
        machine.memory_limit_bytes.map_or_else(String::new, |limit| format!(", limited to {}", size(limit)));
    let memory =
        format!("{}, {} free{limit}, {nodes}", gib(machine.memory_bytes), gib(machine.available_bytes));
    lines.push(("memory", memory));
    let (plain, shared) = (mode(&machine.huge_pages), mode(&machine.huge_pages_shared));
    let locked = machine.memlock_bytes.map_or_else(|| "unlimited".to_owned(), size);
    lines.push(("", format!("huge pages: {plain}, shared: {shared}; lockable: {locked}")));
}

fn about_kernel(machine: &Facts, lines: &mut Vec<(&'static str, String)>) {
    let has = |name: &str, there: bool| if there { name.to_owned() } else { format!("no {name}") };
    let features = [
        has("pidfd_open", machine.pidfd_open),
        has("memfd seals", machine.memfd_seals),
        has("MADV_POPULATE_WRITE", machine.populate_write),
        has("abstract sockets", machine.abstract_sockets),
    ];
    lines.push(("kernel", format!("Linux {}: {}", machine.kernel, features.join(", "))));
    let scope = machine.ptrace_scope.map_or_else(|| "no Yama".to_owned(), |n| format!("ptrace_scope {n}"));
    let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "?".to_owned());
    let (net, pid) = (name(&machine.network_namespace), name(&machine.pid_namespace));
    lines.push(("", format!("{scope}; namespaces {net}, {pid} (peers in others: tcp only)")));
    let largest = |sizes: Option<[u64; 3]>| sizes.map_or_else(|| "?".to_owned(), |sizes| size(sizes[2]));
    let (read, write) = (largest(machine.tcp_rmem), largest(machine.tcp_wmem));
    let mtu = machine.loopback_mtu.map_or_else(|| "?".to_owned(), |mtu| mtu.to_string());
    let control = machine.congestion_control.as_deref().unwrap_or("?");
    lines
        .push(("network", format!("tcp buffers up to {read} and {write}, {control}; MTU of loopback {mtu}")));
}

fn about_path(path: &PathReport) -> String {
    let number = |value: Option<f64>| value.map_or_else(|| "?".to_owned(), |value| format!("{value:.2}"));
    if !path.usable {
        return format!("{:<11} not usable: {}", path.path, path.why.as_deref().unwrap_or("?"));
    }
    format!(
        "{:<11} {:>6} GB/s (64 MiB, read), {} of the roof; 4 KiB in {} us",
        path.path,
        number(path.gbps),
        number(path.share),
        number(path.p50_us)
    )
}
