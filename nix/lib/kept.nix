# What is kept for the hive, or for a machine itself, whatever a configuration asks for.
{ lib }:
rec {
  # hive_core/domain/manifest.py: what no machine is given, or gets to write, and what in it is its own.
  neverBound = [
    "/proc"
    "/sys"
    "/dev"
    "/run"
    "/var/run"
    "/boot"
    "/root"
    "/etc/hyperhive"
    "/var/lib/hyperhive"
    "/var/lib/machines"
  ];
  neverWritable = [
    "/usr"
    "/bin"
    "/sbin"
    "/lib"
    "/lib32"
    "/lib64"
    "/libx32"
    "/etc"
    "/nix"
    "/opt/hyperhive"
    "/var/spool/cron"
    "/var/lib/systemd"
  ];
  ownInside = [
    "/proc"
    "/sys"
    "/dev"
    "/run"
    "/nix"
    "/.image"
    "/opt/hyperhive"
    "/etc/hyperhive"
    "/state"
    "/agents"
    "/applied"
    "/meta"
    "/root/.claude"
  ];
  topsInside = [
    "/"
    "/bin"
    "/boot"
    "/etc"
    "/home"
    "/lib"
    "/lib32"
    "/lib64"
    "/libx32"
    "/root"
    "/sbin"
    "/tmp"
    "/usr"
    "/var"
  ];
  bootsInside = [
    "/etc/systemd"
    "/etc/init.d"
    "/etc/dbus-1"
    "/usr/lib/systemd"
    "/lib/systemd"
    "/usr/local/lib/systemd"
    "/usr/share/dbus-1"
    "/root/.config"
  ];
  neverWritableInside = [
    "/bin"
    "/boot"
    "/etc"
    "/lib"
    "/lib32"
    "/lib64"
    "/libx32"
    "/sbin"
    "/usr"
    "/var/spool"
    "/var/lib/systemd"
    "/var/lib/dbus"
  ];
  # Where hive-core would keep its state in the way of others, or lose it.
  systemsOwn = [
    "/"
    "/home"
    "/mnt"
    "/opt"
    "/root"
    "/srv"
    "/var"
    "/var/lib"
  ];
  noHome = [
    "/bin"
    "/boot"
    "/dev"
    "/etc"
    "/lib"
    "/lib64"
    "/nix"
    "/proc"
    "/run"
    "/sbin"
    "/sys"
    "/tmp"
    "/usr"
    "/var/cache"
    "/var/lib/machines"
    "/var/lib/nixos"
    "/var/lib/systemd"
    "/var/log"
    "/var/run"
    "/var/tmp"
  ];
  othersInRun = [
    "booted-system"
    "credentials"
    "current-system"
    "dbus"
    "hive"
    "host"
    "keys"
    "lock"
    "log"
    "mount"
    "netns"
    "nscd"
    "secrets"
    "systemd"
    "tmpfiles.d"
    "udev"
    "user"
    "wrappers"
  ];
  ownVariables = [
    "BASH_ENV"
    "BUN_OPTIONS"
    "CLAUDE_CONFIG_DIR"
    "CREDENTIALS_DIRECTORY"
    "ENV"
    "GCONV_PATH"
    "HOME"
    "IFS"
    "INVOCATION_ID"
    "LOGNAME"
    "NODE_OPTIONS"
    "NOTIFY_SOCKET"
    "OPENSSL_CONF"
    "OPENSSL_ENGINES"
    "OPENSSL_MODULES"
    "PATH"
    "RUNTIME_DIRECTORY"
    "SHELL"
    "TMPDIR"
    "USER"
  ];
  ownPrefixes = [
    "HIVE_"
    "HYPERHIVE_"
    "LD_"
    "PYTHON"
    "GLIBC_"
    "SYSTEMD_"
    "LISTEN_"
  ];

  isOwnVariable = name: builtins.elem name ownVariables || lib.any (prefix: lib.hasPrefix prefix name) ownPrefixes;

  # The one of `places` that `path` lies in, is, or holds; null: none.
  inOrAbove =
    path: places:
    let
      below = inner: outer: outer == "/" || inner == outer || lib.hasPrefix "${outer}/" inner;
    in
    lib.findFirst (place: below path place || below place path) null places;
}
