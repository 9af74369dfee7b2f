"""The whole way of a change with `deploy.builder = "nix"`: proposed, approved, built, running, and gone back from.

Closures are built by a real nix, asked by the real unit of the daemon; they boot, and are switched to live.
"""

import json
import os
import random
import re
import shlex
import time
from collections.abc import Iterator
from typing import Any

import pytest

from .bed import open_bed
from .hive_kit import CONFIG, TROUBLE, HiveHost, wait_until
from .nix_kit import BUILDER, new_nixpkgs, set_up_nix

STATE = "/var/lib/hyperhive"
PROFILES = "/nix/var/nix/profiles/per-agent"
DEPLOYED_S = 60.0
KILLS = 12
SLOW = 'script = "PATH=/usr/bin:/bin sleep 1.5;";'

Row = dict[str, Any]


@pytest.fixture(scope="module")
def host(worker_id: str) -> Iterator[HiveHost]:
    with open_bed(f"pytest-{os.getpid()}-{worker_id}-nixd") as bed:
        bed.install_product()
        set_up_nix(bed)
        yield HiveHost(bed).set_up(CONFIG + BUILDER)


@pytest.fixture
def hive(host: HiveHost) -> HiveHost:
    """With alice, who has an agent.nix that says `one`."""
    new_nixpkgs(host.bed, "one")
    if "alice" not in host.rows():
        approve(host, cmd="request_spawn", name="alice")
        host.wait_as_wanted("alice")
    change(host, "alice", agent_nix='{ text = "one"; }')
    return host


# ── what is done ────────────────────────────────────────────────────────────────────────────────


def ask(hive: HiveHost, **request: Any) -> Row:
    """Ask, again if the daemon does not answer just now."""
    until = time.monotonic() + 20
    while True:
        try:
            return hive.ask(**request)
        except TROUBLE:
            assert time.monotonic() < until
            time.sleep(0.05)


def commit(hive: HiveHost, agent: str, **files: str) -> str:
    config = ask(hive, cmd="config", name=agent)["path"]
    script = ["set -e", f"cd {config}"]
    for name, text in files.items():
        path = re.sub(r"_(nix|toml|md)\Z", r".\1", name)
        script.append(f"printf %s {shlex.quote(text)} > {path}")
    git = "git -c user.name=m -c user.email=m@x -c safe.directory='*'"
    script += [f"{git} add -A", f"{git} commit -qm x --allow-empty", "git rev-parse HEAD"]
    return hive.run(["sh", "-c", "\n".join(script)]).stdout.strip()


def approve(hive: HiveHost, **request: Any) -> Row:
    approval = ask(hive, **request)["id"]
    ask(hive, cmd="approve", id=approval)
    return ended(hive, approval_id=approval)


def propose(hive: HiveHost, agent: str, **files: str) -> int:
    sha = commit(hive, agent, **files)
    return int(ask(hive, cmd="request_apply_commit", agent=agent, commit_ref=sha)["id"])


def deploy(hive: HiveHost, agent: str, **files: str) -> Row:
    approval = propose(hive, agent, **files)
    ask(hive, cmd="approve", id=approval)
    return ended(hive, approval_id=approval)


def change(hive: HiveHost, agent: str, **files: str) -> Row:
    row = deploy(hive, agent, **files)
    if row["step"] != "done":
        print(hive.bed.journal("hive-core"))
    assert row["step"] == "done", row
    return row


def rollback(hive: HiveHost, agent: str, tag: str | None = None) -> Row:
    return ended(hive, id=ask(hive, cmd="rollback", agent=agent, tag=tag)["id"])


def ended(hive: HiveHost, **which: int) -> Row:
    ((key, value),) = which.items()

    def find() -> Row | None:
        rows = ask(hive, cmd="deploys", limit=100)["deploys"]
        return next((row for row in rows if row.get(key) == value and "finished_at" in row), None)

    wait_until(find, "it has ended", DEPLOYED_S)
    row = find()
    assert row is not None
    return row


# ── what is seen ────────────────────────────────────────────────────────────────────────────────


def approval(hive: HiveHost, number: int) -> Row:
    row: Row = ask(hive, cmd="approval", id=number)["approval"]
    return row


def read(hive: HiveHost, name: str) -> str:
    """A file of the meta repository, as it is committed."""
    git = ["git", "-c", "safe.directory=*", "-C", f"{STATE}/meta", "show", f"HEAD:{name}"]
    return hive.run(git).stdout


def meta(hive: HiveHost) -> tuple[str, str, str]:
    return read(hive, "agents.json"), read(hive, "flake.nix"), read(hive, "flake.lock")


def locked(hive: HiveHost) -> dict[str, str]:
    """The commit of each agent, as meta's lock has it."""
    nodes = json.loads(read(hive, "flake.lock"))["nodes"]
    names = nodes["root"]["inputs"].items()
    return {
        name.removeprefix("agent-"): nodes[node]["locked"]["rev"]
        for name, node in names
        if name.startswith("agent-")
    }


def git(hive: HiveHost, agent: str, *words: str) -> str:
    argv = ["git", "-c", "safe.directory=*", "-C", f"{STATE}/applied/{agent}", *words]
    return hive.run(argv).stdout.strip()


def profile(hive: HiveHost, agent: str) -> str:
    return hive.run(["readlink", "-f", f"{PROFILES}/{agent}/system"], check=False).stdout.strip()


def collectable(hive: HiveHost) -> list[str]:
    """What a garbage collection would take; it is not done, as nix does not know of the tree that they boot."""
    return hive.run(["nix-store", "--gc", "--print-dead"], timeout_s=60).stdout.split()


def text(hive: HiveHost, agent: str) -> str:
    """What the closure that its machine runs was built with."""
    switched = "test -e /etc/switched && c=$(cut -d ' ' -f 1 /etc/switched) || c=/run/booted-system; cat $c/etc/toplevel"
    return hive.inside(agent, "sh", "-c", switched)


def query(hive: HiveHost, sql: str, *values: object) -> list[Any]:
    """Ask the daemon's own database; from inside, as SQLite resolves paths."""
    script = (
        "import json, sqlite3, sys\n"
        f"db = sqlite3.connect('file:{STATE}/broker.sqlite?mode=ro', uri=True, timeout=10)\n"
        "print(json.dumps(db.execute(sys.argv[1], json.loads(sys.argv[2])).fetchall()))\n"
    )
    said = hive.run(["/opt/hyperhive/bin/python3", "-I", "-c", script, sql, json.dumps(values)]).stdout
    found: list[Any] = json.loads(said)
    return found


def row_of(hive: HiveHost, agent: str) -> tuple[str, str, str]:
    """What the daemon's own row says: commit, tag and image."""
    sql = "select deployed_sha, deployed_tag, image from agents where name = ?"
    ((sha, tag, image),) = query(hive, sql, agent)
    return sha, tag, image


def check_agreement(hive: HiveHost, agent: str) -> str:
    """See that all say the same of *agent*, and give the commit."""
    hive.wait_as_wanted(agent)
    sha, tag, image = row_of(hive, agent)
    assert git(hive, agent, "rev-parse", "main") == sha
    assert git(hive, agent, "rev-parse", f"{tag}^{{commit}}") == sha
    entry = json.loads(read(hive, "agents.json"))["agents"][agent]
    assert entry == {"sha": sha, "tag": tag, "builder": "nix", "output": image}
    assert locked(hive)[agent] == sha
    assert sha in read(hive, "flake.nix")
    assert profile(hive, agent) == image
    nix = git(hive, agent, "show", f"{sha}:agent.nix")
    assert text(hive, agent) == re.findall(r'text = "([^"]*)"', nix)[0]
    assert not hive.row(agent).get("needs_update")
    assert hive.run(["git", "-C", f"{STATE}/meta", "-c", "safe.directory=*", "status", "-s"]).stdout == ""
    assert hive.run(["sh", "-c", f"ls {STATE}/builds"]).stdout.split() in ([], ["home"])
    assert hive.run(["systemctl", "list-units", "--plain", "--no-legend", "hive-nix-*"]).stdout == ""
    return sha


def told(hive: HiveHost, agent: str, since: int) -> list[str]:
    rows = hive.messages(since)
    return [row["body"] for row in rows if row["recipient"] == agent and row["sender"] == "system"]


# ── changes ─────────────────────────────────────────────────────────────────────────────────────


def test_one_that_is_spawned_by_an_approval_runs_what_was_built_of_its_template(host: HiveHost) -> None:
    row = approve(host, cmd="request_spawn", name="tina")

    assert (row["step"], row["tag"]) == ("done", "deployed/0"), row
    host.wait_as_wanted("tina")
    assert text(host, "tina") == "of the template"
    assert locked(host)["tina"] == row["sha"]
    assert profile(host, "tina") == row_of(host, "tina")[2]
    host.hive("destroy", "tina", "--yes")


def test_a_change_of_the_closure_alone_is_switched_to_live(hive: HiveHost) -> None:
    leader, since = hive.leader("alice"), hive.last_message()

    row = change(hive, "alice", agent_nix='{ text = "two"; }')

    assert hive.leader("alice") == leader
    assert text(hive, "alice") == "two"
    assert told(hive, "alice", since) == [
        f"Your configuration {row['tag']} runs now: nothing had to be started again for it."
    ]
    assert check_agreement(hive, "alice") == row["sha"]
    log = "\n".join(ask(hive, cmd="deploy_log", id=row["id"])["lines"])
    assert "Closure: /nix/store/" in log
    last = hive.run(["git", "-c", "safe.directory=*", "-C", f"{STATE}/meta", "log", "-1", "--format=%s"])
    basename = profile(hive, "alice").rpartition("/")[2]
    assert last.stdout.strip() == f"deploy alice {row['tag']} {row['sha'][:12]} {basename}"


def test_a_change_of_limits_alone_restarts_nothing(hive: HiveHost) -> None:
    leader = hive.leader("alice")

    change(hive, "alice", agent_toml="[limits]\ntasks = 512\n")

    assert hive.leader("alice") == leader
    assert hive.unit("alice", "TasksMax") == "512"
    check_agreement(hive, "alice")


def test_a_change_of_the_hosts_side_starts_it_anew_once_its_turn_has_ended(hive: HiveHost) -> None:
    leader, since = hive.leader("alice"), hive.last_message()
    hive.send("alice", "sleep 3")
    wait_until(lambda: hive.row("alice").get("turn_state") == "thinking", "it is in a turn")

    began = time.monotonic()
    row = change(
        hive,
        "alice",
        agent_toml=f"[environment]\nGREETING = 'hi {began}'\n",
        agent_nix='{ text = "with a greeting"; }',
    )

    assert time.monotonic() - began > 1.5, "the turn was cut short"
    assert hive.leader("alice") != leader
    assert text(hive, "alice") == "with a greeting"
    check_agreement(hive, "alice")
    (said,) = told(hive, "alice", since)
    assert said.startswith(f"Your configuration {row['tag']} runs now: you were started again for it")


def test_a_card_says_whether_the_machine_is_switched_or_restarted(hive: HiveHost) -> None:
    for files, how in (
        ({"agent_nix": '{ text = "x"; }'}, "switch"),
        ({"agent_toml": "[environment]\nA = 'b'\n"}, "restart"),
    ):
        number = propose(hive, "alice", **files)
        assert ask(hive, cmd="approval", id=number)["restart"] == how
        ask(hive, cmd="deny", id=number)
    commit(hive, "alice", agent_toml="")


# ── what does not work ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("nix", "words"),
    [
        ("{ text = ", "syntax error, unexpected end of file"),
        ('{ text = throw "not today"; }', "not today"),
        ('{ text = "x"; script = "echo no good >&2; exit 3;"; }', "failed with exit code 3"),
    ],
)
def test_what_cannot_be_built_fails_with_the_words_of_nix(hive: HiveHost, nix: str, words: str) -> None:
    before, leader, generation = meta(hive), hive.leader("alice"), profile(hive, "alice")

    number = propose(hive, "alice", agent_nix=nix)
    ask(hive, cmd="approve", id=number)
    row = ended(hive, approval_id=number)

    assert row["step"] == "failed"
    assert words in row["error"]
    assert words in approval(hive, number)["note"]
    assert words in git(hive, "alice", "for-each-ref", f"refs/tags/failed/{number}", "--format=%(contents)")
    assert (meta(hive), hive.leader("alice"), profile(hive, "alice")) == (before, leader, generation)
    assert text(hive, "alice") == "one"
    commit(hive, "alice", agent_nix='{ text = "one"; }')
    check_agreement(hive, "alice")


def test_what_cannot_be_switched_to_goes_back(hive: HiveHost) -> None:
    before = meta(hive)

    row = deploy(hive, "alice", agent_nix='{ text = "bad"; }')

    assert row["step"] == "failed"
    assert "newly failed: x.service" in row["error"]
    assert json.loads(meta(hive)[0]) == json.loads(before[0])
    commit(hive, "alice", agent_nix='{ text = "one"; }')
    check_agreement(hive, "alice")


def test_what_is_denied_changes_nothing(hive: HiveHost) -> None:
    before = meta(hive)
    number = propose(hive, "alice", agent_nix='{ text = "denied"; }')

    ask(hive, cmd="deny", id=number, note="not like that")

    note = git(hive, "alice", "for-each-ref", f"refs/tags/denied/{number}", "--format=%(contents)")
    assert "not like that" in note
    assert meta(hive) == before
    commit(hive, "alice", agent_nix='{ text = "one"; }')
    check_agreement(hive, "alice")


# ── back, away, and newer inputs ────────────────────────────────────────────────────────────────


def test_a_rollback_takes_lock_generation_and_machine_together(hive: HiveHost) -> None:
    first = row_of(hive, "alice")
    generation = hive.run(["readlink", f"{PROFILES}/alice/system"]).stdout
    change(hive, "alice", agent_nix='{ text = "not for long"; }')
    leader = hive.leader("alice")

    row = rollback(hive, "alice")

    assert row["step"] == "done", row
    assert row_of(hive, "alice") == first
    assert hive.run(["readlink", f"{PROFILES}/alice/system"]).stdout == generation
    assert hive.leader("alice") == leader
    assert check_agreement(hive, "alice") == first[0]
    again = rollback(hive, "alice")
    assert again["step"] == "done", again
    assert text(hive, "alice") == "not for long"


def test_one_that_was_destroyed_is_in_no_flake_and_comes_back_as_it_was(hive: HiveHost) -> None:
    before = row_of(hive, "alice")
    waiting = propose(hive, "alice", agent_nix='{ text = "too late"; }')

    hive.hive("destroy", "alice", "--yes")
    wait_until(lambda: "alice" not in hive.rows(), "it is gone")
    wait_until(lambda: "alice" not in read(hive, "agents.json"), "meta says so")
    assert "alice" not in "".join(meta(hive))
    assert approval(hive, waiting)["status"] == "failed"
    assert profile(hive, "alice") == before[2], "it is kept for its return"
    assert before[2] not in collectable(hive)

    hive.hive("spawn", "alice")
    hive.wait_as_wanted("alice")
    wait_until(lambda: "alice" in read(hive, "flake.lock"), "meta says so")
    assert row_of(hive, "alice") == before
    assert check_agreement(hive, "alice") == before[0]

    hive.hive("destroy", "alice", "--yes")
    wait_until(lambda: "alice" not in hive.rows(), "it is gone")
    row = approve(hive, cmd="request_spawn", name="alice")
    assert (row["step"], row["sha"]) == ("done", before[0])
    assert check_agreement(hive, "alice") == before[0]


def test_of_one_that_was_purged_nothing_is_kept(hive: HiveHost) -> None:
    approve(hive, cmd="request_spawn", name="carl")
    change(hive, "carl", agent_nix='{ text = "only of carl"; }')
    closure = profile(hive, "carl")

    hive.hive("destroy", "carl", "--yes")
    wait_until(lambda: "carl" not in hive.rows(), "it is gone")
    ask(hive, cmd="purge", name="carl", confirm="carl")
    wait_until(lambda: not hive.bed.path(f"{STATE}/applied/carl").exists(), "it is purged")
    wait_until(lambda: not hive.bed.path(f"{PROFILES}/carl").exists(), "its generations are gone")

    wait_until(lambda: "carl" not in "".join(meta(hive)), "meta says so")
    assert closure in collectable(hive)
    check_agreement(hive, "alice")


def test_newer_inputs_build_anew_whom_they_change_and_nobody_who_was_not_built(hive: HiveHost) -> None:
    if "bob" not in hive.rows():
        approve(hive, cmd="request_spawn", name="bob")
    change(hive, "bob", agent_nix="{ pkgs, ... }: { text = pkgs.version; }")
    if "tom" not in hive.rows():
        # From the image, and with a configuration that says nothing of Nix.
        hive.hive("spawn", "tom", "--image", "debian")
    commit(hive, "tom")
    hive.wait_as_wanted("alice", "bob", "tom")
    leaders = {name: hive.leader(name) for name in ("alice", "bob", "tom")}
    alice, bob, tom = (row_of(hive, name) for name in ("alice", "bob", "tom"))
    assert text(hive, "bob") == "one"
    new_nixpkgs(hive.bed, "newer")
    since = hive.last_message()

    row = approve(hive, cmd="request_update_meta_inputs", inputs=["nixpkgs"])

    assert row["step"] == "done", row
    assert text(hive, "bob") == "newer"
    assert row_of(hive, "bob")[:2] == bob[:2]
    assert row_of(hive, "bob")[2] != bob[2]
    assert profile(hive, "bob") == row_of(hive, "bob")[2]
    assert (row_of(hive, "alice"), row_of(hive, "tom")) == (alice, tom)
    assert {name: hive.leader(name) for name in leaders} == leaders
    assert (told(hive, "alice", since), told(hive, "tom", since)) == ([], [])
    assert locked(hive).keys() >= {"alice", "bob"}
    assert "tom" not in locked(hive)
    assert json.loads(read(hive, "agents.json"))["agents"]["tom"]["builder"] == "tree"
    check_agreement(hive, "alice")


# ── kills ───────────────────────────────────────────────────────────────────────────────────────


def kill(hive: HiveHost) -> None:
    hive.run(["systemctl", "kill", "-s", "KILL", "hive-core"])
    hive.run(["systemctl", "reset-failed", "hive-core"], check=False)


def step_of(hive: HiveHost, number: int) -> str:
    rows = ask(hive, cmd="deploys", limit=5)["deploys"]
    return next((str(row["step"]) for row in rows if row.get("approval_id") == number), "")


@pytest.mark.parametrize("step", ["preparing", "building", "activating", "finalizing"])
def test_a_deploy_goes_on_after_its_daemon_was_killed_in_a_step(hive: HiveHost, step: str) -> None:
    number = propose(hive, "alice", agent_nix=f'{{ text = "killed {step} {time.monotonic()}"; {SLOW} }}')
    ask(hive, cmd="approve", id=number)
    until = time.monotonic() + DEPLOYED_S
    while (found := step_of(hive, number)) not in {step, "done"}:
        assert time.monotonic() < until
        time.sleep(0.001)

    kill(hive)

    row = ended(hive, approval_id=number)
    print(f"killed while {found}: {row['step']}")
    assert row["step"] == "done", row
    assert check_agreement(hive, "alice") == row["sha"]
    assert approval(hive, number)["status"] == "approved"


def test_whenever_it_is_killed_all_agree_afterwards(hive: HiveHost) -> None:
    random.seed(7)
    happened: list[str] = []
    for number in range(KILLS):
        what = random.choice(["nix", "nix", "environment", "broken", "rollback"])
        text_of = f"{number} {time.monotonic()}"
        if what == "rollback":
            which = {"id": int(ask(hive, cmd="rollback", agent="alice")["id"])}
        else:
            files = {"agent_nix": f'{{ text = "{text_of}"; }}'}
            if what == "environment":
                files["agent_toml"] = f"[environment]\nNUMBER = '{number}'\n"
            if what == "broken":
                files["agent_nix"] = f'{{ text = "x"; script = "exit {number + 1};"; }}'
            proposed = propose(hive, "alice", **files)
            ask(hive, cmd="approve", id=proposed)
            which = {"approval_id": proposed}
        for _ in range(random.choice([1, 1, 2])):
            time.sleep(random.uniform(0, 1.2))
            kill(hive)
        row = ended(hive, **which)
        assert row["step"] == ("failed" if what == "broken" else "done"), row
        happened.append(f"{what}: {row['step']}")
        if what == "broken":
            commit(hive, "alice", agent_nix='{ text = "as before"; }')
        check_agreement(hive, "alice")
    print("\n".join(happened))


# ── the doctor ──────────────────────────────────────────────────────────────────────────────────


def test_the_doctor_looks_at_nix_too(hive: HiveHost) -> None:
    conf = hive.bed.path("/etc/nix/nix.conf")
    before = conf.read_text()

    def find() -> dict[str, tuple[str, str]]:
        said = hive.hive("doctor", "--json", check=False).stdout
        return {row["name"]: (row["status"], row["text"]) for row in json.loads(said)}

    found = find()
    assert found["nix"] == ("ok", "version 2.8, tested with 2.8; nix-daemon answers")
    assert found["nix sandbox"][0] == "warn", "the tests' own store cannot have one"
    assert (found["nix trust"][0], found["deploy.inputs"][0]) == ("ok", "ok")

    conf.write_text(f"{before}trusted-users = root @hive-nix\n")
    try:
        assert find()["nix trust"][0] == "fail"
    finally:
        conf.write_text(before)
