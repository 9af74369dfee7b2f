"""Machines: how an agent's is declared, what it has and takes, and what the host offers."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import trio
from msgspec import UNSET, UnsetType

from hive_core.domain import declared as declarations
from hive_core.domain.cage import UID_RANGE, CannotStart, Network, Shape, parse_percent, parse_size
from hive_core.domain.manifest import MIN_MEMORY_BYTES
from hive_core.handlers.deps import Cages, Deps, Peer
from hive_core.host.image_build import NoImage
from hive_core.host.images import Image, Images
from hive_core.machines import TROUBLE, describe
from hive_core.wire import host
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.machine import ImageRow, UsageRow


async def spawn(deps: Deps, _peer: Peer, request: host.Spawn) -> host.Reply:
    shape = Shape(
        image=request.image,
        network=None if request.network is None else Network(request.network),
        memory_max_bytes=_parsed("spawn", request.name, parse_size, request.memory),
        cpu_quota_percent=_parsed("spawn", request.name, parse_percent, request.cpu),
        tasks_max=request.tasks,
    )
    _check_memory("spawn", request.name, shape)
    if shape != Shape():
        _cages(deps, f"spawn {request.name} with an image, a network or limits")
    if request.name not in deps.supervisor.names:
        deps.declarations.refuse(request.name, f"spawn {request.name}")
        kept = await deps.supervisor.as_kept(request.name, shape)
        why = await _why_no_image(deps, request.name, kept.shape)
        if why is not None:
            raise Refused(ErrorCode.PRECONDITION_FAILED, f"cannot spawn {request.name}: {why}")
    await deps.supervisor.spawn(request.name, shape)
    deps.deployer.settle(request.name)  # one that comes back runs what was deployed of it
    return host.Reply()


async def rebuild(deps: Deps, _peer: Peer, request: host.Rebuild) -> host.Reply:
    await check_image(deps, request.name, "rebuild")
    await deps.supervisor.rebuild(request.name)
    await deps.declarations.try_again(request.name)
    return host.Reply()


async def check_image(deps: Deps, name: str, verb: str) -> None:
    """See that a running machine that is to be started anew has something to start from.

    Raises:
        Refused: NOT_FOUND; PRECONDITION_FAILED: it has not, and would only be stopped.
    """
    agent = deps.supervisor.agent(name)
    shape = declarations.effective(agent.row).shape
    why = await _why_no_image(deps, name, shape) if agent.machine is not None else None
    if why is not None:
        text = f"cannot {verb} {name}: {why}; its machine is left running"
        raise Refused(ErrorCode.PRECONDITION_FAILED, text)


async def _why_no_image(deps: Deps, name: str, shape: Shape) -> str | None:
    """Say what is wrong with the image that agent *name* would start from, None if nothing is."""
    if deps.cages is None:
        return None
    image = shape.image if shape.image is not None else deps.config().machines.image
    try:
        await trio.to_thread.run_sync(deps.cages.images.resolve, image, name)
    except (CannotStart, OSError) as error:
        return describe(error).removeprefix(f"cannot start {name}: ")
    return None


async def set_limits(deps: Deps, _peer: Peer, request: host.SetLimits) -> host.Reply:
    """Change what is given of the limits.

    Raises:
        Refused: NOT_FOUND, CONFLICT, INVALID_ARGUMENT for a value; PRECONDITION_FAILED in a local hive;
            UNAVAILABLE if the running machine does not take them.
    """
    name = request.name
    declaration = deps.supervisor.agent(name).row.declaration
    for key in ("memory", "cpu", "tasks") if declaration is not None else ():
        assert declaration is not None
        if getattr(request, key) is not UNSET and getattr(declaration.limits, key) is not None:
            deps.declarations.refuse_said(name, f"limit {name}", f"limits.{key}")
    _cages(deps, f"limit {name}")
    memory: int | UnsetType | None = UNSET
    cpu: int | UnsetType | None = UNSET
    if request.memory is not UNSET:
        memory = _parsed("limit", name, parse_size, request.memory)
    if request.cpu is not UNSET:
        cpu = _parsed("limit", name, parse_percent, request.cpu)
    tasks = request.tasks

    def change(shape: Shape) -> Shape:
        return replace(
            shape,
            memory_max_bytes=shape.memory_max_bytes if memory is UNSET else memory,
            cpu_quota_percent=shape.cpu_quota_percent if cpu is UNSET else cpu,
            tasks_max=shape.tasks_max if tasks is UNSET else tasks,
        )

    _check_memory("limit", name, change(Shape()))
    await deps.supervisor.reshape(name, change)
    return host.Reply()


async def machine(deps: Deps, _peer: Peer, request: host.MachineRequest) -> host.MachineReply:
    row = deps.supervisor.agent(request.name).row
    try:
        facts = await deps.machines.facts(row)
    except CannotStart as error:
        raise Refused(ErrorCode.UNAVAILABLE, str(error)) from None
    except TROUBLE as error:
        text = f"cannot look at the machine of {row.name}: {describe(error)}"
        raise Refused(ErrorCode.UNAVAILABLE, text) from None
    limits = facts.limits
    return host.MachineReply(
        name=row.name,
        isolation=deps.supervisor.isolation,
        machine=UNSET if facts.machine is None else facts.machine,
        image=UNSET if facts.image is None else facts.image,
        network=UNSET if facts.network is None else facts.network,
        uid_base=UNSET if facts.uid_base is None else facts.uid_base,
        uid_count=UNSET if facts.uid_base is None else UID_RANGE,
        memory_max_bytes=UNSET if limits is None else limits.memory_max_bytes,
        cpu_quota_percent=UNSET if limits is None else limits.cpu_quota_percent,
        tasks_max=UNSET if limits is None else limits.tasks_max,
        addresses=list(facts.addresses),
        declared=UNSET if deps.cages is None else _said_of(declarations.effective(row).shape),
        declared_in=deps.declarations.source_of(row.name) or UNSET,
    )


def _said_of(shape: Shape) -> list[str]:
    values = {
        "image": shape.image,
        "network": shape.network,
        "memory": shape.memory_max_bytes,
        "cpu": shape.cpu_quota_percent,
        "tasks": shape.tasks_max,
    }
    return [name for name, value in values.items() if value is not None]


async def top(deps: Deps, _peer: Peer, _request: host.Top) -> host.TopReply:
    running = [name for name in deps.supervisor.names if deps.supervisor.agent(name).machine is not None]
    try:
        usage = await deps.machines.usage(running)
    except TROUBLE as error:
        raise Refused(ErrorCode.UNAVAILABLE, f"cannot see what machines take: {describe(error)}") from None
    rows = [
        UsageRow(name=name, cpu_usec=one.cpu_usec, memory_bytes=one.memory_bytes, tasks=one.tasks)
        for name, one in sorted(usage.items())
    ]
    return host.TopReply(monotonic_usec=time.monotonic_ns() // 1000, usage=rows)


async def doctor(deps: Deps, _peer: Peer, _request: host.Doctor) -> host.DoctorReply:
    cages = _cages(deps, "examine the host")
    try:
        checks = await cages.check_host()
    except TROUBLE as error:
        raise Refused(ErrorCode.UNAVAILABLE, f"cannot examine the host: {describe(error)}") from None
    return host.DoctorReply(checks=list(checks))


async def images(deps: Deps, _peer: Peer, _request: host.Images) -> host.ImagesReply:
    cages = _cages(deps, "list images")
    found, users = await trio.to_thread.run_sync(_look, cages.images, _declared(deps))
    rows = [
        ImageRow(
            name=image.name, kind=image.kind.value, path=str(image.path), used_by=users.get(image.name, [])
        )
        for image in found
    ]
    return host.ImagesReply(images=rows)


async def image_rm(deps: Deps, _peer: Peer, request: host.ImageRm) -> host.Reply:
    """Delete an image.

    Raises:
        Refused: PRECONDITION_FAILED if there is none or agents use it; UNAVAILABLE if it cannot be deleted.
    """
    cages, name = _cages(deps, f"delete image {request.name}"), request.name
    _, users = await trio.to_thread.run_sync(_look, cages.images, _declared(deps))
    try:
        await cages.images.remove(name, users.get(name, []))
    except NoImage as error:
        raise Refused(ErrorCode.PRECONDITION_FAILED, str(error)) from None
    except TROUBLE as error:
        text = f"cannot delete image {name}: {describe(error)}"
        raise Refused(ErrorCode.UNAVAILABLE, text) from None
    return host.Reply()


def _declared(deps: Deps) -> list[tuple[str, str]]:
    """Give each agent and the image it is declared to have."""
    default = deps.config().machines.image
    rows = [deps.supervisor.agent(name).row for name in deps.supervisor.names]
    return [(row.name, declarations.effective(row).shape.image or default) for row in rows]


def _look(
    images: Images, declared: Iterable[tuple[str, str]]
) -> tuple[Sequence[Image], dict[str, list[str]]]:
    """Give the images there are, and the agents that start from each."""
    users: dict[str, list[str]] = {}
    for agent, name in declared:
        try:
            image = images.resolve(name)
        except (CannotStart, OSError):
            continue  # it would not start, so it uses none
        users.setdefault(image.name, []).append(agent)
    return images.list(), users


def _cages(deps: Deps, verb: str) -> Cages:
    if deps.cages is None:
        text = f"cannot {verb}: this hive is a local one, whose agents have no machines of their own"
        raise Refused(ErrorCode.PRECONDITION_FAILED, text)
    return deps.cages


def _parsed(verb: str, name: str, parse: Callable[[str], int], text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse(text)
    except ValueError as error:
        raise Refused(ErrorCode.INVALID_ARGUMENT, f"cannot {verb} {name}: {error}") from None


def _check_memory(verb: str, name: str, shape: Shape) -> None:
    if shape.memory_max_bytes is not None and shape.memory_max_bytes < MIN_MEMORY_BYTES:
        little = "with so little memory no machine boots; 64M is the least"
        raise Refused(ErrorCode.INVALID_ARGUMENT, f"cannot {verb} {name}: {little}")
