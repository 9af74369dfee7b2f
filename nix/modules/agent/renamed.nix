# What the original's agents could have, and these have not: to be told so is better than "does not exist".
{ lib, ... }:
let
  noPages = "This version serves no pages.";
  gone = {
    dashboardLinks = noPages;
    frontend = noPages;
    gui = "This version has no screen in a machine; a program of hyperhive.extraMcpServers can have one.";
    matrix = "This version brings no Matrix.";
    user = "The harness is the machine's root, which is nobody on the host.";
  };
in
{
  imports = lib.mapAttrsToList (
    name:
    lib.mkRemovedOptionModule [
      "hyperhive"
      name
    ]
  ) gone;
}
