#!/usr/bin/env python3
"""transfer-bench beside NIXL and Mooncake: the same shapes, in turns, in one run, every byte verified.

    benches/compare/compare.py                          everything, about ten minutes
    benches/compare/compare.py --shape 8192x16KiB       one shape
    benches/compare/compare.py --shape 64MiB --op read --rounds 3 --seconds 0.2 --without mooncake

By hand, since it takes the products from PyPI (about 700 MB, into virtual environments below target/compare) and a
machine that does nothing else. Mooncake's wheel links libibverbs, which it does not bring: apt-get install libibverbs1.
Everything runs on loopback. A figure is the median of the rounds; a ratio is the median of the rounds' ratios.
"""

import argparse
import statistics
import sys

import contenders

UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "B": 1}
SHAPES = ["4KiB", "64KiB", "1MiB", "16MiB", "64MiB", "256MiB", "1024x64KiB", "8192x16KiB", "4096x4KiB"]
# Which of ours is held against which of theirs.
RATIOS = [("shm", "NIXL"), ("tcp", "NIXL over tcp"), ("tcp", "Mooncake over tcp")]


def shape(text):
    """(1, 65536) of 64KiB, (8192, 16384) of 8192x16KiB."""
    count, _, length = text.rpartition("x")
    for unit, factor in UNITS.items():
        if length.endswith(unit):
            return int(count or 1), int(length[: -len(unit)]) * factor
    raise argparse.ArgumentTypeError(f"{text} is no shape; write 64KiB or 8192x16KiB")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", default=SHAPES, help="default: " + " ".join(SHAPES))
    parser.add_argument("--op", nargs="+", choices=["read", "write"], default=["write", "read"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each measurement")
    parser.add_argument("--without", nargs="+", default=[], choices=["nixl", "mooncake", "process-vm"])
    contenders.add_venvs(parser)
    return parser.parse_args()


def contestants(without, venvs):
    """All that can be had here; what cannot is told and left out."""
    binary = contenders.build()
    paths = [path for path in ("shm", "process-vm", "tcp") if path not in without]
    found = [contenders.TransferBench(binary, path) for path in paths]
    for name, make in contenders.PRODUCTS.items():
        if name.split()[0].lower() in without:
            continue
        try:
            found.append(make(venvs))
        except (contenders.Failed, OSError, contenders.subprocess.SubprocessError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return found


def row(contest, op, count, length, args):
    """Rounds in which everybody has a turn: for each contender its figures, in order."""
    seen = {contender.name: [] for contender in contest}
    for _ in range(args.rounds):
        for contender in contest:
            try:
                figures = contender.measure(op, count, length, args.seconds)
            except contenders.Failed as error:
                print(error, file=sys.stderr)
                figures = None
            seen[contender.name].append(figures)
    return seen


def cell(rounds):
    """The median of what was verified, and loudly what was not."""
    figures = [f for f in rounds if f]
    if not figures:
        return "failed"
    rate = f"{statistics.median(f['gbps'] for f in figures):.3g}"
    return rate if all(f["verified"] for f in figures) else rate + " WRONG BYTES"


def ratio(ours, theirs):
    pairs = [a["gbps"] / b["gbps"] for a, b in zip(ours, theirs) if a and b]
    return f"{statistics.median(pairs):.2f}" if pairs else "-"


def main():
    args = arguments()
    shapes = [(text, *shape(text)) for text in args.shape]
    contest = contestants(args.without, args.venvs)
    names = [contender.name for contender in contest]
    pairs = [(ours, theirs) for ours, theirs in RATIOS if ours in names and theirs in names]
    heading = ["op", "spans", *names, *(f"{ours} / {theirs}" for ours, theirs in pairs)]
    print("GB/s, median of", args.rounds, "rounds of", args.seconds, "s\n")
    print("| " + " | ".join(heading) + " |")
    print("|" + "---|" * len(heading), flush=True)
    try:
        for op in args.op:
            for text, count, length in shapes:
                seen = row(contest, op, count, length, args)
                cells = [op, text, *(cell(seen[name]) for name in names)]
                cells += [ratio(seen[ours], seen[theirs]) for ours, theirs in pairs]
                print("| " + " | ".join(cells) + " |", flush=True)
    finally:
        for contender in contest:
            contender.close()


if __name__ == "__main__":
    main()
