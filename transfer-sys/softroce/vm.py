#!/usr/bin/env python3
"""Runs a command in a small virtual machine that has two RDMA devices (SoftRoCE), and exits with its status.

The guest's root is this machine's own, read-only below a layer in memory, so every file is where it is here; what the
guest writes is lost. RDMA devices: rxe0 (10.77.0.1) and rxe1 (10.77.0.2), on the two ends of one veth pair, so that
packets do cross a wire. With --guests 2 the command runs in two machines on one wire, each with rxe0; GUEST, GUEST_IP
and PEER_IP tell which is which.

Everything it takes (QEMU, the distribution's kernel, RDMA tools) is fetched by apt and unpacked below --cache: nothing
is installed, and no rights are needed but for `apt-get update`. Plain emulation is enough: booting takes some 4 s.
"""

import argparse
import collections
import contextlib
import fcntl
import gzip
import hashlib
import io
import lzma
import os
import pathlib
import platform
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
# What the guest starts with; a change makes a new image.
INIT = HERE / "init.sh"
NETWORK = HERE / "network.sh"
KERNEL = "linux-image-amd64"
# QEMU looks for its parts beside itself, so they are named here: of other packages only those come that are not installed.
PACKAGES = [
    "qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios", "busybox-static", "iproute2", "libibverbs1", "ibverbs-providers", "ibverbs-utils",
    "perftest", "librdmacm1", "kmod",
]
MODULES = [
    "virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay", "virtio_net", "crc32_generic", "rdma_rxe", "rdma_ucm",
    "veth", "sch_netem",
]
# Parts of the kernel package that no guest needs: 300 MB.
LEFT_OUT = re.compile(
    r"/kernel/(sound|drivers/(media|staging|usb|hid|iio|scsi|ata|mtd|input|hwmon|isdn|gpu)|net/(wireless|can))/|/usr/share/"
)
UNAVAILABLE, TIMED_OUT, DIED = 77, 124, 125


class Unavailable(Exception):
    """This machine cannot run the guest; the words say why and what to do."""


def main():
    options = arguments()
    cache = pathlib.Path(options.cache).resolve()
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with (cache / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            tools = Tools.prepare(cache)
        if options.setup:
            print(f"kernel {tools.version} and {tools.qemu} are ready in {cache}")
            return 0
        return run(tools, options)
    except Unavailable as reason:
        print(f"softroce: SKIPPED: {reason}", file=sys.stderr)
        return UNAVAILABLE


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit status: that of the command; 77 where no guest can run here, 124 after --timeout, 125 where the guest died",
    )
    parser.add_argument("--cache", default="target/tools/softroce", help="where what was fetched lies (default: %(default)s)")
    parser.add_argument("--setup", action="store_true", help="only fetch and unpack")
    parser.add_argument("--guests", type=int, choices=(1, 2), default=1, help="how many machines (default: %(default)s)")
    parser.add_argument("--timeout", type=int, default=600, metavar="SECONDS", help="of the whole run (default: %(default)s)")
    parser.add_argument("--memory", default="2G", help="of each guest; what it writes counts (default: %(default)s)")
    parser.add_argument("--share", action="append", default=[], metavar="DIR", help="writable in the guest, at the same path")
    parser.add_argument("command", nargs="*", help="runs as root in the folder this was called from")
    options = parser.parse_args()
    if not options.setup and not options.command:
        parser.error("no command")
    return options


class Tools:
    """What a guest is made of, all of it below `cache`."""

    def __init__(self, cache, version):
        self.cache, self.version = cache, version
        self.root, self.kernel = cache / "root", cache / "vmlinux"
        self.qemu = self.program("qemu-system-x86_64")

    @classmethod
    def prepare(cls, cache):
        if platform.machine() != "x86_64":
            raise Unavailable(f"the guest is an x86-64 machine, and this is {platform.machine()}")
        ready = cache / "ready"
        wanted = " ".join([KERNEL, *PACKAGES])
        if not ready.exists() or ready.read_text().splitlines()[0] != wanted:
            version = fetch(cache)
            ready.write_text(f"{wanted}\n{version}\n")
        tools = cls(cache, ready.read_text().splitlines()[1])
        tools.image = tools.initramfs()
        return tools

    def program(self, name):
        """One that was unpacked, or this machine's own where apt had nothing to fetch."""
        path = os.pathsep.join([str(self.root / "usr/bin"), str(self.root / "usr/sbin"), os.environ["PATH"]])
        found = shutil.which(name, path=path)
        if not found:
            raise Unavailable(f"there is no {name}, and apt did not bring one; remove {self.cache} to try again")
        return found

    def initramfs(self):
        """The first root of the guest: busybox, the modules, and init.sh. Kept under the name of its content."""
        key = hashlib.sha256((INIT.read_text() + " ".join(MODULES) + self.version).encode()).hexdigest()[:16]
        image = self.cache / f"initramfs-{key}.gz"
        if image.exists():
            return image
        archive = Cpio()
        for folder in ("bin", "mods", "proc", "sys", "dev", "host", "packages", "rw", "new"):
            archive.folder(folder)
        archive.file("bin/busybox", pathlib.Path(self.program("busybox")).read_bytes())
        archive.file("init", INIT.read_bytes())
        order = modules_in_order(self.cache / "kernel", MODULES)
        for name, content in order.items():
            archive.file(f"mods/{name}.ko", content)
        archive.file("mods/order", "".join(f"{name}\n" for name in order).encode())
        partial = image.with_suffix(".part")
        partial.write_bytes(gzip.compress(archive.end(), compresslevel=1))
        partial.rename(image)
        return image


# ------------------------------------------------------------------------------------------------ what apt brings


def fetch(cache):
    """Downloads and unpacks everything; returns the kernel's version."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise Unavailable("there is no apt to fetch QEMU and a kernel with")
    print("softroce: fetching QEMU, a kernel and RDMA tools by apt (about 90 MB)", file=sys.stderr)
    for name in ("root", "kernel", "debs"):
        shutil.rmtree(cache / name, ignore_errors=True)
    debs = cache / "debs"
    (debs / "partial").mkdir(parents=True)
    depends = apt("apt-cache", "depends", KERNEL)
    image = re.search(r"Depends: (linux-image-\S+)", depends)
    if not image:
        raise Unavailable(f"apt knows no kernel behind {KERNEL}; `apt-get update` may help")
    apt("apt-get", "-o", f"Dir::Cache::archives={debs}", "-o", "Debug::NoLocking=1", "--yes", "--no-install-recommends",
        "--download-only", "--reinstall", "install", *PACKAGES)
    apt("apt-get", "download", image[1], cwd=debs)
    for deb in sorted(debs.glob("*.deb")):
        is_kernel = deb.name.startswith("linux-image-")
        unpack(deb, cache / ("kernel" if is_kernel else "root"))
    shutil.rmtree(debs)
    version = next((cache / "kernel/usr/lib/modules").iterdir()).name
    elf_kernel(next((cache / "kernel/boot").glob("vmlinuz*")).read_bytes(), cache / "vmlinux")
    return version


def apt(*command, cwd=None):
    done = subprocess.run(command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                          env=os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"})
    if done.returncode != 0:
        raise Unavailable(f"`{shlex.join(command[:2])} ...` failed: {' '.join(done.stdout.split())[-300:]}")
    return done.stdout


def unpack(deb, to):
    """Unpacks a package. What older packages put into /lib or /bin goes below /usr, where those are links to."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as source:
        with tarfile.open(fileobj=source.stdout, mode="r|") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if LEFT_OUT.search(f"/{name}") and not re.search(r"share/(qemu|seabios)", name):
                    continue
                member.name = re.sub(r"^(lib|lib64|bin|sbin)/", r"usr/\1/", name)
                if member.islnk():
                    member.linkname = re.sub(r"^\.?/?(lib|lib64|bin|sbin)/", r"usr/\1/", member.linkname)
                if member.name and member.name not in ("lib", "lib64", "bin", "sbin"):
                    archive.extract(member, to, set_attrs=not member.isdir())
    if source.returncode != 0:
        raise Unavailable(f"{deb.name} cannot be unpacked")


def elf_kernel(image, to):
    """The ELF kernel out of a bzImage, by the offsets of its header (Documentation/arch/x86/boot.rst). QEMU starts it
    straight (PVH), which saves the emulated unpacking: 3 s."""
    sectors, (offset, length) = image[0x1F1], struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = image[start:start + length]
    if payload.startswith(b"\xfd7zXZ"):
        payload = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(b"\x1f\x8b"):
        payload = gzip.GzipFile(fileobj=io.BytesIO(payload)).read()
    to.write_bytes(payload if payload.startswith(b"\x7fELF") else image)


def modules_in_order(kernel, wanted):
    """The modules and those they depend on, each after what it needs: name to content."""
    files = {path.name.split(".ko")[0].replace("-", "_"): path for path in kernel.glob("usr/lib/modules/*/kernel/**/*.ko*")}
    order = collections.OrderedDict()

    def add(name):
        path = files.get(name)
        if name in order or path is None:
            # What is not there is built in; if it is not that either, the guest says so.
            return
        content = path.read_bytes()
        content = lzma.decompress(content) if path.suffix == ".xz" else content
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        for other in (depends[1].decode() if depends else "").split(","):
            add(other.replace("-", "_"))
        order[name] = content

    for name in wanted:
        add(name.replace("-", "_"))
    return order


class Cpio:
    """An archive as the kernel unpacks it: the "newc" form of Documentation/driver-api/early-userspace/buffer-format.rst."""

    def __init__(self):
        self.out, self.count = io.BytesIO(), 0

    def folder(self, name):
        self.entry(name, 0o040755, b"")

    def file(self, name, content):
        self.entry(name, 0o100755, content)

    def entry(self, name, mode, content):
        self.count += 1
        encoded = name.encode() + b"\0"
        fields = [self.count, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0]
        for part in (b"070701" + "".join(f"{field:08X}" for field in fields).encode() + encoded, content):
            self.out.write(part + b"\0" * (-len(part) % 4))

    def end(self):
        self.entry("TRAILER!!!", 0, b"")
        return self.out.getvalue()


# ------------------------------------------------------------------------------------------------------ the guest


def has_kvm():
    """Whether hardware helps. A writable /dev/kvm alone says nothing: under a nested hypervisor without VT-x or SVM (PVM)
    it makes machines in which a kernel of the distribution hangs without a word."""
    flags = set(pathlib.Path("/proc/cpuinfo").read_text().split())
    return os.access("/dev/kvm", os.W_OK) and bool(flags & {"vmx", "svm"}) and not os.path.exists("/sys/module/kvm_pvm")


def run(tools, options):
    with tempfile.TemporaryDirectory(prefix="softroce-") as folder, contextlib.ExitStack() as started:
        guests = [Guest(tools, options, pathlib.Path(folder), number) for number in range(options.guests)]
        for guest in guests:
            guest.start()
            started.callback(guest.stop)
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: sys.exit(130))
        return max(guest.wait(options.timeout) for guest in guests)


class Guest:
    def __init__(self, tools, options, folder, number):
        self.tools, self.options, self.number = tools, options, number
        self.control = folder / f"guest{number}"
        self.console = folder / f"console{number}"
        self.wires = [folder / f"wire{number}", folder / f"wire{1 - number}"]
        self.qemu = None

    def start(self):
        self.control.mkdir()
        (self.control / "shares").write_text("".join(f"{os.path.realpath(share)}\n" for share in self.options.share))
        (self.control / "start").write_text(self.script())
        environment = os.environ | {"LD_LIBRARY_PATH": str(self.tools.root / "usr/lib/x86_64-linux-gnu")}
        self.qemu = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, env=environment, start_new_session=True)

    def script(self):
        own, peer = self.number + 1, 2 - self.number
        known = {name: value for name, value in os.environ.items() if re.match(r"(RUST_|CARGO_|HEADRACE_|HOME$)", name)}
        known |= {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "GUESTS": str(self.options.guests), "GUEST": str(self.number),
                  "GUEST_IP": f"10.77.0.{own}", "PEER_IP": f"10.77.0.{peer}"}
        lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(known.items())]
        lines += [NETWORK.read_text(), f"cd {shlex.quote(os.getcwd())}", f"exec {shlex.join(self.options.command)}"]
        return "\n".join(lines) + "\n"

    def command(self):
        hardware = ["-accel", "kvm", "-cpu", "host"] if has_kvm() else ["-accel", "tcg,thread=multi", "-cpu", "max,la57=off"]
        shares = [("hostroot", "/", ",readonly=on"), ("packages", self.tools.root, ",readonly=on"), ("control", self.control, "")]
        shares += [(f"share{at}", os.path.realpath(share), "") for at, share in enumerate(self.options.share)]
        data = self.tools.root / "usr/share"
        # It ends by itself even if nobody is left to end it.
        bound = ["timeout", "--kill-after=5", str(self.options.timeout + 10)]
        return [
            *bound, self.tools.qemu, "-M", "q35", *hardware, "-smp", "2", "-m", self.options.memory, "-nodefaults", "-no-user-config",
            "-display", "none", "-no-reboot", "-L", data / "qemu", "-L", data / "seabios",
            "-kernel", self.tools.kernel, "-initrd", self.tools.image,
            "-append", "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable",
            "-serial", f"file:{self.console}", "-device", "virtio-serial-pci",
            "-chardev", "stdio,id=out,signal=off", "-device", "virtconsole,chardev=out",
            *(word for tag, path, more in shares for word in (
                "-fsdev", f"local,id={tag},path={path},security_model=none,multidevs=remap{more}",
                "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}")),
            *self.wire(),
        ]

    def wire(self):
        if self.options.guests == 1:
            return []
        here, there = self.wires
        return ["-netdev", f"dgram,id=wire,local.type=unix,local.path={here},remote.type=unix,remote.path={there}",
                "-device", f"virtio-net-pci,netdev=wire,mac=52:54:00:77:00:0{self.number + 1},host_mtu=4200,romfile="]

    def wait(self, timeout):
        try:
            ended = self.qemu.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.complain(f"did not end within {timeout} s", TIMED_OUT)
        status = self.control / "status"
        if not status.exists() or not status.read_text().strip():
            return self.complain(f"died (QEMU: {ended})", DIED)
        console = self.console.read_text(errors="replace")
        if re.search(r"BUG:|Oops|WARNING: CPU|general protection", console):
            return self.complain("has a kernel that complains", DIED)
        return int(status.read_text())

    def complain(self, what, status):
        lines = self.console.read_text(errors="replace").splitlines() if self.console.exists() else []
        print(f"softroce: guest {self.number} {what}; its console ends:", *lines[-40:], sep="\n    ", file=sys.stderr)
        return status

    def stop(self):
        if self.qemu.poll() is None:
            os.killpg(self.qemu.pid, signal.SIGKILL)
            self.qemu.wait()


if __name__ == "__main__":
    sys.exit(main())
