"""Archives as somebody else would write them."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

Parts = dict[str, bytes]


def changed(path: Path, change: Callable[[Parts], object], other: Path | None = None) -> Path:
    """The same archive with other parts, of which its manifest says what is true."""
    parts: Parts = {}
    with tarfile.open(path) as old:
        for info in old:
            held = old.extractfile(info)
            assert held is not None
            parts[info.name] = held.read()
    manifest = json.loads(parts.pop("manifest.json"))
    change(parts)
    manifest["parts"] = {
        name: {"sha256": sha256(text).hexdigest(), "size_bytes": len(text)} for name, text in parts.items()
    }
    other = other or path.with_name("changed.tar.gz")
    with gzip.open(other, "wb") as packed, tarfile.open(fileobj=packed, mode="w") as new:
        for name, text in {"manifest.json": json.dumps(manifest).encode(), **parts}.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            new.addfile(info, io.BytesIO(text))
    return other


def with_rows(path: Path, other: Path, change: Mapping[str, Any]) -> Path:
    """The same archive of an agent, of which the database knew something else."""

    def rewrite(parts: Parts) -> None:
        parts["rows.json"] = json.dumps(json.loads(parts["rows.json"]) | dict(change)).encode()

    return changed(path, rewrite, other)
