"""Builds an agent's machine as the closure of its agent.nix, through the one flake of the hive.

A deploy works in a directory of its own, a copy of the meta flake with another commit of one agent in it, so
that nothing says the new before it runs.  What the lock says is looked at before anything is evaluated.
"""

import logging
import os
import shutil
import stat
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import trio

from hive_core.builders import BuildFailed, Built, Running, Say, Target
from hive_core.config import Config
from hive_core.domain import meta_flake
from hive_core.domain.meta_flake import FLAKE_NAME, LOCK_NAME, MAX_LOCK_BYTES, BadFlake, Pin
from hive_core.host import nix_roots
from hive_core.host.nix import PLAIN_PATH, Nix, NixFailed, NoNix
from hive_core.layout import Layout
from hive_core.machines import TROUBLE, describe

AGENTS_NAME: Final = "agents.json"
SYSTEM: Final = f"{os.uname().machine}-linux"
"""What Nix calls the platform of this host."""

ReadMeta = Callable[[str], Awaitable[bytes | None]]
"""Repositories.read_meta."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Laid:
    """The deploy that is being prepared or built in this process."""

    deploy_id: int
    pins: Mapping[str, Pin]
    """The agents that it is about."""


class NixBuilder:
    """*config* is asked each time; *profiles* is where each agent's profile is."""

    def __init__(
        self,
        nix: Nix,
        layout: Layout,
        config: Callable[[], Config],
        read_meta: ReadMeta,
        *,
        profiles: Path = nix_roots.PROFILES,
    ) -> None:
        self._nix = nix
        self._layout = layout
        self._config = config
        self._read_meta = read_meta
        self._profiles = profiles
        self._laid: _Laid | None = None

    async def prepare(self, target: Target, say: Say) -> None:
        """Write the flake with the commit of *target* in it, and lock it.

        Of several agents of one deploy, the first renews the inputs and the others share them.

        Raises:
            BuildFailed: another deploy is being built, agent.toml says what agent.nix is to say, there is no
                such commit, or the lock says what it may not.
            TROUBLE: nix cannot be run, or is not done in time.
        """
        cannot = f"cannot build {target.agent}"
        laid = self._laid
        if laid is not None and laid.deploy_id != target.deploy_id:
            raise BuildFailed(f"{cannot}: deploy {laid.deploy_id} is being built; one is at a time")
        for key in ("image", "packages"):
            if getattr(target.manifest, key):
                raise BuildFailed(
                    f"{cannot}: its agent.toml says {key}, and this hive builds machines from agent.nix;"
                    " say it there and take it out here"
                )
        if laid is None:
            await self._begin(target, cannot)
        pins = {**(laid.pins if laid else {}), target.agent: self._pin(target.agent, target.sha)}
        renew = () if laid else target.inputs
        self._laid = _Laid(target.deploy_id, pins)
        for name in renew:
            if name not in self._config().deploy.inputs:
                raise BuildFailed(f"{cannot}: the hive's flake has no input {name[:80]!r} (deploy.inputs)")
        work = self._work(target.deploy_id)
        old = await (_in_thread(_read_lock, work) if laid else self._read_meta(LOCK_NAME))
        try:
            await self._lock(work, old, await self._pins(pins), renew, say)
        except (BadFlake, NixFailed) as error:
            raise BuildFailed(f"{cannot}: {error}") from None

    async def build(self, target: Target, say: Say) -> Built:
        """Build the closure, or take the one of that deploy again if the store has it still.

        Raises:
            BuildFailed: what is in agent.nix cannot be built; with nix's own words.
            TROUBLE: nix cannot be run.
        """
        work, out = self._work(target.deploy_id), _link(target.agent)
        if target.former is not None and await self._nix.keep(work, target.former, out):
            say(f"Closure of that deploy: {target.former}")
            return Built(target.former)
        timeout_s = self._config().deploy.timeout_s
        pins = await self._pins({target.agent: self._pin(target.agent, target.sha)})
        lock = await _in_thread(_read_lock, work)
        try:
            allowed = meta_flake.allowed_uris(lock or b"", target.agent, pins)
            closure = await self._nix.build(
                work,
                meta_flake.installable(target.agent),
                out,
                allowed=allowed,
                seen=self._seen(),
                timeout_s=timeout_s,
                tell=say,
            )
        except (BadFlake, NixFailed) as error:
            raise BuildFailed(f"cannot build {target.agent}: {error}") from None
        except trio.TooSlowError:
            raise BuildFailed(
                f"cannot build {target.agent}: it takes longer than deploy.timeout_s, {timeout_s:g} s"
            ) from None
        say(f"Closure: {closure}")
        return Built(str(closure))

    async def finalize(self, target: Target, built: str | None, say: Say) -> Mapping[str, bytes | None]:
        """Set the agent's profile to *built*, and give the flake and the lock with its commit in them.

        Raises:
            BuildFailed, TROUBLE: they cannot be written; nothing of this was done, or the profile was set.
        """
        if built is None:
            raise BuildFailed(f"cannot finish the deploy of {target.agent}: nothing was built")
        await self._set_profile(target.agent, built)
        pins = await self._pins({target.agent: self._pin(target.agent, target.sha)})
        lock = await _in_thread(_read_lock, self._work(target.deploy_id))
        try:
            return self._meta_files(lock, pins)
        except BadFlake:
            # It was taken away, or is half; agents of deploys that ended since may be missing in it.
            self._laid = None
            await self.prepare(replace(target, inputs=()), say)
            self._laid = None
        try:
            return self._meta_files(await _in_thread(_read_lock, self._work(target.deploy_id)), pins)
        except BadFlake as error:
            raise BuildFailed(f"cannot finish the deploy of {target.agent}: {error}") from None

    async def abort(self, target: Target) -> None:
        """Take away what was laid out for the deploy of *target*."""
        if self._laid is not None and self._laid.deploy_id == target.deploy_id:
            self._laid = None
        await _in_thread(self._nix.take_away, self._work(target.deploy_id))

    async def forget(self, agent: str) -> Mapping[str, bytes | None]:
        """Give flake and lock without *agent*."""
        lock = await self._read_meta(LOCK_NAME)
        if lock is None:
            return {}
        pins = await self._pins({})
        pins.pop(agent, None)
        try:
            return self._meta_files(lock, pins)
        except BadFlake:
            # The next deploy writes them anew.
            return {FLAKE_NAME: None, LOCK_NAME: None}

    async def purge(self, agent: str) -> None:
        """Let the store have the closures of *agent*.

        Raises:
            OSError: its profile cannot be removed.
        """
        await _in_thread(nix_roots.remove_profile, agent, self._profiles)

    def has_built(self, agent: str, image: str | None) -> bool:
        """Say whether *image* is a generation of the agent's profile."""
        return image is not None and nix_roots.is_generation(agent, image, self._profiles)

    async def restore(self, running: Mapping[str, Running | None]) -> Mapping[str, bytes | None]:
        """Set the profiles of these agents to what they run, and give flake and lock with its commits."""
        over = {agent: self._pin(agent, one.sha) for agent, one in running.items() if one is not None}
        gone = running.keys() - over.keys()
        pins = {name: pin for name, pin in (await self._pins(over)).items() if name not in gone}
        lock = await self._read_meta(LOCK_NAME)
        if lock is None and not over:
            return {}
        try:
            for agent, one in running.items():
                if one is not None:
                    await self._set_profile(agent, one.image)
            with suppress(BadFlake):
                return self._meta_files(lock, pins)
            return await self._lock_again(lock, pins)
        except (BadFlake, NixFailed, *TROUBLE) as error:
            log.error("Flake of the hive is behind until the next deploy: %s", describe(error))
            return {}

    async def _lock_again(self, lock: bytes | None, pins: Mapping[str, Pin]) -> dict[str, bytes | None]:
        # Beside that of a deploy, which may be under way.
        work = self._layout.builds / "restored"
        try:
            await self._lock(work, lock, pins, (), _to_nobody)
            return self._meta_files(await _in_thread(_read_lock, work), pins)
        finally:
            with trio.CancelScope(shield=True):
                await _in_thread(self._nix.take_away, work)

    async def _set_profile(self, agent: str, closure: str) -> None:
        profile = nix_roots.profile(agent, self._profiles)
        await _in_thread(partial(os.makedirs, profile.parent, mode=0o755, exist_ok=True))
        await self._nix.set_profile(await _in_thread(self._own_home), profile, closure)

    # ── the directory of a deploy ───────────────────────────────────────────────────────────────

    async def _begin(self, target: Target, cannot: str) -> None:
        """See that there is nix, and remove what deploys left that were killed."""
        try:
            await self._nix.check()
        except NoNix as error:
            raise BuildFailed(f"{cannot}: {error}") from None
        if not PLAIN_PATH.match(str(self._layout.state)):
            raise BuildFailed(
                f"{cannot}: nix cannot work in {self._layout.state}; let the hive's state be where the path"
                " has no other characters than letters, digits and ._+=@~- (state_dir)"
            )
        for left in await _in_thread(self._left):
            if left.name != str(target.deploy_id):
                await _in_thread(self._nix.take_away, left)

    async def _lock(
        self, work: Path, old: bytes | None, pins: Mapping[str, Pin], renew: tuple[str, ...], say: Say
    ) -> None:
        inputs = self._config().deploy.inputs
        files = {FLAKE_NAME: meta_flake.render(inputs, pins, SYSTEM).encode()}
        kept = meta_flake.carry_over(old, inputs, pins, renew)
        if kept is not None:
            files[LOCK_NAME] = kept
        await _in_thread(self._nix.lay_out, work, files)
        repositories = [pin.repository for pin in pins.values()]
        await self._nix.lock(work, repositories=repositories, seen=self._seen(), tell=say)
        lock = await _in_thread(_read_lock, work)
        if lock is None:
            raise BadFlake(f"nix wrote no {LOCK_NAME}")
        meta_flake.verify(lock, inputs, pins)

    def _meta_files(self, lock: bytes | None, pins: Mapping[str, Pin]) -> dict[str, bytes | None]:
        inputs = self._config().deploy.inputs
        kept = meta_flake.carry_over(lock, inputs, pins)
        if kept is None:
            raise BadFlake(f"there is no {LOCK_NAME}")
        meta_flake.verify(kept, inputs, pins)
        return {FLAKE_NAME: meta_flake.render(inputs, pins, SYSTEM).encode(), LOCK_NAME: kept}

    async def _pins(self, over: Mapping[str, Pin]) -> dict[str, Pin]:
        """Give what is deployed, and *over* in its place."""
        agents = await self._read_meta(AGENTS_NAME)
        return {**await _in_thread(self._deployed, agents), **over}

    def _deployed(self, agents: bytes | None) -> dict[str, Pin]:
        applied = self._layout.applied
        # Without its repository, of an agent that is being purged, nothing could be locked.
        there = {path.name: str(path) for path in applied.iterdir()} if applied.is_dir() else {}
        return meta_flake.deployed_pins(agents, there)

    def _pin(self, agent: str, sha: str) -> Pin:
        return Pin(str(self._layout.applied_of(agent)), sha)

    def _seen(self) -> list[Path]:
        paths = meta_flake.paths_of(self._config().deploy.inputs.values())
        return [self._layout.applied, *map(Path, sorted(paths))]

    def _work(self, deploy_id: int) -> Path:
        return self._layout.builds / str(deploy_id)

    def _left(self) -> list[Path]:
        builds = self._layout.builds
        return [path for path in builds.iterdir() if path.name.isdecimal()] if builds.is_dir() else []

    def _own_home(self) -> Path:
        """Give the home of nix-env, which makes links in it: empty, and ours alone."""
        home = self._layout.builds / "home"
        shutil.rmtree(home, ignore_errors=True)
        home.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        home.mkdir(mode=0o700)
        return home


def _to_nobody(_: str) -> None:
    pass


def _link(agent: str) -> str:
    return f"out-{agent}"


def _read_lock(work: Path) -> bytes | None:
    """Read the lock that the user of nix has written; None: there is none, or it is no plain file."""
    try:
        fd = os.open(work / "flake" / LOCK_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        return file.read(MAX_LOCK_BYTES + 1) if stat.S_ISREG(os.fstat(fd).st_mode) else None


_in_thread = trio.to_thread.run_sync
