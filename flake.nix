{
  description = "hyperhive: a swarm of coding agents on your own machine, each in its own cage";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      forEach = make: lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
      packageFor = pkgs: self.packages.${pkgs.stdenv.hostPlatform.system}.default;
    in
    {
      packages = forEach (pkgs: rec {
        hyperhive = pkgs.callPackage ./nix/package.nix { };
        default = hyperhive;
      });

      overlays.default = final: prev: import ./nix/overlay.nix final prev;

      nixosModules = rec {
        default = host;
        host =
          { lib, pkgs, ... }:
          {
            key = "hyperhive#nixosModules.host";
            imports = [ ./nix/modules/host.nix ];
            services.hyperhive = {
              package = lib.mkDefault (packageFor pkgs);
              # What builds of agents are pinned to, without a network: this flake's own inputs.
              settings.deploy.inputs = {
                hyperhive = lib.mkDefault "path:${self}";
                nixpkgs = lib.mkDefault "path:${nixpkgs}";
              };
            };
          };
        agent =
          { lib, pkgs, ... }:
          {
            key = "hyperhive#nixosModules.agent";
            imports = [ ./nix/modules/agent.nix ];
            hyperhive.package = lib.mkDefault (packageFor pkgs);
          };
      };

      lib.agentSystem = import ./nix/lib/agent-system.nix {
        evalConfig = lib.nixosSystem;
        module = self.nixosModules.agent;
        platform = lib.head systems;
      };

      templates = {
        default = self.templates.host;
        host = {
          path = ./nix/templates/host;
          description = "a NixOS host with a hive of two agents";
        };
        agent = {
          path = ./nix/templates/agent;
          description = "the repository of an agent: agent.toml and agent.nix";
        };
      };

      checks = forEach (pkgs: {
        package = packageFor pkgs;
        modules = (import ./nix/tests/eval.nix { inherit lib pkgs; }).check;
      });

      # Not among the checks: it needs KVM and builds whole systems.  nix build .#tests.vm
      legacyPackages = forEach (pkgs: {
        tests.vm = import ./nix/tests/vm.nix { inherit self pkgs; };
      });

      devShells = forEach (pkgs: {
        default = import ./nix/shell.nix { inherit pkgs; };
      });

      formatter = forEach (pkgs: pkgs.nixfmt-tree);
    };
}
