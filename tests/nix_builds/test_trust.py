"""What an agent's repository may make of its evaluation: nothing of this host ends in the store, or anywhere.

The canary is root's, as what matters on a host is, and whoever evaluates is somebody else.
"""

import os
import secrets
from pathlib import Path

import pytest

from hive_core.builders import BuildFailed
from hive_core.config import Config, Deploy

from .kit import Hive, git

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="whoever is not root evaluates as himself")

ABSOLUTE = [
    "builtins.readFile CANARY",
    'builtins.readFile "CANARY"',
    "import CANARY",
    "toString (import CANARY)",
    '"${CANARY}"',
    "builtins.readFile (/. + CANARY)",
    'builtins.concatStringsSep " " (builtins.attrNames (builtins.readDir DIR))',
    "builtins.path { path = CANARY; }",
    "builtins.path { path = DIR; filter = _: _: true; }",
    "builtins.filterSource (_: _: true) DIR",
    'builtins.hashFile "sha256" CANARY',
    'builtins.findFile [ { prefix = ""; path = DIR; } ] "canary"',
    "builtins.storePath CANARY",
    "builtins.readFile ./../../..CANARY",
    'builtins.readFile (./. + "/../../../..CANARY")',
    'builtins.exec [ "/bin/cat" "CANARY" ]',
    'builtins.fetchurl "file://CANARY"',
    'builtins.fetchurl { url = "file://CANARY"; sha256 = ZEROES; }',
    'builtins.fetchTarball "file://CANARY"',
    'builtins.fetchTarball { url = "file://CANARY"; sha256 = ZEROES; }',
]
FETCHED = [
    'builtins.fetchTree { type = "path"; path = "DIR"; }',
    'builtins.fetchTree { type = "path"; path = "DIR"; narHash = HASH; }',
    'builtins.fetchTree "path:DIR"',
    'builtins.fetchTree "path:DIR?narHash=URLHASH"',
    'builtins.fetchTree { type = "file"; url = "file://CANARY"; narHash = HASH; }',
    'builtins.fetchTree { type = "tarball"; url = "file://CANARY"; narHash = HASH; }',
    'builtins.fetchTree { type = "git"; url = "file://DIR/repo"; rev = "SHA"; }',
    'builtins.fetchTree { type = "git"; url = "DIR/repo"; rev = "SHA"; }',
    'builtins.fetchTree { type = "git"; url = "ext::cat CANARY"; rev = "SHA"; }',
    "builtins.fetchGit DIR/repo",
    'builtins.fetchGit "DIR/repo"',
    'builtins.fetchGit { url = "DIR/repo"; rev = "SHA"; }',
    'builtins.fetchGit { url = "file://DIR/repo"; rev = "SHA"; allRefs = true; }',
    'builtins.fetchGit { url = "ext::sh -c cat% CANARY"; rev = "SHA"; }',
    'builtins.fetchGit { url = "--upload-pack=cat CANARY"; rev = "SHA"; }',
    'builtins.fetchMercurial { url = "DIR/repo"; rev = "SHA"; }',
    '(builtins.getFlake "path:DIR").outPath',
    '(builtins.getFlake "path:DIR?narHash=URLHASH").outPath',
    '(builtins.getFlake "git+file://DIR/repo?rev=SHA").outPath',
    '(builtins.getFlake "nixpkgs").outPath',
]


class Canary:
    """A file that only root reads, in a directory and a repository that only root enters."""

    def __init__(self, root: Path) -> None:
        self.words = f"canary-{secrets.token_hex(16)}"
        self.directory = root / f"secret-{secrets.token_hex(4)}"
        self.directory.mkdir(mode=0o700)
        self.file = self.directory / "canary"
        self.file.write_text(f'"{self.words}"')
        (self.directory / "flake.nix").write_text(f'{{ outputs = _: {{ words = "{self.words}"; }}; }}')
        repository = self.directory / "repo"
        repository.mkdir()
        (repository / "canary").write_text(self.words)
        git(repository, "init", "--quiet", "--initial-branch=main")
        git(repository, "add", "--all")
        git(repository, "commit", "--quiet", "--message", "x")
        self.sha = git(repository, "rev-parse", "HEAD")

    def fill_in(self, expression: str) -> str:
        filled = {
            "URLHASH": "sha256-1CHgGZHF1H1dvg5r2r%2Bfw7u7SmhFFeU18PjjYfCQI20%3D",
            "HASH": '"sha256-1CHgGZHF1H1dvg5r2r+fw7u7SmhFFeU18PjjYfCQI20="',
            "ZEROES": '"' + "0" * 52 + '"',
            "CANARY": str(self.file),
            "DIR": str(self.directory),
            "SHA": self.sha,
        }
        for word, value in filled.items():
            expression = expression.replace(word, value)
        return expression


@pytest.fixture
def canary(hive: Hive) -> Canary:
    return Canary(hive.host.root)


def assert_unseen(hive: Hive, canary: Canary) -> None:
    words = canary.words.encode()
    assert words not in hive.host.everything()
    assert words not in hive.everything()


async def refused(hive: Hive, files: dict[str, str], links: dict[str, str] | None = None) -> str:
    target = hive.target("alice", hive.commit("alice", files, links=links))
    with pytest.raises(BuildFailed) as failed:
        await hive.build(target)
    hive.said.append(str(failed.value))
    await hive.builder.abort(target)
    return str(failed.value)


@as_root
@pytest.mark.parametrize("expression", [*ABSOLUTE, *FETCHED])
async def test_no_expression_reads_a_file_of_the_host(hive: Hive, canary: Canary, expression: str) -> None:
    text = canary.fill_in(expression)
    target = hive.target("alice", hive.commit("alice", {"agent.nix": f"{{ text = {text}; }}"}))

    with pytest.raises(BuildFailed) as failed:
        await hive.build(target)

    hive.said.append(str(failed.value))
    await hive.builder.abort(target)
    assert_unseen(hive, canary)


@as_root
async def test_a_flake_of_an_agent_is_never_read(hive: Hive, canary: Canary) -> None:
    flake = canary.fill_in(
        """{
          inputs.s = { url = "path:DIR"; flake = false; };
          inputs.hyperhive.url = "path:DIR";
          outputs = inputs: { words = builtins.readFile "${inputs.s}/canary"; };
        }"""
    )
    files = {"agent.nix": '{ text = "harmless"; }', "flake.nix": flake, "flake.lock": "{ not even JSON"}
    sha = hive.commit("alice", files)
    target = hive.target("alice", sha)

    await hive.finish(target, await hive.build(target))

    assert hive.locked == {"alice": sha}
    assert str(canary.directory).encode() not in hive.meta["flake.lock"] + hive.meta["flake.nix"]
    assert_unseen(hive, canary)


@as_root
@pytest.mark.parametrize(
    ("links", "text"),
    [
        ({"agent.nix": "CANARY"}, None),
        ({"link": "CANARY"}, "builtins.readFile ./link"),
        ({"link": "CANARY"}, "import ./link"),
        ({"link": "CANARY"}, '"${./link}/."'),
        ({"link": "DIR"}, "builtins.readFile ./link/canary"),
        ({"link": "DIR"}, "toString (builtins.attrNames (builtins.readDir ./link))"),
        ({"link": "../../../../../../../../CANARY"}, "builtins.readFile ./link"),
    ],
)
async def test_a_link_leads_to_no_file_of_the_host(
    hive: Hive, canary: Canary, links: dict[str, str], text: str | None
) -> None:
    files = {} if text is None else {"agent.nix": f"{{ text = {text}; }}"}

    said = await refused(hive, files, {name: canary.fill_in(to) for name, to in links.items()})

    # Of the last it sees as much as that what a link leads to is not to be looked at.
    assert "error" in said
    assert_unseen(hive, canary)


async def test_what_is_built_is_not_evaluated(hive: Hive) -> None:
    text = """{ text = import (derivation {
      name = "x"; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo '1' > $out" ];
    }); }"""

    said = await refused(hive, {"agent.nix": text})

    assert "import-from-derivation" in said or "allow-import-from-derivation" in said


async def test_what_the_daemon_has_in_its_environment_stays_there(
    hive: Hive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-canary")
    monkeypatch.setenv("NIX_PATH", "host=/etc")

    _, built = await hive.deploy(
        "alice",
        '{ text = builtins.getEnv "ANTHROPIC_API_KEY" + builtins.getEnv "HOME" + toString builtins.nixPath; }',
    )

    assert Path(built, "text").read_text() == ""


async def test_a_repository_of_another_agent_is_not_to_be_had(hive: Hive) -> None:
    bob, _ = await hive.deploy("bob", '{ text = "a secret of bob"; }')
    url = f"file://{hive.layout.applied_of('bob')}"

    for text in (
        f'builtins.readFile ((builtins.fetchGit {{ url = "{url}"; rev = "{bob}"; allRefs = true; }}) + "/agent.nix")',
        f'builtins.readFile ((builtins.fetchTree {{ type = "git"; url = "{url}"; rev = "{bob}"; allRefs = true; }}) + "/agent.nix")',
    ):
        assert "forbidden" in await refused(hive, {"agent.nix": f"{{ text = {text}; }}"})


@pytest.mark.parametrize(
    "text",
    [
        "let f = n: [ n ] ++ f (n + 1); in toString (f 0)",
        'let f = s: f (s + s); in f "0123456789abcdef"',
        "toString (builtins.genList (n: n) 2000000000)",
        "toString (builtins.foldl' (a: n: a ++ [ n ]) [ ] (builtins.genList (n: n) 100000000))",
    ],
)
async def test_what_grows_without_end_ends_at_its_bound(hive: Hive, text: str) -> None:
    hive.builder = hive.new_builder(memory_max_bytes=2**30)
    hive.config = Config(deploy=Deploy(builder="nix", inputs=hive.host.inputs, timeout_s=20))

    await refused(hive, {"agent.nix": f"{{ text = {text}; }}"})

    await hive.deploy("alice", '{ text = "and goes on"; }')


async def test_what_never_ends_ends_at_its_deadline(hive: Hive) -> None:
    hive.config = Config(deploy=Deploy(builder="nix", inputs=hive.host.inputs, timeout_s=1.5))

    said = await refused(
        hive,
        {
            "agent.nix": "{ text = builtins.foldl' (a: n: a) 0 (builtins.genList (n: n) 30000000 ++ [ (let f = n: builtins.foldl' (a: m: a) 0 (builtins.genList (x: x) 1000) + f n; in builtins.tryEval (builtins.deepSeq (builtins.genList (n: builtins.foldl' (a: m: a + m) 0 (builtins.genList (x: x) 100000)) 100000) 0)) ]); }"
        },
    )

    assert "it takes longer than deploy.timeout_s" in said


async def test_a_flood_of_output_does_not_grow_here(hive: Hive) -> None:
    lines = 0

    def say(line: str) -> None:
        nonlocal lines
        lines += 1
        assert len(line) <= 4100

    script = "head -c 3000000 /dev/zero | tr '\\\\0' x; yes no | head -n 20000; exit 1;"
    target = hive.target(
        "alice", hive.commit("alice", {"agent.nix": f'{{ text = "x"; script = "{script}"; }}'})
    )
    await hive.builder.prepare(target, say)
    with pytest.raises(BuildFailed) as failed:
        await hive.builder.build(target, say)

    assert lines > 100
    assert len(str(failed.value)) < 2200
