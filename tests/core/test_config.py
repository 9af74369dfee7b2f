from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from hive_core.__main__ import main
from hive_core.config import Config, ConfigError, Machines, default_home, flatten, load_config
from hive_core.daemon import LiveConfig


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hive.toml"
    path.write_text(text)
    return path


AGENT = """
[agents.alice]
auto_start = false
recipients = []
binds = [{ source = "/srv/a", writable = true }]
limits.memory = "4G"
credentials = { "api.key" = "/etc/key" }
"""


def test_without_a_file_everything_is_a_default() -> None:
    config, origins = load_config(None, {})
    assert config == Config()
    assert set(origins.values()) == {"default"}
    assert origins.keys() == flatten(config).keys()


def test_each_value_knows_where_it_came_from(tmp_path: Path) -> None:
    path = write(tmp_path, 'domain = "hive.local"\n[machines]\nrestart_limit = 9\n')
    config, origins = load_config(path, {"home": "/somewhere"})
    assert (config.domain, config.machines.restart_limit, config.home) == ("hive.local", 9, "/somewhere")
    assert origins["domain"] == origins["machines.restart_limit"] == str(path)
    assert origins["home"] == "command line"
    assert origins["log_level"] == "default"


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    config, _ = load_config(write(tmp_path, 'home = "/a"'), {"home": "/b"})
    assert config.home == "/b"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('domian = "x"', "unknown key 'domian'; did you mean 'domain'"),
        (
            "[machines]\nrestart_limits = 3",
            "unknown key 'machines.restart_limits'; did you mean 'machines.restart_limit'",
        ),
        ("[machnes]", "unknown key 'machnes'; did you mean 'machines'?"),
        ("restart_limit = 3", "unknown key 'restart_limit'; did you mean 'machines.restart_limit'"),
        ("[machine]\nrestart_limit = 3", "unknown key 'machine'"),
        ("[machines]\nrestart_limit = 0", r"Expected `int` >= 1 - at `\$.machines.restart_limit`"),
        ('[machines]\nstop_grace_s = "soon"', r"Expected `float`, got `str` - at `\$.machines.stop_grace_s`"),
        ('log_level = "loud"', r"Invalid enum value 'loud' - at `\$.log_level`"),
        ("domain = ", "cannot read .*hive.toml: "),
        ("harness = 3", "harness"),
        ("agents = 3", "agents"),
        ("[agents.operator]", "agents.operator: 'operator' is reserved"),
        ('[agents."Al ice"]', "agents.Al ice: 'Al ice' is no agent name"),
        ("[agents]\nalice = 3", "agents.alice: Expected `object`, got `int`"),
        (
            "[agents.alice]\nnetwerk = 'veth'",
            "unknown key 'agents.alice.netwerk'; did you mean 'agents.alice.network'",
        ),
        (
            "[agents.alice]\nmemory = '4G'",
            "unknown key 'agents.alice.memory'; did you mean 'agents.alice.limits.memory'",
        ),
        ("[agents.alice.limits]\nmemory = 'lots'", "agents.alice.limits.memory: Expected a size such as"),
        ("[agents.alice.credentials]\n'a/b' = '/x'", r"agents.alice.credentials: Expected `str` matching"),
        ("[agents.alice]\nbinds = [{ path = '/x' }]", r"agents.alice.binds\[0\]: .*`source`"),
    ],
)
def test_a_wrong_file_is_refused_naming_the_key(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_config(write(tmp_path, text), {})


def test_a_table_of_free_keys_is_one_value(tmp_path: Path) -> None:
    path = write(tmp_path, '[harness.environment]\nANTHROPIC_BASE_URL = "http://x"\nA = "b"\n')
    config, origins = load_config(path, {})
    assert config.harness.environment == {"ANTHROPIC_BASE_URL": "http://x", "A": "b"}
    assert origins["harness.environment"] == str(path)
    assert origins.keys() == flatten(config).keys()
    assert flatten(config)["harness.environment"] == config.harness.environment


def test_every_value_is_printed_as_toml_that_reads_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HIVE_CONFIG", raising=False)
    path = write(tmp_path, 'domain = "a\\"b"\n[harness.environment]\n"odd key" = "x"\nA = "b # c"\n' + AGENT)
    shown = CliRunner().invoke(main, ["config", "--config", str(path)])
    assert shown.exit_code == 0, shown.output
    lines = [line.rpartition("  # ")[0] for line in shown.output.splitlines()]
    given = load_config(path, {})[0]
    again = load_config(write(tmp_path, "\n".join(lines)), {})[0]
    assert again == given
    assert again.harness.environment == {"odd key": "x", "A": "b # c"}
    assert again.domain == 'a"b'


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nothing\.toml: No such file"):
        load_config(tmp_path / "nothing.toml", {})


def test_a_file_for_root_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)

    with pytest.raises(ConfigError, match="permission denied; run it as root"):
        load_config(tmp_path / "config.toml", {})


def test_the_default_home_follows_xdg() -> None:
    assert default_home({"XDG_STATE_HOME": "/x"}) == Path("/x/hyperhive")
    assert default_home({}) == Path.home() / ".local/state/hyperhive"


def test_a_reload_takes_what_can_be_taken_and_keeps_what_needs_a_restart(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fresh = Config(home="/new", domain="new.local", drain_s=9.0)
    live = LiveConfig(Config(home="/old", domain="old.local"), lambda: fresh)
    live.reload()
    assert live() == msgspec.structs.replace(fresh, home="/old", drain_s=Config().drain_s)
    assert "home needs a restart" in caplog.text


def test_a_reload_keeps_the_names_of_machines_that_run(caplog: pytest.LogCaptureFixture) -> None:
    live = LiveConfig(Config(), lambda: Config(machines=Machines(prefix="x-", memory_max="1G")))
    live.reload()
    assert (live().machines.prefix, live().machines.memory_max) == ("h-", "1G")
    assert "machines.prefix needs a restart" in caplog.text


@pytest.mark.parametrize("key", ["uid_first", "uid_ranges", "subnet"])
def test_a_reload_keeps_what_machines_that_run_were_given(key: str, caplog: pytest.LogCaptureFixture) -> None:
    fresh = Machines(uid_first=655360, uid_ranges=7, subnet="10.9.0.0/16")
    live = LiveConfig(Config(), lambda: Config(machines=fresh))

    live.reload()

    assert getattr(live().machines, key) == getattr(Machines(), key)
    assert f"machines.{key} needs a restart" in caplog.text
    assert f"changed=machines.{key}" not in caplog.text


def test_a_reload_of_a_wrong_file_keeps_the_old_one(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Config:
        raise ConfigError("cannot use hive.toml: unknown key 'x'")

    live = LiveConfig(Config(domain="old.local"), broken)
    live.reload()
    assert live().domain == "old.local"
    assert "unknown key 'x'" in caplog.text


def test_the_manager_may_be_declared(tmp_path: Path) -> None:
    config, origins = load_config(write(tmp_path, "[agents.manager]\nmodel = 'x'\n"), {})

    assert config.agents["manager"].model == "x"
    assert origins["agents"].endswith("hive.toml")


def test_who_waits_for_another_configuration_is_told_of_a_good_one_only() -> None:
    files: list[Config | ConfigError] = [ConfigError("no"), Config()]

    def load() -> Config:
        read = files.pop(0)
        if isinstance(read, ConfigError):
            raise read
        return read

    told: list[int] = []
    live = LiveConfig(Config(), load)
    live.when_reloaded = lambda: told.append(len(files))
    live.reload()
    live.reload()

    assert told == [0]
