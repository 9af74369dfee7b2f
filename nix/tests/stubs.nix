# The options of NixOS that our modules set or read, for an evaluation without NixOS.  Each is at least as strict as
# the real one: what is not here does not exist.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
  flag = option types.bool false;

  # systemd's own: a value, or a list of values that become several lines.
  unitValue = types.oneOf [
    types.bool
    types.int
    types.float
    types.str
    types.path
  ];
  section = types.attrsOf (types.either unitValue (types.listOf unitValue));

  common = {
    enable = option types.bool true;
    overrideStrategy = option (types.enum [
      "asDropin"
      "asDropinIfExists"
    ]) "asDropinIfExists";
    description = option types.singleLineStr "";
    wantedBy = option (types.listOf types.str) [ ];
    requiredBy = option (types.listOf types.str) [ ];
    wants = option (types.listOf types.str) [ ];
    after = option (types.listOf types.str) [ ];
    before = option (types.listOf types.str) [ ];
    unitConfig = option section { };
  };
  service = {
    options = common // {
      serviceConfig = option section { };
      environment = option (types.attrsOf (types.nullOr types.str)) { };
      path = option (types.listOf (types.either types.package types.str)) [ ];
      restartIfChanged = option types.bool true;
      reloadIfChanged = flag;
      stopIfChanged = option types.bool true;
      restartTriggers = option (types.listOf types.unspecified) [ ];
      reloadTriggers = option (types.listOf types.unspecified) [ ];
    };
  };
  etc = {
    options = {
      text = option (types.nullOr types.lines) null;
      source = mkOption { type = types.path; };
      mode = option types.str "symlink";
    };
  };
  user = {
    options = {
      isSystemUser = flag;
      isNormalUser = flag;
      group = option types.str "";
      description = option types.str "";
      home = option types.path "/var/empty";
      extraGroups = option (types.listOf types.str) [ ];
    };
  };
in
{
  options = {
    assertions = option (types.listOf types.unspecified) [ ];
    warnings = option (types.listOf types.str) [ ];
    environment.etc = option (types.attrsOf (types.submodule etc)) { };
    environment.sessionVariables = option (types.attrsOf types.str) { };
    environment.systemPackages = option (types.listOf types.package) [ ];
    systemd = {
      package = mkOption { type = types.package; };
      packages = option (types.listOf types.package) [ ];
      services = option (types.attrsOf (types.submodule service)) { };
      sockets = option (types.attrsOf (
        types.submodule {
          options = common // {
            socketConfig = option section { };
          };
        }
      )) { };
      tmpfiles.packages = option (types.listOf types.package) [ ];
      tmpfiles.rules = option (types.listOf types.str) [ ];
      nspawn = option (types.attrsOf types.anything) { };
    };
    containers = option (types.attrsOf types.anything) { };
    users.groups = option (types.attrsOf (
      types.submodule {
        options.members = option (types.listOf types.str) [ ];
      }
    )) { };
    users.users = option (types.attrsOf (types.submodule user)) { };
    security.polkit.enable = flag;
    # As NixOS proposes them.
    boot.kernel.sysctl = option (types.submodule {
      freeformType = types.attrsOf (types.nullOr (types.either types.int types.str));
      config = {
        "fs.inotify.max_user_instances" = lib.mkDefault 524288;
        "fs.inotify.max_user_watches" = lib.mkDefault 524288;
      };
    }) { };
    networking = {
      hostName = option types.str "nixos";
      useDHCP = option types.bool true;
      useHostResolvConf = flag;
      useNetworkd = flag;
      resolvconf.enable = option types.bool true;
      firewall.enable = option types.bool true;
      nftables.enable = flag;
      nftables.flushRuleset = flag;
    };
    boot.isContainer = flag;
    services.resolved.enable = flag;
    console.enable = option types.bool true;
    documentation.enable = option types.bool true;
    nix.enable = option types.bool true;
    nix.package = mkOption { type = types.package; };
    nix.settings = option (types.attrsOf types.anything) { };
    nixpkgs.pkgs = mkOption { type = types.unspecified; };
    nixpkgs.config = option (types.attrsOf types.anything) { };
    nixpkgs.hostPlatform = mkOption { type = types.unspecified; };
    system = {
      checks = option (types.listOf types.package) [ ];
      stateVersion = mkOption { type = types.str; };
      switch.enable = flag;
      build = option (types.attrsOf types.unspecified) { };
    };
  };
}
