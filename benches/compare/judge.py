#!/usr/bin/env python3
"""Holds transfer-bench's figures on this machine against what the engine is meant to reach, in one table.

    benches/compare/judge.py                         everything, about ten minutes
    benches/compare/judge.py --row tcp-pages         these rows, of those named below
    benches/compare/judge.py --without-peers         without NIXL and Mooncake

By hand: it needs a machine that does nothing else, cargo, and two packages of the distribution: iperf3, and libibverbs1,
which Mooncake's wheel links and does not bring (apt-get install iperf3 libibverbs1). NIXL and Mooncake themselves
come from PyPI, about 700 MB, each into a virtual environment of its own (below target/compare; --venvs says otherwise).
What is missing is told, and its rows count as missed.

Each figure is a median of five, and each ratio one of figures that were taken in turns. Where both directions count,
each has its row. Exit code 1 if a row is missed.
"""

import argparse
import statistics
import subprocess
import sys

import contenders

KIB, MIB = 1 << 10, 1 << 20
PAGES, PAGE = 8192, 16 * KIB
PAGED = ["--count", str(PAGES), "--len", "16KiB"]
LISTS = ["--count", "16384", "--len", "4KiB", "--op", "read"]
OPS = ("read", "write")
ROOFS = {"memcpy": "memcpy", "process-vm": "bare calls", "sockets": "bare sockets", "iperf3": "iperf3"}


def number(value, unit=""):
    return f"{value:.3g}{unit}" if value < 1000 else f"{value:.0f}{unit}"


def median(pairs, key):
    """Of our figures, of theirs, and of the ratios."""
    ours, theirs = [a[key] for a, _ in pairs], [b[key] for _, b in pairs]
    ratios = [a / b for a, b in zip(ours, theirs)]
    return [statistics.median(values) for values in (ours, theirs, ratios)]


class Judge:
    """Measures, and tells rows."""

    def __init__(self, binary, args):
        self.binary, self.args = binary, args
        self.rounds, self.seconds = args.rounds, args.seconds
        self.peers, self.missing = {}, {}
        self.met = self.missed = 0

    # ---- telling

    def row(self, what, ours, beside, ratio, wanted, met):
        self.met += met
        self.missed += not met
        print(f"| {what} | {ours} | {beside} | {ratio} | {wanted} | {'yes' if met else '**no**'} |", flush=True)

    def failed(self, what, why):
        self.row(what, "–", why, "–", "–", False)

    def ratio(self, what, figures, unit, rival, wanted, least=True):
        """`figures`: ours, theirs, ratio. `least`: more is better."""
        ours, theirs, ratio = figures
        met = ratio >= wanted if least else ratio <= wanted
        sign = "≥" if least else "≤"
        beside = f"{number(theirs, unit)} {rival}"
        self.row(what, number(ours, unit), beside, f"{ratio:.3g}", f"{sign} {wanted}", met)

    def share(self, what, row, wanted):
        """A row of transfer-bench beside its own roof; the share is the median of its windows'."""
        figures = row["gbps"], row["roof"], row["share"]
        self.ratio(f"{what}, {row['op']}", figures, " GB/s", ROOFS[row["roof_kind"]], wanted)

    def most(self, what, value, limit, unit, beside="–"):
        self.row(what, number(value, unit), beside, "–", f"≤ {limit}{unit}", value <= limit)

    # ---- measuring

    def bench(self, path):
        return contenders.TransferBench(self.binary, path)

    def peer(self, name):
        """The product, started when it is first asked for; it stands still out of turn."""
        if name not in self.peers and name not in self.missing:
            try:
                if self.args.without_peers:
                    raise contenders.Failed(f"{name} was to be left out")
                self.peers[name] = contenders.PRODUCTS[name](self.args.venvs)
            except (contenders.Failed, OSError, subprocess.SubprocessError) as error:
                self.missing[name] = str(error)
        if name in self.missing:
            raise contenders.Failed(self.missing[name])
        return self.peers[name]

    def turns(self, path, rival, op, count, length):
        """Rounds in turns with a product: pairs of figures."""
        ours, theirs, pairs = self.bench(path), self.peer(rival), []
        for _ in range(self.rounds):
            pair = [side.measure(op, count, length, self.seconds) for side in (ours, theirs)]
            if not all(figures["verified"] for figures in pair):
                raise contenders.Failed(f"bytes of {path} or {rival} were wrong")
            pairs.append(pair)
        return pairs

    def against(self, what, path, rival, shape, wanted):
        """How many times as fast; `wanted`: of each direction."""
        for op, times in wanted.items():
            try:
                pairs = self.turns(path, rival, op, *shape)
                self.ratio(f"{what}, {op}", median(pairs, "gbps"), " GB/s", rival, times)
            except contenders.Failed as error:
                self.failed(f"{what}, {op}", f"{rival}: {error}")

    # ---- rows

    def shm_span(self):
        for row in self.bench("shm").rows("--len", "64MiB,256MiB"):
            self.share(f"shm, {row['len'] // MIB} MiB", row, 0.90)

    def shm_pages(self):
        for row in self.bench("shm").rows(*PAGED):
            self.share("shm, 8192 x 16 KiB", row, 0.80)
        self.against("shm, 8192 x 16 KiB", "shm", "NIXL", (PAGES, PAGE), dict.fromkeys(OPS, 2))

    def shm_blocks(self):
        self.against("shm, 4096 x 4 KiB", "shm", "NIXL", (4096, 4 * KIB), dict.fromkeys(OPS, 4))

    def shm_latency(self):
        for row in self.bench("shm").rows("--len", "4KiB"):
            self.most(f"shm, 4 KiB, {row['op']}, post to done, p50", row["p50_us"], 1, " us")

    def tcp_span(self):
        for row in self.bench("tcp").rows("--len", "64MiB,256MiB", "--roof", "iperf3"):
            self.share(f"tcp, {row['len'] // MIB} MiB", row, 0.95)

    def tcp_pages(self):
        for row in self.bench("tcp").rows(*PAGED, "--roof", "iperf3"):
            self.share("tcp, 8192 x 16 KiB", row, 0.85)

    def tcp_nixl(self):
        for op, times in {"write": 4, "read": 8}.items():
            what = f"tcp, 8192 x 16 KiB, {op}"
            try:
                pairs = self.turns("tcp", "NIXL over tcp", op, PAGES, PAGE)
                self.ratio(what, median(pairs, "gbps"), " GB/s", "NIXL over tcp", times)
                cpu = median(pairs, "cpu_s_per_gib")
                self.ratio(f"{what}, CPU of both sides", cpu, " s/GiB", "NIXL over tcp", 0.333, least=False)
            except contenders.Failed as error:
                self.failed(what, str(error))

    def tcp_mooncake(self):
        rival = "Mooncake over tcp"
        self.against("tcp, 8192 x 16 KiB", "tcp", rival, (PAGES, PAGE), dict.fromkeys(OPS, 8))

    def tcp_latency(self):
        for wait in ("block", "poll"):
            # Each side on a core of its own: a round trip within one core takes less than half of one between two.
            shape = ["--len", "4KiB", "--wait", wait, "--cpus", "0,1"]
            for row in self.bench("tcp").rows(*shape, seconds=2):
                what = f"tcp, 4 KiB, {row['op']}, {wait}, p50"
                figures = row["p50_us"], row["roof_p50_us"], row["p50_of_roof"]
                self.ratio(what, figures, " us", "bare round trip", 1.3, least=False)

    def tcp_latency_nixl(self):
        for op in OPS:
            pairs = self.turns("tcp", "NIXL over tcp", op, 1, 4 * KIB)
            what = f"tcp, 4 KiB, {op}, poll, p50"
            self.ratio(what, median(pairs, "p50_us"), " us", "NIXL over tcp", 1, least=False)

    def read_write(self):
        for path in ("shm", "process-vm", "tcp"):
            bench = self.bench(path)
            rates = [[bench.measure(op, PAGES, PAGE, self.seconds) for op in OPS] for _ in range(self.rounds)]
            self.ratio(f"{path}, 8192 x 16 KiB, READ of WRITE", median(rates, "gbps"), " GB/s", "WRITE", 0.90)

    def process_vm(self):
        for row in self.bench("process-vm").rows(*PAGED):
            self.share("process-vm, 8192 x 16 KiB", row, 0.95)

    def lists(self):
        for path in ("shm", "process-vm", "tcp"):
            for row in self.bench(path).rows(*LISTS, seconds=0.5):
                what = f"{path}, 16384 paged descriptors"
                self.most(f"{what}, prepare each", row["prep_ns_per_desc"], 30, " ns")
                self.most(f"{what}, post each", row["post_ns_per_desc"], 100, " ns")
        self.most("16384 paged descriptors, metadata", row["wire_bytes"] / KIB, 68, " KiB")

    def allocations(self):
        what = "allocations in post and poll, counted in both processes"
        command = ["cargo", "test", "--quiet", "-p", "transfer-core", "--test", "allocations"]
        done = subprocess.run(command, cwd=contenders.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        good = done.returncode == 0
        self.row(what, "none" if good else "some", " ".join(command), "–", "the test passes", good)
        if not good:
            print(done.stdout, file=sys.stderr)

    def agents(self):
        agents = contenders.doctor(self.binary)["agents"]
        try:
            creation = f"{number(self.peer('NIXL').setup['setup_s'] * 1e3, ' ms')} NIXL, its agent alone"
        except contenders.Failed as error:
            creation = str(error)
        what = "new agent and peer, create to first byte"
        self.most(f"{what}, with a key", agents["setup_keyed_ms"], 5, " ms", creation)
        self.most(f"{what}, without", agents["setup_ms"], 5, " ms", creation)
        self.most("CPU of an idle agent", agents["idle_cpu_percent"], 0.1, " %")


ROWS = {
    "shm-span": Judge.shm_span,
    "shm-pages": Judge.shm_pages,
    "shm-blocks": Judge.shm_blocks,
    "shm-latency": Judge.shm_latency,
    "tcp-span": Judge.tcp_span,
    "tcp-pages": Judge.tcp_pages,
    "tcp-nixl": Judge.tcp_nixl,
    "tcp-mooncake": Judge.tcp_mooncake,
    "tcp-latency": Judge.tcp_latency,
    "tcp-latency-nixl": Judge.tcp_latency_nixl,
    "read-write": Judge.read_write,
    "process-vm": Judge.process_vm,
    "lists": Judge.lists,
    "allocations": Judge.allocations,
    "agents": Judge.agents,
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help="of " + " ".join(ROWS))
    parser.add_argument("--without-peers", action="store_true", help="without NIXL and Mooncake")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a measurement beside a product")
    parser.add_argument("--no-head", action="store_true", help="for a table that is made piece by piece")
    contenders.add_venvs(parser)
    return parser.parse_args()


def main():
    args = arguments()
    judge = Judge(contenders.build(), args)
    if not args.no_head:
        print("| what | ours | beside | ratio | wanted | met |")
        print("|---|---|---|---|---|---|", flush=True)
    try:
        for name in args.row:
            try:
                ROWS[name](judge)
            except contenders.Failed as error:
                judge.failed(name, str(error))
    finally:
        for peer in judge.peers.values():
            peer.close()
    print(f"{judge.met} met, {judge.missed} not.", file=sys.stderr)
    sys.exit(1 if judge.missed else 0)


if __name__ == "__main__":
    main()
