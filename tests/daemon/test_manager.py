"""The manager in a real hive: what it may ask and others may not, and that only an operator decides."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from hive_core.wire import agent, agent_manager

from .kit import AgentClient, Daemon, Fault, McpClient, git, refusal, wait_until

SHARED_AGENTS = ("alice", "bob", "manager")

EXAMPLES: dict[str, dict[str, Any]] = {
    "request_spawn": {"name": "carol", "description": "for the docs"},
    "request_init_config": {"name": "carol"},
    "request_apply_commit": {"agent": "bob", "commit_ref": "0123456789"},
    "request_update_meta_inputs": {"inputs": ["nixpkgs"]},
    "open_config": {"name": "bob"},
    "list_approvals": {},
    "list_agents": {},
    "kill": {"name": "bob"},
    "start": {"name": "bob"},
    "restart": {"name": "bob"},
    "update": {"name": "bob"},
}
MOVES = ("kill", "start", "restart", "update")


@pytest.fixture
def manager(shared: Daemon) -> Iterator[AgentClient]:
    with shared.agent("manager") as client:
        yield client


def fault(client: AgentClient, type_: str, **fields: Any) -> Fault:
    with pytest.raises(Fault) as caught:
        client.call(type_, **fields)
    return caught.value


def commit(config: Path, description: str) -> str:
    """Commit an agent.toml that says *description*; give the hash."""
    (config / "agent.toml").write_text(f'description = "{description}"\n')
    git(config, "commit", "-q", "-am", description)
    return git(config, "rev-parse", "HEAD")


def config_of(daemon: Daemon, name: str) -> Path:
    return daemon.home / "state" / "configs" / name / "config"


def pending(daemon: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = daemon.ask("pending")["approvals"]
    return found


# ── who may ─────────────────────────────────────────────────────────────────────────────────────


def test_every_request_of_the_manager_is_tried_here() -> None:
    requests = {r for r in get_args(agent.AnyRequest) if r.__module__ == agent_manager.__name__}

    assert EXAMPLES.keys() == {request.__struct_config__.tag for request in requests}


@pytest.mark.parametrize("type_", EXAMPLES)
def test_an_ordinary_agent_is_refused_all_that_is_the_managers(shared: Daemon, type_: str) -> None:
    with shared.agent("alice") as alice:
        refused = fault(alice, type_, **EXAMPLES[type_])

        assert refused.code == "forbidden"
        assert refused.text == f"cannot {type_}: only the manager may"
        assert alice.call("whoami")["role"] == "agent"
    assert pending(shared) == []
    assert not config_of(shared, "bob").exists()
    assert shared.row("bob")["wanted"] == "stopped"


def test_an_ordinary_agent_reads_its_own_log_and_no_other(shared: Daemon, manager: AgentClient) -> None:
    log = shared.home / "state/agents/alice/harness.log"
    log.write_text("one\ntwo\n")
    with shared.agent("alice") as alice, shared.agent("bob") as bob:
        assert alice.call("logs", name="alice", lines=1)["lines"] == ["two"]
        refused = fault(bob, "logs", name="alice")

    assert (refused.code, refused.text) == (
        "forbidden",
        "cannot read the log of alice: only the manager may",
    )
    assert manager.call("logs", name="alice")["lines"] == ["one", "two"]
    assert fault(manager, "logs", name="nobody").code == "not_found"
    assert manager.call("logs")["lines"] == []


def test_the_manager_does_what_every_agent_does(shared: Daemon, manager: AgentClient) -> None:
    assert manager.call("whoami")["role"] == "manager"
    with shared.agent("alice") as alice:
        sent = manager.call("send", to="alice", body="hello")["id"]
        (message,) = alice.recv(wait_seconds=5)
        alice.call("ack_turn")

    assert (message["id"], message["sender"]) == (sent, "manager")


@pytest.mark.parametrize(
    "type_", ["approve", "deny", "spawn", "destroy", "purge", "rollback", "set_limits", "allow", "rebuild"]
)
def test_nobody_decides_on_a_socket_of_agents(manager: AgentClient, type_: str) -> None:
    refused = fault(manager, type_, id=1, name="bob")

    assert refused.code == "invalid_argument"
    assert f"unknown type {type_!r}" in refused.text


# ── moving agents ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verb", MOVES)
def test_the_manager_does_not_move_itself(manager: AgentClient, verb: str) -> None:
    refused = fault(manager, verb, name="manager")

    assert (refused.code, refused.text) == (
        "forbidden",
        f"cannot {verb} manager: that is you yourself; the operator can",
    )


@pytest.mark.parametrize("verb", MOVES)
def test_an_agent_that_is_not_there_cannot_be_moved(manager: AgentClient, verb: str) -> None:
    assert fault(manager, verb, name="nobody").code == "not_found"


def test_the_manager_moves_others_and_sees_how_they_are(daemon: Daemon) -> None:
    daemon.add_stopped("bob", "manager").start()
    with daemon.agent("manager") as manager:
        assert manager.call("start", name="bob") == {}
        first = daemon.wait_row("bob", connected=True)["pid"]
        manager.call("restart", name="bob")
        wait_until(lambda: daemon.row("bob").get("pid") not in {None, first}, "bob was restarted")
        daemon.wait_row("bob", connected=True)
        with daemon.agent("bob") as bob:
            bob.call("set_status", text="reading")
        bob_row, own = manager.call("list_agents")["agents"]
        assert (bob_row["name"], bob_row["running"]) == ("bob", True)
        assert bob_row["status_text"] == "reading"
        assert (own["name"], own["running"]) == ("manager", False)
        before = daemon.row("bob")["pid"]
        manager.call("update", name="bob")
        wait_until(lambda: daemon.row("bob").get("pid") not in {None, before}, "bob was rebuilt")
        daemon.wait_row("bob", connected=True)
        manager.call("kill", name="bob")
        daemon.wait_row("bob", running=False, wanted="stopped")

        def events() -> set[str]:
            bodies = (row["body"] for row in daemon.inbox("manager") if row["sender"] == "system")
            return {msgspec.json.decode(body)["event"] for body in bodies if body.startswith("{")}

        wait_until(lambda: {"rebuilt", "killed"} <= events(), "the manager is told")


# ── asking the operator ─────────────────────────────────────────────────────────────────────────


def test_a_commit_of_the_managers_waits_for_the_operator(shared: Daemon, manager: AgentClient) -> None:
    manager.call("open_config", name="bob")
    sha = commit(config_of(shared, "bob"), "reads the mail")
    asked = {"agent": "bob", "commit_ref": sha[:12], "description": "bob asks", "idempotency_key": "k1"}

    approval_id = manager.call("request_apply_commit", **asked)["id"]

    assert manager.call("request_apply_commit", **asked)["id"] == approval_id
    (row,) = pending(shared)
    assert (row["id"], row["agent"], row["kind"]) == (approval_id, "bob", "apply_commit")
    assert (row["proposer"], row["fetched_sha"], row["description"]) == ("manager", sha, "bob asks")
    (brief,) = manager.call("list_approvals")["approvals"]
    assert (brief["id"], brief["status"], brief["sha"]) == (approval_id, "pending", sha)
    threads = manager.call("open_threads")["threads"]
    assert [(thread["kind"], thread["id"]) for thread in threads] == [("approval", approval_id)]
    with shared.agent("bob") as bob:
        assert bob.call("open_threads")["threads"] == []
        assert fault(bob, "cancel_thread", kind="approval", id=approval_id).code == "not_found"

    assert manager.call("cancel_thread", kind="approval", id=approval_id) == {}

    assert pending(shared) == []
    assert fault(manager, "cancel_thread", kind="approval", id=approval_id).code == "conflict"
    (brief,) = manager.call("list_approvals")["approvals"]
    assert brief["status"] == "cancelled"


def test_an_approved_prompt_is_the_task_of_the_agent(daemon: Daemon) -> None:
    daemon.add_stopped("manager").start()
    daemon.spawn("bob")
    with daemon.agent("manager") as manager:
        manager.call("open_config", name="bob")
        config = config_of(daemon, "bob")
        manifest = config / "agent.toml"
        manifest.write_text('prompt = "task.md"\n' + manifest.read_text())
        (config / "task.md").write_text("Read the mail.\n")
        git(config, "add", "--all")
        git(config, "commit", "-q", "-m", "A task")
        sha = git(config, "rev-parse", "HEAD")
        asked = manager.call("request_apply_commit", agent="bob", commit_ref=sha)["id"]
        (row,) = pending(daemon)
        daemon.ask("approve", id=asked, digest=row["digest"])

        def bob() -> dict[str, Any]:
            rows = manager.call("list_agents")["agents"]
            found: dict[str, Any] = next(row for row in rows if row["name"] == "bob")
            return found

        wait_until(lambda: bob().get("deployed_tag") == f"deployed/{asked}", "it is deployed", 30)
        assert bob()["deployed_sha"] == sha
        (brief,) = manager.call("list_approvals")["approvals"]
        assert brief["status"] == "approved"

    def answers() -> list[str]:
        return [row["body"] for row in daemon.inbox("operator") if row["sender"] == "bob"]

    daemon.wait_row("bob", connected=True)
    daemon.send("bob", "task")
    wait_until(lambda: any("Read the mail." in body for body in answers()), "bob says its task")


def test_a_commit_that_is_not_there_fails_at_once(shared: Daemon, manager: AgentClient) -> None:
    refused = fault(manager, "request_apply_commit", agent="bob", commit_ref="0" * 40)

    assert refused.code == "precondition_failed"
    assert "has failed" in refused.text
    assert pending(shared) == []


@pytest.mark.parametrize(
    "ref", ["main", "HEAD", "-u", "--output=/tmp/x", "refs/heads/main", "012345", "0" * 41]
)
def test_a_commit_is_named_by_its_hash(shared: Daemon, manager: AgentClient, ref: str) -> None:
    refused = fault(manager, "request_apply_commit", agent="bob", commit_ref=ref)

    assert refused.code == "invalid_argument"
    assert "`$.commit_ref`" in refused.text
    assert pending(shared) == []


def test_a_branch_that_is_called_like_a_hash_is_nothing(shared: Daemon, manager: AgentClient) -> None:
    manager.call("open_config", name="alice")
    git(config_of(shared, "alice"), "branch", "deadbeef")

    refused = fault(manager, "request_apply_commit", agent="alice", commit_ref="deadbeef")

    assert refused.code == "precondition_failed"
    assert pending(shared) == []


@pytest.mark.parametrize("name", ["..", ".", "", "-u", "a/b", "../bob", "x" * 64, "A"])
@pytest.mark.parametrize("type_", ["request_spawn", "request_init_config", "open_config"])
def test_a_name_that_is_a_path_or_an_option_is_refused(
    shared: Daemon, manager: AgentClient, type_: str, name: str
) -> None:
    assert fault(manager, type_, name=name).code == "invalid_argument"
    assert pending(shared) == []


@pytest.mark.parametrize("name", ["operator", "system", "manager", "all"])
def test_a_reserved_name_is_not_asked_for(shared: Daemon, manager: AgentClient, name: str) -> None:
    assert fault(manager, "request_spawn", name=name).code in {"invalid_argument", "conflict"}
    assert pending(shared) == []


def test_a_huge_description_is_refused(shared: Daemon, manager: AgentClient) -> None:
    assert "<= 2000" in fault(manager, "request_spawn", name="carol", description="x" * 2001).text
    assert "the limit is 393216" in fault(manager, "request_spawn", name="a", description="x" * 400_000).text
    assert pending(shared) == []


def test_a_new_agent_waits_for_the_operator_who_says_no(shared: Daemon, manager: AgentClient) -> None:
    asked = manager.call("request_spawn", name="carol", description="for the docs", idempotency_key="k2")[
        "id"
    ]

    assert fault(manager, "request_spawn", name="carol").code == "conflict"
    assert fault(manager, "request_spawn", name="bob").code == "conflict"
    assert "carol" not in shared.ask("list")["agents"]
    shared.ask("deny", id=asked, note="not now")

    def told() -> dict[str, Any] | None:
        bodies = [row["body"] for row in shared.inbox("manager") if row["sender"] == "system"]
        events = [msgspec.json.decode(body) for body in bodies if "approval_resolved" in body]
        return next((event for event in events if event["id"] == asked), None)

    event = wait_until(told, "the manager is told")
    assert (event["status"], event["note"], event["agent"]) == ("denied", "not now", "carol")
    assert "carol" not in shared.ask("list")["agents"]


def test_inputs_are_of_a_hive_that_builds_with_nix(shared: Daemon, manager: AgentClient) -> None:
    refused = fault(manager, "request_update_meta_inputs", inputs=["nixpkgs"])

    assert refused.code == "precondition_failed"
    assert refusal(lambda: shared.ask("approve", id=10**6)).code == "not_found"


def test_the_local_manager_is_told_where_the_repositories_are(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("manager", "alice")

    def environment(name: str) -> set[str]:
        pid = daemon.row(name)["pid"]
        return set(Path(f"/proc/{pid}/environ").read_text().split("\0"))

    state = daemon.home / "state"
    told = {f"HIVE_CONFIGS={state}/configs", f"HIVE_APPLIED={state}/applied", f"HIVE_META={state}/meta"}
    assert told <= environment("manager")
    assert not any(variable.startswith("HIVE_CONFIGS") for variable in environment("alice"))


def test_both_doors_of_the_manager_are_open(shared: Daemon) -> None:
    with McpClient(shared.agent_socket("manager")) as client:
        names = [tool["name"] for tool in client.ask("tools/list")["result"]["tools"]]

    assert names[-1] == "update"
