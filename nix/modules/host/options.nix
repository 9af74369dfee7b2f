# What can be said of a hive.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    literalExpression
    mkEnableOption
    mkOption
    types
    ;
  hiveTypes = import ../../lib/types.nix { inherit lib; };
  agentOptions = import ./agent-options.nix { inherit lib hiveTypes; };
  settings = import ./settings.nix { inherit lib hiveTypes; };
  cfg = config.services.hyperhive;
in
{
  options.services.hyperhive = {
    enable = mkEnableOption "hyperhive, a swarm of coding agents, each in a machine of its own";

    package = mkOption {
      type = types.package;
      default = pkgs.hyperhive or (pkgs.callPackage ../../package.nix { });
      defaultText = literalExpression "pkgs.hyperhive";
      description = "The package with the daemon, the command line, the harness and the units.";
    };

    adminUsers = mkOption {
      type = types.listOf hiveTypes.userName;
      default = [ ];
      example = [ "ada" ];
      description = ''
        Who may operate the hive: members of the group `settings.admin_group`. They decide what agents run as, and may open a
        shell in any machine of the hive.
      '';
    };

    stateDir = mkOption {
      type = hiveTypes.hostPath;
      default = "/var/lib/hyperhive";
      description = "Where messages, the agents' state and their repositories are kept.";
    };

    settings = mkOption {
      type = types.submodule {
        freeformType = types.attrsOf hiveTypes.toml;
        options = settings;
      };
      default = { };
      example = literalExpression ''
        {
          harness.provider = "claude";
          retention.messages_days = 90;
        }
      '';
      description = "The keys of config.toml, hive.toml(5), one to one.";
    };

    checkConfig = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether keys that this version does not know are refused when the host is evaluated, and the rendered file is read by
        the package's `hive-core config` when it is built.
      '';
    };

    defaults = {
      limits = {
        memoryMax = mkOption {
          type = hiveTypes.size;
          default = "4G";
          description = "The memory of agents that declare none: `settings.machines.memory_max`.";
        };
        cpuQuota = mkOption {
          type = hiveTypes.percent;
          default = "200%";
          description = "Their share of processors, 100% is one: `settings.machines.cpu_quota`.";
        };
        tasksMax = mkOption {
          type = hiveTypes.tasks;
          default = 2048;
          description = "Their processes and threads: `settings.machines.tasks_max`.";
        };
      };
      network = mkOption {
        type = hiveTypes.network;
        default = "none";
        description = "The network of agents that declare none: `settings.machines.network`.";
      };
    };

    egress = {
      enable = mkEnableOption "a filter for what agents with a veth reach: only the hive, this host's own rules, and `allow`";
      allow = mkOption {
        type = types.listOf hiveTypes.cidr;
        default = [ ];
        example = [
          "192.0.2.0/24"
          "2001:db8::/32"
        ];
        description = ''
          Networks that agents may reach through this host. Addresses, not names: what a name stands for can change with each
          look. Servers of names that they shall use belong in it too.
        '';
      };
    };

    manager.enable = mkEnableOption "the agent `manager`, which hears what happens to the others and proposes their changes";

    dashboard.domain = mkOption {
      type = types.nullOr hiveTypes.line;
      default = null;
      example = "hive.example.org";
      description = "The hive's name in browser addresses: `settings.domain`.";
    };

    operatorPronouns = mkOption {
      type = types.nullOr hiveTypes.line;
      default = null;
      example = "she/her";
      description = "How the agents' prompts speak of the operator; null: they/them.";
    };

    contextWindowTokens = mkOption {
      type = types.attrsOf types.ints.positive;
      default = { };
      example = {
        haiku = 200000;
      };
      description = "How large the models' contexts are, by model, where the provider does not say it.";
    };

    agents = mkOption {
      type = types.attrsOf (types.submodule { inherit (agentOptions) options; });
      default = { };
      example = literalExpression ''
        {
          alice.source.module = ./alice.nix;
          bob = { network = "veth"; limits.memoryMax = "8G"; };
        }
      '';
      description = ''
        Agents that this host declares, by name. They live beside those that operators spawn, and with the same verbs: hive-core
        compares this declaration with what there is, at its start and at each reload, and restarts an agent only if
        something changed that a running machine cannot take.
      '';
    };

    # What the other parts of this module need, and tests.
    rendered =
      lib.genAttrs
        [
          "agents"
          "needRestart"
          "table"
          "text"
        ]
        (
          name:
          mkOption {
            type = types.raw;
            internal = true;
            description = "config.toml: ${name}.";
          }
        );
  };

  config.services.hyperhive.settings = lib.mkMerge [
    {
      # A default that the options above may change, and that `settings` itself always wins over.
      machines = {
        memory_max = lib.mkDefault cfg.defaults.limits.memoryMax;
        cpu_quota = lib.mkDefault cfg.defaults.limits.cpuQuota;
        tasks_max = lib.mkDefault cfg.defaults.limits.tasksMax;
        network = lib.mkDefault cfg.defaults.network;
        harness_dir = lib.mkDefault "${cfg.package}";
      };
      state_dir = lib.mkDefault cfg.stateDir;
      approvals.manager = lib.mkDefault cfg.manager.enable;
    }
    (lib.mkIf (cfg.dashboard.domain != null) { domain = lib.mkDefault cfg.dashboard.domain; })
    (lib.mkIf (cfg.operatorPronouns != null) {
      harness.environment.HIVE_OPERATOR_PRONOUNS = lib.mkDefault cfg.operatorPronouns;
    })
    (lib.mkIf (cfg.contextWindowTokens != { }) {
      harness.environment.HIVE_CONTEXT_WINDOW_TOKENS = lib.mkDefault (
        lib.concatStringsSep "," (
          lib.mapAttrsToList (model: tokens: "${model}=${toString tokens}") cfg.contextWindowTokens
        )
      );
    })
  ];
}
