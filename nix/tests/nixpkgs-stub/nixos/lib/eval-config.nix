# In the place of NixOS: our stubs of its options, and a toplevel that says whether its assertions hold.
{
  modules,
  system ? null,
  specialArgs ? { },
  lib ? import (import ../../find-lib.nix),
}:
lib.evalModules {
  inherit specialArgs;
  modules = [
    # As a flake of its own it has a copy.
    (if builtins.pathExists ../../stubs.nix then ../../stubs.nix else ../../../stubs.nix)
    (
      {
        config,
        lib,
        options,
        ...
      }:
      {
        _module.args.pkgs =
          if options.nixpkgs.pkgs.isDefined then
            config.nixpkgs.pkgs
          else
            import ../.. {
              inherit lib;
              system = config.nixpkgs.hostPlatform;
            };
        systemd.package = lib.mkDefault config._module.args.pkgs.systemd;
        nix.package = lib.mkDefault config._module.args.pkgs.nix;
        system.build.toplevel =
          let
            failed = lib.filter (each: !each.assertion) config.assertions;
          in
          if failed != [ ] then
            throw "Failed assertions: ${lib.concatMapStringsSep "; " (each: each.message) failed}"
          else
            derivation {
              name = "nixos-system-${config.networking.hostName}";
              system = config._module.args.pkgs.system;
              builder = "/bin/sh";
            };
      }
    )
  ]
  ++ modules;
}
