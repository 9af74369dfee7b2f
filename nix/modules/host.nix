# services.hyperhive: the daemon of a hive, and the agents that this host declares.
#
# This module writes config.toml and the drop-ins of units; the units themselves, and what else a host is given, are the
# files in systemd/, as on every other distribution.  Who starts and stops agents is hive-core alone.
{
  imports = [
    ./host/agents.nix
    ./host/assertions.nix
    ./host/config.nix
    ./host/network.nix
    ./host/options.nix
    ./host/renamed.nix
    ./host/units.nix
  ];
}
