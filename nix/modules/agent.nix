# hyperhive.*: what runs inside the machine of an agent, and how NixOS behaves there.
#
# The host's side of a machine (image, network, limits, binds) is in agent.toml, or in services.hyperhive.agents of the
# host: what is said here cannot widen the cage.
{
  config,
  lib,
  options,
  pkgs,
  ...
}:
let
  inherit (lib) mkDefault;
  hiveTypes = import ../lib/types.nix { inherit lib; };
  cfg = config.hyperhive;
  json = builtins.toJSON;

  # What tells this machine from others is the host's to say (hive_core/host/machine_environment.py).
  hostsOwn = [
    "CLAUDE_CONFIG_DIR"
    "HIVE_AGENT_SOCKET"
    "HIVE_AGENT_STATE"
    "HIVE_LABEL"
    "HIVE_PROVIDER"
  ];

  # Of HIVE_…, what the host does not say is the harness's own settings.
  isKept =
    name:
    builtins.elem name hostsOwn || (hiveTypes.isOwnVariable name && !lib.hasPrefix "HIVE_" name);
  variableRules =
    option: isKept:
    lib.mapAttrsToList (
      name: _: {
        assertion = hiveTypes.variableName.check name && !isKept name;
        message = "${option}.\"${name}\": ${
          if isKept name then
            "the host says it, or it would change the hive's own programs; take it out"
          else
            "that is no ${hiveTypes.variableName.description}"
        }";
      }
    );

  variables =
    lib.optionalAttrs (cfg.model != null) { HIVE_DEFAULT_MODEL = cfg.model; }
    // lib.optionalAttrs (cfg.availableModels != [ ]) {
      HIVE_AVAILABLE_MODELS = lib.concatStringsSep "," cfg.availableModels;
    }
    // lib.optionalAttrs (cfg.effortLevel != null) { HIVE_DEFAULT_EFFORT = cfg.effortLevel; }
    // lib.optionalAttrs (!cfg.autoCompact) { HIVE_COMPACT_WATERMARK_TOKENS = "0"; }
    // lib.optionalAttrs (cfg.autoCompact && cfg.compactWatermarkTokens != null) {
      HIVE_COMPACT_WATERMARK_TOKENS = toString cfg.compactWatermarkTokens;
    }
    // lib.optionalAttrs (cfg.contextWindowTokens != { }) {
      HIVE_CONTEXT_WINDOW_TOKENS = lib.concatStringsSep "," (
        lib.mapAttrsToList (model: tokens: "${model}=${toString tokens}") cfg.contextWindowTokens
      );
    }
    // lib.optionalAttrs (cfg.claudePackage != null) {
      HIVE_CLAUDE_BIN = claude;
    }
    // lib.optionalAttrs (cfg.identity ? committer) {
      GIT_AUTHOR_NAME = cfg.identity.committer.name;
      GIT_AUTHOR_EMAIL = cfg.identity.committer.email;
      GIT_COMMITTER_NAME = cfg.identity.committer.name;
      GIT_COMMITTER_EMAIL = cfg.identity.committer.email;
    }
    // cfg.environment;

  claude =
    if cfg.claudePackage != null then
      lib.getExe' cfg.claudePackage "claude"
    else
      "/run/current-system/sw/bin/claude";

  # As systemd reads an EnvironmentFile=.
  assign = name: value: ''${name}="${lib.escape [ "\\" ''"'' "$" "`" ] value}"'';
in
{
  imports = [
    ./agent/options.nix
    ./agent/renamed.nix
  ];

  config = {
    # ── the harness ──
    # Not bound in, as with a tree: the closure has its own, of the version that it was built with.
    systemd.packages = [
      (cfg.package.guest
        or (throw "hyperhive.package: ${cfg.package.name or "it"} has no output guest; take the package of hyperhive")
      )
    ];
    systemd.services.hive-agent = {
      wantedBy = [ "multi-user.target" ];
      stopIfChanged = false;
      # What a switch cannot see in the unit.
      restartTriggers = [
        (builtins.hashString "sha256" (
          builtins.unsafeDiscardStringContext (json [
            variables
            cfg.extraMcpServers
          ])
        ))
      ];
      # This wins over the unit's own: hive-agent is found here, too, after whatever the machine has of these names.
      path = [
        "/run/current-system/sw"
        cfg.package
      ];
      serviceConfig = {
        # After that of the host: what this module says wins over the hive's defaults.
        EnvironmentFile = [
          "/etc/hyperhive/environment"
        ]
        ++ lib.optional (cfg.backendEnvironmentFile != null) cfg.backendEnvironmentFile;
        ExecStartPre = map (
          plugin: "-/run/current-system/sw/bin/timeout 60 ${claude} plugin install ${plugin}"
        ) cfg.claudePlugins;
      };
    };
    environment = {
      systemPackages =
        cfg.extraPackages
        ++ [ pkgs.git ]
        ++ lib.optional (cfg.claudePackage != null) cfg.claudePackage;
      etc = {
        "hyperhive/environment".text = lib.concatLines (lib.mapAttrsToList assign variables);
        # Servers of agent.toml come by HIVE_EXTRA_MCP and then stand instead of these.
        "hyperhive/extra-mcp.json".text = json cfg.extraMcpServers;
        "hyperhive/agent.json".text = json {
          inherit (cfg)
            identity
            provider
            model
            availableModels
            allowedRecipients
            ;
        };
        # Written by hive-core where there is a network.
        "resolv.conf".source = mkDefault "/run/hive/resolv.conf";
      };
    };

    # ── a machine of systemd-nspawn, without a boot loader, links or hardware of its own ──
    boot =
      if options.boot ? isNspawnContainer then { isNspawnContainer = true; } else { isContainer = true; };
    networking = {
      hostName = mkDefault cfg.identity.name;
      # hive-core gives the link its addresses, from outside; nobody inside may, or has to.
      useDHCP = false;
      useHostResolvConf = false;
      resolvconf.enable = false;
      useNetworkd = mkDefault false;
      firewall.enable = mkDefault false;
    };
    services.resolved.enable = mkDefault false;
    # The console is the machine's log.
    console.enable = mkDefault false;
    systemd.services.console-getty.enable = mkDefault false;
    documentation.enable = mkDefault false;
    nix.enable = mkDefault false;
    # `switch-to-configuration test` is how a deploy changes a machine that runs.
    system.switch.enable = mkDefault true;
    system.stateVersion = mkDefault lib.trivial.release;

    warnings =
      let
        hosts = lib.filter (name: cfg.${name} != null && !cfg.hostReadsOptions) [
          "allowedRecipients"
          "provider"
        ];
      in
      map (
        name:
        "hyperhive.${name}: of an agent that the host does not declare by source.module, agent.toml says it; make sure that it says the same"
      ) hosts;

    assertions = [
      {
        assertion = cfg.availableModels == [ ] || cfg.model == null || builtins.elem cfg.model cfg.availableModels;
        message = "hyperhive.model: ${toString cfg.model} is none of hyperhive.availableModels";
      }
      {
        assertion = cfg.autoCompact || cfg.compactWatermarkTokens == null;
        message = "hyperhive.compactWatermarkTokens: it has no effect without hyperhive.autoCompact";
      }
    ]
    ++ lib.concatLists (
      lib.mapAttrsToList (
        name: server:
        [
          {
            assertion = !lib.hasPrefix "hyperhive" (lib.toLower name);
            message = "hyperhive.extraMcpServers.${name}: that name is the hive's own, or begins so; use another";
          }
          {
            assertion = builtins.match "[A-Za-z0-9_-]{1,64}" name != null;
            message = "hyperhive.extraMcpServers.\"${name}\": use letters, digits, _ and - for the name of a server";
          }
          {
            assertion = server.command != "";
            message = "hyperhive.extraMcpServers.${name}.command: it is empty; name a program";
          }
        ]
        ++ variableRules "hyperhive.extraMcpServers.${name}.env" hiveTypes.isOwnVariable server.env
      ) cfg.extraMcpServers
    )
    ++ lib.mapAttrsToList (model: _: {
      assertion = hiveTypes.modelName.check model;
      message = "hyperhive.contextWindowTokens: \"${model}\" is no ${hiveTypes.modelName.description}";
    }) cfg.contextWindowTokens
    ++ variableRules "hyperhive.environment" isKept cfg.environment;
  };
}
