# Where nixpkgs' own lib is: beside this file, or below what HIVE_NIXPKGS_LIB names; null: nowhere.
let
  named = builtins.getEnv "HIVE_NIXPKGS_LIB";
  inner = /. + "${named}/lib";
in
if builtins.pathExists ./lib then
  ./lib
else if named == "" then
  null
else if builtins.pathExists (inner + "/modules.nix") then
  inner
else
  /. + named
