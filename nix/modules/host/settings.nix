# The keys of the daemon's configuration, one to one: hive_core/config.py.  tests/nix compares names, defaults and
# bounds, so a key that is added there has to be added here.
{ lib, hiveTypes }:
let
  inherit (lib) mkOption types;
  inherit (types) ints numbers;

  seconds = numbers.between 0 86400;
  days = ints.between 0 36500;

  key =
    type: default: description:
    mkOption { inherit type default description; };

  example =
    value: option:
    option
    // {
      example = value;
    };
in
{
  home = key types.str "" "Local mode: the directory that holds run/ and state/. `hive-core.service` does not use it.";
  run_dir = key types.str "" "Where the sockets are, below /run; empty: /run/hyperhive.";
  state_dir = key types.str "" ''
    Where the database and the agents' state are; empty: /var/lib/hyperhive. `services.hyperhive.stateDir` sets
    it, and prepares the directory.
  '';
  admin_group = key hiveTypes.userName "hive-admin" "Members may use host.sock, and with it everything the hive can do.";
  domain = example "hive.example.org" (
    key types.str "" "The hive's name in browser addresses; empty: there are none."
  );
  log_level = key (types.enum [
    "debug"
    "info"
    "warning"
    "error"
  ]) "info" "The least of what is logged.";
  drain_s = key seconds 3.0 "Seconds that open connections may take to end when the daemon stops.";

  harness = {
    provider = example "claude" (
      key (types.strMatching ".+") "scripted" "Which program thinks: `scripted` needs no model and no key."
    );
    model = key types.str "" "The model an agent uses until it is told another; empty: the provider's own.";
    linger_s = key (
      numbers.between 1 1.0e9
    ) 900.0 "Seconds that the harness of a local hive outlives its daemon.";
    environment =
      example { ANTHROPIC_BASE_URL = "https://proxy.example.org"; }
        (
          key (types.attrsOf hiveTypes.value) { } ''
            What a machine's harness finds in its environment. It ends in the world-readable store: secrets belong into
            `environment_file`.
          ''
        );
    environment_file = example "/etc/hyperhive/secrets.env" (
      key (hiveTypes.orEmpty hiveTypes.secretPath) "" ''
        The same as lines of NAME=VALUE, for secrets; read at each start. Not below /home or /root: hive-core sees neither.
      ''
    );
  };

  machines = {
    stop_grace_s = key seconds 10.0 "Seconds from the polite signal to the killing one.";
    quiesce_s = key seconds 120.0 "Seconds that a graceful stop waits for a running turn.";
    restart_limit = key (ints.between 1 100) 5 "Exits within restart_window_s after which a machine is failed.";
    restart_window_s = key seconds 120.0 "An exit that is longer ago, in seconds, does not count.";
    restart_delay_s = key (
      numbers.between 1.0e-9 3600
    ) 0.5 "Seconds before the first restart; they double with each exit.";
    restart_delay_max_s = key seconds 20.0 "Seconds beyond which they do not double.";
    start_timeout_s = key (
      numbers.between 1 3600
    ) 90.0 "Seconds from the start of a machine to its word that it is up.";
    start_parallel = key (ints.between 1 64) 4 "Machines that may be starting at once.";
    prefix = key hiveTypes.machinePrefix "h-" ''
      What the names of our machines begin with, so that no other machine is ever touched. The rule of polkit and the file for
      networkd follow it.
    '';
    image = example "debian" (
      key (hiveTypes.orEmpty hiveTypes.imageName) "" "The image of agents that name none; empty: the only one there is."
    );
    network = key hiveTypes.network "none" "The network of agents that name none.";
    subnet = key hiveTypes.subnet "10.213.0.0/16" "Addresses of veth links: two per agent.";
    memory_max = key hiveTypes.size "4G" "The memory of agents that declare none.";
    cpu_quota = key hiveTypes.percent "200%" "Their share of processors: 100% is one.";
    tasks_max = key hiveTypes.tasks 2048 "Their processes and threads.";
    uid_first = key (ints.between 65536 2147352576) 1073741824 "Where the uid ranges of machines begin; each has 65536.";
    uid_ranges = key (ints.between 1 16384) 4096 "How many ranges there are.";
    harness_dir = key (hiveTypes.orEmpty hiveTypes.hostPath) "" ''
      What is bound into each machine of a tree at /opt/hyperhive; empty: where this hive-core is installed.
    '';
  };

  broker.max_deliveries =
    key (ints.between 1 1000) 5
      "Turns that fail over a message, harnesses that die with it counted in, before it is a dead letter.";

  retention = {
    messages_days = key days 30 "Days that acked messages are kept, from the ack; 0 is for ever.";
    events_days = key days 7 "Days that is kept what agents did, event by event; 0 is for ever.";
    stream_events_days = key days 0 ''
      Above 0: of the events only the raw stream of the model goes, after so many days, the others never.
    '';
    turn_stats_days = key days 90 "Days that is kept what turns took; 0 is for ever.";
    generations = key (
      ints.between 1 1000
    ) 5 "Generations of a machine that are kept beside the current and the booted one.";
  };

  approvals = {
    expire_hours = key (numbers.between 0.01 8760) 72.0 "Hours after which an approval that nobody decided is cancelled.";
    manager = key types.bool false "Create the agent `manager` when the daemon starts and there is none.";
  };

  deploy = {
    builder = key (types.enum [
      "tree"
      "nix"
    ]) "tree" ''
      What the machine of an agent with a repository of its own is made of: an image that agent.toml names, or the closure
      of its agent.nix.
    '';
    packages_hook = key (hiveTypes.orEmpty hiveTypes.hostPath) "" "A program that gives an image with more packages in it.";
    timeout_s = key (numbers.between 10 86400) 3600.0 "Seconds that a build may take.";
    inputs =
      example { nixpkgs = "github:NixOS/nixpkgs/nixos-unstable"; }
        (
          key (types.attrsOf hiveTypes.line) { } ''
            The inputs of the hive's flake: name and URL. `hyperhive` and `nixpkgs` are needed by the builder `nix`; the flake of
            hyperhive gives both, so that no build needs the network for them.
          ''
        );
  };
}
