"""Approvals in a real daemon: what clients of the original see, two operators at once, and who may decide."""

import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from daemon.kit import Daemon, Fault, connect, git, home_of, raw_line, refusal, seeded, wait_until

from hive_core.wire import approval as wire
from hive_core.wire import host

ORIGINAL_KEYS = (
    *("id", "agent", "kind", "commit_ref", "fetched_sha", "requested_at", "status", "resolved_at", "note"),
    "description",
)
ROUNDS = 12


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with home_of(Daemon()) as daemon:
        yield daemon.add_stopped("manager", "alice", "bob").start()


@pytest.fixture(scope="module")
def shared() -> Iterator[Daemon]:
    """For tests that decide nothing."""
    with home_of(Daemon()) as daemon:
        yield daemon.add_stopped("manager", "alice", "bob").start()


def raw(daemon: Daemon, line: bytes) -> dict[str, Any]:
    return raw_line(daemon.host_socket, line)


def tags(daemon: Daemon, agent: str) -> dict[str, str]:
    """The tags of what was applied, each with its commit."""
    applied = daemon.home / "state" / "applied" / agent
    lines = git(
        applied, "for-each-ref", "--format=%(refname:short) %(*objectname) %(objectname)", "refs/tags"
    )
    return {words[0]: words[1] for line in lines.splitlines() if (words := line.split())}


def commit(daemon: Daemon, agent: str, files: dict[str, str]) -> str:
    config = Path(daemon.ask("config", name=agent)["path"])
    for name, text in files.items():
        (config / name).write_text(text)
    git(config, "add", "-A")
    git(config, "commit", "-q", "--allow-empty", "-m", "a change")
    return git(config, "rev-parse", "HEAD")


def propose(daemon: Daemon, agent: str = "bob", **files: str) -> int:
    commit(daemon, agent, {"agent.toml": 'model = "opus"\n', **files})
    return int(daemon.ask("request_apply_commit", agent=agent)["id"])


def row(daemon: Daemon, approval_id: int) -> dict[str, Any]:
    rows: list[dict[str, Any]] = daemon.ask("approvals", limit=1000)["approvals"]
    return next(row for row in rows if row["id"] == approval_id)


def wait_finished(daemon: Daemon, approval_id: int) -> dict[str, Any]:
    wait_until(lambda: row(daemon, approval_id)["finished"], f"approval {approval_id} is over", 30)
    return row(daemon, approval_id)


# ── a client of the original ────────────────────────────────────────────────────────────────────


def test_a_client_of_the_original_sees_the_queue_and_decides(daemon: Daemon) -> None:
    assert raw(daemon, b'{"cmd":"pending"}') == {"version": 1, "ok": True, "approvals": []}
    first, second = propose(daemon), propose(daemon)

    with connect(daemon.host_socket) as sock:
        sock.sendall(b'{"cmd":"pending"}\n')
        with sock.makefile("rb") as lines:
            line = lines.readline()
    assert line.startswith(b'{"version":1,"ok":true,"approvals":[{"id":%d,"agent":"bob",' % first)
    rows = msgspec.json.decode(line)["approvals"]
    assert [each["id"] for each in rows] == [first, second]
    for each in rows:
        known = [key for key in each if key in ORIGINAL_KEYS]
        assert tuple(known) == tuple(key for key in ORIGINAL_KEYS if key in each), "in the original's order"
        assert list(each)[: len(known)] == known, "before ours"
        assert (each["kind"], each["status"]) == ("apply_commit", "pending")
        assert re.fullmatch(r"[0-9a-f]{40}", each["fetched_sha"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", each["requested_at"])
        assert None not in each.values()

    assert raw(daemon, b'{"cmd":"approve","id":%d}' % first) == {"version": 1, "ok": True}
    assert raw(daemon, b'{"cmd":"deny","id":%d}' % second) == {"version": 1, "ok": True}

    assert raw(daemon, b'{"cmd":"pending"}') == {"version": 1, "ok": True, "approvals": []}
    denied = row(daemon, second)
    assert (denied["status"], denied["decided_by_uid"]) == ("denied", os.geteuid())
    assert "note" not in denied
    approved = wait_finished(daemon, first)
    assert (approved["status"], approved["tag"]) == ("approved", f"deployed/{first}")
    assert daemon.row("bob")["deployed_sha"] == approved["fetched_sha"][:12]


@pytest.mark.parametrize("verb", ["approve", "deny"])
def test_a_second_decision_of_a_client_fails(daemon: Daemon, verb: str) -> None:
    approval_id = propose(daemon)
    line = b'{"cmd":"%s","id":%d}' % (verb.encode(), approval_id)
    assert raw(daemon, line)["ok"]

    reply = raw(daemon, line)

    assert (reply["version"], reply["ok"], reply["code"], reply["reason"]) == (
        1,
        False,
        "conflict",
        "decided",
    )
    assert f"approval {approval_id}" in reply["error"]


@pytest.mark.parametrize("verb", ["approve", "deny"])
@pytest.mark.parametrize("number", [0, -1, -(2**63), 2**63 - 1, 99])
def test_any_signed_number_is_an_id_that_is_not_found(shared: Daemon, verb: str, number: int) -> None:
    reply = raw(shared, b'{"cmd":"%s","id":%d}' % (verb.encode(), number))

    assert (reply["version"], reply["ok"], reply["code"]) == (1, False, "not_found")
    assert str(number) in reply["error"]


@pytest.mark.parametrize(
    "line", [b'{"cmd":"approve"}', b'{"cmd":"approve","id":"1"}', b'{"cmd":"deny","id":null}']
)
def test_a_decision_about_nothing_is_answered(shared: Daemon, line: bytes) -> None:
    reply = raw(shared, line)

    assert (reply["version"], reply["ok"], reply["code"]) == (1, False, "invalid_argument")


def test_a_queue_of_any_length_fits_a_line(daemon: Daemon) -> None:
    daemon.stop()
    with home_of(Daemon(daemon.home)) as again:
        db = apsw.Connection(str(again.database))
        with db:
            for _ in range(1000):
                db.execute(
                    "insert into approvals (agent, kind, commit_ref, requested_at, status, description, proposer)"
                    " values ('bob', 'merge_config_pr', '17', 1, 'pending', ?, 'manager')",
                    ("\N{BELL}\x01é" * 600,),
                )
        db.close()
        again.start()

        rows = again.ask("pending")["approvals"]
        newest = again.ask("approvals", limit=1000)["approvals"]

        assert rows[0]["id"] == 1
        assert newest[-1]["id"] == 1000
        assert rows[0]["kind"] == "merge_config_pr", "shown as it is"
        assert again.ask("status")["approvals"] == 1000
        refused = refusal(lambda: again.ask("approve", id=1))
        assert "does not know what 'merge_config_pr' is" in str(refused)
        again.ask("deny", id=1)


# ── two operators ───────────────────────────────────────────────────────────────────────────────


def test_of_two_operators_who_decide_at_once_one_wins(daemon: Daemon) -> None:
    random = seeded("two operators")
    for number in range(ROUNDS):
        approval_id = int(daemon.ask("request_init_config", name=f"a{number}")["id"])
        verbs = [random.choice(["approve", "deny"]) for _ in range(4)]
        replies: list[tuple[str, dict[str, Any]]] = []
        barrier = threading.Barrier(len(verbs))

        def decide(verb: str, approval_id: int = approval_id, barrier: threading.Barrier = barrier) -> None:
            with connect(daemon.host_socket) as sock, sock.makefile("rb") as lines:
                barrier.wait(10)
                sock.sendall(b'{"cmd":"%s","id":%d}\n' % (verb.encode(), approval_id))
                replies.append((verb, msgspec.json.decode(lines.readline())))  # noqa: B023

        threads = [threading.Thread(target=decide, args=(verb,)) for verb in verbs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)

        (won,) = [verb for verb, reply in replies if reply["ok"]]
        assert {reply.get("reason") for _, reply in replies if not reply["ok"]} == {"decided"}
        found = row(daemon, approval_id)
        assert found["status"] == {"approve": "approved", "deny": "denied"}[won]
        (count,) = daemon.rows_of(f"select count(*) from deploys where approval_id = {approval_id}")
        assert count == (int(won == "approve"),)


def test_an_operator_who_saw_something_else_is_refused(daemon: Daemon) -> None:
    seen, other = propose(daemon), propose(daemon)
    digest = row(daemon, seen)["digest"]
    daemon.ask("approve", id=other)
    wait_finished(daemon, other)

    refused = refusal(lambda: daemon.ask("approve", id=seen, digest=digest))

    assert (refused.code, refused.reply["reason"]) == ("conflict", "changed")
    assert row(daemon, seen)["status"] == "pending"
    assert row(daemon, seen)["digest"] != digest
    daemon.ask("approve", id=seen, digest=row(daemon, seen)["digest"])


# ── the card ────────────────────────────────────────────────────────────────────────────────────


def test_the_card_says_what_would_change_whatever_was_said(daemon: Daemon) -> None:
    sha = commit(
        daemon,
        "bob",
        {
            "agent.toml": 'network = "veth"\n[[binds]]\nsource = "/srv/data"\nwritable = true\n',
            "evil\u202e.md": "admin\u202e \x1b[2J \u200b\n",
        },
    )
    approval_id = daemon.ask("request_apply_commit", agent="bob", description="fixes a typo")["id"]

    card = daemon.ask("approval", id=approval_id, diff=True)

    assert (card["approval"]["fetched_sha"], card["approval"]["description"]) == (sha, "fixes a typo")
    assert card["base_sha"] == tags(daemon, "bob")["deployed/0"]
    said = {(one["kind"], one["weight"]) for one in card["consequences"]}
    assert {("network", "danger"), ("bind", "danger")} <= said
    paths = {file["path"]: file["change"] for file in card["files"]}
    assert paths == {"agent.toml": "changed", "evil\\u{202e}.md": "added"}
    assert "admin\\u{202e} \\u{1b}[2J \\u{200b}" in card["diff"]
    assert not set(card["diff"]) & {"\u202e", "\x1b", "\u200b"}
    assert (card["restart"], card["diff_cut"]) == ("restart", False)
    assert "manifest" not in card


def test_the_card_compares_with_what_runs_what_was_approved_or_what_was_proposed_before(
    daemon: Daemon,
) -> None:
    approved = propose(daemon, note="one")
    daemon.ask("approve", id=approved)
    wait_finished(daemon, approved)
    denied = propose(daemon, other="two")
    daemon.ask("deny", id=denied)
    mine = propose(daemon, third="three")

    cards = {base: daemon.ask("approval", id=mine, base=base) for base in ("running", "approved", "previous")}

    files = {base: [file["path"] for file in card["files"]] for base, card in cards.items()}
    assert files == {"running": ["other", "third"], "approved": ["other", "third"], "previous": ["third"]}
    assert cards["running"]["base_sha"] == row(daemon, approved)["fetched_sha"]
    assert cards["previous"]["base_sha"] == row(daemon, denied)["fetched_sha"]
    assert cards["running"]["restart"] == "none", "files that nothing in the machine looks at"


def test_what_is_not_based_on_what_runs_is_said_to_be(daemon: Daemon) -> None:
    config = Path(daemon.ask("config", name="bob")["path"])
    first = git(config, "rev-parse", "HEAD")
    approved = propose(daemon, note="one")
    daemon.ask("approve", id=approved)
    wait_finished(daemon, approved)
    git(config, "checkout", "-q", first)

    card = daemon.ask("approval", id=propose(daemon, note="two"))

    assert ("base", "danger") in {(one["kind"], one["weight"]) for one in card["consequences"]}


def test_the_card_of_a_new_agent_says_what_is_made(daemon: Daemon) -> None:
    approval_id = daemon.ask("request_spawn", name="carol", description="helps")["id"]

    card = daemon.ask("approval", id=approval_id, diff=True)

    assert [one["text"] for one in card["consequences"]] == [
        "agent carol is made from a template and started"
    ]
    assert (card["files"], card["restart"]) == ([], "none")
    assert refusal(lambda: daemon.ask("approval", id=99)).code == "not_found"


def test_a_huge_proposal_has_a_card_too(daemon: Daemon) -> None:
    many = {f"{number:04}-{'x' * 200}": "\u202e" * 400 + "\n" for number in range(1500)}
    binds = "".join(f'[[binds]]\nsource = "/srv/{number}"\n' for number in range(30))
    commit(daemon, "bob", {**many, "agent.toml": binds})
    approval_id = daemon.ask("request_apply_commit", agent="bob")["id"]

    card = daemon.ask("approval", id=approval_id, diff=True)

    assert card["diff_cut"]
    assert len(card["diff"]) > 10_000
    assert 100 < len(card["files"]) + card["files_left_out"] <= 1501
    assert sum(one["kind"] == "bind" for one in card["consequences"]) == 30


def test_no_number_of_files_hides_what_matters_from_a_card(daemon: Daemon) -> None:
    many = {f"a{number:04}": "x\n" for number in range(1300)}
    commit(
        daemon, "bob", {**many, "agent.nix": "{ }\n", "agent.toml": 'prompt = "task.md"\n', "task.md": "x\n"}
    )
    approval_id = daemon.ask("request_apply_commit", agent="bob")["id"]

    card = daemon.ask("approval", id=approval_id)

    assert {one["path"] for one in card["files"][:3]} == {"agent.nix", "agent.toml", "task.md"}
    assert len(card["files"]) + card["files_left_out"] == 1303
    assert "agent_nix" in {one["kind"] for one in card["consequences"]}


@pytest.mark.parametrize(
    "tag", ["deployed/007", "deployed/00", "failed/1", "denied/1", "proposal/1", "deployed/-1"]
)
def test_nothing_is_gone_back_to_but_what_was_deployed(daemon: Daemon, tag: str) -> None:
    assert refusal(lambda: daemon.ask("rollback", agent="bob", tag=tag)).code == "invalid_argument"


# ── who may decide ──────────────────────────────────────────────────────────────────────────────

MAY_ASK = {"request_spawn", "request_init_config", "request_apply_commit", "request_update_meta_inputs"}
"""On the manager's socket too."""
VERBS = {
    str(request.__struct_config__.tag)
    for request in host.COMMANDS.values()
    if request.__module__ == wire.__name__
}
FIELDS: dict[str, Any] = {"id": 1, "name": "carol", "agent": "bob", "tag": "deployed/0", "confirm": "bob"}


def test_the_verbs_of_approvals_are_those_that_are_tried_here() -> None:
    assert {"approve", "deny", "cancel_approval", "rollback", "purge"} | MAY_ASK <= VERBS


@pytest.mark.parametrize("name", ["alice", "manager"])
def test_no_socket_of_an_agent_decides(shared: Daemon, name: str) -> None:
    approval_id = propose(shared)
    verbs = VERBS - (MAY_ASK if name == "manager" else set())
    with shared.agent(name) as client:
        for verb in sorted(verbs):
            fields = {**FIELDS, "id": approval_id}
            with pytest.raises(Fault) as fault:
                client.call(verb, **fields)
            assert fault.value.code in {"invalid_argument", "forbidden"}, verb
    with shared.mcp(name) as mcp:
        tools = {tool["name"] for tool in mcp.ask("tools/list")["result"]["tools"]}
        assert not tools & verbs
        for verb in sorted(verbs):
            answer = mcp.ask("tools/call", name=verb, arguments={"id": approval_id})
            assert "error" in answer or answer["result"]["isError"], verb
    for verb in sorted(verbs):
        line = msgspec.json.encode({"cmd": verb, "id": approval_id, "name": "carol", "agent": "bob"})
        try:
            reply = raw_line(shared.agent_socket(name), line)
        except (msgspec.DecodeError, ConnectionResetError):
            continue  # it says nothing at all
        assert not reply.get("ok"), verb
    found = row(shared, approval_id)
    assert (found["status"], "decided_by_uid" in found) == ("pending", False)
    assert shared.ask("deploys")["deploys"] == []


def test_an_agent_that_is_destroyed_leaves_nothing_to_decide(daemon: Daemon) -> None:
    approval_id = propose(daemon)

    daemon.ask("destroy", name="bob")
    wait_until(lambda: "bob" not in daemon.ask("list")["agents"], "bob is gone")

    found = row(daemon, approval_id)
    assert (found["status"], found["note"], found["finished"]) == ("failed", "agent destroyed", True)
    assert refusal(lambda: daemon.ask("approve", id=approval_id)).reply["reason"] == "decided"


# ── kill -9 ─────────────────────────────────────────────────────────────────────────────────────


def test_killed_while_it_takes_in_and_decides_it_comes_back_whole(daemon: Daemon) -> None:
    random = seeded("killed")
    commit(daemon, "bob", {"agent.toml": ""})
    for number in range(ROUNDS):
        waiting = propose(daemon, note=str(number))
        commit(daemon, "bob", {"note": f"{number} again"})
        sockets = [connect(daemon.host_socket) for _ in range(3)]
        verb = random.choice(["approve", "deny"])
        _write(sockets[0], cmd="request_apply_commit", agent="bob")
        _write(sockets[1], cmd=verb, id=waiting)
        _write(sockets[2], cmd="request_init_config", name=f"n{number}")
        threading.Event().wait(random.random() * 0.25)
        daemon.kill()
        for sock in sockets:
            sock.close()
        daemon.start()
        check_whole(daemon)


def _write(sock: socket.socket, **request: Any) -> None:
    sock.sendall(msgspec.json.encode(request) + b"\n")


def check_whole(daemon: Daemon) -> None:
    """Whatever was cut off: every row is one thing or the other, and the repository agrees."""

    def half() -> list[dict[str, Any]]:
        rows = daemon.ask("pending")["approvals"]
        return [row for row in rows if row["kind"] == "apply_commit" and "fetched_sha" not in row]

    wait_until(lambda: not half(), "what was half taken in has failed")
    wait_until(lambda: all(row["step"] in {"done", "failed"} for row in deploys(daemon)), "deploys end", 30)
    found = tags(daemon, "bob")
    queued = [row["approval_id"] for row in deploys(daemon)]
    assert len(queued) == len(set(queued))
    for each in daemon.ask("approvals", limit=1000)["approvals"]:
        approval_id = each["id"]
        assert (approval_id in queued) == ("decided_by_uid" in each and each["status"] != "denied"), each
        if each["kind"] != "apply_commit":
            continue
        if each["status"] == "failed" and "fetched_sha" not in each:
            assert each["note"] == "the daemon ended while it was taken in; ask again"
            continue
        assert found[f"proposal/{approval_id}"] == each["fetched_sha"], each
        if each["status"] == "denied":
            wait_until(lambda: f"denied/{approval_id}" in tags(daemon, "bob"), "it is tagged")  # noqa: B023
        if each["status"] == "approved":
            assert found[f"deployed/{approval_id}"] == each["fetched_sha"], each


def deploys(daemon: Daemon) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = daemon.ask("deploys", limit=1000)["deploys"]
    return rows
