# What `make test` needs.  Python's own packages come from the lock files, by `make`.
{ pkgs }:
pkgs.mkShell {
  packages = [
    pkgs.git
    pkgs.gnumake
    pkgs.nftables
    pkgs.python3
    pkgs.systemd
    pkgs.uv
  ];
}
