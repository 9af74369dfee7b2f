"""The files that a new agent's configuration begins with.

What they declare is what the agent runs with already, or would: planting them changes nothing.
"""

from typing import Final, Literal

from hive_core.domain.cage import Shape
from hive_core.domain.manifest import MANIFEST_NAME, MIN_MEMORY_BYTES

_MANIFEST: Final = """\
# {agent}: what the host gives it.  A change is proposed as a commit and takes effect when an operator has
# approved it.  What is left out is as the operator or the hive's configuration says.

# What it is there for, in a few words.
#description = ""

{image}
# "none": it reaches what it reaches through the hive's socket.  "veth": a link of its own to the host.
{network}

# What thinks for it, and with which model.
#provider = "claude"
#model = ""

# A file of this repository with its task; it is told that after what every agent is told.
#prompt = "prompt.md"

{packages}
# To whom it may write beside the manager.
#recipients = ["alice"]

{limits}
# Suffixes are K, M, G and T.
{memory}
# 100% is one processor.
{cpu}
# Processes and threads.
{tasks}

# Variables that its programs see.  Everybody who reads this repository reads them: no passwords.
#[environment]
#LANG = "C.UTF-8"

# A program in its machine that gives its model more tools; as many of these as you like, each with a name.
#[mcp_servers.notes]
#command = "notes-mcp"
#args = ["--root", "/home/agent/notes"]
#env = {{ LEVEL = "info" }}

# A directory or file of the host that it sees.  Without path it is at the same place.
#[[binds]]
#source = "/srv/data"
#path = "/data"
#writable = false
"""

_TREE_IMAGE: Final = """\
# What its machine starts from: the name of a tree below /var/lib/machines, or the path of a NixOS closure.
{image}
"""

_NIX_IMAGE: Final = """\
# Its machine is built from agent.nix: image and packages cannot be set here.
"""

_PACKAGES: Final = """\
# What is added to the image.
#packages = ["ripgrep"]
"""

_MODULE: Final = """\
# {agent}: what its machine is made of, where the hive builds machines with Nix.  A NixOS module; whatever
# lies beside it in this repository may be imported, nothing from elsewhere.
{{ pkgs, ... }}:
{{
  environment.systemPackages = [
    # pkgs.ripgrep
  ];
}}
"""

_README: Final = """\
# {agent}

The configuration of the agent `{agent}`.

- `agent.toml`: what the host gives it, from its model to its limits.  Each key is explained there.
- `agent.nix`: what is installed in its machine, where the hive builds machines with Nix.
- Any other file may be here too.  What was deployed lies in the machine at `$HIVE_RELEASE/config`.

To change something, commit it here and propose the commit by its hash (`request_apply_commit`).  It is
taken over as it is at that moment; an operator sees what it would change and approves or denies it.
Until then, and if it cannot be built, everything stays as it is.
"""


def files(agent: str, shape: Shape, builder: Literal["tree", "nix"] = "tree") -> dict[str, bytes]:
    """Give the files of a new configuration of *agent*, by name, that declare *shape*."""
    texts = {
        MANIFEST_NAME: render_manifest(agent, shape, builder),
        "agent.nix": _MODULE.format(agent=agent),
        "README.md": _README.format(agent=agent),
    }
    return {name: text.encode() for name, text in texts.items()}


def render_manifest(agent: str, shape: Shape, builder: Literal["tree", "nix"]) -> str:
    """Give an agent.toml that declares *shape* and names every other key in a comment.

    With *builder* `nix` the image of *shape* is left out: it would be an error.
    """
    image = (
        _TREE_IMAGE.format(image=_key("image", shape.image, '"debian-13"'))
        if builder == "tree"
        else _NIX_IMAGE
    )
    limits = (_size(shape.memory_max_bytes), shape.cpu_quota_percent, shape.tasks_max)
    return _MANIFEST.format(
        agent=agent,
        image=image,
        packages=_PACKAGES if builder == "tree" else "",
        network=_key("network", shape.network and shape.network.value, '"none"'),
        # A table that begins here would swallow the keys that somebody adds at the end.
        limits="[limits]" if any(limits) else "#[limits]",
        memory=_key("memory", _size(shape.memory_max_bytes), '"4G"'),
        cpu=_key("cpu", shape.cpu_quota_percent and f"{shape.cpu_quota_percent}%", '"200%"'),
        tasks=_key("tasks", shape.tasks_max, "4096"),
    ).replace("\n\n\n", "\n\n")


def _key(name: str, value: str | int | None, example: str) -> str:
    if value is None:
        return f"#{name} = {example}"
    # Nothing that may stand in a shape needs more of TOML's quoting.
    text = (
        str(value) if isinstance(value, int) else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    )
    return f"{name} = {text}"


def _size(count: int | None) -> str | None:
    if count is None or count < MIN_MEMORY_BYTES:
        return None  # an operator may say that little, a manifest may not
    for unit, suffix in ((2**40, "T"), (2**30, "G"), (2**20, "M"), (2**10, "K")):
        if count % unit == 0:
            return f"{count // unit}{suffix}"
    return str(count)
