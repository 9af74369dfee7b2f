"""Prepare, build, finalize, abort, forget: with a real nix and several agents."""

import dataclasses
import json
from pathlib import Path

import pytest

from hive_core.builders import BuildFailed, Running
from hive_core.config import Config, Deploy
from hive_core.domain.manifest import Manifest
from hive_core.host import nix_roots
from hive_core.layout import Layout

from .kit import Hive

MAIL = "{ identity }: { text = identity.committer.email; }"


def text_of(closure: str, name: str = "text") -> str:
    return Path(closure, name).read_text()


async def fails(hive: Hive, agent: str, files: dict[str, str], **more: object) -> str:
    target = hive.target(agent, hive.commit(agent, files), **more)  # type: ignore[arg-type]
    with pytest.raises(BuildFailed) as failed:
        await hive.build(target)
    await hive.builder.abort(target)
    return str(failed.value)


async def test_an_agent_is_built_and_meta_says_what_runs(hive: Hive) -> None:
    sha, built = await hive.deploy("alice", MAIL)

    assert text_of(built) == "alice@hyperhive"
    assert hive.generation("alice") == built
    assert hive.locked == {"alice": sha}
    assert any(line.endswith("built nixos-system-alice") for line in hive.said)
    assert hive.left() == []


async def test_a_deploy_changes_the_lock_of_one_agent(hive: Hive) -> None:
    first, _ = await hive.deploy("alice", '{ text = "one"; }')
    bob, _ = await hive.deploy("bob", '{ text = "bob"; }')
    lock = json.loads(hive.meta["flake.lock"])

    second, _ = await hive.deploy("alice", '{ text = "two"; }')

    assert hive.locked == {"alice": second, "bob": bob}
    after = json.loads(hive.meta["flake.lock"])
    assert [name for name in lock["nodes"] if lock["nodes"][name] != after["nodes"][name]] == ["agent-alice"]
    assert first != second


@pytest.mark.parametrize(
    "agent", ["a", "0", "a--b", "9" * 63, "hyperhive", "nixpkgs", "rec", "nix", "manager"]
)
async def test_any_name_of_an_agent_is_one_of_a_flake(hive: Hive, agent: str) -> None:
    _, built = await hive.deploy(agent, "{ identity }: { text = builtins.toJSON identity; }")

    identity = json.loads(text_of(built))
    assert identity["label"] == agent
    assert identity["isManager"] is (agent == "manager")


async def test_a_state_directory_that_nix_would_misread_is_told(hive: Hive) -> None:
    odd = hive.layout.home / "with space"
    odd.mkdir()
    hive.layout = Layout(odd, odd / "run", odd)
    hive.builder = hive.new_builder()

    said = await fails(hive, "alice", {"agent.nix": MAIL})

    assert f"nix cannot work in {odd}; let the hive's state be where" in said


async def test_what_fails_leaves_everything_as_it_was(hive: Hive) -> None:
    _, built = await hive.deploy("alice", MAIL)
    meta = dict(hive.meta)

    said = await fails(hive, "alice", {"agent.nix": '{ text = "x"; script = "echo no good >&2; exit 3;"; }'})

    assert "failed with exit code 3" in said
    assert "no good" in said
    assert hive.meta == meta
    assert hive.generation("alice") == built
    assert hive.left() == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{ text = ", "syntax error, unexpected end of file"),
        ("{ text = nothing; }", "undefined variable 'nothing'"),
        ('{ text = throw "it is not to be"; }', "it is not to be"),
        ("{ text = let x = x; in x; }", "infinite recursion encountered"),
        ('{ text = builtins.seq (abort "\\u001b[31mred") ""; }', "u001b"),
        ("{ }", "attribute 'text' missing"),
    ],
)
async def test_what_nix_says_of_a_bad_file_is_told(hive: Hive, text: str, words: str) -> None:
    said = await fails(hive, "alice", {"agent.nix": text})

    assert said.startswith("cannot build alice: error: ")
    assert words in said
    assert len(said.splitlines()) < 20
    assert "--show-trace" not in said


async def test_a_commit_without_the_file_is_told(hive: Hive) -> None:
    said = await fails(hive, "alice", {"other.nix": "{ }"})

    assert "agent.nix': No such file or directory" in said


async def test_a_commit_that_there_is_not_is_told(hive: Hive) -> None:
    hive.commit("alice", {"agent.nix": MAIL})
    target = hive.target("alice", "0123456789" * 4)

    with pytest.raises(BuildFailed, match="cannot build alice: error: "):
        await hive.builder.prepare(target, hive.said.append)


@pytest.mark.parametrize("manifest", [Manifest(image="debian"), Manifest(packages=["jq"])])
async def test_what_agent_nix_is_to_say_agent_toml_may_not(hive: Hive, manifest: Manifest) -> None:
    said = await fails(hive, "alice", {"agent.nix": MAIL}, manifest=manifest)

    assert "this hive builds machines from agent.nix; say it there" in said


async def test_inputs_that_are_not_configured_are_told(hive: Hive) -> None:
    hive.config = Config(deploy=Deploy(builder="nix", inputs={"nixpkgs": "path:/x"}))

    said = await fails(hive, "alice", {"agent.nix": MAIL})

    assert "deploy.inputs of the hive's configuration has no hyperhive" in said


async def test_two_prepares_at_once_are_refused(hive: Hive) -> None:
    alice = hive.target("alice", hive.commit("alice", {"agent.nix": MAIL}))
    bob = hive.target("bob", hive.commit("bob", {"agent.nix": MAIL}))
    await hive.builder.prepare(alice, hive.said.append)

    with pytest.raises(BuildFailed, match="deploy 1 is being built; one is at a time"):
        await hive.builder.prepare(bob, hive.said.append)
    await hive.builder.abort(bob)

    built = await hive.builder.build(alice, hive.said.append)
    await hive.finish(alice, built.image or "")
    await hive.finish(bob, await hive.build(bob))
    assert hive.locked.keys() == {"alice", "bob"}


async def test_a_build_has_a_deadline(hive: Hive) -> None:
    target = hive.target(
        "alice", hive.commit("alice", {"agent.nix": '{ text = "x"; script = "sleep 55;"; }'})
    )
    await hive.builder.prepare(target, hive.said.append)
    hive.config = Config(deploy=Deploy(builder="nix", inputs=hive.host.inputs, timeout_s=1.5))

    with pytest.raises(BuildFailed, match=r"it takes longer than deploy\.timeout_s"):
        await hive.builder.build(target, hive.said.append)


# ── going back, and newer inputs ────────────────────────────────────────────────────────────────


async def test_a_rollback_takes_commit_and_generation_together(hive: Hive) -> None:
    first, one = await hive.deploy("alice", '{ text = "one"; }')
    _, two = await hive.deploy("alice", '{ text = "two"; }')
    hive.said.clear()

    target = hive.target("alice", first, former=one)
    await hive.finish(target, await hive.build(target))

    assert (hive.generation("alice"), hive.locked) == (one, {"alice": first})
    assert f"Closure of that deploy: {one}" in hive.said
    links = {path.name for path in (hive.profiles / "alice").iterdir()}
    assert links == {"system", "system-1-link", "system-2-link"}
    assert (hive.profiles / "alice/system").readlink().name == "system-1-link"
    assert one != two


async def test_a_rollback_is_the_same_closure_although_inputs_are_newer(hive: Hive) -> None:
    first, one = await hive.deploy("alice", '{ text = "one"; }')
    await hive.deploy("alice", '{ text = "two"; }')
    renewed = hive.target(
        "alice", hive.commit("alice", {"agent.nix": '{ text = "3"; }'}), inputs=("nixpkgs",)
    )
    hive.host.new_input("nixpkgs", '{ outputs = _: { version = "newer"; }; }')
    try:
        await hive.finish(renewed, await hive.build(renewed))
        target = hive.target("alice", first, former=one)
        await hive.finish(target, await hive.build(target))
    finally:
        hive.host.new_input("nixpkgs", '{ outputs = _: { version = "one"; }; }\n')

    assert hive.generation("alice") == one


async def test_what_the_store_let_go_is_built_again(hive: Hive) -> None:
    first, one = await hive.deploy("alice", '{ text = "went"; }')
    await hive.deploy("alice", '{ text = "stays"; }')
    nix_roots.sweep_generations("alice", 1, profiles=hive.profiles, roots=hive.profiles / "roots")
    (hive.profiles / "alice/system-1-link").unlink(missing_ok=True)
    hive.host.collect()

    target = hive.target("alice", first, former=one)
    built = await hive.build(target)

    assert built == one
    assert text_of(built) == "went"
    await hive.builder.abort(target)


async def test_newer_inputs_build_anew_whom_they_change_and_nobody_else(hive: Hive) -> None:
    alice, one = await hive.deploy("alice", '{ text = "a"; }')
    bob, two = await hive.deploy("bob", '{ text = "b"; }')
    lock = hive.meta["flake.lock"]

    async def renew() -> list[str]:
        targets = [hive.target("alice", alice, inputs=("nixpkgs",))]
        targets.append(dataclasses.replace(targets[0], agent="bob", sha=bob))
        for target in targets:
            await hive.builder.prepare(target, hive.said.append)
        built = [await hive.builder.build(target, hive.said.append) for target in targets]
        assert hive.meta["flake.lock"] == lock
        files: dict[str, bytes | None] = {}
        for target, each in zip(targets, built, strict=True):
            files |= await hive.builder.finalize(target, each.image, hive.said.append)
        hive.write_meta(files)
        for target in targets:
            await hive.builder.abort(target)
        return [str(each.image) for each in built]

    assert await renew() == [one, two]
    # A locked path is the old copy of it until it is renewed.
    hive.host.new_input("nixpkgs", '{ outputs = _: { version = "newer"; }; }')
    try:
        await hive.deploy("carol", '{ text = "c"; }')
        lock = hive.meta["flake.lock"]
        built = await renew()
    finally:
        hive.host.new_input("nixpkgs", '{ outputs = _: { version = "one"; }; }\n')

    assert hive.meta["flake.lock"] != lock
    assert [text_of(each, "version") for each in built] == ["newer\n"] * 2
    assert text_of(hive.generation("carol"), "version") == "one\n"
    assert hive.generation("bob") == built[1]


async def test_an_input_that_there_is_not_is_told(hive: Hive) -> None:
    said = await fails(hive, "alice", {"agent.nix": MAIL}, inputs=("nixpkg",))

    assert "the hive's flake has no input 'nixpkg'" in said


# ── what is kept, and what is not ───────────────────────────────────────────────────────────────


async def test_what_is_built_and_not_yet_runs_is_kept_from_the_collector(hive: Hive) -> None:
    target = hive.target("alice", hive.commit("alice", {"agent.nix": '{ text = "kept while built"; }'}))
    built = await hive.build(target)

    hive.host.collect()

    assert text_of(built) == "kept while built"
    await hive.builder.abort(target)
    hive.host.collect()
    with pytest.raises(FileNotFoundError):
        text_of(built)


async def test_what_runs_is_kept_and_what_is_booted_too(hive: Hive) -> None:
    roots = hive.host.root / "var/gcroots/hive"
    closures = []
    for number in range(4):
        _, built = await hive.deploy("alice", f'{{ text = "kept {number}"; }}')
        closures.append(built)
        if number == 0:
            nix_roots.pin_booted("alice", hive.host.root / built, roots)
    nix_roots.sweep_generations("alice", 1, profiles=hive.profiles, roots=roots)
    hive.host.collect()

    assert text_of(closures[0]) == "kept 0"
    assert text_of(closures[3]) == "kept 3"
    with pytest.raises(FileNotFoundError):
        text_of(closures[1])
    nix_roots.unpin_booted("alice", roots)


async def test_of_a_purged_agent_nothing_is_kept(hive: Hive) -> None:
    await hive.deploy("alice", '{ text = "gone with alice"; }')
    bob, built = await hive.deploy("bob", '{ text = "bob stays"; }')
    alices = hive.generation("alice")

    hive.write_meta(await hive.builder.forget("alice"))
    hive.host.collect()

    assert hive.locked == {"bob": bob}
    assert b"alice" not in hive.meta["flake.nix"]
    assert text_of(alices) == "gone with alice", "it may come back"

    await hive.builder.purge("alice")
    hive.host.collect()

    assert not (hive.profiles / "alice").exists()
    with pytest.raises(FileNotFoundError):
        text_of(alices)
    assert text_of(built) == "bob stays"
    assert await hive.builder.forget("nobody-ever")


async def test_nothing_is_forgotten_where_nothing_was_built(hive: Hive) -> None:
    assert await hive.builder.forget("alice") == {}


async def test_an_agent_whose_repository_is_gone_is_in_nobodys_way(hive: Hive) -> None:
    await hive.deploy("alice", MAIL)
    hive.layout.applied_of("alice").rename(hive.layout.home / "purged")

    await hive.deploy("bob", MAIL)

    assert hive.locked.keys() == {"bob"}


# ── kills ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("step", ["prepare", "build", "finalize", "meta", "abort"])
async def test_a_deploy_goes_on_after_a_kill(hive: Hive, step: str) -> None:
    bob, _ = await hive.deploy("bob", '{ text = "b"; }')
    sha = hive.commit("alice", {"agent.nix": '{ text = "after a kill"; }'})
    target = hive.target("alice", sha, inputs=("nixpkgs",))
    await hive.builder.prepare(target, hive.said.append)
    if step == "prepare":
        hive.builder = hive.new_builder()
        await hive.builder.prepare(target, hive.said.append)
    built = (await hive.builder.build(target, hive.said.append)).image or ""
    if step == "build":
        # A build is begun again with its preparation.
        hive.builder = hive.new_builder()
        assert await hive.build(target) == built
    files = await hive.builder.finalize(target, built, hive.said.append)
    if step in {"finalize", "meta"}:
        hive.builder = hive.new_builder()
        if step == "meta":
            hive.write_meta(files)
            hive.note(target, built)
        assert await hive.builder.finalize(target, built, hive.said.append) == files
    hive.write_meta(files)
    hive.note(target, built)
    await hive.builder.abort(target)
    if step == "abort":
        hive.builder = hive.new_builder()
        assert await hive.builder.finalize(target, built, hive.said.append) == files
        await hive.builder.abort(target)

    assert (hive.generation("alice"), hive.locked) == (built, {"alice": sha, "bob": bob})
    assert hive.left() == []
    await hive.deploy("carol", MAIL)


async def test_what_a_killed_deploy_left_the_next_takes_away(hive: Hive) -> None:
    target = hive.target("alice", hive.commit("alice", {"agent.nix": MAIL}))
    await hive.build(target)
    hive.builder = hive.new_builder()

    await hive.deploy("bob", MAIL)

    assert hive.left() == []


async def test_one_destroyed_while_another_is_built_is_not_in_its_flake(hive: Hive) -> None:
    await hive.deploy("alice", MAIL)
    target = hive.target("bob", hive.commit("bob", {"agent.nix": MAIL}))
    built = await hive.build(target)
    hive.write_meta(await hive.builder.forget("alice"))
    hive.meta["agents.json"] = b'{"agents": {}}'

    await hive.finish(target, built)

    assert hive.locked.keys() == {"bob"}
    assert b"alice" not in hive.meta["flake.nix"] + hive.meta["flake.lock"]


# ── without a deploy ────────────────────────────────────────────────────────────────────────────


async def test_only_what_was_built_for_an_agent_is_its_own(hive: Hive) -> None:
    _, one = await hive.deploy("alice", '{ text = "own one"; }')
    _, two = await hive.deploy("alice", '{ text = "own two"; }')

    assert hive.builder.has_built("alice", one)
    assert hive.builder.has_built("alice", two)
    for agent, image in (("bob", one), ("alice", None), ("alice", "debian"), ("alice", f"{one}x")):
        assert not hive.builder.has_built(agent, image)


async def test_one_that_comes_back_is_in_the_flake_again(hive: Hive) -> None:
    alice, built = await hive.deploy("alice", '{ text = "comes back"; }')
    bob, _ = await hive.deploy("bob", '{ text = "b"; }')
    before = dict(hive.meta)
    hive.write_meta(await hive.builder.forget("alice"))
    assert hive.locked == {"bob": bob}

    hive.write_meta(await hive.builder.restore({"alice": Running(alice, built)}))

    assert hive.meta == before
    assert hive.left() == []


async def test_what_a_deploy_said_too_early_is_taken_back(hive: Hive) -> None:
    first, one = await hive.deploy("alice", '{ text = "back to it"; }')
    bob, _ = await hive.deploy("bob", '{ text = "was a tree before"; }')
    await hive.deploy("alice", '{ text = "too early"; }')

    hive.write_meta(await hive.builder.restore({"alice": Running(first, one), "bob": None}))

    assert (hive.locked, hive.generation("alice")) == ({"alice": first}, one)
    assert bob not in hive.meta["flake.nix"].decode()


async def test_one_that_comes_back_while_another_is_built_is_in_no_ones_way(hive: Hive) -> None:
    alice, built = await hive.deploy("alice", MAIL)
    agents = hive.agents.pop("alice")
    hive.write_meta(await hive.builder.forget("alice"))
    hive.meta["agents.json"] = b'{"agents": {}}'
    target = hive.target("bob", hive.commit("bob", {"agent.nix": MAIL}))
    bobs = await hive.build(target)

    hive.write_meta(await hive.builder.restore({"alice": Running(alice, built)}))
    hive.meta["agents.json"] = json.dumps({"agents": {"alice": agents}}).encode()
    await hive.finish(target, bobs)

    assert hive.locked.keys() == {"alice", "bob"}


async def test_a_flake_that_cannot_be_written_now_is_left_to_the_next_deploy(
    hive: Hive, caplog: pytest.LogCaptureFixture
) -> None:
    sha, built = await hive.deploy("alice", MAIL)
    hive.write_meta(await hive.builder.forget("alice"))
    hive.layout.applied_of("alice").rename(hive.layout.home / "elsewhere")

    assert await hive.builder.restore({"alice": Running(sha, built)}) == {}

    assert "Flake of the hive is behind" in caplog.text
    assert await hive.builder.restore({"nobody": None}) != {}
