# Units, users and directories: the files of systemd/, with drop-ins for what only this host knows.
{
  config,
  lib,
  options,
  pkgs,
  ...
}:
let
  cfg = config.services.hyperhive;
  inherit (cfg.settings) admin_group;
  runDir = if cfg.settings.run_dir != "" then cfg.settings.run_dir else "/run/hyperhive";
  stateDir = if cfg.settings.state_dir != "" then cfg.settings.state_dir else "/var/lib/hyperhive";

  files = ../../../systemd;
  linesOf =
    path:
    lib.filter (line: line != "" && builtins.substring 0 1 line != "#") (
      map lib.trim (lib.splitString "\n" (builtins.readFile path))
    );

  # sysusers.d(5): type, name, id, "description", home, shell.  Of these hyperhive uses g, u and m, and no ids.
  accounts = map (builtins.match ''([gum]) +([^ ]+) +([^ ]+)( +"([^"]*)")?.*'') (
    linesOf (files + "/sysusers.d/hyperhive.conf")
  );
  named = type: lib.filter (account: account != null && lib.head account == type) accounts;
  nameOf = account: lib.elemAt account 1;
  ours = name: if name == "hive-admin" then admin_group else name;

  sysctl = lib.listToAttrs (
    map (
      line:
      let
        pair = builtins.match "([^ =]+) *= *(.*)" line;
      in
      lib.nameValuePair (lib.elemAt pair 0) (
        # More than NixOS itself proposes, and less than what a host's configuration says.
        lib.mkOverride 900 (lib.toInt (lib.elemAt pair 1))
      )
    ) (linesOf (files + "/sysctl.d/60-hyperhive.conf"))
  );
in
{
  config = lib.mkIf cfg.enable {
    environment = {
      systemPackages = [ cfg.package ];
      etc."polkit-1/rules.d/49-hyperhive.rules".text =
        let
          inherit (cfg.settings.machines) prefix;
        in
        lib.replaceStrings
          [
            ''"h-"''
            ''"hm1nd"''
            ''"hive-admin"''
          ]
          [
            ''"${prefix}"''
            ''"${lib.removeSuffix "-" prefix}m1nd"''
            ''"${admin_group}"''
          ]
          (builtins.readFile (files + "/polkit/49-hyperhive.rules"));
    }
    # `hive` of whoever logs in.
    // lib.optionalAttrs (options.environment ? sessionVariables) {
      sessionVariables = lib.mkIf (runDir != "/run/hyperhive") {
        HIVE_SOCKET = "${runDir}/host.sock";
      };
    };
    systemd.packages = [ cfg.package ];
    systemd.tmpfiles.packages = [ cfg.package ];
    boot.kernel.sysctl = sysctl;

    users.groups = lib.mkMerge (
      map (account: { ${ours (nameOf account)} = { }; }) (named "g" ++ named "u")
      ++ map (account: { ${ours (lib.elemAt account 2)}.members = [ (nameOf account) ]; }) (named "m")
      ++ [ { ${admin_group}.members = cfg.adminUsers; } ]
    );
    users.users = lib.mkMerge (
      map (account: {
        ${nameOf account} = {
          isSystemUser = true;
          group = nameOf account;
          description = toString (lib.elemAt account 4);
        };
      }) (named "u")
    );

    systemd.services.hive-core = {
      # NixOS does not act on [Install].
      wantedBy = [ "multi-user.target" ];
      # In place, so that it is not gone while the rest of the host is switched.
      stopIfChanged = false;
      path = [
        (config.systemd.package or pkgs.systemd)
        pkgs.coreutils
        pkgs.git
        pkgs.iproute2
        pkgs.nftables
      ]
      ++ lib.optional (config.nix.enable or true) (config.nix.package or pkgs.nix);
      unitConfig.RequiresMountsFor = [ stateDir ];
      serviceConfig = lib.mkMerge [
        (lib.mkIf (stateDir != "/var/lib/hyperhive") { ReadWritePaths = [ stateDir ]; })
        (lib.mkIf (runDir != "/run/hyperhive") { RuntimeDirectory = lib.removePrefix "/run/" runDir; })
      ];
    };

    systemd.sockets.hive-core = {
      wantedBy = [ "sockets.target" ];
      socketConfig = lib.mkMerge [
        (lib.mkIf (runDir != "/run/hyperhive") {
          # The empty one forgets that of the package.
          ListenStream = [
            ""
            "${runDir}/host.sock"
          ];
        })
        (lib.mkIf (admin_group != "hive-admin") { SocketGroup = admin_group; })
      ];
    };

    # A new systemd has another template, and a switch would restart each machine for it.
    systemd.services."systemd-nspawn@" = {
      overrideStrategy = "asDropin";
      restartIfChanged = lib.mkDefault false;
    };

    # hive-core.service may write only into what is there when it starts.  A switch gives the state directory this mode
    # again, while git, which is another user, goes through it.
    systemd.tmpfiles.rules = [
      "d /var/lib/machines 0700 root root -"
      "d /nix/var/nix/gcroots/hive 0755 root root -"
      "d /nix/var/nix/profiles/per-agent 0755 root root -"
    ]
    ++ lib.optional (stateDir != "/var/lib/hyperhive") "d ${stateDir} 0711 root root -";

    security.polkit.enable = true;
  };
}
