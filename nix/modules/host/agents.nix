# Turns each declared agent into its table `[agents.NAME]` of config.toml.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.hyperhive;

  agentSystem = import ../../lib/agent-system.nix {
    evalConfig = import (pkgs.path + "/nixos/lib/eval-config.nix");
    module = {
      imports = [ ../agent.nix ];
      hyperhive.package = lib.mkDefault cfg.package;
    };
  };

  evaluate =
    name: agent:
    (agentSystem {
      inherit name;
      modules = [ agent.source.module ];
      hostModules = [
        {
          _file = "services.hyperhive.agents.${name}";
          # The host's own packages: evaluated once, with its overlays and what it allows.
          nixpkgs.pkgs = lib.mkDefault pkgs;
          hyperhive.hostReadsOptions = true;
        }
      ];
    }).config;

  systems = lib.mapAttrs evaluate (lib.filterAttrs (_: agent: agent.source ? module) declared);

  imageOf =
    name: agent:
    if agent.source ? module then
      "${systems.${name}.system.build.toplevel}"
    else if agent.source ? path then
      "${agent.source.path}"
    else
      agent.source.image or null;

  # What of the agent's module the host acts on; what is said of it here wins.
  fromModule =
    name:
    let
      inherit (systems.${name}) hyperhive;
    in
    lib.optionalAttrs (systems ? ${name}) (
      {
        inherit (hyperhive) provider;
        recipients = hyperhive.allowedRecipients;
      }
    );

  # Null and empty mean that nothing was said, and then there is no key.
  said =
    attrs:
    lib.filterAttrs (_: value: value != null && value != { } && value != [ ]) (
      lib.mapAttrs (_: value: if builtins.isAttrs value then said value else value) attrs
    );

  bind = path: bind: {
    inherit path;
    source = if bind.source != null then bind.source else path;
    writable = !bind.readOnly;
  };

  table =
    name: agent:
    said (
      fromModule name
      // said (removeAttrs agent.settings [ "recipients" ])
      // {
        image = imageOf name agent;
        inherit (agent) network credentials;
        limits = {
          memory = agent.limits.memoryMax;
          cpu = agent.limits.cpuQuota;
          tasks = agent.limits.tasksMax;
        };
        binds = lib.mapAttrsToList bind agent.binds;
      }
    )
    // {
      auto_start = agent.autoStart;
    }
    # The empty list is said: to nobody but the manager.
    // lib.filterAttrs (_: value: value != null) {
      recipients =
        if agent.settings.recipients != null then
          agent.settings.recipients
        else if systems ? ${name} then
          systems.${name}.hyperhive.allowedRecipients
        else
          null;
    };

  declared = lib.filterAttrs (_: agent: agent.enable) cfg.agents;
in
{
  config = lib.mkIf cfg.enable {
    services.hyperhive.rendered.agents = lib.mapAttrs table declared;

    # The assertions of an agent's own system would fail its build only; here they name the option.
    assertions = lib.concatLists (
      lib.mapAttrsToList (
        name: system:
        map (each: {
          inherit (each) assertion;
          message = "services.hyperhive.agents.${name}.source.module: ${each.message}";
        }) system.assertions
      ) systems
    );
    warnings = lib.concatLists (
      lib.mapAttrsToList (
        name: system: map (text: "services.hyperhive.agents.${name}.source.module: ${text}") system.warnings
      ) systems
    );
  };
}
