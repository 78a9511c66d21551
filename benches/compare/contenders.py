"""What is compared: transfer-bench, and products that are driven by a process of their own (peer_*.py).

A contender measures one shape in one direction for a moment and says what it saw as a dictionary: gbps, p50_us,
cpu_s_per_gib, verified. Whoever compares calls them in turns, so that all of them see the same neighbours.
"""

import ctypes
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import venv

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PLACE = ROOT / "target" / "compare"
# How long a product may take to answer, its start included.
ANSWER_SECONDS = 60
POLL_BYTES_MAX = 64 << 10


class Failed(Exception):
    """A contender did not do what it was asked."""


def build():
    """The release binary of transfer-bench."""
    subprocess.run(["cargo", "build", "--release", "-p", "transfer-bench"], cwd=ROOT, check=True)
    return ROOT / "target" / "release" / "transfer-bench"


def add_venvs(parser):
    """The flag that says where the products are."""
    parser.add_argument(
        "--venvs",
        type=pathlib.Path,
        default=PLACE,
        metavar="DIR",
        help="has a virtual environment of each product, venv-nixl and venv-mooncake; made when they are missing",
    )


def python_with(venvs, name, packages, dependencies):
    """The interpreter of a virtual environment that has these packages from PyPI; made when it is missing."""
    place = venvs / ("venv-" + name)
    python = place / "bin" / "python"
    ready = place / "ready"
    if not ready.exists():
        print(f"installing {' '.join(packages)} below {place}", file=sys.stderr)
        venv.create(place, clear=True, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run(install + ([] if dependencies else ["--no-deps"]) + packages, check=True, timeout=600)
        ready.touch()
    return python


class TransferBench:
    """One path of transfer-bench; each measurement is a run of its own, with its roof."""

    def __init__(self, binary, path):
        self.binary, self.path = binary, path
        self.name = path

    def rows(self, *args, repeats=5, seconds=1.0):
        """Runs it; its rows."""
        command = [str(self.binary), "run", "--json", "--path", self.path]
        command += ["--repeats", str(repeats), "--seconds", str(seconds), *args]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=140)
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode != 0 or not all(row["verified"] for row in rows):
            errors = [row["error"] for row in rows if "error" in row]
            raise Failed(f"transfer-bench, {self.path}: {errors or done.stderr.strip().splitlines()[-1:]}")
        return rows

    def measure(self, op, count, length, seconds):
        # What takes microseconds is polled for, as the other products do; sleeping is for what takes longer.
        wait = "poll" if count * length <= POLL_BYTES_MAX else "block"
        shape = ["--count", str(count), "--len", str(length), "--wait", wait]
        return self.rows("--op", op, *shape, repeats=1, seconds=seconds)[0]

    def close(self):
        pass


class Peer:
    """A product behind a script that answers each line of stdin with one on stdout, both JSON."""

    def __init__(self, name, python, script, environment=None):
        self.name = name
        PLACE.mkdir(parents=True, exist_ok=True)
        errors = open(PLACE / (name.replace(" ", "-") + ".log"), "w")
        self.process = subprocess.Popen(
            [str(python), str(HERE / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **(environment or {})},
            # A group of its own, so that all of its processes can be stopped together.
            start_new_session=True,
        )
        errors.close()
        self.setup = self._answer()
        self._signal(signal.SIGSTOP)

    def _signal(self, number):
        """Some products spin while they are idle: out of turn, they do not run."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def _answer(self):
        ready, _, _ = select.select([self.process.stdout], [], [], ANSWER_SECONDS)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            raise Failed(f"{self.name} does not answer; see {PLACE.relative_to(ROOT)}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(f"{self.name}: {answer['error']}")
        return answer

    def measure(self, op, count, length, seconds):
        ask = {"op": op, "count": count, "len": length, "seconds": seconds}
        self._signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(ask) + "\n")
            self.process.stdin.flush()
            return self._answer()
        except BrokenPipeError as error:
            raise Failed(f"{self.name} is gone; see {PLACE.relative_to(ROOT)}") from error
        finally:
            self._signal(signal.SIGSTOP)

    def close(self):
        self._signal(signal.SIGCONT)
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self.process.wait()


def doctor(binary):
    """What transfer-bench says of this machine and of its agents."""
    done = subprocess.run([str(binary), "doctor", "--json"], stdout=subprocess.PIPE, text=True, timeout=120)
    return json.loads(done.stdout)


def nixl(name, venvs, environment):
    """NIXL with its UCX backend; UCX chooses what it goes over, unless the environment says."""
    python = python_with(venvs, "nixl", ["nixl-cu12", "numpy"], dependencies=False)
    return Peer(name, python, "peer_nixl.py", {"NIXL_LOG_LEVEL": "ERROR", **environment})


def mooncake(name, venvs):
    """Mooncake's transfer engine, which has tcp for host memory."""
    try:
        ctypes.CDLL("libibverbs.so.1")
    except OSError as error:
        why = "its wheel links libibverbs.so.1 and does not bring it; apt-get install libibverbs1"
        raise Failed(f"{name} cannot be loaded: {why} ({error})") from error
    python = python_with(venvs, "mooncake", ["mooncake-transfer-engine-non-cuda", "numpy"], dependencies=True)
    return Peer(name, python, "peer_mooncake.py", {"MC_LOG_LEVEL": "2"})


# How each product is started, from the place of the virtual environments.
PRODUCTS = {
    "NIXL": lambda venvs: nixl("NIXL", venvs, {}),
    "NIXL over tcp": lambda venvs: nixl("NIXL over tcp", venvs, {"UCX_TLS": "tcp"}),
    "Mooncake over tcp": lambda venvs: mooncake("Mooncake over tcp", venvs),
}
