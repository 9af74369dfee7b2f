# Evaluates the modules for the cases of cases.nix, with nixpkgs' own lib and the stubs of NixOS' options.
#
#   nix-instantiate --eval --strict --json nix/tests/eval.nix -A host.good.full
#
# gives what NixOS would make of it: texts of /etc, drop-ins of units, users.  `check` is all of them, as one derivation
# that can be had only when each good one is good and each bad one is refused.
{
  lib ? import (import ./nixpkgs-stub/find-lib.nix),
  pkgs ? import ./nixpkgs-stub { inherit lib; },
}:
let
  cases = import ./cases.nix { inherit pkgs; };

  base = {
    _module.args = { inherit pkgs; };
    systemd.package = lib.mkDefault pkgs.systemd;
    nix.package = lib.mkDefault pkgs.nix;
  };

  evalHost =
    module:
    lib.evalModules {
      modules = [
        ./stubs.nix
        ../modules/host.nix
        base
        {
          services.hyperhive.package = lib.mkDefault (pkgs.callPackage ../package.nix { });
        }
        module
      ];
    };

  evalAgent =
    module:
    lib.evalModules {
      modules = [
        ./stubs.nix
        ../modules/agent.nix
        base
        {
          hyperhive.package = lib.mkDefault (pkgs.callPackage ../package.nix { });
          hyperhive.identity.name = "alice";
        }
        module
      ];
    };

  # As NixOS does it, before it builds anything.
  asserted =
    config: value:
    let
      failed = lib.filter (each: !each.assertion) config.assertions;
    in
    if failed == [ ] then
      value
    else
      throw "Failed assertions:\n${lib.concatMapStringsSep "\n" (each: "- ${each.message}") failed}";

  line =
    name: value:
    if builtins.isList value then
      lib.concatMap (line name) value
    else if builtins.isBool value then
      [ "${name}=${lib.boolToString value}" ]
    else
      [ "${name}=${toString value}" ];
  section =
    name: attrs:
    let
      lines = lib.concatLists (lib.mapAttrsToList line attrs);
    in
    lib.optionalString (lines != [ ]) "[${name}]\n${lib.concatLines lines}";

  # overrides.conf of a unit that the package has, or a whole unit.
  dropIn =
    kind: unit:
    let
      words = name: list: lib.optionalAttrs (list != [ ]) { ${name} = toString list; };
      path = lib.concatStringsSep ":" (
        map (each: "${each}/bin") (unit.path or [ ]) ++ map (each: "${each}/sbin") (unit.path or [ ])
      );
      environment = unit.environment or { } // lib.optionalAttrs (path != "") { PATH = path; };
    in
    section "Unit" (
      lib.optionalAttrs (unit.description != "") { Description = unit.description; }
      // words "After" unit.after
      // words "Before" unit.before
      // words "Wants" unit.wants
      // words "X-Restart-Triggers" (unit.restartTriggers or [ ])
      // words "X-Reload-Triggers" (unit.reloadTriggers or [ ])
      // unit.unitConfig
    )
    + section kind (
      lib.optionalAttrs (environment != { }) {
        Environment = lib.mapAttrsToList (name: value: "${name}=${value}") environment;
      }
      // lib.optionalAttrs (!unit.restartIfChanged or true) { X-RestartIfChanged = false; }
      // lib.optionalAttrs (!unit.stopIfChanged or true) { X-StopIfChanged = false; }
      // unit.serviceConfig or { }
      // unit.socketConfig or { }
    );

  rendered =
    config:
    asserted config {
      etc = lib.mapAttrs (_: file: if file.text != null then file.text else "-> ${file.source}") config.environment.etc;
      units =
        lib.mapAttrs' (name: unit: lib.nameValuePair "${name}.service" (dropIn "Service" unit)) config.systemd.services
        // lib.mapAttrs' (name: unit: lib.nameValuePair "${name}.socket" (dropIn "Socket" unit)) config.systemd.sockets;
      wanted = lib.mapAttrs (_: unit: unit.wantedBy ++ unit.requiredBy) (
        lib.mapAttrs' (name: lib.nameValuePair "${name}.service") config.systemd.services
        // lib.mapAttrs' (name: lib.nameValuePair "${name}.socket") config.systemd.sockets
      );
      inherit (config.environment) sessionVariables;
      packages = map (package: package.name) (
        config.systemd.packages ++ config.systemd.tmpfiles.packages ++ config.environment.systemPackages
      );
      users = lib.attrNames config.users.users;
      groups = lib.mapAttrs (_: group: group.members) config.users.groups;
      inherit (config.systemd.tmpfiles) rules;
      sysctl = config.boot.kernel.sysctl;
      inherit (config) warnings;
    };

  renderedHost =
    module:
    let
      inherit (evalHost module) config;
    in
    rendered config
    // lib.optionalAttrs config.services.hyperhive.enable {
      inherit (config.services.hyperhive.rendered) needRestart table;
    };
  renderedAgent =
    module:
    let
      inherit (evalAgent module) config;
    in
    rendered config
    // {
      guest = {
        inherit (config) boot networking console;
        switch = config.system.switch.enable;
      };
    };

  run = render: group: {
    good = lib.mapAttrs (_: render) group.good;
    bad = lib.mapAttrs (_: case: render case.module) group.bad;
    says = lib.mapAttrs (_: case: case.says) group.bad;
  };
  host = run renderedHost cases.host;
  agent = run renderedAgent cases.agent;

  evaluates = value: (builtins.tryEval (builtins.deepSeq value true)).success;
  wrong =
    kind: results:
    lib.mapAttrsToList (name: _: "${kind}.good.${name}: is refused") (
      lib.filterAttrs (_: value: !evaluates value) results.good
    )
    ++ lib.mapAttrsToList (name: _: "${kind}.bad.${name}: is not refused") (
      lib.filterAttrs (_: value: evaluates value) results.bad
    );
  # A lib that has no modules is a stub: then only the shape of the flake is looked at.
  mistakes = if lib ? evalModules then wrong "host" host ++ wrong "agent" agent else [ ];

  documented =
    prefix: options:
    map
      (option: {
        inherit (option) name type;
        description = option.description or "";
        default = option.default.text or null;
        example = option.example.text or null;
      })
      (
        lib.filter (
          option: option.visible && !option.internal && lib.hasPrefix prefix option.name
        ) (lib.optionAttrSetToDocList options)
      );
in
{
  inherit host agent;
  hostOf = renderedHost;
  agentOf = renderedAgent;
  check =
    if mistakes == [ ] then
      pkgs.runCommand "hyperhive-modules" { } "touch $out"
    else
      throw (lib.concatStringsSep "\n" mistakes);
  options = {
    host = documented "services.hyperhive." (evalHost { }).options;
    agent = documented "hyperhive." (evalAgent { }).options;
  };
  # What tests compare with hive_core/config.py.
  keys =
    let
      hiveTypes = import ../lib/types.nix { inherit lib; };
    in
    {
      settings = lib.mapAttrsRecursiveCond (set: !lib.isOption set) (_: option: option.default) (
        import ../modules/host/settings.nix { inherit lib hiveTypes; }
      );
      inherit (hiveTypes)
        bootsInside
        neverBound
        neverWritable
        neverWritableInside
        ownInside
        ownPrefixes
        ownVariables
        reservedAgentNames
        topsInside
        ;
      agent = lib.attrNames (import ../modules/host/agent-options.nix { inherit lib hiveTypes; }).settings;
    };
  toml = import ../lib/toml.nix { inherit lib; };
}
