"""Archives: one .tar.gz whose first entry says what else is in it, with a hash of each part.

The parts are files that others made; nothing here looks into them.
"""

import gzip
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Final

import msgspec
from msgspec import Meta

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 16 * 2**20
MAX_PART_BYTES: Final = 2**42
LEVEL: Final = 1
"""Of gzip: a backup shall not keep a processor busy for minutes."""


class BadArchive(Exception):
    """It is no archive of ours, or a damaged one.  The text says what is wrong."""


class Part(msgspec.Struct, frozen=True):
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    size_bytes: Annotated[int, Meta(ge=0, le=MAX_PART_BYTES)]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an archive holds.  *parts* are named by their paths in it."""

    format: int
    kind: str
    """`hive` or `agent`."""
    software: str
    schema: int
    created_at: float
    agents: list[str]
    messages: int = 0
    owners: dict[str, Annotated[int, Meta(ge=0, lt=2**32 - 1)]] = {}
    """By agent, whose what is proposed for it is; of a hive whose agents have users of their own."""
    parts: dict[Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*\Z")], Part]


def hash_part(path: Path) -> Part:
    """Read a file whole and give what the manifest says of it."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
            size += len(chunk)
    return Part(digest.hexdigest(), size)


def write_archive(path: Path, manifest: Manifest, parts: Mapping[str, Path]) -> None:
    """Write an archive that is there whole or not at all, readable by its owner alone.

    Raises:
        OSError: it cannot be written.
    """
    fresh = path.with_name(f".{path.name}.part")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as raw:
            with (
                gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=LEVEL, filename="", mtime=0) as packed,
                tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
            ):
                text = json.dumps(msgspec.to_builtins(manifest), indent=1).encode()
                _add(tar, MANIFEST, len(text), manifest.created_at, io.BytesIO(text))
                for name, source in parts.items():
                    with source.open("rb") as file:
                        _add(tar, name, manifest.parts[name].size_bytes, manifest.created_at, file)
            raw.flush()
            os.fsync(raw.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def read_manifest(file: IO[bytes]) -> Manifest:
    """Read the first entry alone.

    Raises:
        BadArchive, OSError: it is none.
    """
    with _opened(file) as (tar, _):
        return _manifest(tar)


def extract(file: IO[bytes], into: Path | None, *, only: str | None = None) -> Manifest:
    """Check every part of an archive, and write it below *into*, or *only* that one.

    Raises:
        BadArchive: a part is missing, too many, or not what the manifest says.
        OSError: it cannot be read or written.
    """
    with _opened(file) as (tar, packed):
        manifest = _manifest(tar)
        left = dict(manifest.parts)
        while (info := tar.next()) is not None:
            part = left.pop(info.name, None)
            if part is None or not info.isreg() or info.size != part.size_bytes:
                raise BadArchive(f"{info.name!r} is not what the manifest says")
            held = tar.extractfile(info)
            assert held is not None
            target = None
            if into is not None and only in {None, info.name}:
                target = into / info.name
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _copy_checked(held, target, info.name, part)
        while packed.read(2**20):  # to its end, where its own checksum is
            pass
        if left:
            raise BadArchive(f"{min(left)!r} is missing")
    return manifest


def _copy_checked(held: IO[bytes], target: Path | None, name: str, part: Part) -> None:
    digest = hashlib.sha256()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    out = None if target is None else os.fdopen(os.open(target, flags, 0o600), "wb")
    try:
        while chunk := held.read(2**20):
            digest.update(chunk)
            if out is not None:
                out.write(chunk)
        if out is not None:
            out.flush()
            os.fsync(out.fileno())
    finally:
        if out is not None:
            out.close()
    if digest.hexdigest() != part.sha256:
        raise BadArchive(f"{name!r} is damaged: its hash is another")


def _manifest(tar: tarfile.TarFile) -> Manifest:
    try:
        info = tar.next()
        if info is None or info.name != MANIFEST or not info.isreg() or info.size > MAX_MANIFEST_BYTES:
            raise BadArchive(f"it does not begin with {MANIFEST}")
        held = tar.extractfile(info)
        assert held is not None
        manifest = msgspec.json.decode(held.read(), type=Manifest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadArchive(f"its manifest cannot be read: {error}") from None
    if manifest.format > FORMAT:
        raise BadArchive(f"it was written by a newer hyperhive, {manifest.software}; update hyperhive")
    if any(part in {".", ".."} for name in manifest.parts for part in name.split("/")):
        raise BadArchive("its manifest names something elsewhere")
    return manifest


@contextmanager
def _opened(file: IO[bytes]) -> Iterator[tuple[tarfile.TarFile, gzip.GzipFile]]:
    try:
        with gzip.GzipFile(fileobj=file, mode="rb") as packed, tarfile.open(fileobj=packed, mode="r|") as tar:
            yield tar, packed
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadArchive(f"it is damaged, or no archive of a hive: {error}") from None


def _add(tar: tarfile.TarFile, name: str, size: int, mtime: float, held: IO[bytes]) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o600, int(mtime)
    tar.addfile(info, held)
