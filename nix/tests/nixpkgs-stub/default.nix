# A package set with what our expressions ask for.
{
  system ? "x86_64-linux",
  lib ? import (import ./find-lib.nix),
}:
let
  fake =
    name: attrs:
    derivation {
      inherit name system;
      builder = "/bin/sh";
    }
    // {
      meta = { };
    }
    // attrs;
  make = attrs: fake attrs.pname (removeAttrs attrs [ "src" ]);

  pkgs = {
    inherit lib system;
    path = ./.;
    stdenv = {
      hostPlatform = { inherit system; };
      buildPlatform.canExecute = _: true;
    };
    callPackage =
      path: args:
      let
        function = import path;
      in
      function (builtins.intersectAttrs (builtins.functionArgs function) pkgs // args);
    runCommand =
      name: attrs: script:
      fake name (
        {
          inherit script;
        }
        // attrs
        // attrs.passthru or { }
        // builtins.listToAttrs (
          map (output: {
            name = output;
            value = fake "${name}-${output}" { };
          }) (builtins.filter (output: output != "out") (attrs.outputs or [ ]))
        )
      );
    writeText = name: text: fake name { inherit text; };
    mkShell = _: fake "shell" { };
    testers.runNixOSTest = _: fake "vm-test" { };
    python3 = {
      pkgs = python3Packages;
      withPackages = _: fake "python3-env" { };
    };
  }
  // builtins.listToAttrs (
    map
      (name: {
        inherit name;
        value = fake name { };
      })
      [
        "claude-code"
        "coreutils"
        "git"
        "gnumake"
        "iproute2"
        "jq"
        "makeWrapper"
        "nftables"
        "nix"
        "nixfmt-tree"
        "ripgrep"
        "systemd"
        "uv"
      ]
  );
  python3Packages = {
    buildPythonApplication = make;
    toPythonModule = package: package;
  }
  // builtins.listToAttrs (
    map
      (name: {
        inherit name;
        value = fake name { };
      })
      [
        "apsw"
        "click"
        "hatchling"
        "hypothesis"
        "msgspec"
        "pyroute2"
        "pytest-timeout"
        "pytest-trio"
        "pytest-xdist"
        "pytestCheckHook"
        "rich"
        "sdnotify"
        "trio"
      ]
  );
in
pkgs
