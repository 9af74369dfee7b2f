# The names of the original, so that a host's configuration goes on working, with a warning.
{ lib, ... }:
let
  old = [
    "services"
    "hive-c0re"
  ];
  coordinator = [
    "services"
    "hyperhive"
    "c0re"
  ];
  new = [
    "services"
    "hyperhive"
  ];
  names = {
    package = [ "package" ];
    adminUsers = [ "adminUsers" ];
    operatorPronouns = [ "operatorPronouns" ];
    contextWindowTokens = [ "contextWindowTokens" ];
    agentCpuQuota = [
      "defaults"
      "limits"
      "cpuQuota"
    ];
    agentMemoryMax = [
      "defaults"
      "limits"
      "memoryMax"
    ];
    enable = [ "enable" ];
  };
  gone = {
    assets = "The prompt and the pages are part of the package.";
    dashboardPort = "This version has no dashboard; services.hyperhive.dashboard.domain is the hive's name in browser addresses.";
  };
  forwarded =
    from:
    lib.mapAttrsToList (name: to: lib.mkRenamedOptionModule (from ++ [ name ]) (new ++ to)) names
    ++ lib.mapAttrsToList (name: lib.mkRemovedOptionModule (from ++ [ name ])) gone;
in
{
  imports =
    forwarded old
    ++ forwarded coordinator
    ++ [
      (lib.mkRenamedOptionModule
        [
          "services"
          "hyperhive"
          "domain"
        ]
        [
          "services"
          "hyperhive"
          "dashboard"
          "domain"
        ]
      )
    ];
}
