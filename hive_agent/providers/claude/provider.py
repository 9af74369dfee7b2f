"""Turns with Claude Code: the real `claude`, one process a turn, one conversation an agent."""

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final

from hive_agent.config import Config
from hive_agent.events import Emit
from hive_agent.providers.base import (
    BadProvider,
    Capabilities,
    Outcome,
    Program,
    TurnPrompt,
    TurnResult,
)
from hive_agent.providers.claude.command import (
    EFFORTS,
    MARK,
    build_argv,
    build_environment,
    build_login,
    find_binary,
    mark_of,
    remove_directories,
    write_files,
)
from hive_agent.providers.claude.credentials import Credentials
from hive_agent.providers.claude.extra_mcp import read_extra_servers
from hive_agent.providers.claude.group import sweep
from hive_agent.providers.claude.reading import TurnReading
from hive_agent.providers.claude.run import Run, command_line, user_line
from hive_agent.remembered import read_line, remove, write_line
from hive_agent.system_prompt import read_task, render_system_prompt
from hive_agent.tools import Tools

SESSION_FILE: Final = "hyperhive-session"

_SESSION_ID: Final = re.compile(r"[0-9a-fA-F-]{8,64}")


class Claude:
    name: ClassVar[str] = "claude"
    default_model: ClassVar[str] = "haiku"
    capabilities: ClassVar[Capabilities] = Capabilities(
        steer=True, compact=True, sessions=True, login=True, efforts=EFFORTS
    )

    def __init__(self, config: Config, binary: str, environ: Mapping[str, str]) -> None:
        self._config = config
        self._binary = binary
        self._env = build_environment(config, environ)
        self._credentials = Credentials(self._env)
        self._session_file = config.state / SESSION_FILE
        self._cost_of: tuple[str, float] | None = None
        self._run: Run | None = None
        self._swept = False
        self._prefix = f"hive-claude-{hashlib.sha256(mark_of(config).encode()).hexdigest()[:12]}-"
        self.held_up: Callable[[bool], None] = lambda _held_up: None
        self.cut_off: TurnResult | None = None
        """What the last turn that was cancelled had come to: it cannot be returned any more."""

    @classmethod
    def open(cls, config: Config, environ: Mapping[str, str] = os.environ) -> "Claude":
        binary = find_binary(config, environ)
        if binary is None:
            wanted = config.claude_bin or "claude"
            where = "" if config.claude_bin else " on PATH (or say where it is with --claude-bin)"
            raise BadProvider(f"provider claude: there is no program {wanted}{where}")
        return cls(config, binary, environ)

    async def run_turn(self, prompt: TurnPrompt, tools: Tools, emit: Emit) -> TurnResult:  # noqa: ARG002
        if prompt.fresh:
            # At once: should this turn fail before its session has a name, the next one is as fresh.
            remove(self._session_file)
        resume = self._session()
        line = user_line(prompt.text)
        system = self._system_prompt(emit)
        result, run = await self._claude(line, prompt.model, prompt.effort, resume, emit, system)
        if resume is not None and run.reading.session_is_unknown:
            emit("note", {"text": f"Session {resume} is gone: a new one begins", "origin": "harness"})
            remove(self._session_file)
            result, run = await self._claude(line, prompt.model, prompt.effort, None, emit, system)
        return result

    async def steer(self, text: str) -> bool:
        run = self._run
        return run is not None and await run.steer(text)

    async def compact(self, model: str, tools: Tools, emit: Emit) -> TurnResult:  # noqa: ARG002
        session = self._session()
        if session is None:
            return TurnResult(outcome=Outcome.FAILED, note="cannot compact: there is no conversation yet")
        # As in the turns round it: what claude is told at the start is in the provider's cache.
        line, system = command_line("/compact"), self._system_prompt(emit)
        result, _ = await self._claude(line, model, None, session, emit, system, compacting=True)
        return result

    def is_logged_in(self) -> bool:
        return self._credentials.are_there()

    def login_program(self) -> Program:
        return build_login(self._config, self._binary, self._env)

    # ── one process ─────────────────────────────────────────────────────────────────────────────

    async def _claude(
        self,
        line: Mapping[str, Any],
        model: str,
        effort: str | None,
        resume: str | None,
        emit: Emit,
        system: str,
        *,
        compacting: bool = False,
    ) -> tuple[TurnResult, Run]:
        if self._run is not None:
            raise RuntimeError("claude runs already: one turn at a time")
        extras, notes = read_extra_servers(self._config.extra_mcp)
        for note in notes:
            emit("note", {"text": note, "origin": "harness"})
        cost_before = self._cost_of[1] if self._cost_of and self._cost_of[0] == resume else None
        reading = TurnReading(resumed=resume is not None, cost_before=cost_before)
        if not self._swept:
            # A harness that was killed may have left a claude, and it would answer as well.
            await sweep(f"{MARK}={mark_of(self._config)}")
            remove_directories(self._config.runtime, self._prefix)
            self._swept = True
        with tempfile.TemporaryDirectory(prefix=self._prefix, dir=self._config.runtime) as directory:
            files = write_files(Path(directory), system, extras)
            argv = build_argv(self._binary, files, model=model, effort=effort, resume=resume, extras=extras)
            run = self._run = Run(
                argv,
                cwd=self._config.state,
                env=self._env,
                door=self._config.socket,
                emit=emit,
                reading=reading,
                on_session=self._remember,
                held_up=self.held_up,
                steerable=not compacting,
            )
            end = reading.end_compaction if compacting else reading.end
            cancelled = True
            try:
                how = await run(line)
                cancelled = False
            except OSError as error:
                cancelled = False
                why = f"{error.strerror or error}"
                return TurnResult(outcome=Outcome.FAILED, note=f"cannot start {self._binary}: {why}"), run
            finally:
                self._run = None
                if cancelled:
                    self.cut_off = replace(end("", stopped=True), outcome=Outcome.INTERRUPTED)
                if reading.session_id is not None and reading.session_cost is not None:
                    self._cost_of = reading.session_id, reading.session_cost
        result = run.judge(end(how, run.last_words, stopped=run.gave_up))
        if result.outcome is Outcome.NEEDS_LOGIN:
            self._credentials.refuse()
        return result, run

    def _system_prompt(self, emit: Emit) -> str:
        task, notes = read_task(self._config.prompt_file)
        for note in notes:
            emit("note", {"text": note, "origin": "harness"})
        return render_system_prompt(self._config, task)

    def _session(self) -> str | None:
        session = read_line(self._session_file)
        return session if session and _SESSION_ID.fullmatch(session) else None

    def _remember(self, session: str) -> None:
        if _SESSION_ID.fullmatch(session) and session != read_line(self._session_file):
            write_line(self._session_file, session)
