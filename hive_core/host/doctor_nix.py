"""The checks of the doctor for a hive that builds its machines with nix; none of another hive."""

from collections.abc import Callable
from typing import Final

from msgspec import UNSET

from hive_core.config import Config
from hive_core.host.nix import USER
from hive_core.host.survey import Host
from hive_core.wire.machine import Check

TESTED: Final = "2.8"


def nix(host: Host, _config: Config) -> Check | None:
    seen, name = host.nix, "nix"
    if seen is None:
        return None
    if seen.problem is not None:
        why, _, mend = seen.problem.removeprefix("cannot build with nix: ").partition("; ")
        return Check(name=name, status="fail", text=why, mend=mend or UNSET)
    if not seen.is_allowed:
        text = f"its allowed-users leave {USER} out, so nothing can be built"
        return Check(name=name, status="fail", text=text, mend=f"allowed-users = {USER} …   # in nix.conf")
    return Check(
        name=name, status="ok", text=f"version {seen.version}, tested with {TESTED}; nix-daemon answers"
    )


def sandbox(host: Host, _config: Config) -> Check | None:
    seen, name = host.nix, "nix sandbox"
    if seen is None:
        return None
    if seen.sandbox is None:
        return Check(name=name, status="warn", text="nix does not say whether builds have one")
    if seen.sandbox != "true":
        text = f"is {seen.sandbox}: what an agent.nix builds sees files of this host that all may read"
        mend = "sandbox = true   # in /etc/nix/nix.conf, then: systemctl restart nix-daemon"
        return Check(name=name, status="warn", text=text, mend=mend)
    return Check(name=name, status="ok", text="is on: builds see nothing of this host")


def trust(host: Host, _config: Config) -> Check | None:
    seen, name = host.nix, "nix trust"
    if seen is None:
        return None
    if seen.trusted:
        words = " ".join(seen.trusted)
        text = f"trusted-users has {words}: then {USER}, which evaluates what agents write, can be root"
        mend = f"take {words} out of trusted-users in nix.conf, then: systemctl restart nix-daemon"
        return Check(name=name, status="fail", text=text, mend=mend)
    return Check(name=name, status="ok", text=f"{USER} is not among trusted-users")


def inputs(host: Host, _config: Config) -> Check | None:
    seen, name = host.nix, "deploy.inputs"
    if seen is None:
        return None
    if seen.inputs_problem is not None:
        why, _, mend = seen.inputs_problem.partition("; ")
        return Check(name=name, status="fail", text=why, mend=mend or UNSET)
    if seen.missing_inputs:
        text = f"there is no flake in {' and none in '.join(seen.missing_inputs)}"
        return Check(name=name, status="fail", text=text, mend="say where they are, in deploy.inputs")
    return Check(name=name, status="ok", text="names hyperhive and nixpkgs")


CHECKS: Final[tuple[Callable[[Host, Config], Check | None], ...]] = (nix, sandbox, trust, inputs)
