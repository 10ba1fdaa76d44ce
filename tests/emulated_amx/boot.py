"""Runs a command under Linux on a CPU with AMX that Bochs emulates. See README.md."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["numpy", "scipy-openblas32", "ml_dtypes", "hypothesis", "sortedcontainers"]
PACKAGES += ["pytest", "pluggy", "iniconfig", "packaging", "pygments", "pytest-timeout"]

# Of the kernels of OpenBLAS those for AVX-512 have a vscatterdps that Bochs takes for an illegal instruction.
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/shm; mount -t tmpfs shm /dev/shm
ip link set lo up
stty -F /dev/ttyS0 raw
export PATH=/bin HOME=/tmp OPENBLAS_CORETYPE=Haswell {environment}
cd {directory}
echo "guest: Linux $(uname -r), $(nproc) CPUs," $(grep -o 'amx[a-z0-9_]*' /proc/cpuinfo | sort -u)
{command}
echo "guest: exit status $?"
sleep 1000
"""

# Without 5-level page tables, from which what the BIOS does in system management mode does not return.
# Without messages, because one that is written when another is due is waited for, for ever.
BOCHSRC = """
cpu: model=sapphire_rapids, exclude_features="la57", count={cpus}, ips=50000000, reset_on_triple_fault=0
memory: guest={memory}, host={memory}
romimage: file={bios}
vgaromimage: file={vga_bios}
ata0-master: type=cdrom, path={iso}, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={serial}
clock: sync=none
display_library: nogui
log: {log}
info: action=ignore
error: action=ignore
panic: action=fatal
"""


class Archive:
    """An initramfs: files with the paths they have here, and the shared libraries that they need."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.names: set[str] = set()

    def write(self, name: str, mode: int, data: bytes = b"") -> None:
        if name in self.names:
            return
        if parent := os.path.dirname(name):
            self.write(parent, 0o40755)
        self.names.add(name)
        encoded = name.encode() + b"\0"
        fields = (len(self.names), mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
        self.file.write(header + b"\0" * (-len(header) % 4) + data + b"\0" * (-len(data) % 4))

    def add(self, path: Path) -> None:
        name = str(path.absolute()).lstrip("/")
        if path.is_dir():
            for entry in path.iterdir():
                self.add(entry)
        elif name not in self.names:
            data = path.read_bytes()
            self.write(name, 0o100755, data)
            if data.startswith(b"\x7fELF"):
                ldd = subprocess.run(["ldd", path], capture_output=True, text=True, check=False)
                for library in re.findall(r"(/\S+) \(0x", ldd.stdout):
                    self.add(Path(library))

    def close(self) -> None:
        self.write("TRAILER!!!", 0)
        self.file.close()


def package_folder() -> Path:
    spec = find_spec("blasformer")
    if spec is None or spec.origin is None:
        sys.exit("blasformer is not installed")
    return Path(spec.origin).parent


def python_files() -> Iterator[Path]:
    """This interpreter, its standard library, the packages that the tests need, blasformer, and the tests."""
    yield Path(sys.executable).resolve()
    for entry in Path(sysconfig.get_path("stdlib")).iterdir():
        if entry.name not in {"site-packages", "test", "idlelib", "ensurepip"}:
            yield entry
    for name in PACKAGES:
        package = distribution(name)
        for file in package.files or []:
            path = Path(str(package.locate_file(file)))
            if path.exists() and "tests" not in file.parts and path.suffix not in {".a", ".h", ".hpp"}:
                yield path
    yield package_folder()
    yield ROOT / "pyproject.toml"
    yield from (ROOT / "tests").glob("*.py")


def build_initramfs(path: Path, options: argparse.Namespace) -> None:
    archive = Archive(path)
    command, environment = options.command, ""
    if options.python:
        search = os.pathsep.join([str(package_folder().parent), sysconfig.get_path("platlib")])
        environment = f"PYTHONHOME={sys.base_prefix} PYTHONPATH={search}"
        command = [str(Path(sys.executable).resolve()), *command]
        for file in python_files():
            archive.add(file)
    for file in options.add:
        archive.add(file)
    archive.write("bin/busybox", 0o100755, Path(options.busybox).read_bytes())
    for folder in ("proc", "sys", "dev", "tmp", str(ROOT).lstrip("/")):
        archive.write(folder, 0o40755)
    init = INIT.format(environment=environment, directory=ROOT, command=shlex.join(command))
    archive.write("init", 0o100755, init.encode())
    archive.close()


def build_iso(folder: Path, options: argparse.Namespace) -> Path:
    contents = folder / "iso"
    contents.mkdir()
    for file in (options.isolinux, options.ldlinux):
        shutil.copy(file, contents)
    shutil.copy(options.kernel, contents / "linux")
    build_initramfs(contents / "initrd", options)
    # Bochs counts 50 million cycles a second, whatever CPUID says, and loses its way where Linux replaces its
    # own `rep movsb`.
    missing = ",".join(["erms", "fsrm", *options.without])
    append = f"console=ttyS0 quiet nokaslr mitigations=off tsc_early_khz=50000 clearcpuid={missing}"
    (contents / "isolinux.cfg").write_text(
        f"default linux\nprompt 0\nlabel linux\n kernel linux\n append initrd=initrd {append}\n"
    )
    iso = folder / "boot.iso"
    start = ["-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4"]
    arguments = ["-quiet", "-o", str(iso), *start, "-boot-info-table", str(contents)]
    subprocess.run([options.xorriso, "-as", "mkisofs", *arguments], check=True)
    shutil.rmtree(contents)
    return iso


def boot(folder: Path, iso: Path, options: argparse.Namespace) -> int:
    """The exit status of the command; what it prints is printed."""
    serial, log, bochsrc = folder / "serial", folder / "log", folder / "bochsrc"
    serial.touch()
    settings = {"cpus": options.cpus, "memory": options.memory, "bios": options.bios, "iso": iso}
    settings |= {"vga_bios": options.vga_bios, "serial": serial, "log": log}
    bochsrc.write_text(BOCHSRC.format(**settings))
    command = [options.bochs, "-q", "-f", bochsrc]
    nothing = subprocess.DEVNULL
    bochs = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing)
    deadline = time.monotonic() + options.time_limit
    status, printed = None, ""
    with serial.open(newline="", errors="replace") as lines:
        while status is None:
            ended = bochs.poll() is not None or time.monotonic() > deadline
            new = lines.read()
            print(new, end="", flush=True)
            printed += new
            status = re.search(r"guest: exit status (\d+)\s", printed)
            if ended and not new:
                break
            time.sleep(0.2)
    bochs.kill()
    bochs.wait()
    if status is None:
        print(*log.read_text(errors="replace").splitlines()[-20:], sep="\n", file=sys.stderr)
        return 1
    return int(status[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", action="store_true", help="the command is arguments of Python")
    parser.add_argument("--add", type=Path, action="append", default=[], help="a file or folder it needs")
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--memory", type=int, default=1536, help="in MB")
    parser.add_argument("--without", action="append", default=[], help="a CPU feature Linux must not see")
    parser.add_argument("--time-limit", type=float, default=3600, help="in seconds")
    parser.add_argument("--keep", type=Path, help="a folder to work in, and to leave the log of Bochs in")
    parser.add_argument("--bochs", default="bochs")
    parser.add_argument("--kernel", default="/vmlinuz")
    parser.add_argument("--busybox", default="/bin/busybox", help="a static one")
    parser.add_argument("--xorriso", default="xorriso")
    parser.add_argument("--isolinux", default="/usr/lib/ISOLINUX/isolinux.bin")
    parser.add_argument("--ldlinux", default="/usr/lib/syslinux/modules/bios/ldlinux.c32")
    parser.add_argument("--bios", default="/usr/share/bochs/BIOS-bochs-latest")
    parser.add_argument("--vga-bios", default="/usr/share/vgabios/vgabios.bin")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        return boot(folder, build_iso(folder, options), options)


if __name__ == "__main__":
    sys.exit(main())
