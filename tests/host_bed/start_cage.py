"""Runs in the bed: makes what a machine needs as the daemon would, and starts it with plain machinectl.

start_cage.py AGENT UID_BASE [IMAGE] [BASE-TO-SEAL]
"""

import os
import subprocess
import sys
from pathlib import Path

from hive_core.config import Machines
from hive_core.domain.cage import Shape, resolve
from hive_core.host import nspawn
from hive_core.host.images import Images

agent, uid = sys.argv[1], int(sys.argv[2])
image_name = sys.argv[3] if len(sys.argv) > 3 else "debian"
harness, hyperhive = Path("/opt/hyperhive"), Path("/var/lib/hyperhive")

images = Images(harness=harness)
cage = resolve(agent, uid, Shape(image=image_name), Machines())
image = images.resolve(cage.image, agent)
images.prepare_root(cage, image)

run, own, config = (
    Path("/run/hyperhive/agents", agent),
    hyperhive / "agents" / agent,
    hyperhive / "configs" / agent,
)
for directory in (run, own / "state", own / "claude", config):
    directory.mkdir(parents=True, exist_ok=True)
(hyperhive / "agents").chmod(0o700)
for directory in (own / "state", own / "claude"):
    os.chown(directory, uid, uid)
    directory.chmod(0o700)
environment = {
    "HIVE_PROVIDER": "scripted",
    "HIVE_LABEL": agent,
    "HIVE_AGENT_STATE": nspawn.state_path(cage),
    "CLAUDE_CONFIG_DIR": "/root/.claude",
}
(run / "environment").write_text("".join(f"{key}={value}\n" for key, value in environment.items()))
(run / "environment").chmod(0o600)
os.chown(run / "environment", uid, uid)
(run / "hive-agent.service").write_text(nspawn.render_guest_unit())

sources = nspawn.Sources(
    run=run,
    state=own / "state",
    claude=own / "claude",
    harness=harness,
    unit=run / "hive-agent.service",
    config=config,
)
drop_in = nspawn.render_drop_in(cage, harness / "bin/python3")
if len(sys.argv) > 4:
    drop_in = drop_in.replace(f" {uid} ", f" {sys.argv[4]} ")
files = {
    nspawn.settings_path(cage.machine): nspawn.render_settings(cage, image, sources, "bed"),
    nspawn.drop_in_path(cage.machine): drop_in,
}
for path, text in files.items():
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
subprocess.run(["systemctl", "daemon-reload"], check=True)
sys.exit(subprocess.run(["machinectl", "start", cage.machine], check=False).returncode)
