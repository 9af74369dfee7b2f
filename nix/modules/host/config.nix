# /etc/hyperhive/config.toml, and when the daemon has to be told of it.
{
  config,
  lib,
  options,
  pkgs,
  ...
}:
let
  cfg = config.services.hyperhive;
  render = import ../../lib/toml.nix { inherit lib; };

  # hive_core/config.py: NEEDS_RESTART.
  needRestart = [
    [ "home" ]
    [ "run_dir" ]
    [ "state_dir" ]
    [ "admin_group" ]
    [ "drain_s" ]
    [
      "deploy"
      "builder"
    ]
    [
      "machines"
      "prefix"
    ]
    [
      "machines"
      "harness_dir"
    ]
    [
      "machines"
      "uid_first"
    ]
    [
      "machines"
      "uid_ranges"
    ]
    [
      "machines"
      "subnet"
    ]
  ];

  table = cfg.settings // lib.optionalAttrs (cfg.rendered.agents != { }) { inherit (cfg.rendered) agents; };
  text = "# Written by services.hyperhive of this host's NixOS configuration.\n${render table}";
  # Of a text that names store paths, without making the unit depend on them.
  hash = value: builtins.hashString "sha256" (builtins.unsafeDiscardStringContext value);
in
{
  config = lib.mkIf cfg.enable (
    lib.mkMerge [
      {
        services.hyperhive.rendered = {
          inherit table text;
          needRestart = map (lib.concatStringsSep ".") needRestart;
        };

        environment.etc."hyperhive/config.toml" = {
          inherit text;
        };

        systemd.services.hive-core = {
          reloadTriggers = [ (hash text) ];
          restartTriggers = [
            (hash (builtins.toJSON (map (path: lib.attrByPath path null cfg.settings) needRestart)))
          ];
        };
      }
      (lib.optionalAttrs (options ? system.checks) {
        system.checks =
          lib.mkIf (cfg.checkConfig && pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform)
            [
              (pkgs.runCommand "hyperhive-config-check" { } ''
                ${cfg.package}/bin/hive-core config --config ${pkgs.writeText "config.toml" text} > $out
              '')
            ];
      })
    ]
  );
}
