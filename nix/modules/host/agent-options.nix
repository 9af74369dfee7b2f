# One of services.hyperhive.agents.  What is null is as the hive's own configuration says.
{ lib, hiveTypes }:
let
  inherit (lib) literalExpression mkOption types;

  optional =
    type: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };

  bind = {
    options = {
      source = optional hiveTypes.hostPath ''
        The directory or file of the host; it has to be there when the machine starts. null: the same path as in the machine.
      '';
      readOnly = mkOption {
        type = types.bool;
        default = true;
        description = "Whether the machine may only read it.";
      };
    };
  };

  mcpServer = {
    options = {
      command = mkOption {
        type = hiveTypes.value;
        description = "The program in the machine.";
      };
      args = mkOption {
        type = types.listOf hiveTypes.value;
        default = [ ];
        description = "Its arguments.";
      };
      env = mkOption {
        type = types.attrsOf hiveTypes.value;
        default = { };
        description = "Variables of its environment.";
      };
    };
  };
in
rec {
  # The keys of [agents.NAME] that have no option of their own beside `settings`.
  settings = {
    description = optional hiveTypes.label "What it is for, in a line.";
    provider = optional hiveTypes.label "Which program thinks.";
    model = optional hiveTypes.label "The model it uses until it is told another.";
    recipients = optional (types.listOf hiveTypes.agentName) ''
      To whom it may write beside the manager; null: the operator's list (`hive allow`) stays as it is.
    '';
    environment = mkOption {
      type = types.attrsOf hiveTypes.value;
      default = { };
      description = "What its harness finds in its environment beside the hive's. It ends in the world-readable store.";
    };
    environment_file = optional hiveTypes.secretPath ''
      The same as lines of NAME=VALUE, for secrets; read at each start. Not below /home or /root.
    '';
    mcp_servers = mkOption {
      type = types.attrsOf (types.submodule mcpServer);
      default = { };
      description = "Programs in the machine that give its model more tools, by name.";
    };
  };

  options = {
    enable = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether it is declared. One that no longer is, is destroyed; its state stays, and is taken up again with the
        next declaration.
      '';
    };
    autoStart = mkOption {
      type = types.bool;
      default = true;
      description = ''
        What is wanted when it is declared for the first time, and whenever this option changes. In between
        holds what an operator said last (`hive stop`, `hive start`), over restarts of the host too.
      '';
    };
    source = mkOption {
      type = types.attrTag {
        module = mkOption {
          type = types.deferredModule;
          description = "A NixOS module with `hyperhive.*`: this host builds the agent's system, as a part of its own.";
        };
        path = mkOption {
          type = hiveTypes.closure;
          description = "A closure that exists already: `config.system.build.toplevel` of an agent's system.";
        };
        image = mkOption {
          type = hiveTypes.imageName;
          description = "The name of a tree below /var/lib/machines (`hive image ls`), or the path of a closure.";
        };
        repo = mkOption {
          type = types.submodule { };
          description = ''
            The repository that the hive keeps for it. What is deployed from it is decided by approvals, and built as
            `settings.deploy.builder` says.
          '';
        };
      };
      default = {
        repo = { };
      };
      example = literalExpression "{ module = ./alice.nix; }";
      description = "Where its system comes from: exactly one of `module`, `path`, `image` and `repo`.";
    };
    limits = {
      memoryMax = optional hiveTypes.size "Its memory; null: `services.hyperhive.defaults.limits.memoryMax`.";
      cpuQuota = optional hiveTypes.percent "Its share of processors; null: `services.hyperhive.defaults.limits.cpuQuota`.";
      tasksMax = optional hiveTypes.tasks "Its processes and threads; null: `services.hyperhive.defaults.limits.tasksMax`.";
    };
    network = optional hiveTypes.network ''
      `none`: it reaches the hive's socket and nothing else. `veth`: a link of its own to this host. null:
      `services.hyperhive.defaults.network`.
    '';
    binds = mkOption {
      type = types.attrsOf (types.submodule bind);
      default = { };
      example = literalExpression ''{ "/srv/books" = { readOnly = true; }; }'';
      description = "Directories and files of the host that its machine sees, by their path in the machine.";
    };
    credentials = mkOption {
      type = types.attrsOf hiveTypes.secretPath;
      default = { };
      example = {
        api-key = "/run/secrets/alice-api-key";
      };
      description = ''
        Secrets, by name: files of the host that hive-core copies at each start, readable for the machine's root only. The
        agent finds them in /run/hive/credentials. Not below /home or /root.
      '';
    };
    settings = mkOption {
      type = types.submodule {
        freeformType = types.attrsOf hiveTypes.toml;
        options = settings;
      };
      default = { };
      example = {
        model = "opus";
        recipients = [ "bob" ];
      };
      description = "More keys of its table `[agents.NAME]` in config.toml.";
    };
  };
}
