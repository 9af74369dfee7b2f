# What runs in the machine of this agent: NixOS, with the options hyperhive.*.
{ pkgs, ... }:
{
  hyperhive = {
    model = "haiku";
    extraPackages = [ pkgs.jq ];
  };
}
