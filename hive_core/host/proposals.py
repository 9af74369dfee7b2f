"""Takes repositories apart that agents own, and plants new ones, in short-lived children.

What an agent may have made of its repository costs one child its limits.  It is read as its owner, shut in;
what was read is put together again as the user of git, in a quarantine that only objects get into.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec
import trio
from msgspec import Meta

from hive_core.host import process
from hive_core.host.process import User
from hive_core.host.quarantine_worker import CUT_SHORT

TIMEOUT_S: Final = 60.0
MAX_ANSWER_BYTES: Final = 4 * 2**20


class CannotRead(Exception):
    """A repository cannot be taken apart.  The text is for whoever owns it."""


Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{40}\Z")]


class Contents(msgspec.Struct, frozen=True):
    """What of a repository came into the quarantine."""

    head: Hash | None
    """The commit that is checked out."""
    refs: dict[str, Hash]
    packs: list[str]
    """Files in objects/pack that git has not looked at yet."""
    too_large: list[Hash]
    """Some of the objects that were left out, being too large."""


_CONTENTS: Final = msgspec.json.Decoder(Contents)


async def read(
    directory: Path, quarantine: Path, *, as_owner: bool, user: User | None, refs: bool = False
) -> Contents:
    """Copy the objects of the repository in *directory* into the empty directory *quarantine* of *user*.

    *as_owner*: we are root, and become whoever owns *directory* to read it.

    Raises:
        CannotRead: there is none, or it holds too much; the text says why.
        process.CommandError, OSError: we cannot.
    """
    argv = [*_worker("proposal_worker"), "read", str(directory)]
    argv += ["owner" if as_owner else "-", "refs" if refs else "objects"]
    become = [] if user is None else [str(user.uid), str(user.gid)]
    try:
        answer = await process.run_pair(
            argv,
            [*_worker("quarantine_worker"), str(quarantine), *become],
            timeout_s=TIMEOUT_S,
            max_output_bytes=MAX_ANSWER_BYTES,
        )
        return _CONTENTS.decode(answer)
    except trio.TooSlowError:
        raise CannotRead(f"its repository could not be read in {TIMEOUT_S:g} s") from None
    except process.CommandError as error:
        why = str(error).partition(": exit status 1: ")[2]
        if not why:
            raise CannotRead(CUT_SHORT) from None
        raise CannotRead(_shown(why)) from None
    except msgspec.MsgspecError as error:
        raise process.CommandError(f"quarantine_worker: {error}") from None


async def seed(directory: Path, files: Mapping[str, bytes], *, uid: int | None) -> bool:
    """Write *files* into *directory*, as user *uid* if it says one; False: there is a .git already.

    Those below .git appear together, and last.  Others that are there already stay as they are.

    Raises:
        process.CommandError, OSError: they cannot be written.
        trio.TooSlowError: not in TIMEOUT_S.
    """
    said_to = b"".join(f"{path} {len(held)}\n".encode() + held for path, held in files.items())
    argv = [*_worker("proposal_worker"), "seed", str(directory)]
    argv += ["-" if uid is None else str(uid), str(len(said_to))]
    answer = await process.run(argv, timeout_s=TIMEOUT_S, max_output_bytes=4096, said_to=said_to)
    return answer == b"done\n"


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)[:300]


def _worker(module: str) -> list[str]:
    return [sys.executable, "-I", "-m", f"hive_core.host.{module}"]
