"""What `hive-agent serve` was told, by arguments first and the environment second."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEFAULT_SOCKET: Final = "/run/hive/mcp.sock"
DEFAULT_STATE: Final = "/state"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    socket: Path
    state: Path
    events_db: Path
    model_file: Path
    provider: str = "scripted"
    model: str | None = None
    """Used while the model file names none."""
    linger_s: float | None = None
    """How long to go on without a daemon; None is for ever."""
    lock: Path | None = None
    script: Path | None = None

    @classmethod
    def from_args(cls, args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> "Config":
        state = Path(args.state or environ.get("HIVE_AGENT_STATE") or DEFAULT_STATE)
        script = args.script or environ.get("HIVE_SCRIPT")
        return cls(
            socket=Path(args.socket or environ.get("HIVE_AGENT_SOCKET") or DEFAULT_SOCKET),
            state=state,
            events_db=Path(environ.get("HYPERHIVE_EVENTS_DB") or state / "hyperhive-events.sqlite"),
            model_file=Path(environ.get("HYPERHIVE_MODEL_FILE") or state / "hyperhive-model"),
            provider=args.provider,
            model=args.model or environ.get("HIVE_DEFAULT_MODEL") or None,
            linger_s=args.linger,
            lock=Path(args.lock) if args.lock else None,
            script=Path(script) if script else None,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--socket", metavar="PATH", help=f"the agent's socket [HIVE_AGENT_SOCKET, {DEFAULT_SOCKET}]"
    )
    parser.add_argument(
        "--state", metavar="DIR", help=f"the agent's own directory [HIVE_AGENT_STATE, {DEFAULT_STATE}]"
    )
    parser.add_argument("--provider", default="scripted", metavar="NAME", help="what runs a turn [scripted]")
    parser.add_argument(
        "--model", metavar="MODEL", help="used until another one is set [HIVE_DEFAULT_MODEL, the provider's]"
    )
    parser.add_argument(
        "--linger",
        type=_seconds,
        metavar="SECONDS",
        help="end when there was no daemon for that long [never]",
    )
    parser.add_argument(
        "--lock", metavar="PATH", help="hold this file locked, and refuse to run when it is held"
    )
    parser.add_argument(
        "--script", metavar="FILE", help="JSON that the scripted provider plays [HIVE_SCRIPT]"
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return seconds
