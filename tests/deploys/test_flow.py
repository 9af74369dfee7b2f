"""The whole way in a real local hive: proposed, approved, running, and back."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon.kit import Daemon, Follower, home_of, refusal, wait_until

from .hive import Hive


@pytest.fixture
def hive() -> Iterator[Hive]:
    daemon = Daemon()
    daemon.config_path.write_text("[approvals]\nmanager = false\n")
    with home_of(daemon):
        yield Hive(daemon.start())


def with_stage(word: str, more: str = "") -> str:
    return f'{more}\n[environment]\nSTAGE = "{word}"\n'


def test_what_was_approved_runs(hive: Hive) -> None:
    hive.daemon.spawn("alice")
    number = hive.propose("alice", agent_toml=with_stage("two", 'model = "small"'))
    assert hive.deployed("alice")[1] == "deployed/0"
    assert "STAGE" not in hive.environment("alice")
    hive.approve(number)
    done = hive.wait_deploy(approval_id=number)

    assert (done["step"], done["tag"]) == ("done", f"deployed/{number}")
    assert hive.environment("alice")["STAGE"] == "two"
    assert hive.daemon.wait_row("alice", active_model="small")["deployed_sha"] == done["sha"][:12]
    assert hive.meta_log[0] == f"deploy alice deployed/{number} {done['sha'][:12]}"
    words = {"proposal", "approved", "building", "deployed"}
    assert hive.tags("alice").keys() >= {f"{word}/{number}" for word in words}
    told = [row["body"] for row in hive.daemon.messages() if row["recipient"] == "alice"]
    assert any(f"deployed/{number}" in body for body in told)
    hive.check()


def test_a_prompt_and_mcp_servers_are_found_where_the_harness_is_told(hive: Hive) -> None:
    hive.daemon.spawn("alice")
    toml = 'prompt = "task.md"\n[mcp_servers.notes]\ncommand = "notes"\n'
    done = hive.deploy("alice", agent_toml=toml, task_md="Count words.")
    assert done["step"] == "done", done
    seen = hive.environment("alice")
    assert Path(seen["HIVE_PROMPT_FILE"]).read_text() == "Count words."
    assert Path(seen["HIVE_EXTRA_MCP"]).read_text() == '{"notes":{"command":"notes"}}'
    hive.check()


def test_a_broken_commit_leaves_what_ran(hive: Hive) -> None:
    hive.daemon.spawn("alice")
    first = hive.deploy("alice", agent_toml=with_stage("one"))
    pid = hive.daemon.harnesses("alice")
    number = hive.propose("alice", agent_toml=with_stage("two", 'packages = ["ripgrep"]'))
    hive.approve(number)
    failed = hive.wait_deploy(approval_id=number)

    assert failed["step"] == "failed"
    assert "deploy.packages_hook" in failed["error"]
    assert hive.daemon.harnesses("alice") == pid
    assert hive.main("alice") == first["sha"] == hive.deployed("alice")[0]
    history = hive.daemon.ask("history", agent="alice")["history"]
    (tag,) = [row for row in history if row["tag"] == f"failed/{number}"]
    assert "deploy.packages_hook" in tag["note"]
    assert [row["tag"] for row in history if row["running"]] == [first["tag"]]
    assert hive.approval(number)["status"] == "failed"
    hive.check()


def test_what_does_not_come_up_goes_back(hive: Hive) -> None:
    hive.daemon.spawn("alice")
    first = hive.deploy("alice", agent_toml=with_stage("one"))
    failed = hive.deploy("alice", agent_toml=with_stage("two", 'provider = "nobody"'))
    assert failed["step"] == "failed", failed
    assert hive.deployed("alice") == (first["sha"], first["tag"])
    assert hive.daemon.wait_row("alice", connected=True)
    assert hive.environment("alice")["STAGE"] == "one"
    hive.check()


def test_a_denied_one_changes_nothing(hive: Hive) -> None:
    hive.daemon.spawn("alice")
    number = hive.propose("alice", agent_toml=with_stage("two"))
    hive.daemon.ask("deny", id=number, note="no")
    wait_until(lambda: f"denied/{number}" in hive.tags("alice"), "it is tagged")
    assert hive.daemon.ask("deploys")["deploys"] == []
    assert refusal(lambda: hive.approve(number)).reply["reason"] == "decided"
    hive.check()


def test_the_way_back(hive: Hive) -> None:
    hive.daemon.spawn("alice")
    one = hive.deploy("alice", agent_toml=with_stage("one"))
    two = hive.deploy("alice", agent_toml=with_stage("two"))
    back = hive.rollback("alice")
    assert (back["kind"], back["sha"], back["tag"]) == ("rollback", one["sha"], one["tag"])
    assert hive.environment("alice")["STAGE"] == "one"
    assert hive.meta_log[0].startswith(f"rollback alice {one['tag']}")
    hive.check()
    assert hive.rollback("alice", two["tag"])["step"] == "done"
    assert hive.environment("alice")["STAGE"] == "two"
    assert hive.rollback("alice", "deployed/0")["step"] == "done"
    assert "STAGE" not in hive.environment("alice")
    hive.check()


def test_a_new_agent_by_approval(hive: Hive) -> None:
    number = hive.daemon.ask("request_spawn", name="bob")["id"]
    hive.approve(number)
    done = hive.wait_deploy(approval_id=number)
    assert (done["step"], done["tag"]) == ("done", "deployed/0")
    hive.daemon.wait_row("bob", connected=True)
    assert hive.tags("bob")["deployed/0"] == done["sha"]
    hive.check()


def test_a_new_agent_in_two_steps(hive: Hive) -> None:
    number = hive.daemon.ask("request_init_config", name="bob")["id"]
    hive.approve(number)
    assert hive.wait_deploy(approval_id=number)["step"] == "done"
    assert hive.daemon.ask("agent_status")["agent_statuses"] == []
    sha = hive.commit("bob", agent_toml=with_stage("edited"))
    number = hive.daemon.ask("request_spawn", name="bob")["id"]
    hive.approve(number)
    done = hive.wait_deploy(approval_id=number)
    assert (done["step"], done["sha"], done["tag"]) == ("done", sha, "deployed/0")
    assert hive.environment("bob")["STAGE"] == "edited"
    hive.check()


def test_a_destroyed_agent_leaves_meta_and_comes_back(hive: Hive) -> None:
    hive.daemon.spawn("alice")
    one = hive.deploy("alice", agent_toml=with_stage("one"))
    (hive.daemon.state("alice") / "note").write_text("kept")
    hive.daemon.ask("destroy", name="alice")
    wait_until(lambda: hive.daemon.ask("list")["agents"] == [], "alice is gone")
    wait_until(lambda: hive.meta_log[0] == "destroy alice", "meta says so")
    assert hive.agents_json == {}
    number = hive.daemon.ask("request_spawn", name="alice")["id"]
    hive.approve(number)
    done = hive.wait_deploy(approval_id=number)
    assert (done["step"], done["sha"]) == ("done", one["sha"]), done
    assert hive.environment("alice")["STAGE"] == "one"
    assert (hive.daemon.state("alice") / "note").read_text() == "kept"
    hive.check()


def test_packages_come_from_the_hook(hive: Hive) -> None:
    hook = hive.daemon.base / "hook"
    hook.write_text(f"#!{sys.executable}\nimport sys\nprint('adding', sys.argv[1:])\nprint('an-image')\n")
    hook.chmod(0o755)
    hive.daemon.stop()
    hive.daemon.config_path.write_text(f'[deploy]\npackages_hook = "{hook}"\n')
    hive.daemon.start()
    hive.daemon.spawn("alice")
    done = hive.deploy("alice", agent_toml='network = "veth"\npackages = ["ripgrep"]')
    assert done["step"] == "done", done
    lines = hive.daemon.ask("deploy_log", id=done["id"])["lines"]
    assert "This hive is a local one: it ignores network of agent.toml." in lines
    assert "adding ['alice', '', 'ripgrep']" in lines
    hive.check()


def test_who_follows_sees_every_step(hive: Hive) -> None:
    hive.daemon.spawn("alice")
    with Follower(hive.daemon, "deploys", follow=True) as follower:
        hive.deploy("alice", agent_toml=with_stage("one"))

        def steps(items: list[dict[str, object]]) -> bool:
            seen = [row["step"] for item in items for row in item.get("deploys", [])]  # type: ignore[attr-defined]
            return seen == ["preparing", "building", "activating", "finalizing", "done"]

        follower.wait(steps, "each step comes")
        assert any("It runs." in item.get("lines", []) for item in follower.items)


def test_nix_is_refused_in_a_local_hive() -> None:
    daemon = Daemon()
    try:
        daemon.config_path.write_text('[deploy]\nbuilder = "nix"\n')
        daemon.launch()
        assert daemon.wait_end() == 78
        assert 'cannot use deploy.builder = "nix" in a local hive' in daemon.log
    finally:
        daemon.clean_up()


def test_who_is_destroyed_while_it_is_built_ends_the_build(hive: Hive) -> None:
    begun = hive.daemon.base / "begun"
    hook = hive.daemon.base / "hook"
    hook.write_text(f"#!{sys.executable}\nimport time\nopen({str(begun)!r}, 'w').close()\ntime.sleep(600)\n")
    hook.chmod(0o755)
    hive.daemon.stop()
    hive.daemon.config_path.write_text(f'[deploy]\npackages_hook = "{hook}"\n')
    hive.daemon.start()
    hive.daemon.spawn("alice")
    number = hive.propose("alice", agent_toml='packages = ["ripgrep"]')
    hive.approve(number)
    wait_until(begun.exists, "it builds")
    hive.daemon.ask("destroy", name="alice", purge=True)
    failed = hive.wait_deploy(approval_id=number)
    assert failed["error"] == "cannot deploy alice: it was destroyed meanwhile"
    wait_until(lambda: hive.daemon.ask("list")["agents"] == [], "alice is gone")
    wait_until(lambda: not (hive.state / "applied" / "alice").exists(), "and her repository")
    assert hive.agents_json == {}


def test_a_stop_in_the_midst_of_a_build_goes_on_with_the_next_daemon(hive: Hive) -> None:
    begun = hive.daemon.base / "begun"
    hook = hive.daemon.base / "hook"
    hook.write_text(
        f"#!{sys.executable}\nimport os, time\nfirst = not os.path.exists({str(begun)!r})\n"
        f"open({str(begun)!r}, 'w').close()\ntime.sleep(600 if first else 0)\nprint('image')\n"
    )
    hook.chmod(0o755)
    hive.daemon.stop()
    hive.daemon.config_path.write_text(f'[deploy]\npackages_hook = "{hook}"\n')
    hive.daemon.start()
    hive.daemon.spawn("alice")
    number = hive.propose("alice", agent_toml=with_stage("two", 'packages = ["ripgrep"]'))
    hive.approve(number)
    wait_until(begun.exists, "it builds")
    assert hive.daemon.stop() == 0
    hive.daemon.start()
    assert hive.wait_deploy(approval_id=number)["step"] == "done"
    assert hive.environment("alice")["STAGE"] == "two"
    hive.check()


def test_what_is_spawned_again_by_hand_is_in_meta_again(hive: Hive) -> None:
    hive.daemon.spawn("alice")
    one = hive.deploy("alice", agent_toml=with_stage("one"))
    hive.daemon.ask("destroy", name="alice")
    wait_until(lambda: hive.daemon.ask("list")["agents"] == [], "alice is gone")
    wait_until(lambda: hive.agents_json == {}, "meta says so")
    hive.daemon.spawn("alice")
    wait_until(lambda: "alice" in hive.agents_json, "meta says so")
    assert hive.agents_json["alice"]["sha"] == one["sha"]
    hive.check()


def test_a_stopped_agent_is_not_started(hive: Hive) -> None:
    hive.daemon.spawn("alice")
    hive.daemon.ask("stop", scope={"agent_names": ["alice"]})
    hive.daemon.wait_row("alice", running=False)
    done = hive.deploy("alice", agent_toml=with_stage("two"))
    assert done["step"] == "done"
    assert hive.daemon.row("alice")["running"] is False
    hive.daemon.ask("start", scope={"agent_names": ["alice"]})
    hive.check()
