# Stands for nixpkgs where there is no network: enough for the shape of our flake, and, with nixpkgs' own lib put
# beside this file as ./lib, for its modules.  Nothing of it can be built.
{
  outputs =
    { self }:
    let
      found = import ./find-lib.nix;
      lib =
        (
          if found != null then
            import found
          else
            {
              genAttrs = names: make: builtins.listToAttrs (map (name: { inherit name; value = make name; }) names);
              inherit (builtins) head;
              makeBinPath = builtins.concatStringsSep ":";
              platforms.linux = [ ];
              fileset = {
                toSource = { root, ... }: root;
                unions = paths: paths;
              };
            }
        )
        // {
          nixosSystem = import ./nixos/lib/eval-config.nix;
        };
    in
    {
      inherit lib;
      legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (
        system: import ./. { inherit system lib; }
      );
    };
}
