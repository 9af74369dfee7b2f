"""What is deployed of an agent is what its machine has: files, variables, binds, limits, and nothing else."""

import json
import os
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from .bed import open_bed
from .hive_kit import CONFIG, HiveHost, wait_until

RELEASE = "/etc/hyperhive/release"
DATA, OUT = "/srv/data", "/srv/out"

WHOLE = f"""
image = "debian"
network = "none"
prompt = "prompts/task.md"

[limits]
memory = "1G"
tasks = 400

[environment]
GREETING = 'a "b" $c'

[mcp_servers.files]
command = "{RELEASE}/config/files.py"

[[binds]]
source = "{DATA}"
path = "/data"

[[binds]]
source = "{OUT}"
path = "/out"
writable = true
"""


@pytest.fixture(scope="module")
def hive(worker_id: str) -> Iterator[HiveHost]:
    with open_bed(f"pytest-{os.getpid()}-{worker_id}-deployed") as bed:
        # File systems that can be id-mapped, as a host's would be.
        for path in (DATA, OUT):
            bed.run(["mkdir", "-p", path])
            bed.run(["mount", "-t", "tmpfs", "tmpfs", path])
        bed.run(["sh", "-c", f"echo secret > {DATA}/file; chmod 600 {DATA}/file; chown 1234:1234 {OUT}"])
        host = HiveHost(bed).set_up(f"{CONFIG}\n[approvals]\nmanager = true\n")
        host.wait_as_wanted("manager")
        host.hive("spawn", "alice")
        yield host


def commit(hive: HiveHost, message: str, **files: str) -> str:
    """Let the manager commit *files* (`__` for /, `_toml` for .toml) to alice's configuration; gives the commit."""
    config = hive.look("config", "alice")["path"]
    inside = "/agents/alice/config"
    hive.bed.path(config)
    script = ["set -e", f"cd {inside}"]
    for name, text in files.items():
        path = name.replace("__", "/").replace("_toml", ".toml").replace("_md", ".md").replace("_py", ".py")
        script += [f"mkdir -p $(dirname {path})", f"printf %s {shlex.quote(text)} > {path}"]
    hive.inside("manager", "sh", "-c", "\n".join(script))
    owner = hive.run(["stat", "-c", "%u", config]).stdout.strip()
    git = f"git -c safe.directory=* -c user.name=m -c user.email=m@x -C {config}"
    made = f"{git} add -A && {git} commit -qm {shlex.quote(message)} && {git} rev-parse HEAD"
    done = hive.run(["setpriv", f"--reuid={owner}", f"--regid={owner}", "--clear-groups", "sh", "-c", made])
    return done.stdout.strip()


def deploy(hive: HiveHost, message: str, **files: str) -> dict[str, Any]:
    """Commit, propose and approve; gives the row of the deploy when it has ended."""
    sha = commit(hive, message, **files)
    approval = hive.ask(cmd="request_apply_commit", agent="alice", commit_ref=sha)["id"]
    hive.ask(cmd="approve", id=approval)

    def ended() -> Any:
        rows = hive.ask(cmd="deploys", agent="alice")["deploys"]
        return next((r for r in rows if r.get("approval_id") == approval and "finished_at" in r), None)

    wait_until(ended, "it is deployed", 60)
    row: dict[str, Any] = ended()
    if row["step"] != "done":
        print(hive.bed.journal("hive-core"))
    return row


@pytest.fixture(scope="module")
def deployed(hive: HiveHost) -> HiveHost:
    files = {"agent_toml": WHOLE, "prompts__task_md": "Look after the data.\n", "files_py": "#!/bin/sh\n"}
    row = deploy(hive, "all of it", **files)
    assert row["step"] == "done", row
    hive.wait_as_wanted("alice")
    return hive


def environment(hive: HiveHost, agent: str) -> dict[str, str]:
    """What its harness was started with."""
    pid = hive.inside(agent, "systemctl", "show", "hive-agent", "-p", "MainPID", "--value").strip()
    said = hive.inside(agent, "sh", "-c", f"tr '\\0' '\\n' < /proc/{pid}/environ")
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def test_its_harness_has_the_variables_and_is_told_where_all_lies(deployed: HiveHost) -> None:
    found = environment(deployed, "alice")

    assert found["GREETING"] == 'a "b" $c'
    assert found["HIVE_RELEASE"] == RELEASE
    assert found["HIVE_PROMPT_FILE"] == f"{RELEASE}/config/prompts/task.md"
    assert found["HIVE_EXTRA_MCP"] == f"{RELEASE}/extra-mcp.json"
    assert found["HIVE_LABEL"] == "alice"


def test_what_was_deployed_is_read_in_the_machine_and_written_by_nobody(deployed: HiveHost) -> None:
    assert deployed.inside("alice", "cat", f"{RELEASE}/config/prompts/task.md") == "Look after the data.\n"
    servers = json.loads(deployed.inside("alice", "cat", f"{RELEASE}/extra-mcp.json"))
    assert servers == {"files": {"command": f"{RELEASE}/config/files.py"}}
    for path in (f"{RELEASE}/config/x", f"{RELEASE}/x", f"{RELEASE}/config/agent.toml"):
        done = deployed.hive("exec", "alice", "--", "sh", "-c", f"echo x > {path}", check=False)
        assert "Read-only file system" in done.stderr


def test_binds_are_there_as_declared_and_no_more(deployed: HiveHost) -> None:
    assert deployed.inside("alice", "cat", "/data/file") == "secret\n"
    done = deployed.hive("exec", "alice", "--", "touch", "/data/x", check=False)
    assert "Read-only file system" in done.stderr

    deployed.inside("alice", "sh", "-c", "cp /bin/true /out/tool; chmod 4755 /out/tool; echo hi > /out/file")

    seen = deployed.run(["stat", "-c", "%u:%g", f"{OUT}/tool", f"{OUT}/file"]).stdout.split()
    assert seen == ["1234:1234", "1234:1234"], "nothing in it is the host's root's"
    assert deployed.inside("alice", "stat", "-c", "%u", "/out/file") == "0\n"


def as_git(hive: HiveHost, script: str, *, check: bool = True) -> str:
    """What *script* says that the user of git runs."""
    user = ["--reuid=hive-git", "--regid=hive-git", "--clear-groups"]
    done = hive.run(["setpriv", *user, "sh", "-c", script], check=check)
    return done.stdout + done.stderr


def test_git_taken_over_would_reach_nothing_but_repositories(deployed: HiveHost) -> None:
    state = "/var/lib/hyperhive"
    listed = deployed.run(["find", state, "-type", "f"]).stdout
    deployed.bed.path("/tmp/listed").write_text(listed)

    readable = as_git(
        deployed, 'while read -r file; do test -r "$file" && echo "$file"; done < /tmp/listed; true'
    )
    said = as_git(
        deployed,
        f"mv {state}/applied/alice {state}/applied/gone; ln -s /etc {state}/applied/dave; ln -s /etc {state}/staging/x;"
        f" mkdir {state}/releases/alice/x {state}/configs/x; ls {state} {state}/agents {state}/staging",
        check=False,
    )

    shown = (f"{state}/applied/", f"{state}/meta/", f"{state}/releases/", f"{state}/configs/")
    assert [line for line in readable.splitlines() if not line.startswith(shown)] == []
    assert said.count("Permission denied") == 8, said
    others = ["-path", f"{state}/agents/*", "-prune", "-o", "-perm", "/022", "!", "-type", "l", "-print"]
    assert deployed.run(["find", state, *others]).stdout == ""


def test_a_way_that_somebody_else_writes_leads_nowhere(deployed: HiveHost) -> None:
    """The agent writes below OUT, as user 1234: what it makes a link of is not what was approved to be seen."""
    deployed.inside("alice", "sh", "-c", "mkdir -p /out/inner; ln -sfn /usr/share /out/link")
    for source in (f"{OUT}/inner", f"{OUT}/link"):
        row = deploy(
            deployed, "more", agent_toml=f'{WHOLE}\n[[binds]]\nsource = "{source}"\npath = "/more"\n'
        )

        assert row["step"] == "failed"
        assert "others than root write in /srv/out: they could let it lead elsewhere" in row["error"], row
    deployed.wait_as_wanted("alice")
    assert deployed.inside("alice", "cat", "/data/file") == "secret\n"


def test_its_limits_are_those_of_the_manifest(deployed: HiveHost) -> None:
    assert (deployed.unit("alice", "MemoryMax"), deployed.unit("alice", "TasksMax")) == (str(2**30), "400")
    facts = deployed.ask(cmd="machine", name="alice")
    assert (facts["image"], facts["network"]) == ("debian", "none")


def test_limits_hold_at_once_and_files_that_nobody_reads_restart_nothing(deployed: HiveHost) -> None:
    leader = deployed.leader("alice")

    row = deploy(deployed, "less", agent_toml=WHOLE.replace('"1G"', '"2G"'))

    assert row["step"] == "done", row
    assert deployed.leader("alice") == leader
    assert deployed.unit("alice", "MemoryMax") == str(2 * 2**30)
    assert 'memory = "2G"' in deployed.inside("alice", "cat", f"{RELEASE}/config/agent.toml")


def test_another_prompt_starts_it_anew_and_tells_it(deployed: HiveHost) -> None:
    leader, since = deployed.leader("alice"), deployed.last_message()

    row = deploy(deployed, "another task", prompts__task_md="Something else.\n")

    assert row["step"] == "done", row
    deployed.wait_as_wanted("alice")
    assert deployed.leader("alice") != leader
    assert deployed.inside("alice", "cat", f"{RELEASE}/config/prompts/task.md") == "Something else.\n"
    told = [
        r["body"] for r in deployed.messages(since) if r["recipient"] == "alice" and r["sender"] == "system"
    ]
    assert len(told) == 1
    assert told[0].startswith(f"Your configuration {row['tag']} runs now: you were started again for it")


def test_what_the_host_cannot_give_leaves_the_machine_as_it_was(deployed: HiveHost) -> None:
    leader, config = deployed.leader("alice"), WHOLE.replace('"1G"', '"2G"')

    row = deploy(deployed, "no such data", agent_toml=config.replace(DATA, "/srv/none-such"))

    assert row["step"] == "failed"
    assert "/srv/none-such: No such file or directory" in row["error"]
    assert deployed.leader("alice") == leader
    assert deployed.unit("alice", "MemoryMax") == str(2 * 2**30)
    assert f'source = "{DATA}"' in deployed.inside("alice", "cat", f"{RELEASE}/config/agent.toml")
    commit(deployed, "as before", agent_toml=config)


def test_a_daemon_that_is_killed_restarts_nothing_that_is_as_deployed(deployed: HiveHost) -> None:
    leader = deployed.leader("alice")

    deployed.run(["systemctl", "kill", "-s", "KILL", "hive-core"])
    deployed.wait_as_wanted("alice", "manager")

    assert deployed.leader("alice") == leader
    assert not deployed.row("alice").get("needs_update")


def test_the_manager_sees_all_repositories_and_writes_only_proposals(deployed: HiveHost) -> None:
    machine = deployed.ask(cmd="machine", name="manager")["machine"]

    assert machine == "hm1nd"
    assert "alice" in deployed.inside("manager", "ls", "/agents").split()
    assert "alice" in deployed.inside("manager", "ls", "/applied").split()
    assert "alice" in deployed.inside("manager", "cat", "/meta/agents.json")
    deployed.inside(
        "manager", "sh", "-c", "echo x > /agents/alice/config/notes; rm /agents/alice/config/notes"
    )
    for path in ("/applied/x", "/applied/alice/x", "/meta/agents.json", "/agents/x"):
        done = deployed.hive("exec", "manager", "--", "sh", "-c", f"echo x >> {path}", check=False)
        assert done.returncode != 0, path


def test_one_that_was_destroyed_comes_back_as_it_was_deployed_and_a_purge_leaves_nothing(
    deployed: HiveHost,
) -> None:
    deployed.hive("destroy", "alice", "--yes")
    wait_until(lambda: "alice" not in deployed.rows(), "it is gone")
    (stone,) = deployed.ask(cmd="tombstones")["tombstones"]
    assert stone["name"] == "alice"
    assert stone["bytes"] > 0

    deployed.hive("spawn", "alice")
    deployed.wait_as_wanted("alice")
    assert environment(deployed, "alice")["GREETING"] == 'a "b" $c'
    assert deployed.unit("alice", "TasksMax") == "400"

    deployed.hive("destroy", "alice", "--yes")
    wait_until(lambda: "alice" not in deployed.rows(), "it is gone")
    deployed.ask(cmd="purge", name="alice", confirm="alice")
    wait_until(lambda: not deployed.ask(cmd="tombstones")["tombstones"], "it is purged")
    state = deployed.bed.path("/var/lib/hyperhive")
    wait_until(lambda: not [*state.glob("*/alice")], "nothing is kept")
