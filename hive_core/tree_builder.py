"""Builds nothing itself: an agent's machine starts from an image that its agent.toml names.

More packages come into that by a program of the host's own, `deploy.packages_hook`.
"""

from collections.abc import Callable, Mapping
from typing import Final

import trio

from hive_core.builders import BuildFailed, Built, Running, Say, Target
from hive_core.config import Config
from hive_core.domain.cage import CannotStart
from hive_core.domain.manifest import Manifest
from hive_core.host import process
from hive_core.host.images import Images

MAX_IMAGE_CHARS: Final = 1024


class TreeBuilder:
    """*images* are those of this host, None in a local hive; *config* is asked each time."""

    def __init__(self, images: Images | None, config: Callable[[], Config]) -> None:
        self._images = images
        self._config = config

    async def prepare(self, target: Target, say: Say) -> None:
        """See that there is what the build needs.

        Raises:
            BuildFailed: packages are asked for and nothing gives them, or there is no such image.
        """
        config = self._config()
        if target.manifest.packages and not config.deploy.packages_hook:
            raise BuildFailed(
                f"cannot build {target.agent}: its agent.toml asks for packages, and this hive has no program"
                " that adds them to an image; set deploy.packages_hook in its configuration"
            )
        if target.manifest.packages and self._images is not None and not config.machines.image:
            raise BuildFailed(
                f"cannot build {target.agent}: with its packages there would be another image, and agents"
                " that name none start from the only one there is; set machines.image in the configuration"
            )
        if self._images is None:
            ignored = _of_machines(target.manifest)
            if ignored:
                say(f"This hive is a local one: it ignores {', '.join(ignored)} of agent.toml.")
        else:
            say(f"Image: {await self._resolved(self._base(target.manifest), target.agent)}")

    async def build(self, target: Target, say: Say) -> Built:
        """Give the image, with the packages in it.

        Raises:
            BuildFailed: the hook fails, takes too long, or names no image that a machine could start from.
        """
        manifest = target.manifest
        if target.former is not None and await self._is_there(target.former):
            say(f"Image of that deploy: {target.former}")
            return Built(target.former)
        if not manifest.packages:
            return Built(None if self._images is None else manifest.image)
        base = self._base(manifest)
        named = await self._run_hook(target, base, say)
        if self._images is None:
            return Built(None)
        await self._resolved(named, target.agent)
        return Built(named)

    async def finalize(
        self,
        target: Target,  # noqa: ARG002
        built: str | None,  # noqa: ARG002
        say: Say,  # noqa: ARG002
    ) -> Mapping[str, bytes | None]:
        """Give nothing: an image is its own record."""
        return {}

    async def abort(self, target: Target) -> None:
        """Do nothing: nothing was laid out."""

    async def forget(self, agent: str) -> Mapping[str, bytes | None]:  # noqa: ARG002
        """Give nothing: images belong to nobody."""
        return {}

    async def purge(self, agent: str) -> None:
        """Do nothing: images belong to nobody."""

    def has_built(self, agent: str, image: str | None) -> bool:  # noqa: ARG002
        """Say no: whoever made an image, a record of it is not needed to start from it."""
        return False

    async def restore(self, running: Mapping[str, Running | None]) -> Mapping[str, bytes | None]:  # noqa: ARG002
        """Give nothing, as `finalize` does."""
        return {}

    def _base(self, manifest: Manifest) -> str:
        return manifest.image if manifest.image is not None else self._config().machines.image

    async def _resolved(self, image: str, agent: str) -> str:
        if self._images is None:
            return image
        try:
            found = await trio.to_thread.run_sync(self._images.resolve, image, agent)
        except CannotStart as error:
            why = str(error).removeprefix(f"cannot start {agent}: ")
            raise BuildFailed(f"cannot build {agent}: {why}") from None
        return found.name

    async def _is_there(self, image: str) -> bool:
        if self._images is None:
            return False
        try:
            await trio.to_thread.run_sync(self._images.resolve, image)
        except CannotStart:
            return False
        return True

    async def _run_hook(self, target: Target, base: str, say: Say) -> str:
        config, packages = self._config().deploy, target.manifest.packages
        hook = config.packages_hook
        base = base if self._images is None or base else await self._resolved(base, target.agent)
        say(f"{hook} adds {', '.join(packages)} to {base or 'the image'}")
        failed = f"cannot build {target.agent}: {hook}"
        try:
            last = await process.run_aloud(
                [hook, target.agent, base, *packages],
                timeout_s=config.timeout_s,
                tell=lambda line: say(line.decode(errors="replace")),
            )
        except trio.TooSlowError:
            raise BuildFailed(
                f"{failed} takes longer than deploy.timeout_s, {config.timeout_s:g} s"
            ) from None
        except process.CommandError as error:
            raise BuildFailed(f"{failed} failed: {str(error).rpartition(': ')[2]}") from None
        except OSError as error:
            raise BuildFailed(f"{failed} cannot be run: {error.strerror}") from None
        named = last.decode(errors="replace").strip()
        if not named or len(named) > MAX_IMAGE_CHARS or not named.isprintable():
            raise BuildFailed(f"{failed} named no image in the last line of its output")
        return named


def _of_machines(manifest: Manifest) -> list[str]:
    """Name what only machines have."""
    said = {
        "image": manifest.image is not None,
        "network": manifest.network is not None,
        "limits": manifest.limits != type(manifest.limits)(),
        "binds": bool(manifest.binds),
    }
    return [name for name, is_said in said.items() if is_said]
