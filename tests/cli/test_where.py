from pathlib import Path

import pytest

from hive_core.cli import where


@pytest.fixture(autouse=True)
def no_system_hive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(where, "SYSTEM_SOCKET", str(tmp_path / "system.sock"))
    monkeypatch.setattr(where, "SYSTEM_CONFIG", str(tmp_path / "config.toml"))


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIVE_SOCKET", "/env/sock")
    monkeypatch.setenv("HIVE_HOME", "/env/home")

    assert where.find("/opt/sock", "/opt/home").socket == "/opt/sock"
    assert where.find(None, "/opt/home").socket == "/opt/home/run/host.sock"
    assert where.find().socket == "/env/sock"
    monkeypatch.delenv("HIVE_SOCKET")
    assert where.find().socket == "/env/home/run/host.sock"


def test_the_system_hive_is_the_default_where_there_is_one(tmp_path: Path) -> None:
    assert where.find().socket == str(tmp_path / "xdg/hyperhive/run/host.sock")

    Path(where.SYSTEM_SOCKET).touch()

    assert where.find() == (where.SYSTEM_SOCKET, "start it with: systemctl start hive-core")


def test_a_hive_of_the_host_that_is_down_is_meant_where_one_is_installed(tmp_path: Path) -> None:
    Path(where.SYSTEM_CONFIG).touch()

    assert where.find() == (
        where.SYSTEM_SOCKET,
        "start it with: systemctl start hive-core.socket hive-core.service",
    )

    own = tmp_path / "xdg/hyperhive/run/host.sock"
    own.parent.mkdir(parents=True)
    own.touch()
    assert where.find().socket == str(own)


def test_without_xdg_the_home_directory_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/olivia")

    assert where.find().socket == "/home/olivia/.local/state/hyperhive/run/host.sock"


@pytest.mark.parametrize("home", ["/tmp/a b", "/tmp/a b/"])
def test_the_hint_can_be_pasted(home: str) -> None:
    place = where.find(home=home)

    assert place.socket == "/tmp/a b/run/host.sock"
    assert place.hint == f"start it with: hive-core serve --local --home '{home}'"
