"""What the scripts that drive a product have in common: two processes, the same scattered spans as transfer-bench's,
every byte of both sides compared, and a clock.

A product is a class with these methods. `__init__(address, size)` registers memory; `metadata()` is what the other
side needs; `connect(metadata, address)`; `prepare(op, ours, theirs, length)` takes places in both memories and gives
a function that moves the bytes once.
"""

import json
import multiprocessing
import os
import statistics
import sys
import time

import numpy

GUARD = 64 << 10
REGION = (256 << 20) + 2 * GUARD


def places(count, length, seed):
    """Where the spans start: a gap as long as a span behind each, in an order of this side's own."""
    if count == 1:
        return numpy.array([GUARD], dtype=numpy.int64)
    order = numpy.random.default_rng(seed).permutation(count)
    return GUARD + order.astype(numpy.int64) * 2 * length


def pattern(seed, size):
    words = numpy.arange(-(-size // 8), dtype=numpy.uint64)
    return ((words ^ numpy.uint64(seed)) * numpy.uint64(0x9E3779B97F4A7C15)).view(numpy.uint8)[:size]


def landed(kept, came, to, source, length, size):
    """What a side holds after bytes came: its own pattern with the other's where spans landed."""
    expected = pattern(kept, size)
    other = pattern(came, size)
    for t, s in zip(to, source):
        expected[t : t + length] = other[s : s + length]
    return expected


def cpu():
    times = os.times()
    return times.user + times.system


def target(product, pipe):
    memory = numpy.ones(REGION, numpy.uint8)
    engine = product(memory.ctypes.data, memory.nbytes)
    pipe.send((engine.metadata(), memory.ctypes.data))
    while True:
        try:
            ask, *args = pipe.recv()
        except EOFError:
            os._exit(0)
        if ask == "fill":
            memory[: args[1]] = pattern(*args)
            pipe.send(True)
        elif ask == "check":
            pipe.send(bool(numpy.array_equal(memory[: args[-1]], landed(*args))))
        elif ask == "cpu":
            pipe.send(cpu())


class Initiator:
    def __init__(self, product):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        process = context.Process(target=target, args=(product, theirs), daemon=True)
        process.start()
        theirs.close()
        self.memory = numpy.ones(REGION, numpy.uint8)
        begin = time.perf_counter()
        self.engine = product(self.memory.ctypes.data, self.memory.nbytes)
        self.setup = time.perf_counter() - begin
        metadata, self.remote = self.pipe.recv()
        self.engine.connect(metadata, self.remote)
        self.prepared = None

    def ask(self, *what):
        self.pipe.send(what)
        return self.pipe.recv()

    def prepare(self, op, count, length):
        """Prepares the lists, moves the bytes once, and compares both memories as far as spans and guards reach."""
        size = 2 * GUARD + count * length * (1 if count == 1 else 2)
        if size > REGION:
            raise ValueError(f"{count} x {length} bytes are more than the memory")
        ours, theirs = places(count, length, 1), places(count, length, 2)
        self.ask("fill", 22, size)
        self.memory[:size] = pattern(11, size)
        self.move = self.engine.prepare(op, self.memory.ctypes.data + ours, self.remote + theirs, length)
        self.move()
        none = (numpy.array([], dtype=numpy.int64),) * 2
        came_here, came_there = ((ours, theirs), none) if op == "read" else (none, (theirs, ours))
        here = numpy.array_equal(self.memory[:size], landed(11, 22, *came_here, length, size))
        there = self.ask("check", 22, 11, *came_there, length, size)
        self.verified = bool(here and there)
        self.prepared = (op, count, length)

    def measure(self, op, count, length, seconds):
        if self.prepared != (op, count, length):
            self.prepared = None
            self.prepare(op, count, length)
        move = self.move
        # Whatever was stopped wakes up.
        move()
        times, before = [], cpu() + self.ask("cpu")
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds or len(times) < 2:
            start = time.perf_counter()
            move()
            times.append(time.perf_counter() - start)
        elapsed = time.perf_counter() - begin
        used = cpu() + self.ask("cpu") - before
        moved = count * length * len(times)
        return {
            "gbps": moved / elapsed / 1e9,
            "p50_us": statistics.median(times) * 1e6,
            "cpu_s_per_gib": used / (moved / (1 << 30)),
            "verified": self.verified,
        }


def main(product):
    """Answers each line of stdin with one on stdout."""
    # Products print what they like; only answers may go where they are read.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(what):
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    try:
        initiator = Initiator(product)
        say({"setup_s": initiator.setup})
        for line in sys.stdin:
            ask = json.loads(line)
            try:
                say(initiator.measure(ask["op"], ask["count"], ask["len"], ask["seconds"]))
            except Exception as error:
                say({"error": str(error)})
    finally:
        # Some products crash when they are torn down; nothing is measured any more.
        answers.flush()
        os._exit(0)
