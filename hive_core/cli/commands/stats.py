"""hive stats."""

from typing import Any

import click

from hive_core.cli import human, output
from hive_core.cli.app import Settings, agent_argument, command


@command(
    "stats",
    examples="""
    hive stats alice
    hive stats alice --window 7d
    hive stats alice --window 30d --json | jq .cost_usd
    """,
)
@agent_argument()
@click.option(
    "--window",
    type=click.Choice(["24h", "7d", "30d"]),
    default="24h",
    show_default=True,
    help="Turns that began in the last day, week or month.",
)
def stats(settings: Settings, agent: str, window: str) -> None:
    """Show what an agent's turns took.

    How many turns there were, how many ended well and why others did not, how long they took (half of them
    took no longer than p50, 95 of 100 no longer than p95), their tokens by kind, what the provider says that
    they cost, how full the context was at most, which tools were called, and who woke the agent.
    """
    reply = settings.hive().ask({"cmd": "stats", "agent": agent, "window": window}, agents=[agent])
    if settings.as_json:
        output.dump({"agent": agent, "window": window} | reply)
        return
    if not reply["turns"] and not reply["compactions"]:
        output.note(f"no turns of {agent} in the last {window}")
        return
    output.facts(_facts(agent, window, reply, terminal=output.on_terminal()))


def _facts(agent: str, window: str, reply: dict[str, Any], *, terminal: bool) -> list[tuple[str, Any]]:
    tokens = reply["tokens"]
    rate = reply.get("ok_rate")
    return [
        ("agent", agent),
        ("window", window),
        ("turns", reply["turns"]),
        ("ok", None if rate is None else f"{rate:.1%}"),
        ("p50", _seconds(reply.get("p50_seconds"), terminal)),
        ("p95", _seconds(reply.get("p95_seconds"), terminal)),
        ("compactions", reply["compactions"] or None),
        ("input tokens", _number(tokens["input"], terminal)),
        ("output tokens", _number(tokens["output"], terminal)),
        ("cache read tokens", _number(tokens["cache_read"], terminal)),
        ("cache creation tokens", _number(tokens["cache_creation"], terminal)),
        ("cost", f"${reply['cost_usd']:.4f}" if reply["cost_usd"] else None),
        ("fullest context", _number(reply["ctx_max"], terminal)),
        ("results", _counts(reply["results"])),
        ("woken by", _counts(reply["wake_from"])),
        ("models", _counts(reply["models"])),
        ("tool calls", _number(reply["tool_calls"], terminal)),
        ("tools", _counts(reply["tools"])),
    ]


def _seconds(seconds: float | None, terminal: bool) -> str | None:
    if seconds is None:
        return None
    return human.duration(seconds) if terminal else f"{seconds:g}"


def _number(count: int, terminal: bool) -> str:
    return f"{count:,}".replace(",", " ") if terminal else str(count)


def _counts(pairs: list[dict[str, Any]]) -> str:
    return ", ".join(f"{pair['name']} {pair['count']}" for pair in pairs)
