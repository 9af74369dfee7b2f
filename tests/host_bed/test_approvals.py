"""Approvals as a manager in its machine and operators on the host live them, with the units as they are installed."""

import json
import os
import shlex
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from .bed import open_bed
from .hive_kit import CONFIG, HOST_SOCKET, HiveHost, wait_until

CONFIGURED = (
    CONFIG.replace("[machines]\n", '[machines]\nimage = "debian"\n')
    + """
[approvals]
manager = true

[deploy]
packages_hook = "/etc/hyperhive/packages"
"""
)
HOOK = """\
#!/bin/sh -eu
base=$2; shift 2
name=with-$(printf '%s\\n' "$@" | sort -u | paste -sd -)
test "$1" != broken
systemctl --quiet stop hive-packages 2>/dev/null || true
test -d "/var/lib/machines/$name" ||
    systemd-run --quiet --wait --pipe --collect --unit=hive-packages \\
        sh -c "test $1 != slow || sleep 3; /opt/hyperhive/bin/hive-core image add $name /srv/guest"
echo "$name"
"""
"""As docs/approvals.md has it; a bed has no mirror."""

DECIDE = """
import json, socket, sys
for line in sys.stdin:
    with socket.socket(socket.AF_UNIX) as operator:
        operator.connect(sys.argv[1])
        operator.sendall(line.encode())
        print(operator.makefile().readline(), end="", flush=True)
"""
ROUNDS = 10


@pytest.fixture(scope="module")
def hive(worker_id: str) -> Iterator[HiveHost]:
    with open_bed(f"pytest-{os.getpid()}-{worker_id}-approvals") as bed:
        hook = bed.path("/etc/hyperhive/packages")
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(HOOK)
        hook.chmod(0o755)
        host = HiveHost(bed).set_up(CONFIGURED)
        # What `hive image build` puts into each, and the guest of these tests has not.
        bed.run(["cp", "/usr/bin/git", "/var/lib/machines/debian/usr/bin/"])
        bed.run(["sh", "-c", "cp -a /srv/guest /var/lib/machines/dumb"], timeout_s=60)
        init = bed.path("/var/lib/machines/dumb/usr/lib/systemd/systemd")
        init.unlink()
        init.write_text("#!/bin/sh\nexit 7\n")
        init.chmod(0o755)
        host.wait_as_wanted("manager")
        host.hive("spawn", "alice")
        yield host


def call(hive: HiveHost, tool: str, **arguments: Any) -> dict[str, Any]:
    """Let the manager's model call a tool: through what its client starts, in its machine."""
    call = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": tool, "arguments": arguments},
    }
    relay = ["/opt/hyperhive/bin/hive-agent", "mcp", "--socket", "/run/hive/mcp.sock"]
    said = hive.inside("manager", *relay, input=json.dumps(call) + "\n")
    result: dict[str, Any] = json.loads(said.splitlines()[0])["result"]
    return result


def commit(hive: HiveHost, agent: str, toml: str, message: str = "a change") -> str:
    """Let the manager edit and commit as its prompt tells it to; gives the commit."""
    call(hive, "open_config", name=agent)
    git = "git -c user.name=manager -c user.email=manager@hive"
    script = (
        f"cd /agents/{agent}/config; printf %s {shlex.quote(toml)} > agent.toml; git add agent.toml;"
        f" {git} commit -q -m {shlex.quote(message)}; git rev-parse HEAD"
    )
    return hive.inside("manager", "sh", "-ec", script).strip()


def request(hive: HiveHost, toml: str, why: str = "wanted") -> int:
    asked = call(
        hive, "request_apply_commit", agent="alice", commit_ref=commit(hive, "alice", toml), description=why
    )
    assert not asked.get("isError"), asked
    return int(asked["structuredContent"]["id"])


def ended(hive: HiveHost, approval: int) -> dict[str, Any]:
    """Wait until what was approved is done, and what should run does; give the row of the deploy."""

    def row() -> Any:
        rows = hive.ask(cmd="deploys", limit=1000)["deploys"]
        return next((r for r in rows if r.get("approval_id") == approval and "finished_at" in r), None)

    wait_until(row, f"approval {approval} is carried out", 60)
    hive.wait_as_wanted()
    found: dict[str, Any] = row()
    return found


def deploy(hive: HiveHost, toml: str, why: str = "wanted") -> dict[str, Any]:
    approval = request(hive, toml, why)
    hive.ask(cmd="approve", id=approval)
    return ended(hive, approval)


def told(hive: HiveHost, since: int, recipient: str) -> list[str]:
    rows = hive.messages(since)
    return [row["body"] for row in rows if (row["sender"], row["recipient"]) == ("system", recipient)]


def events(hive: HiveHost, since: int) -> list[tuple[str, Any]]:
    """What the manager was told, as (event, status or whether it is ok)."""
    bodies = [json.loads(body) for body in told(hive, since, "manager")]
    return [(body["event"], body.get("status", body.get("ok"))) for body in bodies]


def applied(hive: HiveHost, agent: str, *words: str) -> str:
    repository = f"/var/lib/hyperhive/applied/{agent}"
    return hive.run(["git", "-c", "safe.directory=*", "-C", repository, *words]).stdout.strip()


def harness_environment(hive: HiveHost, agent: str) -> str:
    pid = hive.inside(agent, "systemctl", "show", "hive-agent", "-p", "MainPID", "--value").strip()
    return hive.inside(agent, "sh", "-c", f"tr '\\0' '\\n' < /proc/{pid}/environ")


def test_a_manager_asks_with_its_tools_and_an_operator_approves_what_he_saw(hive: HiveHost) -> None:
    since = hive.last_message()
    approval = request(hive, 'environment = { A = "one" }\nlimits.tasks = 500\n', "alice counts")

    assert "alice counts" in hive.hive("pending").stdout
    card = hive.look("approvals", "show", str(approval), "--diff")
    assert card["approval"]["proposer"] == "manager"
    assert {c["kind"] for c in card["consequences"]} >= {"environment", "limit"}
    done = hive.hive("approve", str(approval), "--yes", "--wait")

    assert "\tdone\t" in done.stdout
    hive.wait_as_wanted("alice")
    assert "A=one\n" in harness_environment(hive, "alice")
    assert hive.unit("alice", "TasksMax") == "500"
    assert events(hive, since) == [("approval_resolved", "approved"), ("rebuilt", True)]


def test_the_manager_fetches_what_was_applied_into_its_own(hive: HiveHost) -> None:
    deploy(hive, 'environment = { A = "two" }\n')

    # Of a guest without git's own directory of programs.
    hive.inside("manager", "git", "-C", "/agents/alice/config", "fetch", "--quiet", "applied")

    shown = hive.inside("manager", "git", "-C", "/agents/alice/config", "rev-parse", "applied/main").strip()
    assert shown == applied(hive, "alice", "rev-parse", "main")


@pytest.mark.parametrize(
    ("toml", "why", "is_restarted"),
    [
        ('image = "dumb"\n', "its machine did not come up: exit status 7", True),
        ('image = "none-such"\n', "there is no image none-such", False),
        ('[[binds]]\nsource = "/srv/none-such"\n', "/srv/none-such: No such file or directory", False),
        ('packages = ["broken"]\n', "/etc/hyperhive/packages failed: exit status 1", False),
    ],
)
def test_what_does_not_work_is_tagged_with_why_and_the_old_one_runs(
    hive: HiveHost, toml: str, why: str, is_restarted: bool
) -> None:
    good = 'environment = { A = "good" }\nlimits.tasks = 600\n'
    if "A=good\n" not in harness_environment(hive, "alice"):
        assert deploy(hive, good)["step"] == "done"
    runs, leader, since = (
        applied(hive, "alice", "rev-parse", "main"),
        hive.leader("alice"),
        hive.last_message(),
    )

    row = deploy(hive, f'environment = {{ A = "bad" }}\n{toml}')

    assert (row["step"], why in row["error"]) == ("failed", True), row
    assert why in applied(hive, "alice", "tag", "-l", "--format=%(contents)", f"failed/{row['approval_id']}")
    assert applied(hive, "alice", "rev-parse", "main") == runs
    assert "A=good\n" in harness_environment(hive, "alice")
    assert hive.unit("alice", "TasksMax") == "600"
    assert (hive.leader("alice") != leader) == is_restarted
    # Another turn only where there was another start.
    assert len(told(hive, since, "alice")) == is_restarted
    assert events(hive, since) == [("approval_resolved", "failed"), ("rebuilt", False)]
    assert not hive.row("alice")["needs_update"]


def test_packages_come_by_the_hook_and_go_when_they_are_not_asked_for(hive: HiveHost) -> None:
    row = deploy(hive, 'packages = ["jq", "ripgrep"]\n')
    assert (row["step"], hive.ask(cmd="machine", name="alice")["image"]) == ("done", "with-jq-ripgrep")
    assert "with-jq-ripgrep is an image now" in hive.hive("deploys", "log", str(row["id"])).stdout

    row = deploy(hive, "")

    assert (row["step"], hive.ask(cmd="machine", name="alice")["image"]) == ("done", "debian")


def test_a_hook_whose_daemon_is_killed_is_run_again_by_the_next(hive: HiveHost) -> None:
    def build() -> str:
        shown = hive.run(["systemctl", "show", "hive-packages", "-p", "ActiveState", "--value"])
        return shown.stdout.strip()

    approval = request(hive, 'packages = ["slow"]\n')
    hive.ask(cmd="approve", id=approval)
    wait_until(lambda: build() == "active", "the hook has its work done")
    hive.run(["systemctl", "kill", "-s", "KILL", "hive-core"])
    assert build() == "active", "it goes on without its daemon"

    wait_until(lambda: hive.is_as_wanted(), "the daemon is back", 30)
    row = ended(hive, approval)

    assert (row["step"], hive.ask(cmd="machine", name="alice")["image"]) == ("done", "with-slow")


def test_packages_need_to_know_what_the_others_start_from(hive: HiveHost) -> None:
    config = hive.bed.path("/etc/hyperhive/config.toml")
    config.write_text(CONFIGURED.replace('image = "debian"\n', ""))
    hive.run(["systemctl", "reload", "hive-core"])
    try:
        row = deploy(hive, 'packages = ["jq"]\n')
    finally:
        config.write_text(CONFIGURED)
        hive.run(["systemctl", "reload", "hive-core"])
    assert row["step"] == "failed"
    assert "set machines.image" in row["error"]


def test_git_gets_through_to_its_own_after_a_reload_and_nobody_else_to_the_rest(hive: HiveHost) -> None:
    hive.run(["systemctl", "reload", "hive-core"])

    assert deploy(hive, 'environment = { A = "reloaded" }\n')["step"] == "done"
    state = hive.bed.path("/var/lib/hyperhive")
    assert state.stat().st_mode & 0o777 == 0o711
    assert (state / "broker.sqlite").stat().st_mode & 0o777 == 0o600


def test_a_denial_says_why_in_the_repository_and_to_the_manager(hive: HiveHost) -> None:
    approval, since = request(hive, 'network = "veth"\n'), hive.last_message()

    hive.hive("deny", str(approval), "-m", "not this year")

    assert (
        applied(hive, "alice", "tag", "-l", "--format=%(contents)", f"denied/{approval}") == "not this year"
    )
    wait_until(lambda: events(hive, since) == [("approval_resolved", "denied")], "the manager is told")
    refused = hive.hive("approve", str(approval), "--yes", check=False)
    assert "is denied already" in refused.stderr


def test_a_configuration_is_looked_at_before_anything_runs(hive: HiveHost) -> None:
    since = hive.last_message()
    asked = call(hive, "request_init_config", name="dave")["structuredContent"]["id"]
    hive.ask(cmd="approve", id=asked)
    ended(hive, asked)
    assert "dave" not in hive.rows()
    assert events(hive, since)[-1][0] == "config_ready"

    sha = commit(hive, "dave", 'environment = { D = "reviewed" }\n')
    asked = call(hive, "request_spawn", name="dave")["structuredContent"]["id"]
    assert hive.look("approvals", "show", str(asked))["approval"]["fetched_sha"] == sha
    hive.ask(cmd="approve", id=asked)
    ended(hive, asked)

    assert "D=reviewed\n" in harness_environment(hive, "dave")
    assert applied(hive, "dave", "rev-parse", "deployed/0", "main").split() == [sha, sha]
    assert events(hive, since)[-1] == ("spawned", True)

    pending = call(
        hive, "request_apply_commit", agent="dave", commit_ref=commit(hive, "dave", 'model = "x"\n')
    )["structuredContent"]["id"]
    hive.hive("destroy", "dave", "--yes")
    wait_until(lambda: "dave" not in hive.rows(), "it is gone")
    (row,) = [row for row in hive.ask(cmd="approvals", limit=1000)["approvals"] if row["id"] == pending]
    assert (row["status"], row["note"]) == ("failed", "agent destroyed")
    wait_until(lambda: "dave" not in hive.inside("manager", "cat", "/meta/agents.json"), "meta is settled")


def test_a_client_of_raw_lines_decides_and_a_second_decision_is_refused(hive: HiveHost) -> None:
    def ask(line: str) -> dict[str, Any]:
        """As the clients of the original: a connection, a line, an answer."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(hive.socket))
            client.sendall(line.encode() + b"\n")
            answer: dict[str, Any] = json.loads(client.makefile().readline())
        return answer

    first, second = request(hive, "limits.tasks = 700\n"), request(hive, "limits.tasks = 701\n")
    waiting = {row["id"]: row for row in ask('{"cmd":"pending"}')["approvals"]}

    assert waiting[first]["kind"] == "apply_commit"
    assert waiting[first]["commit_ref"] == waiting[first]["fetched_sha"]
    assert ask(f'{{"cmd":"approve","id":{first}}}') == {"version": 1, "ok": True}
    assert ask(f'{{"cmd":"deny","id":{second}}}') == {"version": 1, "ok": True}
    for verb in ("approve", "deny"):
        for approval in (first, second):
            again = ask(f'{{"cmd":"{verb}","id":{approval}}}')
            assert (again["ok"], again["reason"]) == (False, "decided")
    ended(hive, first)
    assert hive.unit("alice", "TasksMax") == "700"


def test_of_two_operators_who_decide_at_once_one_decides(hive: HiveHost) -> None:
    operators = [
        hive.bed.popen(
            ["python3", "-c", DECIDE, HOST_SOCKET], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    approvals, since = [], hive.last_message()
    for number in range(ROUNDS):
        approval = hive.ask(cmd="request_init_config", name=f"maybe{number}")["id"]
        approvals.append(approval)
        verbs = ("approve", "approve" if number % 2 else "deny")
        for operator, verb in zip(operators, verbs, strict=True):
            assert operator.stdin
            operator.stdin.write(json.dumps({"cmd": verb, "id": approval}) + "\n")
            operator.stdin.flush()
        answers = [json.loads(operator.stdout.readline()) for operator in operators if operator.stdout]
        assert sorted((answer["ok"], answer.get("reason")) for answer in answers) == [
            (False, "decided"),
            (True, None),
        ]
    for operator in operators:
        operator.communicate(timeout=20)

    def settled() -> bool:
        rows = {row["id"]: row for row in hive.ask(cmd="approvals", limit=1000)["approvals"]}
        return all(rows[approval]["finished"] for approval in approvals)

    wait_until(settled, "all is carried out", 60)
    deploys = [row.get("approval_id") for row in hive.ask(cmd="deploys", limit=1000)["deploys"]]
    rows = {row["id"]: row["status"] for row in hive.ask(cmd="approvals", limit=1000)["approvals"]}
    assert {deploys.count(approval) for approval in approvals if rows[approval] == "approved"} == {1}
    assert all(deploys.count(approval) == 0 for approval in approvals if rows[approval] == "denied")
    resolved = [event for event, _ in events(hive, since) if event == "approval_resolved"]
    assert len(resolved) == ROUNDS


def test_what_was_deployed_comes_up_so_after_a_boot(hive: HiveHost, worker_id: str) -> None:
    """A bed cannot be booted twice: what is on its disk goes on in a new one, which has nothing else."""
    row = deploy(hive, 'environment = { A = "kept" }\nlimits.tasks = 800\nprompt = "agent.toml"\n')
    assert row["step"] == "done"
    hive.run(["systemctl", "stop", "hive-core.socket", "hive-core.service"], timeout_s=30)
    hive.run(["systemctl", "stop", "machine-hive.slice"], timeout_s=60)
    with open_bed(f"pytest-{os.getpid()}-{worker_id}-again") as bed:
        booted = HiveHost(bed)
        bed.install_product()
        # As on a host: its users keep their numbers.
        booted.run(["sh", "/src/hyperhive/systemd/install.sh", "install-files"])
        for place in ("/var/lib/hyperhive", "/var/lib/machines", "/etc/hyperhive"):
            # But for the images that nothing starts from.
            source = hive.bed.path(place)
            entries = [e for e in os.listdir(source) if e != "dumb" and not e.startswith("with-")]
            copy = ["cp", "-a", "--reflink=auto", *(f"{source}/{e}" for e in entries), f"{bed.path(place)}/"]
            assert os.spawnvp(os.P_WAIT, copy[0], copy) == 0
        booted.run(["systemctl", "start", "hive-core"], timeout_s=30)

        booted.wait_as_wanted("alice", "manager")

        assert "A=kept\n" in harness_environment(booted, "alice")
        assert booted.unit("alice", "TasksMax") == "800"
        assert booted.row("alice")["deployed_sha"] == row["sha"][:12]
        assert not booted.row("alice")["needs_update"]
        assert deploy(booted, 'environment = { A = "new" }\n')["step"] == "done"
