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
  forge = "This version brings no forge: the hive keeps the agents' repositories itself, below stateDir.";
  oneName = "A hive has one name: services.hyperhive.dashboard.domain.";
  gone = {
    assets = "The prompt and the pages are part of the package.";
    dashboardPort = "This version has no dashboard; services.hyperhive.dashboard.domain is the hive's name in browser addresses.";
    inherit forge;
  };
  goneOfHive = {
    deploy = "A hive is one host; how it builds is services.hyperhive.settings.deploy.";
    gateway = "This version serves no pages, so that there is nothing to put a gateway before.";
    hiveName = oneName;
    matrix = "This version brings no Matrix.";
    swarm = "A hive is one host: this version has no peers.";
    swarmName = oneName;
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
    ++ lib.mapAttrsToList (name: lib.mkRemovedOptionModule (new ++ [ name ])) goneOfHive
    ++ [
      (lib.mkRemovedOptionModule [ "services" "hive-forge" ] forge)
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
