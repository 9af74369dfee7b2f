"""Runs in a bed: prepares, builds and finalizes the commit of an agent as the daemon would; says what came out."""

import json
import sys
from pathlib import Path

import trio

from hive_core.backends import open_builder
from hive_core.builders import BuildFailed, Target
from hive_core.config import load_config
from hive_core.domain.manifest import NOTHING
from hive_core.layout import host_layout
from hive_core.repositories import Repositories


async def main(*words: str) -> None:
    agent, sha = words
    config, _ = load_config(Path("/etc/hyperhive/config.toml"), {})
    layout = host_layout(config)
    builder = open_builder(layout, lambda: config, None, Repositories(layout, isolated=True))
    said: list[str] = []
    target = Target(1, agent, sha, NOTHING)
    try:
        await builder.prepare(target, said.append)
        built = await builder.build(target, said.append)
        files = await builder.finalize(target, built.image, said.append)
        outcome = {
            "closure": built.image,
            "files": {name: (text or b"").decode() for name, text in files.items()},
        }
    except BuildFailed as error:
        outcome = {"failed": str(error)}
    await builder.abort(target)
    print(json.dumps({**outcome, "said": said}))


trio.run(main, *sys.argv[1:])
