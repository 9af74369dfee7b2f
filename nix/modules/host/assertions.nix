# What no type can say: rules across options.  Each message begins with the option that has to change.
{
  config,
  lib,
  ...
}:
let
  inherit (lib) concatLists concatStringsSep mapAttrsToList;
  hiveTypes = import ../../lib/types.nix { inherit lib; };
  agentOptions = import ./agent-options.nix { inherit lib hiveTypes; };
  knownSettings = import ./settings.nix { inherit lib hiveTypes; };

  cfg = config.services.hyperhive;
  inherit (cfg.settings) machines;
  declared = lib.filterAttrs (_: agent: agent.enable) cfg.agents;
  top = "services.hyperhive";

  require = assertion: message: { inherit assertion message; };
  perAgent = rules: concatLists (mapAttrsToList (name: rules "${top}.agents.${name}" name) declared);

  machineOf = name: if name == "manager" then "${lib.removeSuffix "-" machines.prefix}m1nd" else machines.prefix + name;

  # Dotted names of what is in `given` and not in the tree of options `known`.
  unknown =
    path: known: given:
    concatLists (
      mapAttrsToList (
        name: value:
        if !(known ? ${name}) then
          [ (concatStringsSep "." (path ++ [ name ])) ]
        else if lib.isOption known.${name} then
          [ ]
        else if builtins.isAttrs value then
          unknown (path ++ [ name ]) known.${name} value
        else
          [ (concatStringsSep "." (path ++ [ name ])) ]
      ) given
    );

  refuseUnknown =
    prefix: known: given:
    map (
      key:
      require (
        !cfg.checkConfig
      ) "${prefix}.${key}: hive-core of this version has no such key; for a package that has it set ${top}.checkConfig = false"
    ) (unknown [ ] known given);

  isHidden =
    path:
    lib.any (home: path == home || lib.hasPrefix "${home}/" path) [
      "/home"
      "/root"
      "/run/user"
    ];
  visible = option: path: require (!isHidden path) "${option}: ${path} is below /home, /root or /run/user, which hive-core.service does not see";

  bindRules =
    option: path: bind:
    let
      source = if bind.source != null then bind.source else path;
      kept = hiveTypes.inOrAbove source (hiveTypes.neverBound ++ [ cfg.settings.state_dir ]);
      fixed = hiveTypes.inOrAbove source hiveTypes.neverWritable;
      inside = hiveTypes.inOrAbove path hiveTypes.ownInside;
    in
    [
      (require (hiveTypes.hostPath.check path) "${option}.binds: ${path} is no ${hiveTypes.hostPath.description}")
      (require (
        inside == null && !builtins.elem path hiveTypes.topsInside
      ) "${option}.binds: ${path} belongs to the machine itself")
      (require (kept == null) "${option}.binds.\"${path}\".source: ${source} has to do with ${toString kept}, which no machine gets")
      (require (
        bind.readOnly || fixed == null
      ) "${option}.binds.\"${path}\".readOnly: ${source} has to do with ${toString fixed}, which no machine may write")
    ];

  networkOf = agent: if agent.network != null then agent.network else machines.network;
  usesVeth = machines.network == "veth" || lib.any (agent: networkOf agent == "veth") (lib.attrValues declared);
  usesNix =
    cfg.settings.deploy.builder == "nix" || lib.any (agent: agent.source ? module) (lib.attrValues declared);
in
{
  config = lib.mkIf cfg.enable {
    assertions = [
      (require (
        cfg.settings.run_dir == "" || builtins.match "/run/[A-Za-z0-9][A-Za-z0-9._-]*" cfg.settings.run_dir != null
      ) "${top}.settings.run_dir: ${cfg.settings.run_dir} is not a directory of its own directly below /run")
      (require (
        cfg.settings.state_dir == "" || hiveTypes.hostPath.check cfg.settings.state_dir
      ) "${top}.settings.state_dir: ${cfg.settings.state_dir} is no absolute path that systemd can take as it is")
      (visible "${top}.stateDir" cfg.settings.state_dir)
      (visible "${top}.settings.harness.environment_file" cfg.settings.harness.environment_file)
      (require (
        !(cfg.settings ? agents)
      ) "${top}.settings.agents: declare agents in ${top}.agents; both end in the same tables of config.toml")
      (require (
        cfg.egress.enable -> usesVeth
      ) "${top}.egress.enable: no agent has network \"veth\", so that there is nothing to filter; set ${top}.defaults.network or ${top}.agents.<name>.network")
      (require (
        cfg.egress.allow != [ ] -> cfg.egress.enable
      ) "${top}.egress.allow: it has no effect without ${top}.egress.enable")
      (require (
        usesNix -> config.nix.enable or true
      ) "${top}.settings.deploy.builder and ${top}.agents.<name>.source.module: closures need nix.enable on this host")
      (require (
        cfg.settings.deploy.builder == "nix" -> lib.all (name: cfg.settings.deploy.inputs ? ${name}) [ "hyperhive" "nixpkgs" ]
      ) "${top}.settings.deploy.inputs: the builder nix needs the inputs hyperhive and nixpkgs; nixosModules.host of the flake sets both")
    ]
    ++ mapAttrsToList (
      name: _:
      require (
        builtins.match "[A-Za-z][A-Za-z0-9_-]{0,63}" name != null && name != "self" && !lib.hasPrefix "agent-" name
      ) "${top}.settings.deploy.inputs: ${name} is no name for an input of the hive's flake"
    ) cfg.settings.deploy.inputs
    ++ refuseUnknown "${top}.settings" (knownSettings // { agents = { }; }) (removeAttrs cfg.settings [ "agents" ])
    ++ perAgent (
      option: name: agent:
      [
        (require (hiveTypes.agentName.check name) "${option}: ${name} is no ${hiveTypes.agentName.description}")
        (require (
          !builtins.elem name hiveTypes.reservedAgentNames
        ) "${option}: the name ${name} is reserved (${concatStringsSep ", " hiveTypes.reservedAgentNames})")
        (require (
          builtins.stringLength (machineOf name) <= 64
        ) "${option}: its machine would be called ${machineOf name}, which is longer than the 64 characters that systemd allows")
        (require (
          !((config.systemd.nspawn or { }) ? ${machineOf name})
        ) "${option}: systemd.nspawn.${machineOf name} would win over what hive-core writes; remove it")
        (require (
          !((config.containers or { }) ? ${machineOf name})
        ) "${option}: containers.${machineOf name} has the name of its machine; rename it, or set ${top}.settings.machines.prefix")
        (require (
          name == "manager" -> agent.settings.recipients == null
        ) "${option}.settings.recipients: the manager may write to everybody")
      ]
      ++ mapAttrsToList (
        id: path: require (hiveTypes.credentialName.check id) "${option}.credentials: ${id} is no ${hiveTypes.credentialName.description}"
      ) agent.credentials
      ++ mapAttrsToList (id: path: visible "${option}.credentials.${id}" path) agent.credentials
      ++ concatLists (mapAttrsToList (bindRules option) agent.binds)
      ++ lib.optional (agent.settings.environment_file != null) (
        visible "${option}.settings.environment_file" agent.settings.environment_file
      )
      ++ mapAttrsToList (
        variable: _:
        require (
          hiveTypes.variableName.check variable && !hiveTypes.isOwnVariable variable
        ) "${option}.settings.environment: ${variable} is set by the hive, or is no name of a variable"
      ) agent.settings.environment
      ++ mapAttrsToList (
        server: _:
        require (
          builtins.match "[A-Za-z0-9][A-Za-z0-9_-]{0,62}" server != null && !lib.hasPrefix "hyperhive" (lib.toLower server)
        ) "${option}.settings.mcp_servers: ${server} is the hive's own, or no name of a server"
      ) agent.settings.mcp_servers
      ++ refuseUnknown "${option}.settings" agentOptions.settings agent.settings
    )
    ++ mapAttrsToList (
      variable: _:
      require (hiveTypes.variableName.check variable) "${top}.settings.harness.environment: ${variable} is no ${hiveTypes.variableName.description}"
    ) cfg.settings.harness.environment;

    warnings =
      lib.optional (usesNix && (config.nix.settings.sandbox or true) == false)
        "${top}: nix.settings.sandbox is off, so that the builds of agents see the files of this host"
      ++
        lib.optional
          (cfg.egress.enable && (config.networking.nftables.flushRuleset or false))
          "${top}.egress: networking.nftables.flushRuleset takes its table away whenever the firewall is loaded; it comes back a moment later"
      ++ lib.optional (
        lib.filter (name: !((config.users.users or { }) ? ${name})) cfg.adminUsers != [ ]
      ) "${top}.adminUsers: users.users has no ${
        concatStringsSep ", " (lib.filter (name: !((config.users.users or { }) ? ${name})) cfg.adminUsers)
      }; who has no account of that name yet becomes no member"
      ++ lib.optional (
        usesVeth && !cfg.egress.enable
      ) "${top}.defaults.network: agents with a veth reach everything that this host forwards; ${top}.egress limits it";
  };
}
