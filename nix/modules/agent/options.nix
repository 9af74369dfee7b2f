# What can be said of what runs in the machine of an agent.
{ lib, pkgs, ... }:
let
  inherit (lib) literalExpression mkOption types;
  hiveTypes = import ../../lib/types.nix { inherit lib; };

  mcpServer = {
    options = {
      command = mkOption {
        type = hiveTypes.value;
        description = "The program.";
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
      allowedTools = mkOption {
        type = types.listOf hiveTypes.line;
        default = [ "*" ];
        description = "Its tools that the model may call without asking; `*` is all.";
      };
    };
  };
in
{
  options.hyperhive = {
    package = mkOption {
      type = types.package;
      default = pkgs.hyperhive or (pkgs.callPackage ../../package.nix { });
      defaultText = literalExpression "pkgs.hyperhive";
      description = "The package that the harness comes from.";
    };

    identity = mkOption {
      type = types.submodule {
        freeformType = types.attrsOf types.anything;
        options = {
          name = mkOption {
            type = hiveTypes.agentName;
            description = "The agent's name, which is its machine's host name too.";
          };
          label = mkOption {
            type = types.nullOr hiveTypes.line;
            default = null;
            description = "How people know it.";
          };
          parent = mkOption {
            type = types.nullOr hiveTypes.line;
            default = null;
            description = "The agent that asked for it.";
          };
        };
      };
      example = {
        name = "alice";
      };
      description = "What the host knows of this agent; `lib.agentSystem` sets it.";
    };

    hostReadsOptions = mkOption {
      type = types.bool;
      default = false;
      internal = true;
      description = "Set where the host evaluates this module and acts on what is said for it.";
    };

    provider = mkOption {
      type = types.nullOr hiveTypes.label;
      default = null;
      example = "claude";
      description = ''
        Which program thinks; null: as the hive says. Read by the host where it declares the agent with
        `source.module`; else agent.toml says it.
      '';
    };

    model = mkOption {
      type = types.nullOr hiveTypes.label;
      default = null;
      example = "haiku";
      description = "The model until the agent is told another (`hive model`); null: as the hive says.";
    };

    availableModels = mkOption {
      type = types.listOf hiveTypes.modelName;
      default = [ ];
      example = [
        "haiku"
        "opus"
      ];
      description = "Models to choose from; with some, `model` has to be one of them. Empty: any.";
    };

    effortLevel = mkOption {
      type = types.nullOr (
        types.enum [
          "low"
          "medium"
          "high"
          "xhigh"
          "max"
        ]
      );
      default = null;
      description = "How hard the model thinks until the agent is told otherwise; null: as the provider does.";
    };

    autoCompact = mkOption {
      type = types.bool;
      default = true;
      description = "Whether a conversation that fills three quarters of the model's context is shortened after the turn.";
    };

    compactWatermarkTokens = mkOption {
      type = types.nullOr types.ints.positive;
      default = null;
      description = "Tokens of the context at which it is shortened; null: three quarters of it.";
    };

    contextWindowTokens = mkOption {
      type = types.attrsOf types.ints.positive;
      default = { };
      example = {
        haiku = 200000;
      };
      description = "How large the models' contexts are, by model, where the provider does not say it.";
    };

    allowedRecipients = mkOption {
      type = types.nullOr (types.listOf (types.either (types.enum [ "operator" ]) hiveTypes.agentName));
      default = null;
      example = [ "bob" ];
      description = ''
        To whom it may write beside the manager; null: the operator's list stays as it is. The host holds to it, so it has effect
        where the host declares the agent with `source.module`; else `recipients` of agent.toml says it.
      '';
    };

    extraMcpServers = mkOption {
      type = types.attrsOf (types.submodule mcpServer);
      default = { };
      example = literalExpression ''{ notes = { command = "''${pkgs.notes-mcp}/bin/notes-mcp"; }; }'';
      description = "Programs that give the model more tools, by name.";
    };

    claudePackage = mkOption {
      type = types.nullOr types.package;
      default = null;
      example = literalExpression "pkgs.claude-code";
      description = "Claude Code, for the provider `claude`; null: the `claude` on PATH.";
    };

    claudePlugins = mkOption {
      type = types.listOf (types.strMatching "[A-Za-z0-9@][A-Za-z0-9@._/:-]*");
      default = [ ];
      example = [ "code-review@claude-plugins-official" ];
      description = "Plugins that are installed before the harness starts. It starts too when that fails.";
    };

    backendEnvironmentFile = mkOption {
      type = types.nullOr hiveTypes.secretPath;
      default = null;
      example = "/run/hive/credentials/backend";
      description = ''
        A file in the machine with lines of NAME=VALUE for another provider of inference, such as ANTHROPIC_BASE_URL and its key.
        The harness does not start without it.
      '';
    };

    environment = mkOption {
      type = types.attrsOf hiveTypes.line;
      default = { };
      description = "More variables for the harness. They end in the world-readable store.";
    };

    extraPackages = mkOption {
      type = types.listOf types.package;
      default = [ ];
      example = literalExpression "[ pkgs.ripgrep pkgs.jq ]";
      description = "Programs for the model's tools, and for who opens a shell in the machine.";
    };
  };
}
