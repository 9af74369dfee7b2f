"""Local machines: each agent's harness is a child process in its own session and directory.

They isolate nothing.  A harness outlives its daemon, and the next daemon finds it by the record lock
that it holds on harness.lock: the kernel says who holds it, and lets go however the process ends.
"""

import fcntl
import hashlib
import logging
import os
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import trio

from hive_core.config import Config
from hive_core.domain.agent import AgentRow
from hive_core.domain.cage import CannotStart, MachineFacts, Usage
from hive_core.domain.declared import effective
from hive_core.domain.manifest import NOTHING, Manifest
from hive_core.host import credentials, machine_environment, process, releases, sessions
from hive_core.host.machine_environment import BadEnvironment
from hive_core.host.releases import Releases
from hive_core.layout import AgentDirs
from hive_core.wire.ids import MANAGER

MAX_LOG_BYTES: Final = 8 * 2**20
LOG_CHUNK_BYTES: Final = 128 * 2**10
"""Read at once by a follower; as JSON it is six times as long at worst, and fits a line of host.sock."""
MAX_LOG_LINE_CHARS: Final = 4000
LOG_POLL_S: Final = 0.25
_HARNESS_VARIABLES: Final = (
    "HIVE_SCRIPT",
    "HIVE_DEFAULT_MODEL",
    "HIVE_DEFAULT_EFFORT",
    "HIVE_OPERATOR_PRONOUNS",
    "HIVE_CONTEXT_WINDOW_TOKENS",
    "HIVE_COMPACT_WATERMARK_TOKENS",
    "HIVE_AUTO_RESET_WATERMARK_TOKENS",
    "HIVE_CACHE_TTL_SECS",
    "HIVE_RATE_LIMIT_SLEEP_SECS",
    "HYPERHIVE_LOGIN_CMD",
    "HIVE_CLAUDE_BIN",
    "HIVE_EXTRA_MCP",
    *(
        "CLAUDE_CODE_OAUTH_TOKEN",
        "CLAUDE_CODE_MAX_RETRIES",
        "API_TIMEOUT_MS",
        "MCP_TIMEOUT",
        "MCP_TOOL_TIMEOUT",
    ),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"),
)
_HARNESS_PREFIXES: Final = ("ANTHROPIC_",)
"""What a harness is told by the environment, passed on from the daemon's."""
_APPLIED: Final = "declared"
"""In an agent's directory of sockets: the digest of what its harness was started with."""
_GIVEN: Final = ("provider", "model", "prompt", "environment", "mcp_servers")
_FLOCK: Final = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, len, pid

log = logging.getLogger(__name__)


class LocalMachine:
    """A running harness: one we started, or one that an earlier daemon did."""

    def __init__(
        self, pid: int, pidfd: int, child: subprocess.Popen[bytes] | None, run: Path | None = None
    ) -> None:
        """*run* is its agent's directory of sockets."""
        self.pid = pid
        self._run = run
        self._pidfd = pidfd
        self._child = child

    async def wait(self) -> str:
        """Wait until it has ended, and say how.  Once."""
        await trio.lowlevel.wait_readable(self._pidfd)
        # Its number may be another machine's from here on: a late terminate() must not hit that one.
        pidfd, self._pidfd = self._pidfd, -1
        os.close(pidfd)
        # What it left behind in its session goes with it; before it is reaped, its pid is nobody else's.
        self._signal_group(signal.SIGKILL)
        status = self._child.wait() if self._child else None
        if self._run is not None:
            credentials.remove(self._run)
        return process.describe_exit(status)

    async def terminate(self) -> None:
        """Ask it to end.  Harmless when it has."""
        with suppress(OSError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    async def kill(self) -> None:
        """End it and everything in its session, at once."""
        with suppress(OSError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


class LocalMachines:
    """Starts and finds the harnesses of agents, and reads their logs."""

    isolation: Final = "none"

    def __init__(
        self,
        dirs: Callable[[str], AgentDirs],
        config: Callable[[], Config],
        managers: Mapping[str, str] | None = None,
        released: Path | None = None,
    ) -> None:
        """*managers* is what the manager's harness finds in its environment beside all that others do.

        Below *released* lies what was deployed, if anything ever is.
        """
        self._dirs = dirs
        self._config = config
        self._managers = managers or {}
        self._releases = Releases(released) if released is not None else None
        self._applied: dict[str, str] = {}

    async def find(self, agent: str) -> LocalMachine | None:
        """Give the running harness of *agent*, if there is one."""
        pid = _lock_holder(self._dirs(agent).lock)
        if pid is None:
            return None
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        if _lock_holder(self._dirs(agent).lock) != pid:  # it ended, and its pid may be somebody else's
            os.close(pidfd)
            return None
        self._applied[agent] = _read_applied(self._dirs(agent)) or _digest(NOTHING, "")
        return LocalMachine(pid, pidfd, None, self._dirs(agent).run)

    async def start(self, row: AgentRow) -> LocalMachine:
        """Start the harness of an agent.

        Raises:
            CannotStart: what was deployed of it is missing.
            OSError: it cannot be started; a directory or the interpreter is missing.
        """
        agent, manifest = row.name, effective(row).manifest
        dirs, config = self._dirs(agent), self._config().harness
        dirs.make()
        digest = await trio.to_thread.run_sync(self._digest_of, row)
        model = manifest.model or config.model
        argv = [
            # -I: the harness runs in a directory that its agent writes, and must import nothing from there.
            *(sys.executable, "-I", "-m", "hive_agent", "serve"),
            *("--socket", str(dirs.socket)),
            *("--state", str(dirs.state)),
            *("--lock", str(dirs.lock)),
            *("--provider", manifest.provider or config.provider),
            *("--linger", str(config.linger_s)),
            *(("--model", model) if model else ()),
        ]
        # A login of its own: refresh tokens rotate, so one that is shared is lost to all but one.
        own = {"HIVE_LABEL": agent, "CLAUDE_CONFIG_DIR": str(dirs.claude)}
        secrets = self._secrets(row)
        own |= machine_environment.passed_on(manifest, row.declaration, secrets)
        if agent == MANAGER:
            own |= self._managers
        environment = process.built_environment()
        for name, value in os.environ.items():
            if name in _HARNESS_VARIABLES or name.startswith(_HARNESS_PREFIXES):
                environment[name] = value
        environment |= manifest.environment | secrets | self._shown(row) | own
        # Before there is anything that it could be wrong about.
        (dirs.run / _APPLIED).write_text(digest)
        self._applied[agent] = digest
        with dirs.log.open("ab") as log_file:
            child = process.start_session(argv, cwd=dirs.state, log=log_file, env=environment)
        return LocalMachine(child.pid, os.pidfd_open(child.pid), child, dirs.run)

    def _shown(self, row: AgentRow) -> dict[str, str]:
        """Let its release be found, and what the host gives it; give what tells its harness where."""
        run, declaration = self._dirs(row.name).run, row.declaration
        credentials.lay_out(row.name, declaration.credentials if declaration is not None else {}, run)
        if declaration is not None and declaration.mcp_servers:
            credentials.put(
                run / releases.EXTRA_MCP, msgspec.json.encode(effective(row).manifest.mcp_servers)
            )
        told: dict[str, str] = {}
        if self._releases is not None and self._releases.show(row):
            where = str(self._releases.of(row.name))
            told = {"HIVE_RELEASE": where, **releases.environment(row.manifest, where)}
        return told | machine_environment.told_of_host(declaration, str(run))

    @staticmethod
    def _secrets(row: AgentRow) -> dict[str, str]:
        try:
            return machine_environment.secrets_of(row.declaration)
        except BadEnvironment as error:
            raise CannotStart(f"cannot start {row.name}: its environment_file: {error}") from None

    def _digest_of(self, row: AgentRow) -> str:
        used = self._releases.used(row) if self._releases is not None else ""
        told = machine_environment.told_of_host(row.declaration, "")
        return _digest(effective(row).manifest, used, self._secrets(row) | told)

    async def switch(self, row: AgentRow) -> bool:
        """Say whether the running harness has all that *row* gives it; what can be shown anew is.

        Raises:
            CannotStart: what was deployed of it is missing.
            OSError: it cannot be shown.
        """
        digest = await trio.to_thread.run_sync(self._digest_of, row)
        if self.applied(row.name) != digest:
            return False
        self._shown(row)
        return True

    async def update_limits(self, row: AgentRow) -> None:
        """Refuse: nothing limits a process of the daemon's own user.

        Raises:
            CannotStart: always.
        """
        raise CannotStart(f"cannot limit {row.name}: the agents of a local hive have no machines")

    async def tidy(self, agent: str) -> None:
        """Keep the log of *agent* below MAX_LOG_BYTES."""
        _trim(self._dirs(agent).log)

    async def forget(self, agent: str) -> None:
        """Do nothing: all there is of it lies in the agent's own directories."""

    async def leftovers(self, known: Collection[str]) -> None:
        """Do nothing: a harness without a daemon ends by itself."""

    async def facts(self, row: AgentRow) -> MachineFacts:  # noqa: ARG002
        return MachineFacts()

    async def usage(self, agents: Sequence[str]) -> dict[str, Usage]:
        """Sum up the sessions of the harnesses; a process that left its session is not seen."""
        leaders = {
            pid: agent for agent in agents if (pid := _lock_holder(self._dirs(agent).lock)) is not None
        }
        by_session = await trio.to_thread.run_sync(sessions.usage_of, frozenset(leaders))
        return {agent: by_session[pid] for pid, agent in leaders.items() if pid in by_session}

    def applied(self, agent: str) -> str | None:
        return self._applied.get(agent)

    def declared(self, row: AgentRow) -> str | None:
        """The digest of what is said of this agent, without what the configuration says for all."""
        try:
            return self._digest_of(row)
        except CannotStart:
            return None

    def is_member(self, agent: str, pid: int) -> bool:  # noqa: ARG002
        """Say yes: nothing tells the processes of one agent from another's."""
        return True

    # ── logs ────────────────────────────────────────────────────────────────────────────────────

    async def read_log(self, agent: str, lines: int) -> list[str]:
        """Give the last *lines* of the harness's log."""
        return (await self._tail(agent, lines))[0]

    async def follow_log(self, agent: str, lines: int) -> AsyncGenerator[list[str], None]:
        """Give the last *lines* of the harness's log, and then what is added, without end."""
        batch, offset = await self._tail(agent, lines)
        while True:
            if batch:
                yield batch
            await trio.sleep(LOG_POLL_S)
            batch, offset = await trio.to_thread.run_sync(_read_after, self._dirs(agent).log, offset)

    async def _tail(self, agent: str, lines: int) -> tuple[list[str], int]:
        return await trio.to_thread.run_sync(_read_tail, self._dirs(agent).log, lines)


def _digest(manifest: Manifest, used: str, besides: Mapping[str, str] | None = None) -> str:
    """Give a hash of what *manifest* gives a harness, and of the files of the release that it uses.

    *besides* are variables that it gets of somebody else.
    """
    given = {key: getattr(manifest, key) for key in _GIVEN}
    parts = [given, used, besides] if besides else [given, used]
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


def _read_applied(dirs: AgentDirs) -> str | None:
    with suppress(OSError, ValueError):
        return (dirs.run / _APPLIED).read_text()[:64]
    return None


def _read_tail(path: Path, lines: int) -> tuple[list[str], int]:
    """Give the last *lines* of the log, and where it ends."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - lines * 1000))
            return list(deque(_log_lines(file.read(end - file.tell())), lines)), end
    except FileNotFoundError:
        return [], 0


def _read_after(path: Path, offset: int) -> tuple[list[str], int]:
    """Give whole lines of the log from byte *offset* on, and the offset after them."""
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < offset:
                offset = 0  # it was cut back
            file.seek(offset)
            text = file.read(LOG_CHUNK_BYTES)
    except FileNotFoundError:
        return [], 0
    whole = text[: text.rfind(b"\n") + 1] or (text if len(text) == LOG_CHUNK_BYTES else b"")
    return _log_lines(whole), offset + len(whole)


def _trim(path: Path) -> None:
    """Keep a log below MAX_LOG_BYTES; the older half goes to harness.log.1.

    The harness appends, so cutting the file back under it is safe; lines of that moment may be lost.
    """
    with suppress(OSError):
        if path.stat().st_size > MAX_LOG_BYTES:
            path.with_name("harness.log.1").write_bytes(path.read_bytes()[-MAX_LOG_BYTES:])
            os.truncate(path, 0)


def _log_lines(text: bytes) -> list[str]:
    return [line[:MAX_LOG_LINE_CHARS] for line in text.decode(errors="replace").splitlines()]


def _lock_holder(path: Path) -> int | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, question))
    finally:
        os.close(fd)
    return pid if kind != fcntl.F_UNLCK and pid > 0 else None
