{ pkgs, ... }:
{
  hyperhive = {
    claudePackage = pkgs.claude-code;
    model = "haiku";
    extraPackages = [
      pkgs.jq
      pkgs.ripgrep
    ];
  };
}
