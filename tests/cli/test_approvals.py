"""hive pending, approvals, approve, deny, withdraw: what is asked, what a person reads, what a script gets."""

import json
import os
import pty
import subprocess
import sys
from typing import Any

import pytest

from hive_core.cli import output
from hive_core.cli.card import FOLD, diff_lines
from hive_core.cli.commands import approvals

from .conftest import RunHive
from .fake_host import FakeHost

SHA = "0123456789abcdef0123456789abcdef01234567"
BASE = "fedcba9876543210fedcba9876543210fedcba98"
DIGEST = "d" * 64

WAITS: dict[str, Any] = {
    "id": 7,
    "agent": "alice",
    "kind": "apply_commit",
    "commit_ref": "0123456",
    "fetched_sha": SHA,
    "requested_at": "2026-01-31T12:00:00Z",
    "status": "pending",
    "description": "jq\x1b, for\nthe reports",
    "proposer": "manager",
    "expires_at": "2999-01-31T12:00:00Z",
    "finished": False,
    "digest": DIGEST,
}
DENIED = WAITS | {
    "id": 6, "status": "denied", "resolved_at": "2026-01-31T12:05:00Z", "note": "not now", "finished": True,
    "decided_by_uid": 1000, "tag": "denied/6",
}  # fmt: skip
DANGER = {"kind": "network", "text": "its machine gets a link to the host's network", "weight": "danger"}
CARD: dict[str, Any] = {
    "approval": WAITS,
    "base_sha": BASE,
    "consequences": [DANGER, {"kind": "package", "text": "its image gets jq", "weight": "notice"}],
    "files": [
        {"path": "agent.toml", "change": "changed", "added": 2, "removed": 1, "binary": False},
        {"path": "blob\\u{202e}", "change": "added", "added": 0, "removed": 0, "binary": True},
    ],
    "restart": "restart",
}
DIFF = """\
diff --git a/agent.toml b/agent.toml
--- a/agent.toml
+++ b/agent.toml
@@ -1,2 +1,3 @@
 model = "opus"
-network = "none"
+network = "veth"
+++ b/this line is in the file
"""


@pytest.fixture
def seven(host: FakeHost) -> FakeHost:
    host.answers["approval"] = CARD
    return host


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approvals, "a_person_is_there", lambda: True)


# ── lists ───────────────────────────────────────────────────────────────────────────────────────


def test_what_waits_is_a_line_each_in_a_pipe(hive: RunHive, host: FakeHost) -> None:
    host.answers["pending"] = {"approvals": [DENIED, WAITS]}

    result = hive("pending")

    columns = ["7", "alice", "apply_commit", "pending", "manager", WAITS["requested_at"], SHA,
               WAITS["expires_at"], "jq\\x1b, for\\nthe reports"]  # fmt: skip
    assert result == (0, "\t".join(columns) + "\n", "")


def test_nothing_that_waits_is_said_beside_the_output(hive: RunHive, host: FakeHost) -> None:
    host.answers["pending"] = {"approvals": []}

    assert hive("pending") == (0, "", "nothing waits for your decision\n")
    assert hive("pending", "--json").out == "[]\n"


@pytest.mark.usefixtures("terminal")
def test_approvals_on_a_terminal_are_a_table(hive: RunHive, host: FakeHost) -> None:
    at_work = WAITS | {"status": "approved", "finished": False, "id": 8}
    inputs = WAITS | {"id": 9, "agent": "", "kind": "update_meta_inputs", "commit_ref": '["nixpkgs"]',
                      "status": "cancelled", "description": "", "fetched_sha": None}  # fmt: skip
    host.answers["approvals"] = {"approvals": [DENIED, at_work, inputs]}

    result = hive("approvals", "-n", "3")

    assert host.asked == [{"cmd": "approvals", "limit": 3}]
    lines = [line.split()[:5] for line in result.out.splitlines()]
    assert lines == [
        ["ID", "AGENT", "KIND", "STATE", "BY"],
        ["6", "alice", "apply_commit", "denied", "manager"],
        ["8", "alice", "apply_commit", "deploying", "manager"],
        ["9", "-", "update_meta_inputs", "cancelled", "manager"],
    ]


def test_approvals_of_one_agent(hive: RunHive, host: FakeHost) -> None:
    host.answers["approvals"] = {"approvals": []}

    assert hive("approvals", "alice") == (0, "", "no approvals of alice\n")
    assert host.asked == [{"cmd": "approvals", "limit": 50, "agent": "alice"}]


@pytest.mark.parametrize("argv", [("show", "7", "8"), ("alice", "bob"), ("--diff",), ("show", "x")])
def test_what_cannot_be_meant_is_a_typing_error(hive: RunHive, host: FakeHost, argv: tuple[str, ...]) -> None:
    assert hive("approvals", *argv).code == 2
    assert host.requests == []


# ── the card ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("terminal")
def test_the_card_has_the_gravest_first_and_marks_it_in_words(hive: RunHive, seven: FakeHost) -> None:
    result = hive("approvals", "show", "7")

    assert seven.asked == [{"cmd": "approval", "id": 7, "base": "running", "diff": False}]
    lines = [line.rstrip() for line in result.out.splitlines()]
    assert lines[0] == "#7  alice: a new configuration  (pending)"
    assert [line for line in lines if "ago)" not in line and "expires" not in line][1:] == [
        "  says      jq\\x1b, for\\nthe reports",
        f"  commit    {SHA}",
        "  compared  with what runs: fedcba987654",
        "  effect    its machine is restarted, after its running turn",
        "",
        "What would be different:",
        "  DANGER  network  its machine gets a link to the host's network",
        "  notice  package  its image gets jq",
        "",
        "Files:",
        "  changed  +2 -1   agent.toml",
        "  added    binary  blob\\u{202e}",
    ]


@pytest.mark.usefixtures("terminal")
def test_a_long_text_never_begins_a_line_of_its_own(hive: RunHive, host: FakeHost) -> None:
    text = "x" * 60 + " info  nothing at all " * 5
    host.answers["approval"] = CARD | {
        "consequences": [DANGER | {"text": text}],
        "approval": WAITS | {"description": "says " * 60},
    }

    lines = hive("approvals", "show", "7").out.splitlines()

    assert all(len(line) <= 80 for line in lines)
    begin = next(number for number, line in enumerate(lines) if line.startswith("  DANGER"))
    assert all(line.startswith(" " * 19) for line in lines[begin + 1 : lines.index("", begin)])


def test_the_card_into_a_pipe_is_records(hive: RunHive, seven: FakeHost) -> None:
    lines = hive("approvals", "show", "7", "--base", "previous").out.splitlines()

    assert seven.asked[0]["base"] == "previous"
    assert lines[:3] == ["id\t7", "agent\talice", "kind\tapply_commit"]
    assert f"digest\t{DIGEST}" in lines
    assert lines[-4:] == [
        "consequence\tdanger\tnetwork\tits machine gets a link to the host's network",
        "consequence\tnotice\tpackage\tits image gets jq",
        "file\tchanged\t+2 -1\tagent.toml",
        "file\tadded\tbinary\tblob\\u{202e}",
    ]


def test_the_card_as_json_is_the_reply(hive: RunHive, seven: FakeHost) -> None:
    assert json.loads(hive("approvals", "show", "7", "--json").out) == CARD


@pytest.mark.usefixtures("terminal")
def test_files_that_are_not_listed_are_counted(hive: RunHive, host: FakeHost) -> None:
    host.answers["approval"] = CARD | {"files_left_out": 40}

    assert hive("approvals", "show", "7").out.endswith("\n  and 40 more that are not listed\n")


@pytest.mark.usefixtures("terminal")
def test_one_that_was_decided_says_by_whom_and_why(hive: RunHive, host: FakeHost) -> None:
    host.answers["approval"] = CARD | {"approval": DENIED}

    out = hive("approvals", "show", "6").out

    assert "(denied)" in out
    assert ", by uid 1000" in out
    assert "not now" in out


@pytest.mark.usefixtures("terminal")
def test_a_row_of_the_originals_kind_is_shown_all_the_same(hive: RunHive, host: FakeHost) -> None:
    row = {key: WAITS[key] for key in ("id", "agent", "commit_ref", "requested_at", "status")}
    host.answers["approval"] = {
        "approval": row | {"kind": "merge_config_pr"}, "consequences": [], "files": [], "restart": "none"
    }  # fmt: skip

    assert hive("approvals", "show", "7").out.startswith("#7  alice: merge_config_pr  (pending)\n")


# ── the diff ────────────────────────────────────────────────────────────────────────────────────


def test_a_diff_into_a_pipe_is_as_it_came(hive: RunHive, host: FakeHost) -> None:
    host.answers["approval"] = CARD | {"diff": DIFF + "+\x1b[2J", "diff_cut": True}

    result = hive("approvals", "show", "7", "--diff")

    assert host.asked[0]["diff"] is True
    assert result.out.endswith("\n\n" + DIFF + "+\\x1b[2J\n")
    assert "the diff is cut" in result.err


def test_a_line_of_a_file_is_never_coloured_as_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "in_colour", lambda: True)

    lines = list(diff_lines(DIFF, 80))

    assert lines[2] == "\x1b[1m+++ b/agent.toml\x1b[0m"
    assert lines[3].startswith("\x1b[36m@@")
    assert lines[5] == '\x1b[31m-network = "none"\x1b[0m'
    assert lines[7] == "\x1b[32m+++ b/this line is in the file\x1b[0m"


def test_a_long_line_goes_on_with_a_mark() -> None:
    lines = list(diff_lines("@@ -0,0 +1 @@\n+" + "a" * 30 + "世" * 30, 40))

    assert all(output.cells(line) <= 40 for line in lines)
    assert lines[1].startswith("+aaa")
    assert [line[: len(FOLD)] for line in lines[2:]] == [FOLD] * len(lines[2:])
    assert "".join(line.removeprefix(FOLD) for line in lines[1:]) == "+" + "a" * 30 + "世" * 30


@pytest.mark.parametrize(
    "diff", ["", "@@ -1 +1 @@", "\\ No newline", "@@ -99999999999 +1,99 @@\n+x", "Binary files differ"]
)
def test_any_diff_has_as_many_lines_as_it_has(diff: str) -> None:
    assert list(diff_lines(diff, None)) == diff.split("\n")


# ── approve ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("terminal", "person")
def test_approve_shows_the_card_and_sends_what_it_showed(hive: RunHive, seven: FakeHost) -> None:
    result = hive("approve", "7", stdin=b"y\n")

    assert result.code == 0
    assert "DANGER  network" in result.out
    assert seven.asked == [{"cmd": "approval", "id": 7}, {"cmd": "approve", "id": 7, "digest": DIGEST}]
    assert result.err.endswith("approval 7 is approved; see hive deploys\n")


@pytest.mark.usefixtures("terminal", "person")
@pytest.mark.parametrize("typed", ["n\n", "\n"])
def test_without_a_yes_nothing_is_approved(hive: RunHive, seven: FakeHost, typed: str) -> None:
    result = hive("approve", "7", stdin=typed.encode())

    assert result.code == 4
    assert [request["cmd"] for request in seven.asked] == ["approval"]


@pytest.mark.usefixtures("terminal", "person")
def test_ctrl_d_at_the_question_approves_nothing(hive: RunHive, seven: FakeHost) -> None:
    assert hive("approve", "7").code == 130
    assert [request["cmd"] for request in seven.asked] == ["approval"]


@pytest.mark.parametrize("argv", [("approve", "7"), ("approve", "7", "--json")])
def test_a_script_has_to_say_yes(hive: RunHive, seven: FakeHost, argv: tuple[str, ...]) -> None:
    result = hive(*argv)

    assert (result.code, result.out, seven.requests) == (2, "", [])
    assert "hint: say --yes, after hive approvals show 7" in result.err


@pytest.mark.usefixtures("person")
def test_json_asks_nobody(hive: RunHive, seven: FakeHost) -> None:
    assert hive("approve", "7", "--json").code == 2
    assert seven.requests == []


def test_with_yes_the_digest_is_sent_too(hive: RunHive, seven: FakeHost) -> None:
    result = hive("approve", "7", "--yes")

    assert (result.code, result.out) == (0, "")
    assert seven.asked[-1] == {"cmd": "approve", "id": 7, "digest": DIGEST}


def test_what_is_no_longer_what_was_shown_says_what_to_do(hive: RunHive, seven: FakeHost) -> None:
    seven.refuse("approve", "conflict", "cannot approve 7: it is no longer what you saw", reason="changed")

    assert hive("approve", "7", "--yes") == (
        7,
        "",
        "hive: cannot approve 7: it is no longer what you saw\nhint: hive approvals show 7 shows what it is now\n",
    )


def test_a_no_for_one_does_not_keep_the_others_from_theirs(hive: RunHive, seven: FakeHost) -> None:
    def decide(request: dict[str, Any]) -> dict[str, Any]:
        late = {
            "ok": False,
            "code": "conflict",
            "error": "cannot approve 7: it is denied",
            "reason": "decided",
        }
        return late if request["id"] == 7 else {}

    seven.answers["approve"] = decide
    seven.answers["approval"] = lambda request: CARD | {"approval": WAITS | {"id": request["id"]}}

    result = hive("approve", "7", "8", "--yes", "--json")

    assert (result.code, result.err) == (7, "hive: cannot approve 7: it is denied\n")
    assert [row["id"] for row in json.loads(result.out)] == [8]


# ── approve --wait ──────────────────────────────────────────────────────────────────────────────


DEPLOY: dict[str, Any] = {
    "id": 9, "agent": "alice", "kind": "apply", "step": "queued", "requested_at": "2026-01-31T12:06:00Z",
    "approval_id": 7, "sha": SHA, "tag": "deployed/7", "steps": [],
}  # fmt: skip


def at(step: str, **more: Any) -> dict[str, Any]:
    return DEPLOY | {"step": step, "steps": [{"step": step, "at": "2026-01-31T12:06:01Z"}]} | more


def deploys(now: dict[str, Any], *items: dict[str, Any]) -> Any:
    return lambda request: list(items) if request.get("follow") else {"deploys": [now]}


@pytest.mark.usefixtures("terminal")
def test_wait_shows_the_deploy_until_it_ends(hive: RunHive, seven: FakeHost) -> None:
    seven.answers["deploys"] = deploys(
        at("queued"),
        {"deploys": [at("queued")]},
        {"deploys": [at("building")]},
        {"id": 9, "lines": ["unpacking\x1b[2J"]},
        {"id": 4, "lines": ["of another"]},
        {"deploys": [at("done")]},
    )

    result = hive("approve", "7", "--yes", "--wait")

    assert result.code == 0
    assert result.out.splitlines() == [
        "12:06:01  deploy 9 (apply alice deployed/7) queued",
        "12:06:01  deploy 9 (apply alice deployed/7) building",
        "          │ unpacking\\x1b[2J",
        "12:06:01  deploy 9 (apply alice deployed/7) done",
    ]
    assert [request["cmd"] for request in seven.asked] == ["deploys", "approval", "approve", "deploys"]


def test_a_deploy_that_failed_fails_the_waiting(hive: RunHive, seven: FakeHost) -> None:
    seven.answers["deploys"] = deploys(at("failed", error="no such image: x"))

    result = hive("approve", "7", "--yes", "--wait")

    assert (result.code, result.out) == (1, "7\t9\talice\tfailed\tno such image: x\n")
    assert result.err.endswith(
        "hive: cannot finish deploy 9 (apply alice deployed/7): no such image: x\n"
        "hint: hive deploys log 9 has all of it\n"
    )


def test_wait_as_json_has_the_deploy_beside_the_approval(hive: RunHive, seven: FakeHost) -> None:
    seven.answers["deploys"] = deploys(at("building"), {"deploys": [at("done")]})

    [row] = json.loads(hive("approve", "7", "--yes", "--wait", "--json").out)

    assert (row["id"], row["deploy"]["step"]) == (7, "done")


def test_where_something_was_left_out_it_is_looked_again(hive: RunHive, seven: FakeHost) -> None:
    looks = iter([at("building"), at("done")])
    seven.answers["deploys"] = lambda request: (
        [{"lines": ["… 7 lines or changes were too fast for this …"]}]
        if request.get("follow")
        else {"deploys": [next(looks)]}
    )

    assert hive("approve", "7", "--yes", "--wait").out == "7\t9\talice\tdone\t-\n"


def test_a_daemon_that_goes_away_meanwhile_is_told(hive: RunHive, seven: FakeHost) -> None:
    seven.answers["deploys"] = deploys(at("building"), {"deploys": [at("activating")]})

    result = hive("approve", "7", "--yes", "--wait")

    assert result.code == 1
    assert "it goes on by itself: hive deploys" in result.err


# ── deny, withdraw ──────────────────────────────────────────────────────────────────────────────


def test_deny_says_why(hive: RunHive, host: FakeHost) -> None:
    assert hive("deny", "7", "-m", "not now") == (0, "", "approval 7 is denied\n")
    assert host.asked == [{"cmd": "deny", "id": 7, "note": "not now"}]


def test_several_are_denied_at_once_and_each_once(hive: RunHive, host: FakeHost) -> None:
    assert json.loads(hive("deny", "7", "8", "7", "--json").out) == [{"id": 7}, {"id": 8}]
    assert host.asked == [{"cmd": "deny", "id": 7}, {"cmd": "deny", "id": 8}]


def test_withdraw(hive: RunHive, host: FakeHost) -> None:
    assert hive("withdraw", "7") == (0, "", "approval 7 is withdrawn\n")
    assert host.asked == [{"cmd": "cancel_approval", "id": 7}]


# ── what waits, elsewhere ───────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, ""),
        (1, "1 approval waits for you: hive pending\n"),
        (2, "2 approvals wait for you: hive pending\n"),
    ],
)
@pytest.mark.parametrize("verb", ["ls", "status"])
def test_ls_and_status_on_a_terminal_tell_of_approvals(
    hive: RunHive, host: FakeHost, verb: str, count: int, said: str
) -> None:
    host.add("alice")
    host.answers["status"] = {"approvals": count}

    assert hive(verb).err == said


# ── a real terminal ─────────────────────────────────────────────────────────────────────────────


def test_a_person_at_a_terminal_is_asked(seven: FakeHost) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "hive_core.cli", "approve", "7"]
    env = os.environ | {"HIVE_SOCKET": str(seven.path), "TERM": "xterm"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        said = b""
        while b"[y/N]" not in said:
            said += os.read(ours, 4096)
        os.write(ours, b"y\n")
        assert process.wait(20) == 0
    os.close(ours)

    assert b"\x1b[1;31mDANGER" in said
    assert seven.asked[-1]["cmd"] == "approve"


@pytest.mark.usefixtures("terminal")
def test_a_commit_that_runs_already_changes_nothing(hive: RunHive, host: FakeHost) -> None:
    host.answers["approval"] = {"approval": WAITS, "base_sha": SHA, "restart": "none"}

    assert "No file would be different: it is the same commit." in hive("approvals", "show", "7").out

    host.answers["approval"] = CARD
    assert "No file would be different" not in hive("approvals", "show", "7").out


def test_what_was_approved_is_shown_as_that(hive: RunHive, seven: FakeHost) -> None:
    (row,) = json.loads(hive("approve", "7", "--yes", "--json").out)

    assert (row["id"], row["status"]) == (7, "approved")


@pytest.mark.parametrize("argv", [("show",), ("--base", "previous"), ("alice", "--base", "running")])
def test_show_without_an_id_is_no_list(hive: RunHive, host: FakeHost, argv: tuple[str, ...]) -> None:
    host.answers["approvals"] = {"approvals": []}

    result = hive("approvals", *argv)

    assert (result.code, result.out) == (2, "")
    assert "id" in result.err


def test_an_agent_may_be_called_show(hive: RunHive, host: FakeHost) -> None:
    host.answers["approvals"] = {"approvals": [WAITS]}

    assert hive("approvals", "show").out.startswith("7\talice")


@pytest.mark.parametrize(
    ("argv", "cmd"),
    [
        (("approvals", "show", "9"), "approval"),
        (("approve", "9", "--yes"), "approval"),
        (("deny", "9"), "deny"),
        (("withdraw", "9"), "cancel_approval"),
    ],
)
def test_an_id_that_there_is_not_leads_to_those_there_are(
    hive: RunHive, host: FakeHost, argv: tuple[str, ...], cmd: str
) -> None:
    host.refuse(cmd, "not_found")

    result = hive(*argv)

    assert result.code == 3
    assert "hint: hive approvals shows the newest ones, hive pending those that wait" in result.err


@pytest.mark.usefixtures("terminal")
def test_why_one_failed_comes_before_what_it_was_for(hive: RunHive, host: FakeHost) -> None:
    host.answers["approvals"] = {"approvals": [DENIED | {"status": "failed", "note": "it is no TOML"}]}

    assert hive("approvals").out.splitlines()[1].endswith("it is no TOML")
