#!/usr/bin/env python3
"""Takes README.md's picture and its table of bandwidths anew, on this machine.

    benches/figures.py                  about two minutes; the machine should do nothing else
    benches/figures.py --seconds 0.5    quicker and less sure

One run of transfer-bench gives both: docs/bandwidth.svg, and the rows between the table's head and the next empty line.
"""

import argparse
import json
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "bandwidth.svg"
HEAD = "| between two processes | read, of the roof | write, of the roof | the roof |\n|---|---|---|---|\n"
# Path, spans, bytes of a span, how the row is called, and its roof.
ROWS = [
    ("shm", 1, 64 << 20, "shm, 64 MiB", "memcpy, one thread"),
    ("shm", 8192, 16 << 10, "shm, 8192 x 16 KiB, scattered", "memcpy of the same pages"),
    ("process-vm", 8192, 16 << 10, "process-vm, 8192 x 16 KiB, scattered", "bare process_vm calls"),
    ("tcp", 1, 64 << 20, "tcp, 64 MiB", "bare sockets"),
    ("tcp", 8192, 16 << 10, "tcp, 8192 x 16 KiB, scattered", "bare sockets"),
]


def run(seconds):
    """The rows of one run, by path, spans, bytes of a span and direction; and the picture."""
    build = ["cargo", "build", "--release", "-p", "transfer-bench"]
    subprocess.run(build, cwd=ROOT, check=True)
    command = [ROOT / "target/release/transfer-bench", "run", "--path", "shm,process-vm,tcp", "--json"]
    command += ["--seconds", str(seconds), "--svg", PICTURE]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    rows = map(json.loads, done.stdout.splitlines())
    return {(row["path"], row["count"], row["len"], row["op"]): row for row in rows}


def table(rows):
    def share(path, count, length, op):
        return f"{rows[path, count, length, op]['share']:.2f}"

    lines = (
        f"| {what} | {share(*shape, 'read')} | {share(*shape, 'write')} | {roof} |\n" for *shape, what, roof in ROWS
    )
    return HEAD + "".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1, help="of each row, its roof as long again")
    rows = run(parser.parse_args().seconds)
    text = README.read_text()
    before, _, after = text.partition(HEAD)
    if not after:
        raise SystemExit("README.md has no such table any more")
    README.write_text(before + table(rows) + after[after.index("\n\n") + 1 :])


if __name__ == "__main__":
    main()
