"""What an agent may make of its repository costs it its proposal: nothing runs, nothing of the host gets in."""

import fcntl
import hashlib
import os
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from hive_core.host import proposal_worker
from hive_core.host.process import CommandError
from hive_core.host.quarantine import BadProposal
from hive_core.layout import Layout
from hive_core.repositories import Repositories
from tests.repositories.kit import SECRET, Proposal, everything_in


class Canary:
    """Files of the host, and a command that leaves a mark when it is run."""

    def __init__(self, tmp_path: Path) -> None:
        self.secret = tmp_path / "secret"
        self.secret.write_text(SECRET)
        self.mark = tmp_path / "it-ran"
        self.command = tmp_path / "command"
        self.command.write_text(f"#!/bin/sh\ntouch {self.mark}\ncat\n")
        self.command.chmod(0o755)
        self.elsewhere = Proposal(tmp_path / "elsewhere")
        self.commit = self.elsewhere.commit({"secret": SECRET})


@pytest.fixture
def canary(tmp_path: Path, layout: Layout) -> Iterator[Canary]:
    made = Canary(tmp_path)
    yield made
    assert not made.mark.exists()
    assert made.secret.read_text() == SECRET
    assert SECRET.encode() not in everything_in(layout.applied_of("alice"))
    left = list(layout.staging.iterdir()) if layout.staging.exists() else []
    assert left == []


async def use_everything(repositories: Repositories, layout: Layout, sha: str) -> None:
    """Do with a commit that was taken in all that is done with one."""
    await repositories.tag("alice", "failed/9", sha, "note")
    await repositories.move_main("alice", sha)
    await repositories.changes("alice", None, sha)
    await repositories.diff("alice", None, sha, 10_000)
    await repositories.history("alice", 100)
    await repositories.export("alice", sha, layout.release_of("alice", sha) / "config")
    exported = layout.release_of("alice", sha) / "config"
    assert not any(path.is_symlink() for path in exported.rglob("*"))
    assert all(SECRET.encode() not in path.read_bytes() for path in exported.rglob("*") if path.is_file())


CONFIGURATIONS = {
    "fsmonitor": "[core]\n\tfsmonitor = {command}\n",
    "hooks path": "[core]\n\thooksPath = {hooks}\n",
    "ssh": '[core]\n\tsshCommand = {command}\n[remote "origin"]\n\turl = ssh://x/y\n',
    "a work tree elsewhere": "[core]\n\tworktree = {elsewhere}\n",
    "an include": "[include]\n\tpath = {secret}\n",
    "filters": '[filter "f"]\n\tclean = {command}\n\tsmudge = {command}\n\trequired = true\n'
    '[diff "f"]\n\ttextconv = {command}\n\tcommand = {command}\n[diff]\n\texternal = {command}\n',
    "pack hooks": "[uploadpack]\n\tpackObjectsHook = {command}\n[core]\n\talternateRefsCommand = {command}\n",
    "a promisor": '[extensions]\n\tpartialClone = o\n[remote "o"]\n\turl = ext::{command}\n\tpromisor = true\n',
    "no configuration": "[core\n",
    "another format": "[core]\n\trepositoryformatversion = 7\n[extensions]\n\tobjectFormat = sha256\n",
}


@pytest.mark.parametrize("kind", CONFIGURATIONS)
async def test_no_setting_of_a_repository_means_anything(
    proposal: Proposal, repositories: Repositories, layout: Layout, canary: Canary, kind: str
) -> None:
    sha = proposal.commit({"agent.toml": "x", ".gitattributes": "* filter=f diff=f merge=f\n"})
    hooks = proposal.dot_git / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in (
        "post-checkout",
        "reference-transaction",
        "pre-receive",
        "post-index-change",
        "fsmonitor-watchman",
    ):
        (hooks / name).write_text(canary.command.read_text())
        (hooks / name).chmod(0o755)
    text = CONFIGURATIONS[kind].format(
        command=canary.command, hooks=hooks, elsewhere=canary.elsewhere.path, secret=canary.secret
    )
    (proposal.dot_git / "config").write_text(text)
    (proposal.dot_git / "config.worktree").write_text(text)

    assert await repositories.take_in("alice", None, "proposal/1") == sha
    assert await repositories.take_in("alice", sha[:8], "proposal/2") == sha
    await use_everything(repositories, layout, sha)


async def test_attributes_hide_nothing_and_change_nothing(
    proposal: Proposal, repositories: Repositories, layout: Layout
) -> None:
    first = proposal.commit({".gitattributes": "* -diff binary export-ignore text eol=crlf ident\n"})
    await repositories.take_in("alice", first, "deployed/0")
    await repositories.move_main("alice", first)
    sha = proposal.commit({"agent.nix": "bad = true;\n"})
    await repositories.take_in("alice", sha, "proposal/1")

    text, _ = await repositories.diff("alice", first, sha, 10_000)
    assert b"+bad = true;" in text
    assert [(one.added, one.binary) for one in await repositories.changes("alice", first, sha)] == [
        (1, False)
    ]
    await repositories.export("alice", sha, layout.release_of("alice", sha))
    assert (layout.release_of("alice", sha) / "agent.nix").read_text() == "bad = true;\n"


def git_is_a_link(proposal: Proposal, canary: Canary) -> None:
    proposal.dot_git.rename(proposal.path / "was")
    proposal.dot_git.symlink_to(canary.elsewhere.dot_git)


def git_is_a_file(proposal: Proposal, canary: Canary) -> None:
    proposal.dot_git.rename(proposal.path / "was")
    proposal.dot_git.write_text(f"gitdir: {canary.elsewhere.dot_git}\n")


def objects_are_a_link(proposal: Proposal, canary: Canary) -> None:
    (proposal.dot_git / "objects").rename(proposal.path / "was")
    (proposal.dot_git / "objects").symlink_to(canary.elsewhere.dot_git / "objects")


def each_directory_is_a_link(proposal: Proposal, canary: Canary) -> None:
    for path in (canary.elsewhere.dot_git / "objects").glob("??"):
        (proposal.dot_git / "objects" / path.name).unlink(missing_ok=True)
        with suppress(FileExistsError):
            (proposal.dot_git / "objects" / path.name).symlink_to(path)


def each_object_is_a_link(proposal: Proposal, canary: Canary) -> None:
    for path in (canary.elsewhere.dot_git / "objects").glob("??/*"):
        target = proposal.dot_git / "objects" / path.parent.name
        target.mkdir(exist_ok=True)
        (target / path.name).symlink_to(path)


def a_pack_is_a_link(proposal: Proposal, canary: Canary) -> None:
    canary.elsewhere.git("gc", "--quiet")
    for path in (canary.elsewhere.dot_git / "objects/pack").iterdir():
        (proposal.dot_git / "objects/pack" / path.name).symlink_to(path)


def alternates(proposal: Proposal, canary: Canary) -> None:
    info = proposal.dot_git / "objects/info"
    info.mkdir(exist_ok=True)
    (info / "alternates").write_text(f"{canary.elsewhere.dot_git}/objects\n")
    (info / "http-alternates").write_text("http://127.0.0.1:1/objects\n")


def head_is_a_link(proposal: Proposal, canary: Canary) -> None:
    (proposal.dot_git / "HEAD").unlink()
    (proposal.dot_git / "HEAD").symlink_to(canary.elsewhere.dot_git / "refs/heads/main")


def a_common_directory(proposal: Proposal, canary: Canary) -> None:
    (proposal.dot_git / "commondir").write_text(f"{canary.elsewhere.dot_git}\n")


@pytest.mark.parametrize(
    "plant",
    [
        *(git_is_a_link, git_is_a_file, objects_are_a_link, each_directory_is_a_link, each_object_is_a_link),
        *(a_pack_is_a_link, alternates, head_is_a_link, a_common_directory),
    ],
)
async def test_nothing_leads_out_of_a_repository(
    proposal: Proposal,
    repositories: Repositories,
    canary: Canary,
    plant: Callable[[Proposal, Canary], None],
) -> None:
    proposal.git("commit", "--quiet", "--allow-empty", "-m", "mine")
    plant(proposal, canary)

    with pytest.raises(BadProposal, match="cannot take"):
        await repositories.take_in("alice", canary.commit, "proposal/1")
    assert await repositories.resolve("alice", "proposal/1") is None


async def test_a_reference_that_leads_out_is_none(
    proposal: Proposal, repositories: Repositories, canary: Canary
) -> None:
    proposal.commit({"a": "1"})
    for head in (
        "ref: ../../../elsewhere/.git/refs/heads/main",
        f"ref: {canary.secret}",
        SECRET,
        "",
        "ref: " * 9999,
    ):
        (proposal.dot_git / "HEAD").write_text(head)
        with pytest.raises(BadProposal) as refused:
            await repositories.take_in("alice", None, "proposal/1")
        assert SECRET not in str(refused.value)


async def test_a_link_in_a_commit_stays_text(
    proposal: Proposal, repositories: Repositories, layout: Layout, canary: Canary
) -> None:
    (proposal.path / "agent.nix").symlink_to(canary.secret)
    (proposal.path / "dir").symlink_to("/etc")
    sha = proposal.commit({"a": "1"})

    await repositories.take_in("alice", sha, "proposal/1")
    await use_everything(repositories, layout, sha)
    with pytest.raises(BadProposal, match="no regular file"):
        await repositories.read("alice", sha, "agent.nix", 1000)
    assert await repositories.read("alice", sha, "dir/hostname", 1000) is None


async def test_replacements_and_grafts_are_not_looked_at(
    proposal: Proposal, repositories: Repositories, canary: Canary
) -> None:
    good = proposal.commit({"a": "good"})
    bad = proposal.commit({"a": "bad"})
    proposal.git("replace", good, bad)
    (proposal.dot_git / "info").mkdir(exist_ok=True)
    (proposal.dot_git / "info/grafts").write_text(f"{bad}\n")

    assert await repositories.take_in("alice", bad, "proposal/1") == bad
    assert await repositories.read("alice", good, "a", 10) == b"good"
    assert await repositories.contains("alice", good, bad)


@pytest.mark.parametrize(
    "name", ["-u", "--upload-pack=touch x", "main", "v1", "HEAD", "@", "refs/heads/main", "deadbeef^{/x}"]
)
async def test_a_branch_or_tag_is_no_commit(
    proposal: Proposal, repositories: Repositories, canary: Canary, name: str
) -> None:
    sha = proposal.commit({"a": "1"})
    proposal.git("tag", "v1")
    (proposal.dot_git / "refs/heads/-u").write_text(f"{sha}\n")

    with pytest.raises(BadProposal, match="7 to 40 hex digits"):
        await repositories.take_in("alice", name, "proposal/1")


async def test_a_branch_called_like_a_hash_is_nothing(
    proposal: Proposal, repositories: Repositories, canary: Canary
) -> None:
    good, bad = proposal.commit({"a": "good"}), proposal.commit({"a": "bad"})
    for name in (good, good[:7], "deadbeef", "a" * 40):
        for kind in ("heads", "tags"):
            (proposal.dot_git / "refs" / kind / name).write_text(f"{bad}\n")
        (proposal.dot_git / name).write_text(f"{bad}\n")

    assert await repositories.take_in("alice", good, "proposal/1") == good
    assert await repositories.take_in("alice", good[:7], "proposal/2") == good
    for name in ("deadbeef", "a" * 40):
        with pytest.raises(BadProposal, match="no such commit"):
            await repositories.take_in("alice", name, "proposal/3")


async def test_a_submodule_is_refused(proposal: Proposal, repositories: Repositories, canary: Canary) -> None:
    modules = f'[submodule "s"]\n\tpath = s\n\turl = {canary.elsewhere.path}\n\tupdate = !{canary.command}\n'
    blob = proposal.put("blob", modules.encode())
    tree = proposal.put_tree(("100644", ".gitmodules", blob), ("160000", "s", canary.commit))
    with pytest.raises(BadProposal, match=r"submodule|unsound"):
        await repositories.take_in("alice", proposal.put_commit(tree), "proposal/1")


@pytest.mark.parametrize("name", ["..", ".", ".git", ".GIT", "a/b", "../../x", ".git/hooks/x"])
async def test_a_name_that_is_no_name_is_refused(
    proposal: Proposal, repositories: Repositories, canary: Canary, name: str
) -> None:
    blob = proposal.put("blob", b"x")
    flat = proposal.put_tree(("100644", name, blob))
    for tree in (flat, proposal.put_tree(("40000", "d", flat))):
        with pytest.raises(BadProposal, match="cannot take"):
            await repositories.take_in("alice", proposal.put_commit(tree), "proposal/1")
    # And in what is behind it, where nobody would look.
    clean = proposal.put_tree(("100644", "a", blob))
    behind = proposal.put_commit(flat)
    if "/" in name or name.lower() in {"..", ".", ".git"}:
        with pytest.raises(BadProposal, match="cannot take"):
            await repositories.take_in("alice", proposal.put_commit(clean, behind), "proposal/2")


async def test_a_commit_that_lacks_objects_is_refused(
    proposal: Proposal, repositories: Repositories, canary: Canary
) -> None:
    sha = proposal.commit({"a": "1", "d/b": "2"})
    blob, tree = proposal.git("rev-parse", "HEAD:d/b"), proposal.git("rev-parse", "HEAD:d")
    proposal.commit({"a": "3"})
    for missing in (blob, tree):
        path = proposal.dot_git / "objects" / missing[:2] / missing[2:]
        held = path.read_bytes()
        path.unlink()
        with pytest.raises(BadProposal, match="does not have all of it"):
            await repositories.take_in("alice", sha, "proposal/1")
        path.write_bytes(held)
    child = proposal.put_commit(proposal.git("rev-parse", "HEAD^{tree}"), "1" * 40)
    with pytest.raises(BadProposal, match="does not have all of it"):
        await repositories.take_in("alice", child, "proposal/1")
    assert await repositories.take_in("alice", sha, "proposal/1") == sha


async def test_an_object_that_is_not_what_it_is_called_is_missing(
    proposal: Proposal, repositories: Repositories, canary: Canary
) -> None:
    sha = proposal.commit({"a": "1"})
    blob = proposal.git("rev-parse", "HEAD:a")
    bomb = zlib.compress(b"blob 1\0" + bytes(64 * 2**20), 9)
    for held in (zlib.compress(b"blob 1\x002"), b"", b"garbage", zlib.compress(b"blob 99999999999\0x"), bomb):
        proposal.put_raw(blob, held)
        with pytest.raises(BadProposal, match=r"does not have all of it|larger than"):
            await repositories.take_in("alice", sha, "proposal/1")


@pytest.mark.parametrize(
    "held", [b"", b"PACK", b"garbage" * 100, b"PACK" + struct.pack(">II", 2, 2**31) + bytes(500)]
)
async def test_a_corrupt_pack_is_refused(
    proposal: Proposal, repositories: Repositories, canary: Canary, held: bytes
) -> None:
    sha = proposal.commit({"a": "1"})
    (proposal.dot_git / "objects/pack" / f"pack-{'a' * 40}.pack").write_bytes(held)
    with pytest.raises(BadProposal, match="pack of its repository is unusable"):
        await repositories.take_in("alice", sha, "proposal/1")


async def test_packs_and_what_only_looks_like_them(
    proposal: Proposal, repositories: Repositories, canary: Canary
) -> None:
    for number in range(3):
        sha = proposal.commit({"a": str(number) * 1000})
        proposal.git("repack", "-d", "--quiet")
    packs = proposal.dot_git / "objects/pack"
    for path in packs.glob("*.idx"):
        path.chmod(0o600)
        path.write_bytes(b"garbage")
    (packs / "pack-x.pack").write_bytes(b"garbage")
    (packs / "multi-pack-index").write_bytes(b"garbage")
    (proposal.dot_git / "objects/info/commit-graph").write_bytes(b"garbage")
    (proposal.dot_git / "index").write_bytes(b"garbage")
    assert await repositories.take_in("alice", sha, "proposal/1") == sha


async def test_special_files_are_no_files(
    proposal: Proposal, repositories: Repositories, canary: Canary
) -> None:
    sha = proposal.commit({"a": "1"})
    os.mkfifo(proposal.dot_git / "objects/pack" / f"pack-{'b' * 40}.pack")
    objects = proposal.dot_git / "objects"
    (objects / "00").mkdir(exist_ok=True)
    os.mkfifo(objects / "00" / ("0" * 38))
    (objects / "00" / ("1" * 38)).mkdir()
    os.mknod(objects / "00" / ("2" * 38), 0o600 | 0o140000)
    with trio.fail_after(10):
        assert await repositories.take_in("alice", sha, "proposal/1") == sha
        (proposal.dot_git / "HEAD").unlink()
        os.mkfifo(proposal.dot_git / "HEAD")
        with pytest.raises(BadProposal, match="none that is checked out"):
            await repositories.take_in("alice", None, "proposal/2")


async def test_a_lease_holds_nobody_up(
    proposal: Proposal, repositories: Repositories, canary: Canary
) -> None:
    sha = proposal.commit({"a": "1"})
    blob = proposal.git("rev-parse", "HEAD:a")
    path = proposal.dot_git / "objects" / blob[:2] / blob[2:]
    path.chmod(0o600)
    with path.open("r+b") as file:
        holder = subprocess.Popen(
            ["python3", "-c", _LEASE, str(path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
        )
        try:
            assert holder.stdout is not None
            file.close()
            assert holder.stdout.readline() == b"held\n"
            with trio.fail_after(10), pytest.raises(BadProposal, match="cannot take"):
                await repositories.take_in("alice", sha, "proposal/1")
        finally:
            holder.kill()
            holder.communicate()


_LEASE = f"""
import fcntl, os, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(fd, {fcntl.F_SETLEASE}, {fcntl.F_WRLCK})
print("held", flush=True)
sys.stdin.read()
"""


# ── too much ────────────────────────────────────────────────────────────────────────────────────


async def test_a_giant_object_is_refused_loose_and_packed(
    proposal: Proposal, repositories: Repositories, canary: Canary
) -> None:
    sha = proposal.commit({"big": bytes(17 * 2**20)})
    with pytest.raises(BadProposal, match="larger than 16 MiB"):
        await repositories.take_in("alice", sha, "proposal/1")
    proposal.git("gc", "--quiet")
    with pytest.raises(BadProposal, match="larger than 16 MiB"):
        await repositories.take_in("alice", sha, "proposal/1")
    # Deleted again, it is still in the history.
    later = proposal.commit({"big": None, "small": "1"})
    with pytest.raises(BadProposal, match="larger than 16 MiB"):
        await repositories.take_in("alice", later, "proposal/1")
    # One that is not in its history costs a proposal nothing.
    proposal.git("checkout", "--quiet", "--orphan", "clean")
    clean = proposal.commit({"agent.toml": "x"})
    assert await repositories.take_in("alice", clean, "proposal/1") == clean


async def test_a_sparse_giant_is_not_read(
    proposal: Proposal, repositories: Repositories, canary: Canary
) -> None:
    sha = proposal.commit({"a": "1"})
    path = proposal.put_raw("0" * 40, b"")
    os.truncate(path, 2**40)
    with trio.fail_after(10), pytest.raises(BadProposal, match="more than 256 MiB"):
        await repositories.take_in("alice", sha, "proposal/1")


async def test_too_many_objects_are_not_read(
    proposal: Proposal, repositories: Repositories, canary: Canary
) -> None:
    sha = proposal.commit({"a": "1"})
    directory = proposal.dot_git / "objects/00"
    directory.mkdir(exist_ok=True)
    held = zlib.compress(b"blob 0\0")
    first = directory / ("0" * 38)
    first.write_bytes(held)
    for number in range(1, proposal_worker.MAX_OBJECTS + 1):
        os.link(first, directory / f"{number:038x}")
    with trio.fail_after(20), pytest.raises(BadProposal, match="more than 20000 loose objects; git gc"):
        await repositories.take_in("alice", sha, "proposal/1")


async def test_a_tree_that_unfolds_without_end_is_refused(
    proposal: Proposal, repositories: Repositories, canary: Canary
) -> None:
    tree = proposal.put_tree(("100644", "f", proposal.put("blob", b"x")))
    for _ in range(12):
        tree = proposal.put_tree(*(("40000", f"d{number}", tree) for number in range(10)))
    with trio.fail_after(20), pytest.raises(BadProposal, match="more than 5000 files"):
        await repositories.take_in("alice", proposal.put_commit(tree), "proposal/1")


@pytest.mark.parametrize("depth", [40, 6000])
async def test_a_tree_that_is_too_deep_is_refused(
    proposal: Proposal, repositories: Repositories, canary: Canary, depth: int
) -> None:
    tree = proposal.put_tree(("100644", "f", proposal.put("blob", b"x")))
    for _ in range(depth):
        tree = proposal.put_tree(("40000", "d", tree))
    with trio.fail_after(60), pytest.raises(BadProposal, match=r"too deep|does not have all|files"):
        await repositories.take_in("alice", proposal.put_commit(tree), "proposal/1")


async def test_more_files_and_bytes_than_a_configuration_has_are_refused(
    proposal: Proposal, repositories: Repositories, canary: Canary
) -> None:
    blob = proposal.put("blob", b"x")
    many = proposal.put_tree(*(("100644", f"{number:05}", blob) for number in range(5001)))
    with pytest.raises(BadProposal, match="5001 files"):
        await repositories.take_in("alice", proposal.put_commit(many), "proposal/1")
    large = proposal.put("blob", bytes(16 * 2**20))
    much = proposal.put_tree(*(("100644", f"{number}", large) for number in range(5)))
    with pytest.raises(BadProposal, match="80 MiB"):
        await repositories.take_in("alice", proposal.put_commit(much), "proposal/1")
    long = proposal.put_tree(("100644", "x" * 300, blob))
    with pytest.raises(BadProposal, match="too long"):
        await repositories.take_in("alice", proposal.put_commit(long), "proposal/1")


async def test_a_pack_of_bombs_ends_in_time(
    proposal: Proposal, repositories: Repositories, canary: Canary
) -> None:
    proposal.commit({"a": "1"})
    size = 2**28
    # A blob that says what it is, and unpacks to zeros.
    header, left = bytearray([0x80 | (3 << 4) | (size & 15)]), size >> 4
    while left:
        header.append((left & 127) | (128 if left > 127 else 0))
        left >>= 7
    squeezing = zlib.compressobj(9)
    body = b"".join(squeezing.compress(bytes(2**24)) for _ in range(size >> 24)) + squeezing.flush()
    whole = b"PACK" + struct.pack(">II", 2, 1) + bytes(header) + body
    pack = whole + hashlib.sha1(whole).digest()
    (proposal.dot_git / "objects/pack" / f"pack-{'c' * 40}.pack").write_bytes(pack)
    with trio.fail_after(60), suppress(BadProposal):
        await repositories.take_in("alice", None, "proposal/1")


# ── meanwhile ───────────────────────────────────────────────────────────────────────────────────


async def test_a_writer_without_end_never_gets_anything_else_in(
    proposal: Proposal, repositories: Repositories, layout: Layout, canary: Canary
) -> None:
    sha = proposal.commit({"a": "1", "b": "x" * 100_000})
    blob = proposal.git("rev-parse", "HEAD:b")
    good = (proposal.dot_git / "objects" / blob[:2] / blob[2:]).read_bytes()
    stop = threading.Event()

    def write() -> None:
        path = proposal.dot_git / "objects" / blob[:2] / blob[2:]
        number = 0
        while not stop.is_set():
            number += 1
            with suppress(OSError):
                path.unlink()
            with suppress(OSError):
                match number % 4:
                    case 0:
                        path.symlink_to(canary.secret)
                    case 1:
                        path.write_bytes(good[: number % len(good)])
                    case 2:
                        path.write_bytes(good)
                    case _:
                        os.mkfifo(path)
            proposal.put_raw(f"{number % 256:02x}{number % 50:038x}", b"x" * (number % 1000))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(12):
            with trio.fail_after(30), suppress(BadProposal):
                taken = await repositories.take_in("alice", sha, f"proposal/{number}")
                assert taken == sha
                assert await repositories.read("alice", sha, "b", 100_000) == b"x" * 100_000
    finally:
        stop.set()
        await trio.to_thread.run_sync(writer.join)
    proposal.put_raw(blob, good)
    assert await repositories.take_in("alice", sha, "proposal/99") == sha


async def test_a_repository_that_is_packed_meanwhile_is_whole(
    proposal: Proposal, repositories: Repositories
) -> None:
    shas = [proposal.commit({"a": str(number)}) for number in range(8)]
    stop = threading.Event()

    def pack() -> None:
        while not stop.is_set():
            proposal.git("repack", "-a", "-d", "--quiet")
            proposal.git("prune-packed", "--quiet")

    packer = threading.Thread(target=pack)
    packer.start()
    try:
        for number, sha in enumerate(shas):
            assert await repositories.take_in("alice", sha, f"proposal/{number}") == sha
    finally:
        stop.set()
        await trio.to_thread.run_sync(packer.join)


async def test_nothing_there_is_said(repositories: Repositories, layout: Layout) -> None:
    with pytest.raises(BadProposal, match="no such directory"):
        await repositories.take_in("alice", None, "proposal/1")
    layout.config_of("alice").mkdir(parents=True)
    with pytest.raises(BadProposal, match=r"\.git is missing"):
        await repositories.take_in("alice", None, "proposal/1")
    Proposal(layout.config_of("alice"))
    with pytest.raises(BadProposal, match="none that is checked out"):
        await repositories.take_in("alice", None, "proposal/1")
    assert not await repositories.exists("alice")
    with pytest.raises(CommandError):
        await repositories.tag("alice", "approved/1", "1" * 40)
