final: _prev: {
  hyperhive = final.callPackage ./package.nix { };
}
