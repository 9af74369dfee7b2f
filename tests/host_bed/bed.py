"""A disposable host for the tests: a real systemd as PID 1, with D-Bus and machined, in namespaces of its own.

What it writes is its own; it begins as the cached tree each time.  Its files can be read and written from outside
(`Bed.path`), its machines are in cgroups below its own, and its network is only `lo`.
"""

import fcntl
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any, Final

from . import keeper, trees

HERE = Path(__file__).resolve().parent
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UP_TIMEOUT_S = 30.0
DOWN_TIMEOUT_S = keeper.POLITE_S + keeper.KILL_S + 10
PROGRAMS = {
    "hive": "hive_core.cli.__main__",
    "hive-core": "hive_core.__main__",
    "hive-agent": "hive_agent.__main__",
}


INOTIFY_INSTANCES: Final = 8192


class BedError(Exception):
    """The bed did not do what it was told; the message ends with what it said."""


def why_not() -> str | None:
    """Say in one line why no bed can be made here, or nothing."""
    if os.geteuid() != 0:
        return "a test host needs root"
    missing = [tool for tool in ("unshare", "nsenter", "setpriv") if not shutil.which(tool)]
    if not trees.are_built() and not shutil.which("mmdebstrap"):
        missing.append("mmdebstrap")
    if missing:
        return f"a test host needs {', '.join(missing)}: apt install util-linux mmdebstrap"
    mount = _cgroup2()
    if mount is None or not os.access(mount, os.W_OK):
        return "a test host needs a writable cgroup2 file system"
    return None


class Bed:
    """One test host.  `open_bed` makes one for a while, `Bed.up` one that stays until `down`."""

    def __init__(self, name: str) -> None:
        if not re.fullmatch("[a-z0-9][a-z0-9-]*", name):
            raise BedError(f"cannot call a test host {name!r}: small letters, digits and hyphens")
        self.name = name
        self.run_dir = _runs() / name
        mount = _cgroup2()
        if mount is None:
            raise BedError("cannot find a cgroup2 file system")
        self.cgroup = mount / f"hive-bed-{name}"
        self._lifeline: int | None = None
        self._log: IO[bytes] | None = None
        self._keeper: subprocess.Popen[bytes] | None = None
        self._entered = count()

    @classmethod
    def up(cls, name: str, *, checkout: Path = trees.ROOT, tied: bool = False) -> "Bed":
        """Boot a bed and return it when all its units are up.

        A *tied* one ends with this process, however that ends.

        Raises:
            BedError: there is one of that name, or it did not come up in 30 s, or not whole.
            trees.CannotBuild: a tree was missing and could not be built.
        """
        environment = {
            "HOST": str(trees.host()),
            "GUEST": str(trees.guest()),
            "PRODUCT": str(trees.product()),
            "CHECKOUT": str(checkout),
            "IN_MEMORY": _size_in_memory(),
        }
        bed = cls(name)
        with trees.locked(trees.cache_dir() / "beds.lock"):
            _sweep()
            if bed.run_dir.exists():
                raise BedError(f"cannot make a test host {name!r}: there is one")
            for directory in ("root", "disk"):
                (bed.run_dir / directory).mkdir(parents=True)
            _make_room_for_machines()
            bed._start_keeper(environment, tied=tied)
        try:
            bed._wait_up()
        except BaseException:
            bed.down()
            raise
        return bed

    @classmethod
    def attach(cls, name: str) -> "Bed":
        """Give the bed of that name which somebody else has brought up.

        Raises:
            BedError: there is none.
        """
        bed = cls(name)
        if not _is_held(bed.run_dir):
            raise BedError(f"cannot find a test host {name!r}: python -m tests.host_bed ls")
        return bed

    @property
    def pid(self) -> int:
        """Of its PID 1, as the test machine sees it."""
        return int((self.run_dir / "pid").read_text())

    def path(self, path: str) -> Path:
        """Where a file of the bed is for the tests.  An absolute symlink on the way would lead out of the bed."""
        return Path(f"/proc/{self.pid}/root") / path.lstrip("/")

    def argv(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> list[str]:
        """Give the command that runs *argv* in the bed, as root, in `/`, for whoever starts processes himself."""
        return self._argv(argv, env or {}, self.cgroup / "exec")

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 20,
        check: bool = True,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run *argv* in the bed to its end.

        Raises:
            BedError: it ended with a status other than 0 and *check* is set.
            TimeoutError: *timeout_s* ran out.  All that the command had started is gone then.
        """
        cgroup = self.cgroup / f"exec/{os.getpid()}-{next(self._entered)}"
        with self.popen(
            argv,
            env=env,
            cgroup=cgroup,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        ) as process:
            try:
                out, err = process.communicate(input, timeout=timeout_s)
            except subprocess.TimeoutExpired:
                (cgroup / "cgroup.kill").write_text("1")
                said = "something outside its own cgroup still holds its output"
                with suppress(subprocess.TimeoutExpired):
                    said = "".join(process.communicate(timeout=2))[-2000:]
                raise TimeoutError(f"{' '.join(argv)} took over {timeout_s} s: {said}") from None
            finally:
                with suppress(OSError):  # a daemon of the command's may live on in it
                    cgroup.rmdir()
        if check and process.returncode != 0:
            raise BedError(f"{' '.join(argv)} ended with {process.returncode}: {out[-2000:]}{err[-2000:]}")
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

    def popen(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cgroup: Path | None = None,
        **rest: Any,
    ) -> "Entered":
        """Start *argv* in the bed.  Signals go to the command itself; *rest* is subprocess.Popen's."""
        return Entered(self._argv(argv, env or {}, cgroup or self.cgroup / "exec"), **rest)

    def journal(self, unit: str, *, lines: int = 200) -> str:
        """What *unit* wrote to the journal, as text."""
        argv = ["journalctl", "--no-pager", "-o", "short-monotonic", "-n", str(lines), "-u", unit]
        return self.run(argv).stdout

    def clone_guest(self, name: str) -> None:
        """Make a machine's tree `/var/lib/machines/NAME`, a copy of the guest tree."""
        self.run(["cp", "-a", "--reflink=auto", "/srv/guest", f"/var/lib/machines/{name}"], timeout_s=60)

    def install_product(self, checkout: Path = trees.ROOT) -> None:
        """Put our code as it is in *checkout* into /opt/hyperhive, and its programs on PATH.

        The wheels are there already.  A second call replaces the code.
        """
        prefix = self.path("/opt/hyperhive")
        packages = prefix / f"lib/python{trees.PYTHON}/site-packages"
        for package in ("hive_core", "hive_agent"):
            shutil.rmtree(packages / package, ignore_errors=True)
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(checkout / package, packages / package, ignore=ignored)
        for program, module in PROGRAMS.items():
            script = prefix / "bin" / program
            script.write_text(
                f"#!/opt/hyperhive/bin/python3\nimport sys\n\nfrom {module} import main\n\nsys.exit(main())\n"
            )
            script.chmod(0o755)
            link = self.path(f"/usr/local/bin/{program}")
            link.unlink(missing_ok=True)
            link.symlink_to(f"/opt/hyperhive/bin/{program}")
        compiled = [
            f"/opt/hyperhive/lib/python{trees.PYTHON}/site-packages/{name}"
            for name in ("hive_core", "hive_agent")
        ]
        self.run(["/opt/hyperhive/bin/python3", "-m", "compileall", "-q", *compiled])

    def down(self) -> None:
        """Power it off, kill it after five seconds, and return when nothing of it is left.

        Raises:
            BedError: something of it is still there after 30 s.
        """
        with suppress(FileNotFoundError, ProcessLookupError, ValueError):
            keeper_pid = int((self.run_dir / "keeper.pid").read_text())
            keeper_fd = os.pidfd_open(keeper_pid)
            try:
                if not _is_held(self.run_dir):  # the number is somebody else's by now
                    raise ProcessLookupError
                signal.pidfd_send_signal(keeper_fd, signal.SIGTERM)
                if not select.select([keeper_fd], [], [], DOWN_TIMEOUT_S)[0]:
                    raise BedError(f"cannot end the test host {self.name!r}: {self._said()}")
            finally:
                os.close(keeper_fd)
        if self._keeper is not None:
            self._keeper.wait(timeout=DOWN_TIMEOUT_S)
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        with trees.locked(trees.cache_dir() / "beds.lock"):
            _sweep()
        if self.run_dir.exists() or self.cgroup.exists():
            raise BedError(f"cannot clear away the test host {self.name!r}: {self._said()}")
        if self._log is not None:
            self._log.close()

    def _start_keeper(self, environment: Mapping[str, str], *, tied: bool) -> None:
        held, lifeline = os.pipe() if tied else (-1, None)
        self._lifeline = lifeline
        # Kept open: what it said is wanted just when the keeper has cleared all away.
        self._log = (self.run_dir / "log").open("a+b")
        with (self.run_dir / "lock").open("w") as lock:
            # The keeper inherits the lock: a bed whose lock is free has nobody to clear it away.
            fcntl.flock(lock, fcntl.LOCK_EX)
            passed = [fd for fd in (lock.fileno(), held) if fd >= 0]
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", keeper.__file__, str(self.run_dir), str(self.cgroup), str(held)],
                env={**os.environ, **environment, "RUN": str(self.run_dir)},
                pass_fds=passed,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
            )
        if held >= 0:
            os.close(held)
        (self.run_dir / "keeper.pid").write_text(str(self._keeper.pid))

    def _wait_up(self) -> None:
        until = time.monotonic() + UP_TIMEOUT_S
        state = "nothing"
        while state not in ("running", "degraded"):
            if time.monotonic() > until or (self._keeper is not None and self._keeper.poll() is not None):
                raise BedError(f"cannot bring up a test host, its state is {state}: {self._said()}")
            time.sleep(0.02)
            if not (self.run_dir / "pid").exists():
                continue
            # --wait fails at once while PID 1 does not listen yet.
            ask = ["systemctl", "is-system-running", "--wait"]
            with suppress(FileNotFoundError):  # it has just ended, as the next look says
                asked = self.run(ask, check=False, timeout_s=UP_TIMEOUT_S)
                state = asked.stdout.strip() or asked.stderr.strip()
        if state == "degraded":
            failed = self.run(["systemctl", "--failed", "--no-legend", "--plain"]).stdout
            raise BedError(f"cannot use the test host, units failed: {failed}")

    def _said(self) -> str:
        with suppress(OSError):
            log = self._log or (self.run_dir / "log").open("rb")
            # Not read(): the keeper writes through the same file, and so with the same position.
            end = os.fstat(log.fileno()).st_size
            said = os.pread(log.fileno(), 4000, max(0, end - 4000)).decode(errors="replace").strip()
            return said or "it said nothing"
        return "its log is gone"

    def _argv(self, argv: Sequence[str], env: Mapping[str, str], cgroup: Path) -> list[str]:
        # In a cgroup of the bed, or it would have none that the bed's systemd can name.  A command ends with its
        # nsenter, which waits for it outside.
        script = 'mkdir -p "$1"; echo $$ > "$1/cgroup.procs"; shift; exec "$@"'
        return [
            *("sh", "-euc", script, "sh", str(cgroup)),
            *("nsenter", "--target", str(self.pid), "--all"),  # and with them its root
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *(
                "env",
                "-i",
                "--chdir=/",
                f"PATH={PATH}",
                "HOME=/root",
                "USER=root",
                "LANG=C.UTF-8",
                "TERM=dumb",
            ),
            *(f"{name}={value}" for name, value in env.items()),
            *argv,
        ]


class Entered(subprocess.Popen[Any]):
    """A command in a bed: what is started here is nsenter, which waits for it."""

    def inner_pid(self) -> int | None:
        """The command itself, as the test machine numbers it."""
        with suppress(FileNotFoundError, ProcessLookupError, ValueError):
            return int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text())
        return None

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.inner_pid() or self.pid, sig)


@contextmanager
def open_bed(name: str) -> Iterator[Bed]:
    """A bed that is gone afterwards, also when this process is killed."""
    bed = Bed.up(name, tied=True)
    try:
        yield bed
    finally:
        bed.down()


def names() -> list[str]:
    """All beds there are, whoever holds them."""
    return sorted(run.name for run in _runs().glob("*"))


def _runs() -> Path:
    return trees.cache_dir() / "beds"


def _size_in_memory() -> str:
    """How large what a bed writes may become in memory; empty where it goes to the disk.

    Memory is three times as fast to fill and needs no clearing away.  A machine's root there has to be id-mapped,
    which a tmpfs can since Linux 6.3.  HIVE_BED_ON_DISK=1 decides otherwise.
    """
    release = tuple(int(number) for number in os.uname().release.split("-")[0].split(".")[:2])
    available_kb = int(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0])
    if os.environ.get("HIVE_BED_ON_DISK") or release < (6, 3) or available_kb < 6 << 20:
        return ""
    return f"{available_kb // 2}k"


def _cgroup2() -> Path | None:
    """Where the unified hierarchy is mounted, alone or beside the old one."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    return None


def _is_held(run: Path) -> bool:
    try:
        with (run / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _make_room_for_machines() -> None:
    """Raise what systemd/sysctl.d raises on a host: all beds count as one user of this machine, for whom 128 of
    them are soon used up.
    """
    limit = Path("/proc/sys/fs/inotify/max_user_instances")
    if int(limit.read_text()) < INOTIFY_INSTANCES:
        limit.write_text(f"{INOTIFY_INSTANCES}\n")


def _sweep() -> None:
    """Clear away beds whose keeper was killed.  Called with beds.lock held, so none is just being made."""
    for name in names():
        bed = Bed(name)
        if not _is_held(bed.run_dir):
            # One that will not go is the next sweep's, and no reason to refuse a new bed.
            with suppress(OSError):
                keeper.clear(bed.run_dir, bed.cgroup)
