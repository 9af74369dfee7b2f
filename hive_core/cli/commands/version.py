"""hive version."""

from hive_core.cli import output
from hive_core.cli.app import Settings, command
from hive_core.wire.version import VERSION


@command("version", examples="hive version\nhive --version")
def version(settings: Settings) -> None:
    """Print the version of this program.

    The daemon's own is in `hive status`.
    """
    if settings.as_json:
        output.dump({"version": VERSION})
    else:
        output.say(f"hive {VERSION}")
