# The NixOS of one agent.
#   evalConfig   nixpkgs.lib.nixosSystem, or nixos/lib/eval-config.nix where there are no flakes
#   module       nix/modules/agent.nix with a package in it
#   platform     of agents for which no other is named
#
# The result is a function of
#   name         of the agent
#   modules      its own: agent.nix
#   identity     what the host knows of it: name, label, parent, recipients, system; plain data
#   system       its platform, unless a module says another; null: that of the packages that a module brings
#   hostModules  what the host adds, and the agent cannot leave out
{
  evalConfig,
  module,
  platform ? null,
}:
{
  name,
  modules ? [ ],
  identity ? { },
  system ? identity.system or platform,
  hostModules ? [ ],
  specialArgs ? { },
}:
evalConfig {
  inherit specialArgs;
  # Not the one that evaluates: a hive may build for another platform, and pure evaluation knows none.
  system = null;
  modules = [
    module
    (
      { lib, ... }:
      {
        _file = "hyperhive: the identity of ${name}";
        hyperhive.identity = removeAttrs identity [ "system" ] // {
          inherit name;
        };
        nixpkgs = lib.optionalAttrs (system != null) { hostPlatform = lib.mkDefault system; };
      }
    )
  ]
  ++ hostModules
  ++ modules;
}
