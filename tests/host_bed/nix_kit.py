"""A Nix store with a daemon in a bed, and small flakes in the place of hyperhive and nixpkgs.

What is built of an agent.nix boots as a NixOS would: the tree of the guest, and `text` in /etc/toplevel.
"""

from .bed import Bed

STORE = "/nix/store"
TREE = f"{STORE}/{'0' * 32}-tree"
BUSYBOX = f"{STORE}/{'1' * 32}-busybox"
HARNESS = f"{STORE}/{'2' * 32}-hyperhive"
BUILDER = "[deploy]\nbuilder = 'nix'\n[deploy.inputs]\nhyperhive = 'path:/srv/inputs/h'\nnixpkgs = 'path:/srv/inputs/n'\n"

INIT = f"""\
#!{BUSYBOX}/sh
set -eu
export PATH={BUSYBOX}
toplevel=$(dirname "$0")
rm -rf /usr
for name in usr bin sbin lib lib64; do
    [ ! -e {TREE}/$name ] || ln -sfn {TREE}/$name /$name
done
mkdir -p /var /opt /srv /mnt
cp -a {TREE}/var/. /var/
cp -a {TREE}/etc/. "$toplevel/etc/." /etc/
ln -sfn "$toplevel" /run/booted-system
export PATH=/usr/sbin:/usr/bin
exec /usr/lib/systemd/systemd systemd.show_status=error
"""
SYSTEM = """\
{
  inputs.nixpkgs.url = "path:/nowhere";
  outputs = { self, nixpkgs }: {
    lib.agentSystem = { name, modules, identity }:
      let
        module = import (builtins.head modules);
        agent = if builtins.isFunction module then module { pkgs = nixpkgs; } else module;
      in {
        config.system.build.toplevel = derivation {
          name = "nixos-system-${name}";
          system = identity.system;
          builder = "/bin/sh";
          args = [ "-c" "PATH=/usr/bin:/bin; ${agent.script or ""} cp -a /srv/template $out; printf %s \\"$text\\" > $out/etc/toplevel" ];
          text = toString (agent.text or "of the template");
        };
      };
  };
}
"""
MAKE = f"""\
set -eu
mkdir -p /var/lib/machines/.nix /nix
mount --bind /var/lib/machines/.nix /nix
mkdir -p /nix/store /nix/var/nix/gcroots /nix/var/nix/profiles/per-agent /etc/nix
chmod 755 /nix
cp -a /srv/guest {TREE}
mkdir {BUSYBOX}
cp /bin/busybox {BUSYBOX}/busybox
for name in sh dirname rm ln mkdir cp; do ln -s busybox {BUSYBOX}/$name; done
cp -a /opt/hyperhive {HARNESS}
mkdir -p /srv/template/etc/systemd/system/multi-user.target.wants /srv/inputs/h /srv/inputs/n
cat > /srv/template/init
chmod 755 /srv/template/init
cd /srv/template/etc/systemd/system
sed s,/opt/hyperhive,{HARNESS}, /src/hyperhive/systemd/hive-agent.service > hive-agent.service
ln -s ../hive-agent.service multi-user.target.wants/
for unit in console-getty.service getty.target; do ln -s /dev/null $unit; done
printf 'sandbox = false\\nsubstituters =\\nbuild-users-group =\\n' > /etc/nix/nix.conf
mkdir /srv/template/bin
cat > /srv/template/bin/switch-to-configuration <<'E'
#!/bin/sh
closure=$(dirname "$(dirname "$0")")
[ "$(cat $closure/etc/toplevel)" != bad ] || {{ echo newly failed: x.service >&2; exit 4; }}
echo "$closure $1" > /etc/switched
E
chmod 755 /srv/template/bin/switch-to-configuration
systemd-run --quiet --unit=nix-daemon --setenv=NIX_REMOTE=local nix-daemon
"""


def set_up_nix(bed: Bed) -> None:
    bed.run(["sh", "-c", MAKE], input=INIT, timeout_s=60)
    bed.path("/srv/inputs/h/flake.nix").write_text(SYSTEM)
    new_nixpkgs(bed, "one")


def new_nixpkgs(bed: Bed, version: str) -> None:
    """Let there be another nixpkgs, for whoever locks it anew."""
    bed.path("/srv/inputs/n/flake.nix").write_text(f'{{ outputs = _: {{ version = "{version}"; }}; }}\n')
