import os

import pytest

from hive_core.host.cgroup import unit_in, unit_of


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/machine-hive.slice/systemd-nspawn@h-a.service/payload", "systemd-nspawn@h-a.service"),
        (
            "/machine.slice/systemd-nspawn@h-a.service/payload/system.slice/hive-agent.service",
            "systemd-nspawn@h-a.service",
        ),
        # What root in a machine may make below its own cgroup.
        (
            "/machine.slice/systemd-nspawn@h-a.service/payload/systemd-nspawn@h-b.service",
            "systemd-nspawn@h-a.service",
        ),
        # A host that is itself a service of another one.
        ("/system.slice/bed.service/machine.slice/systemd-nspawn@h-a.service", "systemd-nspawn@h-a.service"),
        ("/user.slice/user-1000.slice/session-2.scope", "session-2.scope"),
        ("/system.slice/ssh.service", "ssh.service"),
        ("/system.slice/systemd-nspawn@h-a.service.d/x", None),
        ("/", None),
        ("", None),
    ],
)
def test_the_outermost_machine_is_where_a_process_belongs(path: str, unit: str | None) -> None:
    assert unit_in(path) == unit


def test_a_process_that_is_gone_belongs_nowhere() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

    assert unit_of(pid) is None
