{ pkgs, ... }:
{
  imports = [
    # nixos-generate-config makes it.
    ./hardware-configuration.nix
  ];

  nixpkgs.hostPlatform = "x86_64-linux";
  # claude-code is unfree; agents take the packages of this host.
  nixpkgs.config.allowUnfreePredicate = package: (package.pname or "") == "claude-code";

  users.users.ada.isNormalUser = true;

  services.hyperhive = {
    enable = true;
    adminUsers = [ "ada" ];
    settings.harness.provider = "claude";
    # An agent that thinks with claude has to reach its API.
    defaults.network = "veth";

    agents = {
      alice.source.module = ./alice.nix;
      bob = {
        source.module = {
          hyperhive = {
            claudePackage = pkgs.claude-code;
            allowedRecipients = [
              "alice"
              "operator"
            ];
          };
        };
        limits.memoryMax = "2G";
      };
    };
  };

  networking.nftables.enable = true;
  system.stateVersion = "26.05";
}
