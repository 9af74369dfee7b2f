"""Runs nix.  Nothing else in hive_core does.

What an agent wrote is evaluated in a process that can do nothing with the host: as a user of its own where
we are root, who asks nix-daemon for everything, with bounds on time and memory.  Only profiles are set by us.
"""

import os
import pwd
import re
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from hive_core.host import machinectl, process
from hive_core.host.process import CommandError

USER: Final = "hive-nix"
OLDEST: Final = (2, 8)
"""Before it flakes are not what they are now."""

QUICK_S: Final = 60.0
"""For what neither evaluates nor builds."""
LOCK_S: Final = 900.0
"""Renewed inputs are downloaded in it."""
MEMORY_MAX_BYTES: Final = 6 * 2**30
"""A NixOS takes up to 2 GiB to evaluate."""
MAX_TASKS: Final = 512
MAX_LINE_BYTES: Final = 4000
MAX_STORY_LINES: Final = 15
MAX_STORY_CHARS: Final = 2000
STOP_S: Final = 15.0

_CONFIG: Final = "\n".join(
    (
        "experimental-features = nix-command flakes",
        "pure-eval = true",
        "accept-flake-config = false",
        "allow-import-from-derivation = false",
        "allow-unsafe-native-code-during-evaluation = false",
        # Inputs are named in full; otherwise each look-up asks a server.
        "flake-registry = ",
        "use-registries = false",
        "eval-cache = false",
        "warn-dirty = false",
        "connect-timeout = 20",
        # Where binaries come from, and who may build, is the host's nix.conf's to say.
    )
)
_EMPTIED: Final = ("/etc", "/var", "/srv", "/mnt", "/media", "/opt", "/boot")
"""What a unit that evaluates finds nothing in, beside what it works with; of homes too."""
_OF_ETC: Final = (
    *("nix", "ssl", "pki", "static", "ca-certificates", "alternatives", "ld.so.cache", "localtime"),
    *("hosts", "resolv.conf", "nsswitch.conf", "services", "passwd", "group"),
)
"""What nix and git need of /etc."""
_VERSION: Final = re.compile(r"(\d+)\.(\d+)")
_STORE_NAME: Final = re.compile(r"[0-9a-z]{32}-[A-Za-z0-9+._?=-]{1,211}\Z")

Tell = Callable[[str], None]
"""Takes a line of what nix says."""


PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9/._+=@~-]+\Z")
"""Of others nix reads some as URLs with escapes and some without."""


class NoNix(Exception):
    """This host cannot build with nix.  The text says what to do."""


class NixFailed(Exception):
    """nix ended badly.  The text is what it said of that, at most MAX_STORY_LINES lines."""


@dataclass(frozen=True)
class Nix:
    """How nix is run here.

    *user* evaluates and builds; None: we do, and what nix finds to be its store is used, a daemon's or ours.
    """

    user: str | None = None
    in_units: bool = False
    """Each evaluation is a unit of systemd's, with its own view of the host; needs *user*."""
    memory_max_bytes: int = MEMORY_MAX_BYTES
    environment: Mapping[str, str] = field(default_factory=dict)
    """Where the store and its daemon are, if elsewhere than usual."""

    @property
    def store(self) -> Path:
        return Path(self.environment.get("NIX_STORE_DIR", "/nix/store"))

    @property
    def state(self) -> Path:
        return Path(self.environment.get("NIX_STATE_DIR", "/nix/var/nix"))

    @property
    def socket(self) -> Path:
        """Where nix-daemon listens."""
        return Path(self.environment.get("NIX_DAEMON_SOCKET_PATH", self.state / "daemon-socket/socket"))

    async def check(self) -> str:
        """See that nix is there, new enough and reaches its store; give its version.

        Raises:
            NoNix: it is not.
            TROUBLE: it cannot be run.
        """
        if shutil.which("nix") is None:
            raise NoNix(
                "cannot build with nix: nix is not installed; on Debian and Ubuntu: apt install nix-bin"
            )
        said = await self._ask(["nix", "--version"])
        found = _VERSION.search(said)
        version = (int(found[1]), int(found[2])) if found else (0, 0)
        if version < OLDEST:
            wanted = ".".join(map(str, OLDEST))
            raise NoNix(
                f"cannot build with nix: {said.strip()[:80]!r} is here, and {wanted} or newer is needed"
            )
        if self.user is not None:
            try:
                pwd.getpwnam(self.user)
            except KeyError:
                raise NoNix(
                    f"cannot build with nix: there is no user {self.user}; install hyperhive again, or:"
                    f" useradd --system {self.user}"
                ) from None
            if not self.socket.is_socket():
                raise NoNix(
                    f"cannot build with nix: no nix-daemon listens at {self.socket}; start it:"
                    " systemctl start nix-daemon.socket (on Debian: apt install nix-setup-systemd)"
                )
        return ".".join(map(str, version))

    async def lock(
        self, work: Path, *, repositories: Collection[str], seen: Collection[Path], tell: Tell
    ) -> None:
        """Write the lock of the flake *work*/flake as far as it has none yet; *work* is as `lay_out` made it.

        *repositories* are the local ones that git may read though they are another user's; *seen* is what a
        unit sees beside its flake and the store.

        Raises:
            NixFailed: it cannot be locked.
            TROUBLE: nix cannot be run, or is not done in LOCK_S.
        """
        self._trust(work, repositories)
        await self._caged(work, ["nix", "flake", "lock", _flake(work)], LOCK_S, tell, seen)

    async def build(
        self,
        work: Path,
        what: str,
        out: str,
        *,
        allowed: Collection[str],
        seen: Collection[Path],
        timeout_s: float,
        tell: Tell,
    ) -> Path:
        """Build the attribute *what* of the flake, keep it by the link *work*/*out*, and give its path.

        The lock is taken as it is, and nothing is fetched but what *allowed*, prefixes of URIs, lets be.
        *seen* is as for `lock`.

        Raises:
            NixFailed: it cannot be built.
            TROUBLE: nix cannot be run, or is not done in *timeout_s*.
        """
        argv = ["nix", "build", "--print-build-logs", "--no-update-lock-file", "--no-write-lock-file"]
        argv += ["--out-link", str(work / out), f"{_flake(work)}#{what}"]
        # Also with a wrong hash what is fetched would be in the store then, a file of this host as well.
        restricted = f"restrict-eval = true\nallowed-uris = {' '.join(sorted(allowed))}"
        await self._caged(work, argv, timeout_s, tell, seen, NIX_CONFIG=f"{_CONFIG}\n{restricted}")
        return self._outcome(work / out)

    async def keep(self, work: Path, closure: str, out: str) -> bool:
        """Keep *closure* by the link *work*/*out*; False: the store does not have it any more.

        Raises:
            TROUBLE: nix cannot be run.
        """
        if not self.is_store_path(closure):
            return False
        argv = ["nix-store", "--realise", "--add-root", str(work / out), "--indirect", closure]
        try:
            await self._caged(work, argv, QUICK_S, _to_nobody, ())
            return str(self._outcome(work / out)) == closure
        except NixFailed:
            return False

    async def set_profile(self, own_home: Path, profile: Path, closure: str) -> None:
        """Let *closure* be the current generation of *profile*: the one that it was before, or a new one.

        *own_home* is an empty directory of ours.

        Raises:
            CommandError: the store does not have it, or the profile cannot be written.
            TROUBLE: nix cannot be run.
        """
        generation = await trio.to_thread.run_sync(_generation_of, profile, closure)
        words = ["--set", closure] if generation is None else ["--switch-generation", str(generation)]
        await self._ask(["nix-env", "--profile", str(profile), *words], HOME=str(own_home))

    def lay_out(self, work: Path, files: Mapping[str, bytes]) -> None:
        """Make *work* afresh, with *files* as its flake, for the one who evaluates it and nobody else.

        Raises:
            OSError: it cannot be made.
        """
        if work.is_symlink() or work.exists():
            shutil.rmtree(work)
        work.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        work.parent.chmod(0o711)
        work.mkdir(mode=0o700)
        made = [work, work / "flake", work / "home"]
        for directory in made[1:]:
            directory.mkdir(mode=0o700)
        for name, text in files.items():
            path = work / "flake" / name
            path.write_bytes(text)
            made.append(path)
        if self.user is not None:
            entry = pwd.getpwnam(self.user)
            for path in reversed(made):
                os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)

    def is_store_path(self, text: str) -> bool:
        """Say whether *text* is the path of something that lies directly in the store."""
        path = Path(text)
        return str(path) == text and path.parent == self.store and bool(_STORE_NAME.match(path.name))

    # ── processes ───────────────────────────────────────────────────────────────────────────────

    def _outcome(self, link: Path) -> Path:
        try:
            target = str(link.readlink())
        except OSError:
            target = ""
        if not self.is_store_path(target):
            raise NixFailed(f"nix gave no path of {self.store}")
        return Path(target)

    def _trust(self, work: Path, repositories: Collection[str]) -> None:
        """Let git read *repositories*.  Only a file of its own tells that to both sides of a local fetch."""
        text = "".join(f"\tdirectory = {_git_string(path)}\n" for path in sorted(repositories))
        path = self._git_config(work)
        path.unlink(missing_ok=True)
        path.write_text(f"[safe]\n{text}")
        path.chmod(0o644)

    @staticmethod
    def _git_config(work: Path) -> Path:
        # Beside it, where its user cannot write.
        return work.parent / f"{work.name}.gitconfig"

    def take_away(self, work: Path) -> None:
        """Remove what `lay_out` made, and with it what kept builds from being collected."""
        if work.is_symlink() or work.exists():
            shutil.rmtree(work)
        self._git_config(work).unlink(missing_ok=True)

    def _variables(self, work: Path) -> dict[str, str]:
        home = str(work / "home")
        return {
            "HOME": home,
            "TMPDIR": home,
            **{
                f"XDG_{name}_HOME": f"{home}/.{name.lower()}" for name in ("CACHE", "CONFIG", "DATA", "STATE")
            },
            "USER": self.user or "hive",
            "LOGNAME": self.user or "hive",
            "LC_ALL": "C.UTF-8",
            "NIX_CONFIG": _CONFIG,
            "NIX_USER_CONF_FILES": "",
            **({} if self.user is None else {"NIX_REMOTE": "daemon"}),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(self._git_config(work)),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ALLOW_PROTOCOL": "file:https:ssh",
            **self.environment,
        }

    async def _caged(
        self,
        work: Path,
        argv: Sequence[str],
        timeout_s: float,
        tell: Tell,
        seen: Collection[Path],
        **more: str,
    ) -> None:
        story: deque[str] = deque(maxlen=400)

        def hear(line: bytes) -> None:
            text = "".join(char for char in line.decode(errors="replace") if char.isprintable())
            story.append(text)
            if text.strip():
                tell(text)

        variables = self._variables(work) | more
        unit = f"hive-nix-{secrets.token_hex(6)}.service"
        if self.user is None:
            caged = [*self._limited(), *argv]
        elif not self.in_units:
            switch = ("--reuid", self.user, "--regid", str(pwd.getpwnam(self.user).pw_gid), "--init-groups")
            caged = ["setpriv", *switch, "--no-new-privs", "--", *self._limited(), *argv]
        else:
            caged = [*self._in_unit(unit, work, variables, timeout_s, seen), *argv]
        try:
            await process.run_aloud(
                caged, timeout_s=timeout_s, tell=hear, env=variables, cwd=work, max_line_bytes=MAX_LINE_BYTES
            )
        except CommandError:
            raise NixFailed(told(list(story))) from None
        except BaseException:
            if self.user is not None and self.in_units:
                # The end of systemd-run is not that of its unit.
                with trio.CancelScope(shield=True), suppress(CommandError):
                    await machinectl.run(["systemctl", "--quiet", "stop", "--", unit], timeout_s=STOP_S)
            raise

    def _limited(self) -> list[str]:
        return ["prlimit", f"--as={self.memory_max_bytes}", "--core=0", "--"]

    def _in_unit(
        self,
        unit: str,
        work: Path,
        variables: Mapping[str, str],
        timeout_s: float,
        seen: Collection[Path],
    ) -> list[str]:
        # Even with a wrong hash nix copies a directory that it may read into the store: it finds none here.
        shown = [self._git_config(work), *seen, *(Path("/etc", name) for name in _OF_ETC)]
        properties = {
            "User": self.user,
            "MemoryMax": self.memory_max_bytes,
            "MemorySwapMax": 0,
            "TasksMax": MAX_TASKS,
            "RuntimeMaxSec": f"{timeout_s + STOP_S:g}",
            "LimitCORE": 0,
            "NoNewPrivileges": "yes",
            "CapabilityBoundingSet": "",
            "ProtectSystem": "strict",
            "ProtectHome": "tmpfs",
            "TemporaryFileSystem": " ".join(f"{place}:ro" for place in _EMPTIED),
            "BindPaths": _unit_path(work),
            "BindReadOnlyPaths": " ".join(f"-{_unit_path(path)}" for path in shown),
            "InaccessiblePaths": "-/run/hyperhive -/run/user",
            "PrivateTmp": "yes",
            "PrivateDevices": "yes",
            "ProtectProc": "invisible",
            "ProtectKernelTunables": "yes",
            "ProtectKernelModules": "yes",
            "ProtectControlGroups": "yes",
            "RestrictNamespaces": "yes",
        }
        return [
            *("systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--service-type=exec"),
            *(f"--unit={unit}", f"--working-directory={work}"),
            *(f"--property={name}={value}" for name, value in properties.items()),
            *(f"--setenv={name}={value}" for name, value in variables.items()),
            f"--setenv=PATH={os.environ.get('PATH', os.defpath)}",
            "--",
        ]

    async def _ask(self, argv: Sequence[str], **variables: str) -> str:
        """Run a tool of nix's as ourselves, on nothing that an agent wrote."""
        remote = {} if self.user is None else {"NIX_REMOTE": "daemon"}
        # Our own home is shut to us where we are a unit, and nix does not even say its version then.
        plain = {"LC_ALL": "C.UTF-8", "NIX_USER_CONF_FILES": "", "HOME": "/nonexistent"}
        env = {**plain, **remote, **variables, **self.environment}
        answer = await process.run(argv, timeout_s=QUICK_S, max_output_bytes=64 * 1024, env=env)
        return answer.decode(errors="replace")


def told(lines: Sequence[str]) -> str:
    """Give what nix said of its failure: from its last `error:` on, or the end of it all."""
    heads = [number for number, line in enumerate(lines) if line.lstrip().startswith("error:")]
    # A failed build's own output stands after it and may say anything.
    first = heads[-1] if heads else max(0, len(lines) - MAX_STORY_LINES)
    kept = [line.rstrip() for line in lines[first:] if line.strip() and "--show-trace" not in line]
    return "\n".join(kept[:MAX_STORY_LINES])[:MAX_STORY_CHARS].strip() or "nix failed and said nothing"


def _unit_path(path: Path | str) -> str:
    """Quote *path* for a list of them in a unit."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace(":", "\\:")
    return f'"{text}"'


def _flake(work: Path) -> str:
    return f"path:{work / 'flake'}"


def _git_string(path: str) -> str:
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _generation_of(profile: Path, closure: str) -> int | None:
    """Give the newest generation of *profile* that is *closure*."""
    found = []
    for link in profile.parent.glob(f"{profile.name}-*-link"):
        number = link.name.removeprefix(f"{profile.name}-").removesuffix("-link")
        if number.isdecimal() and str(link.readlink()) == closure:
            found.append(int(number))
    return max(found, default=None)


def _to_nobody(_: str) -> None:
    pass
