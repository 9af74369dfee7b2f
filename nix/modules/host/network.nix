# The links of machines: nobody but hive-core gives them addresses; and what agents reach through this host.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.hyperhive;
  inherit (cfg.settings.machines) prefix;
  manager = "${lib.removeSuffix "-" prefix}m1nd";

  isV6 = lib.hasInfix ":";
  allow =
    family: networks:
    lib.optional (
      networks != [ ]
    ) "    ${family} daddr { ${lib.concatStringsSep ", " networks} } accept";

  # Its own table: whatever it does not reject, the host's other rules still may.
  rules = lib.concatStringsSep "\n" (
    [
      "# Made by services.hyperhive.egress.  The first two lines make the whole an atomic replacement."
      "table inet hive-egress"
      "delete table inet hive-egress"
      "table inet hive-egress {"
      "  chain forward {"
      "    type filter hook forward priority filter - 5; policy accept;"
      "    iifname \"ve-${prefix}*\" jump agents"
      "    iifname \"ve-${manager}\" jump agents"
      "  }"
      "  chain agents {"
      "    ct state established,related accept"
    ]
    ++ allow "ip" (lib.filter (network: !isV6 network) cfg.egress.allow)
    ++ allow "ip6" (lib.filter isV6 cfg.egress.allow)
    ++ [
      "    counter reject with icmpx admin-prohibited"
      "  }"
      "}"
      ""
    ]
  );
in
{
  config = lib.mkIf cfg.enable (
    lib.mkMerge [
      {
        environment.etc."systemd/network/10-hyperhive.network".text =
          lib.replaceStrings
            [
              "ve-h-*"
              "ve-hm1nd"
            ]
            [
              "ve-${prefix}*"
              "ve-${manager}"
            ]
            (builtins.readFile ../../../systemd/network/10-hyperhive.network);
      }
      (lib.mkIf cfg.egress.enable {
        environment.etc."hyperhive/egress.nft".text = rules;
        systemd.services.hive-egress = {
          description = "hyperhive: what agents reach through this host";
          wantedBy = [ "multi-user.target" ];
          requiredBy = [ "hive-core.service" ];
          before = [ "hive-core.service" ];
          after = [ "nftables.service" ];
          # A firewall of this host that flushes everything takes this table along.
          unitConfig = {
            PartOf = [ "nftables.service" ];
            ReloadPropagatedFrom = [ "nftables.service" ];
          };
          reloadTriggers = [ (builtins.hashString "sha256" rules) ];
          serviceConfig = {
            Type = "oneshot";
            RemainAfterExit = true;
            ExecStart = "${pkgs.nftables}/bin/nft -f /etc/hyperhive/egress.nft";
            ExecReload = "${pkgs.nftables}/bin/nft -f /etc/hyperhive/egress.nft";
          };
        };
      })
    ]
  );
}
