"""A daemon may be killed between any two steps of a start: the next one starts the machine, or removes it."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from .bed import Bed, BedError
from .killed_start import STEPS

PYTHON = "/opt/hyperhive/bin/python3"
SOURCES = "/src/hyperhive/tests/host_bed"
IMAGE = "/var/lib/machines/test-machines"
LEFT = """
find /var/lib/machines /run/systemd/nspawn /run/hyperhive -name '*h-yan*'
systemctl is-active systemd-nspawn@h-yan
"""


def daemon(bed: Bed, scenario: str, agent: str = "yan") -> Any:
    argv = [PYTHON, f"{SOURCES}/inside_machines.py", scenario, agent]
    return json.loads(bed.run(argv, timeout_s=60).stdout.splitlines()[-1])


@pytest.fixture
def host(bed: Bed) -> Iterator[Bed]:
    bed.run(["ln", "-sfn", "/srv/guest", IMAGE])
    yield bed
    daemon(bed, "forget")
    bed.run(["rm", "-rf", IMAGE, "/run/hyperhive", "/var/lib/hyperhive/agents", "/var/lib/hyperhive/configs"])


def kill_at(bed: Bed, step: str) -> None:
    if step == "half put away":  # there is only something to put away after a first start
        daemon(bed, "start")
        bed.run(["systemctl", "stop", "systemd-nspawn@h-yan"])
    with pytest.raises(BedError):
        bed.run([PYTHON, f"{SOURCES}/killed_start.py", step, "yan"], timeout_s=60)


@pytest.mark.parametrize("step", STEPS)
def test_the_next_daemon_starts_it(host: Bed, step: str) -> None:
    kill_at(host, step)

    assert daemon(host, "start").get("owner") == 0


@pytest.mark.parametrize("step", STEPS)
def test_the_next_daemon_removes_what_is_left_of_an_agent_that_nobody_knows(host: Bed, step: str) -> None:
    kill_at(host, step)

    daemon(host, "clear", "zoe")

    left = host.popen(["sh", "-c", LEFT], stdout=subprocess.PIPE, text=True).communicate(timeout=20)[0]
    assert left == "inactive\n"
