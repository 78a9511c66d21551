#!/usr/bin/env python3
"""Holds transfer-bench's figures on this machine against what the engine is meant to reach, row by row.

    benches/compare/judge.py                    everything, about five minutes
    benches/compare/judge.py --only shm tcp     these groups
    benches/compare/judge.py --without-peers    without NIXL and Mooncake

By hand: it needs a machine that does nothing else, iperf3, and the products of compare.py. Ratios are medians of five
windows, each beside its own roof or rival; absolute times are this machine's. Exit code 1 if a row is missed.
"""

import argparse
import json
import statistics
import subprocess
import sys

import contenders

KIB, MIB = 1 << 10, 1 << 20
LONG = ["--len", "64MiB,256MiB"]
PAGES = ["--count", "8192", "--len", "16KiB"]
LISTS = ["--count", "16384", "--len", "4KiB", "--op", "read"]


class Judge:
    """Collects rows: what, wanted, got."""

    def __init__(self, binary, peers, rounds, seconds):
        self.binary, self.peers, self.rounds, self.seconds = binary, peers, rounds, seconds
        self.missed = 0

    def bench(self, path):
        return contenders.TransferBench(self.binary, path)

    def row(self, what, wanted, got, least=True, unit=""):
        """`least`: more is better. A figure that is not there is missed, too."""
        good = got is not None and (got >= wanted if least else got <= wanted)
        self.missed += not good
        shown = "not measured" if got is None else f"{got:.3g}{unit}"
        sign = ">=" if least else "<="
        print(f"| {what} | {sign} {wanted}{unit} | {shown} | {'yes' if good else 'NO'} |", flush=True)

    def rivals(self, path, rival, op, count, length):
        """Rounds in turns with a product: pairs of figures."""
        if rival not in self.peers:
            return []
        ours, pairs = self.bench(path), []
        for _ in range(self.rounds):
            try:
                mine = ours.measure(op, count, length, self.seconds)
                theirs = self.peers[rival].measure(op, count, length, self.seconds)
            except contenders.Failed as error:
                print(error, file=sys.stderr)
                continue
            if mine["verified"] and theirs["verified"]:
                pairs.append((mine, theirs))
        return pairs

    def against(self, what, wanted, path, rival, shape, ops=("write", "read")):
        """The ratio of the bandwidths, the worse direction."""
        ratios = []
        for op in ops:
            pairs = self.rivals(path, rival, op, *shape)
            ratios += [statistics.median(a["gbps"] / b["gbps"] for a, b in pairs)] if pairs else []
        self.row(what, wanted, min(ratios) if len(ratios) == len(ops) else None)

    # ---- the groups

    def shm(self):
        bench = self.bench("shm")
        for row in bench.rows(*LONG):
            self.row(f"shm {row['op']}, {row['len'] // MIB} MiB, of memcpy", 0.90, row["share"])
        for row in bench.rows(*PAGES):
            self.row(f"shm {row['op']}, 8192 x 16 KiB, of memcpy of the same pages", 0.80, row["share"])
        self.against("shm, 8192 x 16 KiB, of NIXL", 2, "shm", "NIXL", (8192, 16 * KIB))
        self.against("shm, 4096 x 4 KiB, of NIXL", 4, "shm", "NIXL", (4096, 4 * KIB))
        for row in bench.rows("--len", "4KiB"):
            self.row(f"shm {row['op']}, 4 KiB, post to done, p50", 1, row["p50_us"], least=False, unit=" us")
        self.directions("shm")

    def foreign(self):
        for row in self.bench("process-vm").rows(*PAGES):
            self.row(f"process-vm {row['op']}, 8192 x 16 KiB, of bare calls", 0.95, row["share"])
        self.directions("process-vm")

    def tcp(self):
        bench = self.bench("tcp")
        for row in bench.rows("--len", "64MiB", "--roof", "iperf3"):
            self.row(f"tcp {row['op']}, 64 MiB, of iperf3", 0.95, row["share"])
        for row in bench.rows(*PAGES, "--roof", "iperf3"):
            self.row(f"tcp {row['op']}, 8192 x 16 KiB, of iperf3", 0.85, row["share"])
        self.directions("tcp")

    def latency(self):
        bench = self.bench("tcp")
        for wait in ("block", "poll"):
            # Each side on a core of its own: a round trip within one core takes less than half of one between two.
            for row in bench.rows("--len", "4KiB", "--wait", wait, "--cpus", "0,1", seconds=2):
                what = f"tcp {row['op']}, 4 KiB, {wait}, of a bare round trip ({row['roof_p50_us']:.3g} us)"
                self.row(what, 1.3, row["p50_of_roof"], least=False)
        for op in ("write", "read"):
            pairs = self.rivals("tcp", "NIXL tcp", op, 1, 4 * KIB)
            ratio = statistics.median(a["p50_us"] / b["p50_us"] for a, b in pairs) if pairs else None
            self.row(f"tcp {op}, 4 KiB, poll, p50 of NIXL's", 1, ratio, least=False)

    def peers_over_tcp(self):
        for op, wanted in (("write", 4), ("read", 8)):
            shape = (8192, 16 * KIB)
            pairs = self.rivals("tcp", "NIXL tcp", op, *shape)
            ratio = statistics.median(a["gbps"] / b["gbps"] for a, b in pairs) if pairs else None
            self.row(f"tcp {op}, 8192 x 16 KiB, of NIXL over tcp", wanted, ratio)
            cpu = statistics.median(a["cpu_s_per_gib"] / b["cpu_s_per_gib"] for a, b in pairs) if pairs else None
            self.row(f"tcp {op}, 8192 x 16 KiB, CPU per byte of NIXL's", 0.333, cpu, least=False)
        self.against("tcp, 8192 x 16 KiB, of Mooncake", 8, "tcp", "Mooncake tcp", (8192, 16 * KIB))

    def lists(self):
        for path in ("shm", "process-vm", "tcp"):
            for row in self.bench(path).rows(*LISTS, seconds=0.5):
                what = f"{path}, 16384 paged descriptors"
                self.row(f"{what}, prepare each", 30, row["prep_ns_per_desc"], least=False, unit=" ns")
                self.row(f"{what}, post each", 100, row["post_ns_per_desc"], least=False, unit=" ns")
        self.row("16384 paged descriptors on the wire", 68, row["wire_bytes"] / KIB, least=False, unit=" KiB")

    def agents(self):
        done = subprocess.run([str(self.binary), "doctor", "--json"], stdout=subprocess.PIPE, text=True, timeout=120)
        agents = json.loads(done.stdout)["agents"]
        self.row("new agent and peer, to the first byte", 5, agents["setup_ms"], least=False, unit=" ms")
        self.row("CPU of an idle agent", 0.1, agents["idle_cpu_percent"], least=False, unit=" %")

    def directions(self, path):
        """READ against WRITE, window by window."""
        bench, ratios = self.bench(path), []
        for _ in range(self.rounds):
            rates = [bench.measure(op, 8192, 16 * KIB, self.seconds)["gbps"] for op in ("read", "write")]
            ratios.append(rates[0] / rates[1])
        self.row(f"{path}, 8192 x 16 KiB, READ of WRITE", 0.90, statistics.median(ratios))


GROUPS = {
    "shm": Judge.shm,
    "foreign": Judge.foreign,
    "tcp": Judge.tcp,
    "latency": Judge.latency,
    "peers": Judge.peers_over_tcp,
    "lists": Judge.lists,
    "agents": Judge.agents,
}
# Which groups need which products.
NEEDS = {"NIXL": {"shm"}, "NIXL tcp": {"latency", "peers"}, "Mooncake tcp": {"peers"}}
MAKERS = {
    "NIXL": lambda: contenders.nixl(tcp=False),
    "NIXL tcp": lambda: contenders.nixl(tcp=True),
    "Mooncake tcp": contenders.mooncake,
}


def peers(groups):
    found = {}
    for name, needed in NEEDS.items():
        if needed.isdisjoint(groups):
            continue
        try:
            found[name] = MAKERS[name]()
        except (contenders.Failed, OSError, subprocess.SubprocessError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--without-peers", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a measurement beside a product")
    args = parser.parse_args()
    judge = Judge(contenders.build(), {} if args.without_peers else peers(args.only), args.rounds, args.seconds)
    print("| what | wanted | got | ok |")
    print("|---|---|---|---|", flush=True)
    try:
        for group in args.only:
            try:
                GROUPS[group](judge)
            except contenders.Failed as error:
                judge.missed += 1
                print(f"| {group} | | {error} | NO |", flush=True)
    finally:
        for peer in judge.peers.values():
            peer.close()
    print(f"\n{judge.missed} missed.")
    sys.exit(1 if judge.missed else 0)


if __name__ == "__main__":
    main()
