"""What an agent's machine is given, and nothing else.

A `Shape` is what was declared of one agent, with None where nothing was said.  With the hive's defaults
it becomes a `Cage`, in which everything is decided: two equal cages give equal machines.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from hive_core.config import Machines
from hive_core.domain.machine_names import MAX_MACHINE_NAME, MachineNames
from hive_core.wire.ids import MANAGER

UID_RANGE: Final = 65536
"""Users of one machine: its root is the first of them."""

_SIZE: Final = re.compile(r"(\d{1,15})([KMGT]?)\Z")
_UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Network(StrEnum):
    NONE = "none"
    """Only a loopback: what it reaches, it reaches through the hive's socket."""
    VETH = "veth"
    """A link of its own to the host."""


@dataclass(frozen=True, slots=True)
class Limits:
    memory_max_bytes: int
    cpu_quota_percent: int
    """100 is one processor."""
    tasks_max: int


@dataclass(frozen=True, slots=True)
class Shape:
    """What was declared of an agent; None: as the hive's configuration says."""

    image: str | None = None
    network: Network | None = None
    memory_max_bytes: int | None = None
    cpu_quota_percent: int | None = None
    tasks_max: int | None = None


@dataclass(frozen=True, slots=True)
class Cage:
    agent: str
    machine: str
    """systemd's name of it."""
    uid_base: int
    """The host's uid of its root."""
    image: str
    """The name of a tree below /var/lib/machines, or the path of a NixOS closure below /nix/store; empty:
    the only tree there is."""
    network: Network
    limits: Limits
    is_manager: bool = False


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What the machine of an agent has, for a person to read; None where this hive's machines have none."""

    machine: str | None = None
    """systemd's name of it."""
    image: str | None = None
    network: str | None = None
    uid_base: int | None = None
    limits: Limits | None = None
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a running machine takes."""

    cpu_usec: int
    """Processor time since its start: two looks give a share."""
    memory_bytes: int
    tasks: int


class CannotStart(Exception):
    """A machine cannot be started as declared.  The text names what is missing."""


def resolve(agent: str, uid_base: int, shape: Shape, machines: Machines) -> Cage:
    """Decide everything that *shape* leaves open, by the hive's configuration.

    Raises:
        CannotStart: the machine's name would be too long for systemd, or a limit of the configuration
            cannot be read.
    """
    machine = MachineNames(machines.prefix).machine(agent)
    if len(machine) > MAX_MACHINE_NAME:
        raise CannotStart(
            f"cannot start {agent}: its machine would be called {machine}, {len(machine)} characters, and"
            f" systemd allows {MAX_MACHINE_NAME}; use a shorter name"
        )
    try:
        limits = Limits(
            memory_max_bytes=shape.memory_max_bytes or parse_size(machines.memory_max),
            cpu_quota_percent=shape.cpu_quota_percent or parse_percent(machines.cpu_quota),
            tasks_max=shape.tasks_max or machines.tasks_max,
        )
    except ValueError as error:
        raise CannotStart(f"cannot start {agent}: the configuration's limits: {error}") from None
    return Cage(
        agent=agent,
        machine=machine,
        uid_base=uid_base,
        image=shape.image if shape.image is not None else machines.image,
        network=shape.network if shape.network is not None else Network(machines.network),
        limits=limits,
        is_manager=agent == MANAGER,
    )


def parse_size(text: str) -> int:
    """Read `512M` or `4G`, as systemd does; a number alone is bytes.

    Raises:
        ValueError: it is none.
    """
    match = _SIZE.match(text.strip().upper())
    if match is None:
        raise ValueError(f"{text[:40]!r} is no size: say it as 512M or 4G")
    return int(match[1]) * _UNITS[match[2]]


def parse_percent(text: str) -> int:
    """Read `200%`.

    Raises:
        ValueError: it is none.
    """
    digits = text.strip().removesuffix("%")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 6 or int(digits) == 0:
        raise ValueError(f"{text[:40]!r} is no share of processors: say it as 200%, which is two of them")
    return int(digits)
