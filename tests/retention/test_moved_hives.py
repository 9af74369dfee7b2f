"""A hive with deployed agents is put aside, killed, restored, and goes on; an agent moves to another hive."""

import json
import random
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from daemon.kit import Daemon, connect, home_of, refusal, run_core, wait_until
from deploys.hive import Hive, git

from .archives import with_rows

SHORT = 'prompt = "task.md"\n[environment]\nSTAGE = "{}"\n[mcp_servers.notes]\ncommand = "notes"\n'


@pytest.fixture
def hives() -> Iterator[tuple[Hive, Hive]]:
    """One that runs, and one that was never started."""
    with ExitStack() as stack:
        made = [stack.enter_context(home_of(Daemon())) for _ in range(2)]
        made[0].start()
        yield Hive(made[0]), Hive(made[1])


def deployed(hive: Hive) -> None:
    hive.daemon.spawn("alice")
    assert hive.deploy("alice", agent_toml=SHORT.format("one"), task_md="Count.")["step"] == "done"
    assert hive.deploy("alice", agent_toml=SHORT.format("two"), task_md="Count words.")["step"] == "done"


def put_aside(hive: Hive, cmd: str = "backup_create", **fields: Any) -> Path:
    return Path(hive.daemon.ask(cmd, **fields)["archive"]["path"])


def test_what_was_deployed_runs_in_the_restored_hive(hives: tuple[Hive, Hive]) -> None:
    here, there = hives
    deployed(here)
    waiting = here.propose("alice", agent_toml=SHORT.format("three"))
    before = (here.tags("alice"), here.main("alice"), here.meta_log, here.agents_json, here.deployed("alice"))
    archive = put_aside(here)
    here.daemon.kill()

    done = run_core("restore", str(archive), "--home", str(there.daemon.home))
    assert done.returncode == 0, done.stderr
    there.daemon.start()

    there.daemon.wait_row("alice", connected=True)
    after = (
        *(there.tags("alice"), there.main("alice"), there.meta_log, there.agents_json),
        there.deployed("alice"),
    )
    assert after == before
    seen = there.environment("alice")
    assert seen["STAGE"] == "two"
    assert Path(seen["HIVE_PROMPT_FILE"]).read_text() == "Count words."
    assert Path(seen["HIVE_PROMPT_FILE"]).is_relative_to(there.state)
    assert Path(seen["HIVE_EXTRA_MCP"]).read_text() == '{"notes":{"command":"notes"}}'
    # What waited for a decision still does, and one goes back to what was before.
    there.approve(waiting)
    assert there.wait_deploy(approval_id=waiting)["step"] == "done"
    assert there.environment("alice")["STAGE"] == "three"
    assert there.rollback("alice", f"deployed/{waiting - 2}")["step"] == "done"
    assert there.environment("alice")["STAGE"] == "one"
    there.check()


def test_a_backup_in_the_midst_of_a_deploy_is_a_hive_that_goes_on(hives: tuple[Hive, Hive]) -> None:
    here, there = hives
    deployed(here)
    archives = []
    for stage in ("three", "four", "five"):
        number = here.propose("alice", agent_toml=SHORT.format(stage))
        here.approve(number)
        archives.append(put_aside(here))
        here.wait_deploy(approval_id=number)
    for archive in archives:
        assert run_core("restore", str(archive), "--home", str(there.daemon.home)).returncode == 0
        there.daemon.start()
        wait_until(
            lambda: not there.daemon.rows_of("select 1 from deploys where finished_at is null"), "it ends"
        )
        there.daemon.wait_row("alice", connected=True)
        there.check()
        there.daemon.kill()
        there.daemon.clean_up()
        there.daemon.base.mkdir()


def test_an_agent_goes_to_another_hive_with_all_that_was_decided_on_it(hives: tuple[Hive, Hive]) -> None:
    here, there = hives
    deployed(here)
    denied = here.propose("alice", agent_toml=SHORT.format("no"))
    here.daemon.ask("deny", id=denied, note="not so")
    tags = here.tags("alice")
    archive = put_aside(here, "export", agent="alice")
    there.daemon.start()

    there.daemon.ask("import", path=str(archive), name="carol")
    assert there.deployed("carol") == here.deployed("alice")
    there.daemon.spawn("carol")

    assert there.tags("carol") == tags
    assert there.environment("carol")["STAGE"] == "two"
    assert Path(there.environment("carol")["HIVE_PROMPT_FILE"]).read_text() == "Count words."
    # The numbers of this hive go on above those of the other, whose tags they would be.
    number = there.propose("carol", agent_toml=SHORT.format("here"))
    assert number > denied
    there.approve(number)
    assert there.wait_deploy(approval_id=number)["step"] == "done"
    assert there.environment("carol")["STAGE"] == "here"
    assert there.rollback("carol")["step"] == "done"
    there.check()
    assert there.daemon.messages() is not None


def test_dead_letters_travel_too(hives: tuple[Hive, Hive]) -> None:
    here, there = hives
    here.daemon.spawn("alice")
    here.daemon.ask("kill", name="alice")
    for text in ("one", "two", "three"):
        here.daemon.send("alice", text)
    here.daemon.stop()
    execute(here, "update messages set dead_at = 5, dead_reason = 'why' where body in ('one', 'three')")
    here.daemon.start()
    archive = put_aside(here, "export", agent="alice")
    there.daemon.start()
    there.daemon.ask("import", path=str(archive))

    assert there.daemon.ask("status")["dead"] == 2
    rows = "select body, dead_at, dead_reason, acked_at from messages where recipient = 'alice' order by id"
    wanted = [("two", None, None, None), ("one", 5.0, "why", None), ("three", 5.0, "why", None)]
    assert there.daemon.rows_of(rows) == wanted
    assert there.daemon.ask("dead_retry", all=True)
    assert not there.daemon.ask("status")["dead"]


def execute(hive: Hive, statement: str) -> None:
    with closing(sqlite3.connect(hive.daemon.database)) as db, db:
        db.execute(statement)


def test_an_archive_that_claims_what_its_repository_has_not_is_refused(hives: tuple[Hive, Hive]) -> None:
    here, there = hives
    deployed(here)
    archive = put_aside(here, "export", agent="alice")
    there.daemon.start()
    sha, _ = here.deployed("alice")
    first = here.tags("alice")["deployed/1"]
    for change, why in (
        ({"deployed_sha": "f" * 40}, "what was deployed of it is not in its repository"),
        ({"deployed_sha": first}, "what was deployed of it is not in its repository"),
        ({"deployed_tag": "deployed/9"}, "what was deployed of it is not in its repository"),
        ({"deployed_sha": sha, "deployed_tag": None}, "what was deployed of it is not in its repository"),
    ):
        forged = with_rows(archive, there.daemon.base / "forged.tar.gz", change)
        assert why in str(refusal(partial(there.daemon.ask, "import", path=str(forged))))
        assert not there.daemon.rows_of("select 1 from agents where name = 'alice'")
    assert not (there.state / "applied" / "alice").exists()


def test_a_tag_with_a_number_that_would_use_up_all_others_is_refused(hives: tuple[Hive, Hive]) -> None:
    here, there = hives
    deployed(here)
    git(here.state / "applied" / "alice", "tag", "deployed/9223372036854775807", "main")
    archive = put_aside(here, "export", agent="alice")
    there.daemon.start()
    assert "which no approval ever has" in str(refusal(lambda: there.daemon.ask("import", path=str(archive))))


# ── killed in the midst ─────────────────────────────────────────────────────────────────────────


def ask_and_kill(hive: Hive, after_s: float, **request: str) -> None:
    with connect(hive.daemon.host_socket) as sock:
        sock.sendall(json.dumps(request).encode() + b"\n")
        time.sleep(after_s)  # any moment will do
        hive.daemon.kill()


def test_whoever_is_killed_leaves_whole_archives_and_whole_agents(hives: tuple[Hive, Hive]) -> None:
    here, there = hives
    deployed(here)
    exported = put_aside(here, "export", agent="alice")
    rng = random.Random(5)
    there.daemon.start()
    for number in range(6):
        name = f"a{number}"
        ask_and_kill(there, rng.uniform(0.0, 1.0), cmd="import", path=str(exported), name=name)
        there.daemon.start()
        known = bool(there.daemon.rows_of(f"select 1 from agents where name = '{name}'"))
        state = there.state
        places = (state / "agents" / name, state / "applied" / name, state / "configs" / name)
        assert {path.exists() for path in places} == {known}, (name, known)
        if known:
            assert there.tags(name) == here.tags("alice")
        else:
            there.daemon.ask("import", path=str(exported), name=name)
    there.daemon.spawn("a0")
    assert there.environment("a0")["STAGE"] == "two"


def test_a_restore_that_was_killed_is_done_again(hives: tuple[Hive, Hive]) -> None:
    here, there = hives
    deployed(here)
    archive = put_aside(here)
    home = there.daemon.home
    rng = random.Random(6)
    argv = [sys.executable, "-m", "hive_core", "restore", str(archive), "--home", str(home)]
    for _ in range(6):
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
            time.sleep(rng.uniform(0.1, 1.0))
            process.kill()
        if (home / "state").exists():
            # It had come to its end.
            assert (home / "state" / "broker.sqlite").exists()
            shutil.rmtree(home / "state")
    assert run_core(*argv[3:]).returncode == 0
    assert not list(home.glob(".*"))
    there.daemon.start()
    there.daemon.wait_row("alice", connected=True)
    there.check()


def test_a_backup_that_was_killed_leaves_nothing_that_looks_like_one(hives: tuple[Hive, Hive]) -> None:
    here, _ = hives
    deployed(here)
    rng = random.Random(7)
    for _ in range(4):
        ask_and_kill(here, rng.uniform(0.0, 0.8), cmd="backup_create")
        here.daemon.start()
        for archive in (here.state / "backups").glob("*.tar.gz"):
            with tarfile.open(archive) as found:
                assert "applied/alice.tar" in found.getnames()
    made = put_aside(here)
    assert sorted(path.name for path in made.parent.iterdir() if path.name.startswith(".")) == []
    here.check()
