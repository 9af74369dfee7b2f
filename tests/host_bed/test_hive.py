"""A hive on a host of its own: two agents in machines, and all that may happen to them."""

import json
import os
from collections.abc import Iterator

import pytest

from .bed import open_bed
from .hive_kit import AS_WANTED_S, HiveHost, Traffic, wait_until


@pytest.fixture(scope="module")
def hive(worker_id: str) -> Iterator[HiveHost]:
    """The host; alice and bob run on it, before and after each test."""
    with open_bed(f"pytest-{os.getpid()}-{worker_id}-hive") as bed:
        host = HiveHost(bed).set_up()
        said = host.hive("spawn", "alice", "bob").stdout
        assert said == "alice is running\nbob is running\n"
        yield host


@pytest.fixture
def carol(hive: HiveHost) -> Iterator[str]:
    """One more agent, that stops and is no more afterwards."""
    hive.hive("spawn", "carol")
    yield "carol"
    if "carol" in hive.rows():
        hive.hive("destroy", "carol", "--purge", "--yes")


# ── what is shown ───────────────────────────────────────────────────────────────────────────────


def test_they_exchange_messages_through_their_machines(hive: HiveHost) -> None:
    with Traffic(hive, 0.02) as traffic:
        wait_until(lambda: len(traffic.ids) >= 20, "20 are sent")
    print(traffic.wait_all_back())

    rows = [row for row in hive.messages(traffic.since) if row["sender"] in {"alice", "bob"}]
    machines = {agent: hive.ask(cmd="machine", name=agent)["uid_base"] for agent in ("alice", "bob")}
    assert {(row["sender"], row["sender_uid"]) for row in rows} == set(machines.items())


def test_it_is_shown_that_and_how_they_are_caged(hive: HiveHost) -> None:
    assert [(row["name"], row["isolation"], row["machine"]) for row in hive.look("ls")] == [
        ("alice", "nspawn", "h-alice"),
        ("bob", "nspawn", "h-bob"),
    ]
    shown = hive.look("show", "alice")
    machine = shown.get("machine_facts", shown)
    assert machine["uid_count"] == 65536
    assert machine["memory_max_bytes"] == 4 * 2**30
    assert (machine["cpu_quota_percent"], machine["tasks_max"]) == (200, 2048)
    assert machine["network"] == "none"
    assert machine["addresses"] == []
    text = hive.hive("show", "alice").stdout
    assert f"uids\t{machine['uid_base']} to {machine['uid_base'] + 65535}\n" in text
    uid = hive.run(["stat", "-c", "%u", f"/proc/{hive.leader('alice')}"]).stdout.strip()
    assert uid == str(machine["uid_base"])


def test_a_command_inside_is_roots_there_and_its_exit_code_is_ours(hive: HiveHost) -> None:
    assert hive.inside("alice", "id", "-u") == "0\n"
    assert hive.inside("alice", "cat", input="through\n") == "through\n"
    done = hive.hive("exec", "alice", "--", "sh", "-c", "echo no >&2; exit 37", check=False)
    assert (done.returncode, done.stderr) == (37, "no\n")


def test_its_log_is_what_its_harness_says(hive: HiveHost) -> None:
    assert "Harness started provider=scripted" in hive.hive("logs", "alice").stdout


def test_top_shows_both_under_their_limits(hive: HiveHost) -> None:
    lines = [line.split("\t") for line in hive.hive("top").stdout.splitlines()]

    assert sorted((line[0], line[3], line[5], line[7]) for line in lines) == [
        ("alice", "200%", str(4 * 2**30), "2048"),
        ("bob", "200%", str(4 * 2**30), "2048"),
    ]


def test_a_limit_holds_at_once_and_at_the_next_start(hive: HiveHost, carol: str) -> None:
    hive.hive("limits", carol, "--memory", "1G", "--tasks", "300")
    assert (hive.unit(carol, "MemoryMax"), hive.unit(carol, "TasksMax")) == (str(2**30), "300")

    hive.hive("restart", carol)

    assert (hive.unit(carol, "MemoryMax"), hive.unit(carol, "TasksMax")) == (str(2**30), "300")
    hive.hive("limits", carol, "--memory", "default")
    assert hive.unit(carol, "MemoryMax") == str(4 * 2**30)


def test_the_doctor_finds_nothing_but_what_a_bed_lacks(hive: HiveHost) -> None:
    done = hive.hive("doctor", "--json", check=False)

    assert done.returncode == 0
    notes = {check["name"]: check["text"] for check in json.loads(done.stdout) if check["status"] != "ok"}
    # A bed gets its controllers from the test machine, which may not have any to give.
    assert notes.keys() <= {"cgroups", "disk"}, notes
    print(notes)


# ── what may happen ─────────────────────────────────────────────────────────────────────────────


def test_a_killed_daemon_finds_its_machines_as_they_were(hive: HiveHost) -> None:
    leaders, pid = [hive.leader("alice"), hive.leader("bob")], hive.daemon_pid()
    with Traffic(hive) as traffic:
        wait_until(lambda: len(traffic.ids) >= 5, "some are sent")

        hive.run(["kill", "-9", str(pid)])
        took_s = hive.wait_as_wanted("alice", "bob")

        count = len(traffic.ids)
        wait_until(lambda: len(traffic.ids) > count + 5, "more are sent")
    print(f"as wanted after {took_s:.1f} s; {traffic.wait_all_back()}")
    assert hive.daemon_pid() != pid
    assert [hive.leader("alice"), hive.leader("bob")] == leaders


def test_a_daemon_killed_again_and_again_loses_nothing(hive: HiveHost) -> None:
    leaders = [hive.leader("alice"), hive.leader("bob")]
    with Traffic(hive, 0.03) as traffic:
        for _ in range(4):
            count = len(traffic.ids)
            wait_until(lambda count=count: len(traffic.ids) > count + 3, "some are sent")
            hive.run(["systemctl", "kill", "-s", "KILL", "hive-core"])
        hive.wait_as_wanted("alice", "bob")
    print(traffic.wait_all_back())
    assert [hive.leader("alice"), hive.leader("bob")] == leaders


def test_a_killed_harness_comes_back_in_its_machine(hive: HiveHost) -> None:
    leader = hive.leader("alice")
    with Traffic(hive) as traffic:
        wait_until(lambda: len(traffic.ids) >= 5, "some are sent")

        hive.inside("alice", "systemctl", "kill", "-s", "KILL", "hive-agent")
        wait_until(lambda: not hive.row("alice")["connected"], "it is gone")
        took_s = hive.wait_as_wanted("alice", "bob")
    print(f"as wanted after {took_s:.1f} s; {traffic.wait_all_back()}")
    assert hive.leader("alice") == leader


def test_a_machine_whose_init_is_killed_is_started_again_and_that_is_told(hive: HiveHost) -> None:
    leader, other, since = hive.leader("alice"), hive.leader("bob"), hive.last_message()
    with Traffic(hive) as traffic:
        wait_until(lambda: len(traffic.ids) >= 5, "some are sent")

        hive.run(["kill", "-9", str(leader)])
        noticed_s = wait_until(lambda: hive.row("alice").get("pid") != leader, "it is noticed", 3)
        took_s = hive.wait_as_wanted("alice", "bob")
    print(f"noticed after {noticed_s:.2f} s, as wanted after {took_s:.1f} s; {traffic.wait_all_back()}")
    assert hive.leader("alice") != leader
    assert hive.leader("bob") == other
    (told,) = hive.events_told(since, "container_crash")
    assert told["agent"] == "alice"
    assert told["note"]


def test_the_death_of_machined_is_nobodys(hive: HiveHost) -> None:
    leaders = [hive.leader("alice"), hive.leader("bob")]
    with Traffic(hive) as traffic:
        wait_until(lambda: len(traffic.ids) >= 5, "some are sent")

        hive.run(["systemctl", "kill", "-s", "KILL", "systemd-machined"])
        hive.wait_as_wanted("alice", "bob")

    print(traffic.wait_all_back())
    assert [hive.leader("alice"), hive.leader("bob")] == leaders
    hive.hive("restart", "bob")
    assert hive.inside("bob", "id", "-u") == "0\n"


def test_a_stopped_daemon_leaves_the_machines_and_what_was_sent_before_arrives_after(hive: HiveHost) -> None:
    leaders = [hive.leader("alice"), hive.leader("bob")]
    with Traffic(hive, 0.01) as traffic:
        wait_until(lambda: len(traffic.ids) >= 30, "30 are sent")
    hive.run(["systemctl", "stop", "hive-core.socket", "hive-core.service"], timeout_s=30)

    assert [hive.leader("alice"), hive.leader("bob")] == leaders
    hive.run(["systemctl", "start", "hive-core"], timeout_s=30)
    took_s = hive.wait_as_wanted("alice", "bob")

    print(f"as wanted after {took_s:.1f} s; {traffic.wait_all_back()}")
    assert [hive.leader("alice"), hive.leader("bob")] == leaders


def test_a_machine_that_ends_while_no_daemon_runs_is_started_by_the_next(hive: HiveHost) -> None:
    leader = hive.leader("alice")
    hive.run(["systemctl", "stop", "hive-core.socket", "hive-core.service"], timeout_s=30)
    hive.run(["kill", "-9", str(leader)])

    hive.run(["systemctl", "start", "hive-core"], timeout_s=30)

    hive.wait_as_wanted("alice", "bob")
    assert hive.leader("alice") != leader


def test_a_start_that_the_daemon_did_not_outlive_is_finished_by_the_next(hive: HiveHost) -> None:
    hive.hive("stop", "bob")
    hive.ask(cmd="start", scope={"agent_names": ["bob"]})
    wait_until(lambda: hive.unit("bob", "ActiveState") == "activating", "it is starting", 5)
    hive.run(["kill", "-9", str(hive.daemon_pid())])

    took_s = hive.wait_as_wanted("alice", "bob")

    print(f"as wanted after {took_s:.1f} s")
    assert hive.inside("bob", "id", "-u") == "0\n"


def test_the_death_of_the_bus_is_nobodys(hive: HiveHost) -> None:
    leaders = [hive.leader("alice"), hive.leader("bob")]
    with Traffic(hive) as traffic:
        wait_until(lambda: len(traffic.ids) >= 5, "some are sent")
        hive.run(["systemctl", "kill", "-s", "KILL", "dbus"])
        wait_until(
            lambda: hive.run(["busctl", "status"], check=False).returncode == 0, "there is a bus again"
        )
        hive.wait_as_wanted("alice", "bob")
    print(traffic.wait_all_back())
    assert [hive.leader("alice"), hive.leader("bob")] == leaders
    hive.hive("restart", "bob")
    assert hive.inside("bob", "id", "-u") == "0\n"


# ── what is asked for ───────────────────────────────────────────────────────────────────────────


def test_a_running_turn_may_end_before_its_machine_stops(hive: HiveHost, carol: str) -> None:
    since = hive.last_message()
    sent = hive.send(carol, "sleep 2\nsay operator: slept well")
    wait_until(lambda: hive.row(carol).get("turn_state") == "thinking", "the turn runs")

    hive.hive("stop", carol)

    rows = {row["id"]: row for row in hive.messages(since)}
    assert "slept well" in [row["body"] for row in rows.values() if row["sender"] == carol]
    assert "acked_at" in rows[sent]
    assert hive.unit(carol, "ActiveState") == "inactive"


def test_what_a_turn_that_was_cut_off_had_comes_again(hive: HiveHost, carol: str) -> None:
    since = hive.last_message()
    sent = hive.send(carol, "sleep 2\nsay operator: slept after all")
    wait_until(lambda: hive.row(carol).get("turn_state") == "thinking", "the turn runs")

    hive.hive("stop", carol, "--now")
    assert "acked_at" not in {row["id"]: row for row in hive.messages(since)}[sent]
    hive.hive("start", carol)

    wait_until(
        lambda: "slept after all" in [row["body"] for row in hive.messages(since) if row["sender"] == carol],
        "it is done again",
    )


def test_one_that_ends_too_often_stays_down_until_it_is_started(hive: HiveHost, carol: str) -> None:
    since = hive.last_message()
    for number in range(3):
        wait_until(lambda: hive.row(carol)["running"], f"it runs, {number} ends later")
        hive.run(["kill", "-9", str(hive.leader(carol))])
        told = number + 1
        wait_until(lambda told=told: len(hive.events_told(since, "container_crash")) == told, "it is told")

    wait_until(lambda: hive.row(carol)["failed"], "it has failed")
    failure = hive.row(carol)["failure"]
    assert failure
    assert failure in hive.hive("show", carol).stdout
    assert failure in hive.events_told(since, "container_crash")[-1]["note"]
    print(failure)
    hive.hive("start", carol)
    assert not hive.row(carol)["failed"]
    assert hive.inside(carol, "id", "-u") == "0\n"


def test_what_is_destroyed_can_be_taken_up_again_until_it_is_purged(hive: HiveHost, carol: str) -> None:
    place = hive.bed.path(f"/var/lib/hyperhive/agents/{carol}")
    uid = hive.ask(cmd="machine", name=carol)["uid_base"]
    script = "cd /agents/carol/state; echo mine > note; mkdir deep; touch deep/theirs; chmod 0 deep"
    hive.inside(carol, "sh", "-ec", f"{script}; chown 1000:1000 note; chown -R 1001 deep")

    hive.hive("destroy", carol)
    assert carol not in hive.rows()
    assert (place / "state/note").stat().st_uid == uid + 1000
    assert not hive.bed.path(f"/run/hyperhive/agents/{carol}").exists()
    assert hive.run(["machinectl", "show", f"h-{carol}"], check=False).returncode != 0

    hive.hive("spawn", carol)
    assert hive.inside(carol, "cat", "/agents/carol/state/note") == "mine\n"
    assert hive.ask(cmd="machine", name=carol)["uid_base"] == uid

    hive.hive("destroy", carol, "--purge", "--yes")
    assert not place.exists()
    left = hive.run(
        [
            "find",
            "/run/systemd",
            "/var/lib/machines",
            "/var/lib/hyperhive",
            "/run/hyperhive",
            "-name",
            "*carol*",
        ]
    ).stdout.split()
    assert [path for path in left if "/srv/" not in path and "journal" not in path] == []


# ── what cannot be had ──────────────────────────────────────────────────────────────────────────


def refused(hive: HiveHost, agent: str) -> str:
    """Try to start *agent*, and give the sentence that says why it does not."""
    done = hive.hive("start", agent, check=False, timeout_s=60)
    assert done.returncode != 0
    assert hive.unit(agent, "ActiveState") in {"inactive", "failed"}
    return done.stderr


def test_a_start_without_its_image_is_refused(hive: HiveHost) -> None:
    hive.run(["ln", "-sfn", "/srv/guest", "/var/lib/machines/brief"])
    hive.hive("spawn", "carol", "--image", "brief")
    used = hive.hive("image", "rm", "brief", check=False)
    assert "carol would not start again" in used.stderr
    hive.hive("stop", "carol")
    hive.run(["rm", "/var/lib/machines/brief"])

    said = refused(hive, "carol")

    hive.hive("destroy", "carol", "--purge", "--yes")
    assert "cannot start carol: there is no image brief; there is debian" in said


def test_a_start_without_a_source_of_a_bind_is_refused(hive: HiveHost, carol: str) -> None:
    hive.hive("stop", carol)
    config = hive.bed.path(f"/var/lib/hyperhive/configs/{carol}/config")
    moved = config.rename(config.with_name("away"))

    said = refused(hive, carol)

    moved.rename(config)
    assert f"/var/lib/hyperhive/configs/{carol}/config" in said
    hive.hive("start", carol)


def test_a_start_whose_settings_would_lose_is_refused(hive: HiveHost, carol: str) -> None:
    hive.hive("stop", carol)
    hive.run(["mkdir", "-p", "/etc/systemd/nspawn"])
    other = hive.bed.path(f"/etc/systemd/nspawn/h-{carol}.nspawn")
    other.write_text("[Exec]\nPrivateUsers=no\n")

    said = refused(hive, carol)

    doctor = hive.hive("doctor", check=False)
    other.unlink()
    assert f"cannot start carol: /etc/systemd/nspawn/h-{carol}.nspawn would win" in said
    assert doctor.returncode == 1
    assert f"/etc/systemd/nspawn/h-{carol}.nspawn" in doctor.stdout


def test_a_start_over_somebody_elses_files_is_refused(hive: HiveHost, carol: str) -> None:
    hive.hive("stop", carol)
    state = f"/var/lib/hyperhive/agents/{carol}/state"
    uid = hive.ask(cmd="machine", name=carol)["uid_base"]
    hive.run(["chown", "12345", state])

    said = refused(hive, carol)

    hive.run(["chown", str(uid), state])
    assert f"{state} belongs to uid 12345" in said


def test_nobody_gets_uids_that_are_somebody_elses(hive: HiveHost) -> None:
    taken = [hive.ask(cmd="machine", name=agent)["uid_base"] for agent in ("alice", "bob")]
    third = max(taken) + 65536
    with hive.bed.path("/etc/subuid").open("a") as subuid:
        subuid.write(f"somebody:{third}:65536\n")
    try:
        hive.hive("spawn", "carol")
        uid = hive.ask(cmd="machine", name="carol")["uid_base"]
        doctor = hive.hive("doctor", check=False)
    finally:
        hive.run(["sed", "-i", "/^somebody:/d", "/etc/subuid"])
        hive.hive("destroy", "carol", "--purge", "--yes")
    assert uid not in {*taken, third}
    assert "somebody in /etc/subuid" in doctor.stdout


def configure(hive: HiveHost, text: str) -> None:
    """Let *text* be the configuration; uid ranges are not changed under a daemon that runs."""
    hive.bed.path("/etc/hyperhive/config.toml").write_text(text)
    hive.run(["systemctl", "restart", "hive-core"], timeout_s=30)
    hive.wait_as_wanted("alice", "bob")


def test_without_a_free_range_a_spawn_is_refused(hive: HiveHost) -> None:
    config = hive.bed.path("/etc/hyperhive/config.toml")
    before = config.read_text()
    try:
        configure(hive, before + "uid_ranges = 2\n")
        done = hive.hive("spawn", "carol", check=False)
    finally:
        configure(hive, before)
    assert done.returncode != 0
    assert "cannot spawn carol: " in done.stderr
    assert "carol" not in hive.rows()


# ── the end ─────────────────────────────────────────────────────────────────────────────────────


def test_after_a_boot_what_should_run_runs(hive: HiveHost, worker_id: str) -> None:
    """A bed cannot be booted twice: what is on its disk goes on in a new one, which has nothing else."""
    hive.hive("spawn", "carol")
    hive.hive("stop", "carol")
    since = hive.last_message()
    hive.inside("bob", "sh", "-c", "echo kept > /agents/bob/state/note")
    hive.run(["systemctl", "stop", "hive-core.socket", "hive-core.service"], timeout_s=30)
    hive.run(["systemctl", "stop", "machine-hive.slice"], timeout_s=60)
    with open_bed(f"pytest-{os.getpid()}-{worker_id}-reboot") as bed:
        for place in ("/var/lib/hyperhive", "/var/lib/machines"):
            source, target = hive.bed.path(place), bed.path(place)
            bed_copy = ["cp", "-a", "--reflink=auto", f"{source}/.", f"{target}/"]
            copied = os.spawnvp(os.P_WAIT, bed_copy[0], bed_copy)
            assert copied == 0
        booted = HiveHost(bed)
        bed.install_product()
        booted.run(["sh", "/src/hyperhive/systemd/install.sh", "install-files"])
        booted.run(["systemctl", "start", "hive-core"], timeout_s=30)

        took_s = booted.wait_as_wanted("alice", "bob", "carol")

        rows = booted.rows()
        assert [rows[agent]["running"] for agent in ("alice", "bob", "carol")] == [True, True, False]
        assert booted.inside("bob", "cat", "/agents/bob/state/note") == "kept\n"
        with Traffic(booted, 0.02) as traffic:
            wait_until(lambda: len(traffic.ids) >= 5, "some are sent")
        print(f"as wanted {took_s:.1f} s after the daemon's start; {traffic.wait_all_back()}")
        assert booted.events_told(since, "container_crash") == []
    assert took_s < AS_WANTED_S
