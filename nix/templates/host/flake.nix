{
  description = "A NixOS host with a hive";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    # Where you have hyperhive from: a forge, or path:/srv/hyperhive.
    hyperhive.url = "git+file:///srv/hyperhive";
    hyperhive.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    { nixpkgs, hyperhive, ... }:
    {
      nixosConfigurations.hive = nixpkgs.lib.nixosSystem {
        modules = [
          hyperhive.nixosModules.host
          ./configuration.nix
        ];
      };
    };
}
