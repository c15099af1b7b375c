"""What `flowact doctor` looks at beside packages and plugins: compiler, memory, limits, GPUs, media, hub, port. Nothing is sent over a network."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

GIBIBYTE = 1024**3
#: below these a quickstart does not finish
MIN_MEMORY, MIN_DISK = 4 * GIBIBYTE, 2 * GIBIBYTE
#: below these data workers may die: their batches lie in shared memory, and each tensor that is handed over may hold a file
MIN_SHARED, MIN_FILES = 1 * GIBIBYTE, 4096
#: the first driver that runs programs of a major version of CUDA
FIRST_DRIVER = {11: (450, 80), 12: (525, 60), 13: (580, 65)}
SERVE_PORT = 7860


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        status: "missing" makes the exit code 1; "optional" is absent or tight and may stay so.
        fix: what to type, or "".
        group: findings of one group that are all well are shown as one line.
    """

    name: str
    status: Literal["ok", "missing", "optional"]
    value: str
    fix: str = ""
    group: str = ""


def compilers() -> Iterator[Finding]:
    """What DeepSpeed needs for the operations that it compiles when they are asked for."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    absent = "not found; training needs none, only operations that DeepSpeed compiles on demand"
    yield Finding("g++", "ok" if compiler else "optional", compiler or absent, "" if compiler else "apt-get install g++")
    ninja = shutil.which("ninja") or importlib.util.find_spec("ninja")
    absent = "not found; DeepSpeed compiles with it"
    yield Finding("ninja", "ok" if ninja else "optional", "found" if ninja else absent, "" if ninja else "pip install ninja")


def room() -> Iterator[Finding]:
    """Cores, memory as far as a container may use it, disks, shared memory, open files."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = _cpu_quota()
    yield Finding("cores", "ok", f"{cores}, of which this container may use {allowed:g}" if allowed and allowed < cores else str(cores))
    memory = min(psutil.virtual_memory().available, _container_memory())
    enough = memory >= MIN_MEMORY
    need = f"free {MIN_MEMORY // GIBIBYTE} GiB of memory"
    yield Finding("memory", "ok" if enough else "missing", f"{memory / GIBIBYTE:.1f} GiB free", "" if enough else need)
    disk = shutil.disk_usage(".").free
    need = f"free {MIN_DISK // GIBIBYTE} GiB on the disk of this folder"
    yield Finding("disk", "ok" if disk >= MIN_DISK else "missing", f"{disk / GIBIBYTE:.1f} GiB free", "" if disk >= MIN_DISK else need)
    if not os.access(".", os.W_OK):
        yield Finding("folder", "optional", f"{Path.cwd()} cannot be written to", "work in another folder, or name others with --out")
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        tight = "" if size >= MIN_SHARED else "docker run --shm-size=8g, or data.init_args.num_workers=0"
        yield Finding("shared memory", "optional" if tight else "ok", f"{size / GIBIBYTE:.1f} GiB in {shared}", tight)
    yield from _open_files()


def _open_files() -> Iterator[Finding]:
    try:
        import resource
    except ImportError:
        return
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 0 <= limit < MIN_FILES
    fix = f"ulimit -n {most if 0 <= most < 65536 else 65536}" if few else ""
    yield Finding("open files", "optional" if few else "ok", f"{'no limit' if limit < 0 else limit} at once", fix)


def _container_memory() -> float:
    """Bytes that the control group still allows; infinite outside a container."""
    try:
        most = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return float("inf") if most == "max" else max(0, int(most) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        return float("inf")


def _cpu_quota() -> float | None:
    """Cores that the control group allows; None where it does not say."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def media() -> Iterator[Finding]:
    """The encoders of every video that is written, and what a torchcodec that is there would need."""
    try:
        from av.codec import Codec

        for name in ("libx264", "aac"):
            try:
                Codec(name, "w")
                yield Finding(f"encoder {name}", "ok", "in PyAV", group="encoders")
            except ValueError:
                fix = "pip install --force-reinstall --only-binary av av"
                yield Finding(f"encoder {name}", "missing", "not in this build of PyAV; its wheels have it", fix, group="encoders")
    except ImportError as error:
        yield Finding("PyAV", "missing", str(error), "pip install --force-reinstall av")
    if importlib.util.find_spec("torchcodec"):
        from ctypes.util import find_library

        found = find_library("avutil")
        absent = "is installed, the FFmpeg libraries it needs are not; FlowAct does not use it, `datasets` does for sound"
        yield Finding("torchcodec", "ok" if found else "optional", f"with {found}" if found else absent, "" if found else "apt-get install ffmpeg")


def hub() -> Iterator[Finding]:
    """Where weights of other libraries are kept, and whether they may be fetched."""
    if not importlib.util.find_spec("huggingface_hub"):
        return
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    place = next(path for path in (cache, *cache.parents) if path.exists())
    offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON")
    value = f"cache {cache}, {shutil.disk_usage(place).free / GIBIBYTE:.1f} GiB free{'; offline: only what lies there is found' if offline else ''}"
    if not os.access(place, os.W_OK):
        yield Finding("Hugging Face", "optional", f"{value}; it cannot be written to", "export HF_HOME=FOLDER")
    else:
        yield Finding("Hugging Face", "ok", value)


def ports() -> Iterator[Finding]:
    """The port of `flowact serve`, and one for processes that train together."""
    for name, port, fix in (("port of serve", SERVE_PORT, f"flowact serve --port {SERVE_PORT + 1}"), ("port of training", 0, "")):
        try:
            with socket.socket() as own:
                own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                own.bind(("127.0.0.1", port))
                yield Finding(name, "ok", f"{port or 'any'} is free")
        except OSError as error:
            yield Finding(name, "optional", f"{port or 'none'}: {error.strerror}", fix)


def gpus() -> Iterator[Finding]:
    """What torch can compute on, and why not where the driver knows more than torch."""
    import torch

    from flowact.machine import computes_bfloat16

    native = computes_bfloat16("cpu")
    slow = "this CPU does not compute it; the quickstart and streams use float32, about as fast as ever"
    yield Finding("bfloat16", "ok" if native else "optional", "computed by this CPU" if native else slow)
    driver, cards = nvidia()
    if torch.cuda.is_available():
        known = torch.cuda.get_arch_list()
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            value = f"{properties.name}, {properties.total_memory / GIBIBYTE:.0f} GiB, driver {driver or 'unknown'}, CUDA {torch.version.cuda}"
            if runs_on(known, properties.major, properties.minor):
                yield Finding(f"gpu {index}", "ok", value)
            else:
                value = f"{properties.name} is of compute capability {properties.major}.{properties.minor}, this torch is for {' '.join(known)}"
                yield Finding(f"gpu {index}", "missing", value, "install a torch for it: https://pytorch.org/get-started/locally")
        nvcc = shutil.which("nvcc") or shutil.which(os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc"))
        absent = "not found; only operations that DeepSpeed compiles on demand need it"
        yield Finding("nvcc", "ok" if nvcc else "optional", nvcc or absent, "" if nvcc else f"install the CUDA toolkit {torch.version.cuda}")
    elif cards:
        yield Finding("gpu", "missing", f"{', '.join(cards)} with driver {driver}, which torch cannot use", why_not(driver, torch.version.cuda))
    else:
        yield Finding("gpu", "optional", "none that torch can use; the quickstart runs on CPU")


def runs_on(known: list[str], major: int, minor: int) -> bool:
    """Whether code for these architectures runs on a card: of the same major version and no newer, or compiled when it is loaded."""
    for name in known:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name)
        if match and match[1] == "sm" and int(match[2]) == major and int(match[3]) <= minor:
            return True
        if match and match[1] == "compute" and (int(match[2]), int(match[3])) <= (major, minor):
            return True
    return False


def why_not(driver: str, cuda: str | None) -> str:
    """What to do when the driver has cards and torch has none."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
        return f"unset CUDA_VISIBLE_DEVICES, which is {os.environ['CUDA_VISIBLE_DEVICES']!r}"
    if cuda is None:
        return "this torch is for CPUs: pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cu126"
    first = FIRST_DRIVER.get(int(cuda.partition(".")[0]))
    numbers = tuple(int(part) for part in re.findall(r"\d+", driver)[:2])
    if first and numbers and numbers < first:
        return f"CUDA {cuda} needs driver {first[0]}.{first[1]} or newer: update it, or install a torch for an older CUDA (https://pytorch.org)"
    return 'python -c "import torch; torch.cuda.init()" says why'


def nvidia() -> tuple[str, list[str]]:
    """Version of the driver and names of its cards; '' and none where there is no driver."""
    program = shutil.which("nvidia-smi")
    if not program:
        return "", []
    try:
        command = [program, "--query-gpu=driver_version,name", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "", []
    rows = [line.split(", ", 1) for line in done.stdout.splitlines() if ", " in line]
    return (rows[0][0], [row[1] for row in rows]) if done.returncode == 0 and rows else ("", [])


def unmet(distribution: importlib.metadata.Distribution) -> Iterator[tuple[str, str]]:
    """Requirements of an installed distribution that are not met, with what is there."""
    from packaging.requirements import Requirement

    for requirement in map(Requirement, distribution.requires or ()):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield str(requirement), "not installed"
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield str(requirement), f"{version} is installed"
