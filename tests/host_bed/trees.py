"""The directory trees that a bed is made of, built once and kept outside the checkout.

`host`     what the bed boots: Debian with systemd, machined, D-Bus, polkit.
`guest`    a plain OS tree for machines, with nothing of ours in it.
`product`  what stands in /opt/hyperhive, without our own code: the locked wheels and an interpreter.

A tree is named by the hash of its recipe, so a changed recipe is a new tree.  The mirrors are the test
machine's own business: mmdebstrap and pip are asked to use what is configured.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
PYTHON = "3.11"  # of SUITE, and so the ABI of the wheels
BUILD_TIMEOUT_S = 900
# What a tool mounts or leaves running ends with it, and it ends with us.
ALONE = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
)

HOST_PACKAGES = [
    "systemd",
    "systemd-sysv",
    "systemd-container",
    "dbus",
    "polkitd",
    "iproute2",
    "nftables",
    "python3",
    "python3-venv",
    "git",
    "nix-bin",
    "make",
    "procps",
    "busybox-static",
]
GUEST_PACKAGES = ["systemd", "systemd-sysv", "dbus", "python3", "iproute2", "procps"]

# These would touch the kernel that the bed shares with its host, or only cost time.
MASKED = [
    "systemd-sysctl.service",
    "systemd-modules-load.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "systemd-remount-fs.service",
    "systemd-udevd.service",
    "systemd-oomd.service",
    "systemd-timesyncd.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "console-getty.service",
    "getty@tty1.service",
    "fstrim.timer",
    "systemd-pstore.service",
]


class CannotBuild(Exception):
    """A tree could not be built; the message ends with what the tool said."""


def cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hyperhive-tests"


def host() -> Path:
    return _built("host", [SUITE, *HOST_PACKAGES, *MASKED, "1"], _build_host)


def guest() -> Path:
    return _built("guest", [SUITE, *GUEST_PACKAGES, "1"], _build_guest)


def product() -> Path:
    lock = (ROOT / "requirements.lock").read_text()
    return _built("product", [lock, PYTHON, platform.machine(), "1"], _build_product)


def are_built() -> bool:
    """Whether nothing needs mmdebstrap any more."""
    return all(
        _place(kind, parts).exists()
        for kind, parts in (
            ("host", [SUITE, *HOST_PACKAGES, *MASKED, "1"]),
            ("guest", [SUITE, *GUEST_PACKAGES, "1"]),
        )
    )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold *path* alone among all processes; waits for whoever has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _place(kind: str, recipe: list[str]) -> Path:
    digest = hashlib.sha256("\0".join(recipe).encode()).hexdigest()
    return cache_dir() / f"{kind}-{digest[:12]}"


def _built(kind: str, recipe: list[str], build: Callable[[Path], None]) -> Path:
    tree = _place(kind, recipe)
    if tree.exists():
        return tree
    with locked(cache_dir() / f"{kind}.lock"):
        if tree.exists():
            return tree
        unfinished = cache_dir() / f"{kind}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        unfinished.chmod(0o755)  # the root directory of a tree, whatever our umask
        build(unfinished)
        unfinished.rename(tree)
    return tree


def _build_host(tree: Path) -> None:
    _debootstrap(tree, HOST_PACKAGES)
    (tree / "etc/hostname").write_text("bed\n")
    for unit in MASKED:
        _link(tree / "etc/systemd/system" / unit, "/dev/null")
    # Where boot.sh mounts; an overlay is no place for a machine's root, it cannot be id-mapped.
    for directory in ("opt/hyperhive", "src/hyperhive", "srv/guest", "var/lib/machines", "var/lib/hyperhive"):
        (tree / directory).mkdir(parents=True, exist_ok=True)
    (tree / "var/lib/machines").chmod(0o700)


def _build_guest(tree: Path) -> None:
    _debootstrap(tree, GUEST_PACKAGES)
    (tree / "etc/hostname").unlink(missing_ok=True)


def _debootstrap(tree: Path, packages: list[str]) -> None:
    unneeded = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"]
    _run(
        *ALONE,
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={','.join(packages)}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in unneeded),
        SUITE,
        str(tree),
    )
    # Empty is *not the first boot*, and each boot gets an id of its own.
    (tree / "etc/machine-id").write_text("")
    (tree / "etc/resolv.conf").unlink(missing_ok=True)


def _build_product(tree: Path) -> None:
    """Lay out what `python3 -m venv` would, for the /usr/bin/python3 of the bed and of its machines."""
    packages = tree / f"lib/python{PYTHON}/site-packages"
    packages.mkdir(parents=True)
    (tree / "bin").mkdir()
    _link(tree / "bin/python3", "/usr/bin/python3")
    (tree / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    # --no-deps: the lock file has them all, and pip takes another Python's wheels only with it.
    _run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install"),
        *(
            "--no-deps",
            "--no-compile",
            "--require-hashes",
            "--python-version",
            PYTHON,
            "--implementation",
            "cp",
        ),
        *(f"--platform={name}" for name in _platforms()),
        *("--target", str(packages), "-r", str(ROOT / "requirements.lock")),
    )
    shutil.rmtree(packages / "bin", ignore_errors=True)
    # Compiled by the interpreter that will run it: a machine has it read-only and could never keep the result.
    at = host() / "opt/hyperhive"
    script = f'mount --bind "{tree}" "{at}"; chroot "{host()}" python3 -m compileall -q /opt/hyperhive'
    _run(*ALONE, "sh", "-euc", script)


def _platforms() -> Iterator[str]:
    """The wheels that bookworm's glibc 2.36 can load, newest first."""
    machine = platform.machine()
    for minor in range(36, 16, -1):
        yield f"manylinux_2_{minor}_{machine}"
    yield f"manylinux2014_{machine}"
    yield f"linux_{machine}"


def _link(link: Path, target: str) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def _run(*argv: str) -> None:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise CannotBuild(
            f"cannot build a tree, {' '.join(argv)[:200]} … ended with {done.returncode}: {said}"
        )
