"""python -m benchmarks: our speed beside the limits of this machine, in one run.

Figures of two runs, or of two machines, say little; ratios within a round say much.  So each round
takes all figures, in an order that rotates from round to round.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks import commands, limits, load, ours, standin
from benchmarks.crash import Seen, crash_check
from benchmarks.report import Figures, judge, render

MEMORY = Path("/dev/shm")


def main() -> int:
    options = _options()
    load.allow_many_files()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("benchmarks: stopped by SIGTERM"))
    base = _base(options.dir)
    began = time.monotonic()
    machine = f"Linux {platform.release()}, {os.cpu_count()} processors, {limits.file_system(base)}"
    busy = os.getloadavg()[0]
    print(f"Python {platform.python_version()}, {machine}, load before {busy:.1f}", flush=True)
    if busy > 1:
        print("Something else is running here: the figures will show it more than they show us.", flush=True)
    with _fresh_directory(base) as directory:
        figures = measure(directory, options.rounds, options.secs, options.agents, quick=options.quick)
        _progress("crash check")
        seen = crash_check(directory / "crash", 1 if options.quick else 3)
    verdicts = judge(figures)
    _progress("")
    print(f"\n{render(figures, verdicts)}\n")
    intact = _say_crash(seen)
    print(f"{options.rounds} rounds of {options.secs:g} s a run, {time.monotonic() - began:.0f} s in all")
    if options.json:
        ratios = {v.target.name: {"median": v.median, "worst": v.worst, "met": v.met} for v in verdicts}
        text = json.dumps({"rounds": figures.rounds, "ratios": ratios, "intact": intact}, indent=1)
        options.json.write_text(text + "\n")
    return 1 if not intact or (options.check and any(verdict.far_off for verdict in verdicts)) else 0


def measure(
    directory: Path, rounds: int, secs: float, agents: Sequence[int], *, quick: bool = False
) -> Figures:
    """Take all figures *rounds* times."""
    figures = Figures()
    parts: list[Callable[[Path], None]] = [
        partial(_measure_limits, figures, secs, agents),
        partial(_measure_standin, figures, secs, agents),
        partial(_measure_ours, figures, secs, agents, quick),
    ]
    for number in range(rounds):
        figures.begin_round()
        for place in range(len(parts)):
            part = parts[(number + place) % len(parts)]
            with _fresh_directory(directory) as own:
                part(own)
    return figures


def _measure_limits(figures: Figures, secs: float, agents: Sequence[int], directory: Path) -> None:
    _progress("limits")
    figures.add_result("limit, disk", "syncs", limits.syncs(directory, secs))
    for count, result in limits.echo(directory, agents, secs).items():
        figures.add_result(f"limit, echo, {count}", "requests", result)


def _measure_standin(figures: Figures, secs: float, agents: Sequence[int], directory: Path) -> None:
    with standin.standin(directory) as socket:
        for count in agents:
            _progress(f"stand-in, {count}")
            figures.add_result(f"stand-in, sends, {count}", "sends", standin.sends(socket, count, secs))
            figures.add_result(f"stand-in, ring, {count}", "messages", standin.messages(socket, count, secs))


def _measure_ours(figures: Figures, secs: float, agents: Sequence[int], quick: bool, directory: Path) -> None:
    most = max(agents)
    names = ours.senders(most) + ours.ring(most)
    with ours.daemon(directory / "hive", names) as daemon:
        _progress("ours, settling")
        daemon.sends(most, ours.SETTLE_S)
        for count in agents:
            _progress(f"ours, {count}")
            figures.add_result(f"ours, sends, {count}", "sends", daemon.sends(count, secs))
            result, cpu_us = daemon.messages(count, secs)
            figures.add_result(f"ours, ring, {count}", "messages", result)
            figures.add(f"ours, ring, {count}: CPU µs", cpu_us)
        name = f"ours, sends to one, {most}"
        figures.add_result(name, "sends", daemon.sends(most, secs, to_one=True))
        half = figures.rounds[-1][f"ours, ring, {most}: messages/s"] / 2
        figures.add_result(f"ours, ring, {most}, open loop", "messages", daemon.messages_at(half, most, secs))
        figures.add(f"ours, ring, {most}, open loop: RSS MiB", daemon.child.rss_mib())
        _progress("start times")
        for command, took_ms in commands.start_times(daemon, 3 if quick else 7).items():
            figures.add(f"start, {command}: ms", took_ms)
    _progress("ours, 200 agents")
    ready_s, rss_mib = ours.start_up(directory / "200", 200)
    figures.add("ours, 200 agents: ready ms", ready_s * 1000)
    figures.add("ours, 200 agents: RSS MiB", rss_mib)
    if not quick and not limits.is_disk(MEMORY) and os.access(MEMORY, os.W_OK):
        _progress("ours, in memory")
        with _fresh_directory(MEMORY) as own, ours.daemon(own / "hive", ours.senders(most)) as daemon:
            figures.add_result(f"ours, sends, {most}, no disk", "sends", daemon.sends(most, secs))


def _say_crash(seen: Seen) -> bool:
    """Print what the crash check found, and say whether it is as it must be."""
    intact = not seen.missing and not seen.twice
    print(
        f"kill -9 under load: {len(seen.sent)} sends answered, {len(seen.missing)} of them lost, "
        f"{len(seen.twice)} messages twice without the flag: {'met' if intact else 'BROKEN'}"
    )
    return intact


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description="Our speed beside this machine's limits."
    )
    parser.add_argument("--quick", action="store_true", help="under half a minute, with rougher figures")
    parser.add_argument("--rounds", type=_count, help="how often each figure is taken [5; quick: 2]")
    parser.add_argument("--secs", type=float, help="how long each run takes [0.7; quick: 0.3]")
    parser.add_argument("--agents", type=_counts, help="numbers of clients [1,16,64; quick: 1,64]")
    parser.add_argument("--dir", type=Path, help="where to write; must be on a disk [here, else ~/.cache]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.add_argument(
        "--check", action="store_true", help="exit 1 when a median misses its target by 20 %%"
    )
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.secs = options.secs or (0.3 if options.quick else 0.7)
    options.agents = options.agents or ((1, 64) if options.quick else (1, 16, 64))
    return options


def _count(text: str) -> int:
    if not 1 <= (number := int(text)) <= 500:
        raise argparse.ArgumentTypeError("1 to 500")
    return number


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({_count(part) for part in text.split(",")}))


def _base(given: Path | None) -> Path:
    """Give a directory on a disk, or end with a sentence."""
    cache = Path.home() / ".cache"
    for path in [given] if given else [Path.cwd(), cache]:
        if path == cache:
            path.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and limits.is_disk(path) and os.access(path, os.W_OK):
            return path
    where = given or f"{Path.cwd()} or {cache}"
    sys.exit(
        f"benchmarks: cannot measure in {where}: it must be a writable directory on a disk, not in memory, "
        "where a sync costs nothing; name one with --dir"
    )


@contextmanager
def _fresh_directory(base: Path) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix=".hive-bench-", dir=base))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
