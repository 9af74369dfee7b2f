"""What is proposed is pinned, tagged, compared and laid out; each call may be made again."""

import hashlib
import itertools
import os
import subprocess
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hive_core import repositories as module
from hive_core.host.git_output import Change
from hive_core.host.process import CommandError
from hive_core.host.quarantine import BadProposal
from hive_core.layout import Layout
from hive_core.repositories import Repositories
from tests.repositories.kit import Proposal, open_layout

FILES = {"agent.toml": b'model = "a"\n', "agent.nix": b"{ }\n", "prompts/task.md": b"Be kind.\n"}


async def test_a_seed_is_a_repository_that_git_finds_nothing_wrong_with(
    layout: Layout, repositories: Repositories
) -> None:
    assert not await repositories.has_proposed("alice")
    assert await repositories.seed("alice", FILES, None)

    assert await repositories.has_proposed("alice")
    seeded = layout.config_of("alice")
    run = ["git", "-C", str(seeded)]
    assert subprocess.run([*run, "status", "--porcelain"], capture_output=True, check=True).stdout == b""
    subprocess.run([*run, "fsck", "--strict", "--full"], capture_output=True, check=True)
    names = subprocess.run([*run, "ls-files"], capture_output=True, check=True).stdout.decode().split()
    assert names == sorted(FILES)
    branch = subprocess.run([*run, "branch", "--show-current"], capture_output=True, check=True).stdout
    assert branch == b"main\n"
    assert (seeded / "prompts/task.md").read_bytes() == FILES["prompts/task.md"]


async def test_a_seed_leaves_what_is_there(layout: Layout, repositories: Repositories) -> None:
    assert await repositories.seed("alice", FILES, None)
    (layout.config_of("alice") / "agent.nix").write_text("mine")

    assert not await repositories.seed("alice", {"agent.nix": b"other"}, None)
    assert (layout.config_of("alice") / "agent.nix").read_text() == "mine"


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
async def test_whatever_is_called_git_is_not_replaced(
    layout: Layout, repositories: Repositories, tmp_path: Path, kind: str
) -> None:
    there = layout.config_of("alice") / ".git"
    there.parent.mkdir(parents=True)
    match kind:
        case "file":
            there.write_text("gitdir: /elsewhere")
        case "link":
            there.symlink_to(tmp_path / "nowhere")
        case _:
            there.mkdir()

    assert not await repositories.seed("alice", FILES, None)
    assert [path.name for path in there.parent.iterdir()] == [".git"]


async def test_a_seed_that_was_cut_off_is_made_whole(layout: Layout, repositories: Repositories) -> None:
    directory = layout.config_of("alice")
    (directory / ".hive-seed-0123456789abcdef" / "objects").mkdir(parents=True)
    (directory / "agent.toml").write_bytes(FILES["agent.toml"])

    assert await repositories.seed("alice", FILES, None)

    assert sorted(path.name for path in directory.iterdir()) == [
        *(".git", "agent.nix", "agent.toml", "prompts")
    ]


async def test_two_seeds_at_once_make_one_repository(repositories: Repositories) -> None:
    made = []

    async def seed() -> None:
        made.append(await repositories.seed("alice", FILES, None))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(seed)
        nursery.start_soon(seed)

    assert sorted(made) == [False, True]


async def test_what_was_taken_in_stays_whatever_the_agent_does(
    proposal: Proposal, repositories: Repositories
) -> None:
    sha = proposal.commit({"agent.toml": "one"})
    assert not await repositories.exists("alice")

    assert await repositories.take_in("alice", sha[:7], "proposal/1") == sha

    proposal.git("checkout", "--quiet", "--orphan", "other")
    proposal.commit({"agent.toml": "two"})
    proposal.git("branch", "-D", "main")
    proposal.git("reflog", "expire", "--expire=now", "--all")
    proposal.git("gc", "--quiet", "--prune=now")
    assert await repositories.exists("alice")
    assert await repositories.resolve("alice", "proposal/1") == sha
    assert await repositories.read("alice", sha, "agent.toml", 100) == b"one"
    # Asked for again after a crash: the first answer holds.
    assert await repositories.take_in("alice", sha[:7], "proposal/1") == sha
    with pytest.raises(BadProposal, match="there is no such commit"):
        await repositories.take_in("alice", sha[:7], "proposal/2")


async def test_the_commit_that_is_checked_out_is_found_loose_packed_and_detached(
    proposal: Proposal, repositories: Repositories
) -> None:
    sha = proposal.commit({"agent.toml": "one"})
    assert await repositories.take_in("alice", None, "proposal/1") == sha
    proposal.git("pack-refs", "--all")
    proposal.git("gc", "--quiet")
    assert await repositories.take_in("alice", None, "proposal/2") == sha
    proposal.git("checkout", "--quiet", "--detach")
    newer = proposal.commit({"agent.toml": "two"})
    assert await repositories.take_in("alice", None, "proposal/3") == newer


async def test_an_abbreviation_of_several_commits_is_refused(
    proposal: Proposal, repositories: Repositories
) -> None:
    proposal.commit({"a": "a"})
    tree = proposal.git("rev-parse", "HEAD^{tree}")
    one, other = two_commits_that_begin_alike(tree)
    assert one != other

    with pytest.raises(BadProposal, match="several objects begin so"):
        await repositories.take_in("alice", await put_both(proposal, one, other), "proposal/1")
    with pytest.raises(BadProposal, match="no such commit"):
        await repositories.take_in("alice", tree, "proposal/1")


def two_commits_that_begin_alike(tree: str) -> tuple[bytes, bytes]:
    seen: dict[str, bytes] = {}
    for number in itertools.count():
        who = f"m <m@hive> {1700000000 + number} +0000"
        held = f"tree {tree}\nauthor {who}\ncommitter {who}\n\nx\n".encode()
        begin = hashlib.sha1(f"commit {len(held)}\0".encode() + held).hexdigest()[:7]
        if begin in seen:
            return seen[begin], held
        seen[begin] = held
    raise AssertionError


async def put_both(proposal: Proposal, one: bytes, other: bytes) -> str:
    proposal.put("commit", other)
    return proposal.put("commit", one)[:7]


async def test_tags_are_put_once_and_notes_come_back(proposal: Proposal, repositories: Repositories) -> None:
    sha, newer = proposal.commit({"a": "1"}, "first line\n\nmore"), proposal.commit({"a": "2"})
    await repositories.take_in("alice", newer, "proposal/7")
    for _ in range(2):
        await repositories.tag("alice", "approved/7", newer)
        await repositories.tag("alice", "failed/7", newer, "# it broke\n\n  badly\0 \x1b[31m")
        await repositories.tag("alice", "denied/7", sha, "")

    with pytest.raises(CommandError, match="already"):
        await repositories.tag("alice", "approved/7", sha)
    with pytest.raises(CommandError):
        await repositories.tag("alice", "approved/8", "1" * 40)
    found = {info.tag: info for info in await repositories.history("alice", 10)}
    assert found["failed/7"].note == "# it broke\n\n  badly \x1b[31m"
    assert found["failed/7"].sha == found["approved/7"].sha == newer
    assert found["approved/7"].note is None
    assert found["denied/7"].note == ""
    assert found["denied/7"].subject == "first line"
    assert [info.tag for info in await repositories.history("alice", 2)] == ["approved/7", "failed/7"]
    assert await repositories.history("nobody", 10) == []


async def test_main_moves_only_to_what_is_there(proposal: Proposal, repositories: Repositories) -> None:
    sha = proposal.commit({"a": "1"})
    await repositories.take_in("alice", sha, "proposal/1")
    assert await repositories.main("alice") is None
    assert await repositories.main("nobody") is None
    for _ in range(2):
        await repositories.move_main("alice", sha)
    with pytest.raises(CommandError):
        await repositories.move_main("alice", "1" * 40)
    assert await repositories.main("alice") == sha


async def test_what_changed_is_listed_and_shown(proposal: Proposal, repositories: Repositories) -> None:
    (proposal.path / "run.sh").write_text("x")
    base = proposal.commit({"same": "s", "edit": "1\n2\n", "gone": "g", "bin": b"\0a"})
    (proposal.path / "run.sh").chmod(0o755)
    sha = proposal.commit({"edit": "1\n3\n4\n", "gone": None, "bin": b"\0b", "n\u00e9w": "n\n"})
    await repositories.take_in("alice", sha, "proposal/1")

    assert await repositories.changes("alice", base, sha) == [
        Change("bin", "changed", 0, 0, True, "100644"),
        Change("edit", "changed", 2, 1, False, "100644"),
        Change("gone", "deleted", 0, 1, False, ""),
        Change("n\u00e9w", "added", 1, 0, False, "100644"),
        Change("run.sh", "mode", 0, 0, False, "100755"),
    ]
    assert len(await repositories.changes("alice", None, sha)) == 5
    text, was_cut = await repositories.diff("alice", base, sha, 10_000)
    assert b"-2\n+3\n+4\n" in text
    assert not was_cut
    assert await repositories.diff("alice", base, sha, 100) == (text[:100], True)
    assert await repositories.contains("alice", base, sha)
    assert not await repositories.contains("alice", sha, base)
    assert await repositories.contains("alice", sha, sha)


async def test_more_changes_than_anybody_reads_are_not_listed(
    proposal: Proposal, repositories: Repositories, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CHANGES", 3)
    sha = proposal.commit({f"{number}": "x" for number in range(5)})
    await repositories.take_in("alice", sha, "proposal/1")
    assert len(await repositories.changes("alice", None, sha)) == 3


async def test_a_file_is_read_only_if_it_is_one(proposal: Proposal, repositories: Repositories) -> None:
    (proposal.path / "link").symlink_to("/etc/hostname")
    sha = proposal.commit({"agent.toml": "12345", "d/f": "x"})
    await repositories.take_in("alice", sha, "proposal/1")

    assert await repositories.read("alice", sha, "agent.toml", 5) == b"12345"
    assert await repositories.read("alice", sha, "d/f", 5) == b"x"
    for nothing in ("none", "d/g", "", "../x", "a\nb", "*", ":(glob)**"):
        assert await repositories.read("alice", sha, nothing, 5) is None
    for bad, why in (("agent.toml", "has 5 bytes"), ("link", "no regular"), ("d", "no regular")):
        with pytest.raises(BadProposal, match=why):
            await repositories.read("alice", sha, bad, 4)


async def test_an_export_is_what_was_committed_and_nothing_else(
    proposal: Proposal, repositories: Repositories, layout: Layout
) -> None:
    (proposal.path / "link").symlink_to("/etc/hostname")
    (proposal.path / "run").write_text("#!/bin/sh\n")
    (proposal.path / "run").chmod(0o755)
    sha = proposal.commit(
        {
            "a": "1",
            "d/e/f": "2",
            "d/same": "1",
            ".gitattributes": "* export-ignore text eol=crlf ident\n",
            "id": "$Id$\n",
        }
    )
    await repositories.take_in("alice", sha, "proposal/1")
    into = layout.release_of("alice", sha) / "config"
    (into.parent / f".{into.name}.left").mkdir(parents=True)

    for _ in range(2):
        await repositories.export("alice", sha, into)

    found = {str(path.relative_to(into)): path.read_text() for path in into.rglob("*") if path.is_file()}
    assert found == {
        "a": "1",
        "d/e/f": "2",
        "d/same": "1",
        "id": "$Id$\n",
        "run": "#!/bin/sh\n",
        "link": "/etc/hostname",
        ".gitattributes": "* export-ignore text eol=crlf ident\n",
    }
    assert not any(path.is_symlink() for path in into.rglob("*"))
    assert (into / "run").stat().st_mode & 0o777 == 0o755
    assert (into / "a").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in into.parent.iterdir()] == ["config"]


async def test_removing_leaves_nothing_and_nobody_else_is_touched(
    proposal: Proposal, repositories: Repositories, layout: Layout
) -> None:
    sha = proposal.commit({"a": "1"})
    await repositories.take_in("alice", sha, "proposal/1")
    await repositories.export("alice", sha, layout.release_of("alice", sha) / "config")
    await repositories.seed("bob", FILES, None)

    for _ in range(2):
        await repositories.remove("alice")

    left = [path for top in (layout.applied, layout.releases, layout.configs) for path in top.iterdir()]
    assert left == [layout.configs / "bob"]
    assert not await repositories.exists("alice")
    # And a new one of that name begins anew.
    await repositories.seed("alice", FILES, None)
    await repositories.take_in("alice", None, "deployed/0")


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "-u", "A", "a_b", "x" * 64, "a\n"])
async def test_a_name_that_is_none_never_reaches_the_disk(repositories: Repositories, name: str) -> None:
    with pytest.raises(ValueError, match="no agent name"):
        await repositories.remove(name)
    with pytest.raises(ValueError, match="no agent name"):
        await repositories.has_proposed(name)
    with pytest.raises(ValueError, match="no agent name"):
        await repositories.main(name)


@pytest.mark.parametrize(
    "tag", ["-d", "other/1", "deployed/", "deployed/01", "deployed/1\n", "../x", "deployed/a"]
)
async def test_only_our_tags_are_put(repositories: Repositories, tag: str) -> None:
    with pytest.raises(ValueError, match="no tag of ours"):
        await repositories.take_in("alice", None, tag)


async def test_many_at_once_all_get_in(proposal: Proposal, repositories: Repositories) -> None:
    shas = [proposal.commit({"a": str(number)}) for number in range(6)]

    async with trio.open_nursery() as nursery:
        for number, sha in enumerate(shas):
            nursery.start_soon(repositories.take_in, "alice", sha, f"proposal/{number}")
            nursery.start_soon(repositories.write_meta, {f"{number}.json": sha.encode()}, f"n {number}")

    for number, sha in enumerate(shas):
        assert await repositories.resolve("alice", f"proposal/{number}") == sha
        assert await repositories.read_meta(f"{number}.json") == sha.encode()


async def test_a_cancelled_taking_in_leaves_nothing_behind(
    proposal: Proposal, repositories: Repositories, layout: Layout
) -> None:
    sha = proposal.commit({"a": "1"})
    for ms in (1, 20, 40, 60):
        with trio.move_on_after(ms / 1000):
            await repositories.take_in("alice", sha, "proposal/1")
        assert list(layout.staging.iterdir()) == []
    assert await repositories.take_in("alice", sha, "proposal/1") == sha


async def test_locks_of_a_git_that_was_killed_are_no_obstacle(
    proposal: Proposal, repositories: Repositories, layout: Layout
) -> None:
    sha = proposal.commit({"a": "1"})
    await repositories.take_in("alice", sha, "proposal/1")
    await repositories.write_meta({"a": b"1"}, "one")
    (layout.applied_of("alice") / "refs/heads/main.lock").touch()
    (layout.applied_of("alice") / "packed-refs.lock").touch()
    (layout.meta / ".git/index.lock").touch()
    (layout.meta / ".git/refs/heads/main.lock").touch()
    (layout.staging / "take-left").mkdir()

    fresh = Repositories(layout, isolated=False)
    await fresh.move_main("alice", sha)
    await fresh.write_meta({"a": b"2"}, "two")
    await fresh.take_in("alice", sha, "proposal/2")

    assert list(layout.staging.iterdir()) == []


async def test_meta_has_a_commit_for_each_change_and_none_for_no_change(
    layout: Layout, repositories: Repositories
) -> None:
    assert await repositories.read_meta("agents.json") is None
    first = await repositories.write_meta({"agents.json": b"{}", "flake.lock": b"l"}, "deploy a")
    assert await repositories.write_meta({"agents.json": b"{}"}, "again") == first
    # As if cut off before the files were brought up to date.
    (layout.meta / "agents.json").unlink()
    second = await repositories.write_meta({"agents.json": b"{1}", "flake.lock": None}, "deploy b\n\nmore")

    assert await repositories.read_meta("agents.json") == b"{1}"
    assert await repositories.read_meta("flake.lock") is None
    assert sorted(path.name for path in layout.meta.iterdir()) == [".git", "agents.json"]
    said = subprocess.run(
        ["git", "-C", layout.meta, "log", "--format=%H %s"], capture_output=True, check=True, text=True
    ).stdout.splitlines()
    assert said == [f"{second} deploy b", f"{first} deploy a"]
    with pytest.raises(ValueError, match="no name"):
        await repositories.write_meta({"../x": b""}, "no")


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_any_order_of_tags_put_any_number_of_times_gives_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    layout = open_layout(tmp_path_factory.mktemp("tags"))
    repositories = Repositories(layout, isolated=False)
    proposal = Proposal(layout.config_of("alice"))
    shas = [proposal.commit({"a": str(number)}) for number in range(2)]
    await repositories.take_in("alice", shas[1], "proposal/1")
    names = ["approved/1", "building/1", "deployed/1", "failed/2"]
    wanted = {name: data.draw(st.sampled_from(shas)) for name in names}
    notes = {name: data.draw(st.none() | st.text(max_size=20)) for name in names}

    for name in data.draw(st.permutations(names * 2)):
        await repositories.tag("alice", name, wanted[name], notes[name])

    found = {info.tag: info.sha for info in await repositories.history("alice", 100)}
    assert found == {**wanted, "proposal/1": shas[1]}


@settings(max_examples=25)
@given(
    reference=st.text(st.characters(codec="utf-8"), max_size=50)
    | st.from_regex(r"[0-9a-f]{7,40}", fullmatch=True)
)
async def test_nothing_but_the_hex_of_a_commit_is_ever_taken(
    tmp_path_factory: pytest.TempPathFactory, reference: str
) -> None:
    layout = open_layout(tmp_path_factory.mktemp("hex"))
    repositories = Repositories(layout, isolated=False)
    proposal = Proposal(layout.config_of("alice"))
    sha = proposal.commit({"a": "1"})
    if (
        len(reference) > 3
        and "/" not in reference
        and "\0" not in reference
        and len(os.fsencode(reference)) < 200
    ):
        (proposal.dot_git / "refs/heads" / reference).write_text(f"{sha}\n")

    if sha.startswith(reference.lower()) and len(reference) >= 7:
        assert await repositories.take_in("alice", reference, "proposal/1") == sha
    else:
        with pytest.raises(BadProposal, match="cannot take"):
            await repositories.take_in("alice", reference, "proposal/1")
