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
    said:
    let
      path = hiveTypes.normal said;
    in
    lib.any (home: path == home || lib.hasPrefix "${home}/" path) [
      "/home"
      "/root"
      "/run/user"
    ];
  visible = option: path: require (!isHidden path) "${option}: ${path} is below /home, /root or /run/user, which hive-core.service does not see";

  stateDir = if cfg.settings.state_dir == "" then "/var/lib/hyperhive" else hiveTypes.normal cfg.settings.state_dir;
  # hive-core has the owner and the mode of that directory, and it lasts over a reboot.
  unfit = lib.findFirst (
    place: stateDir == place || lib.hasPrefix "${place}/" stateDir
  ) null hiveTypes.noHome;

  bindRules =
    option: others: said: bind:
    let
      path = hiveTypes.normal said;
      source = if bind.source != null then hiveTypes.normal bind.source else path;
      kept = hiveTypes.inOrAbove source (hiveTypes.neverBound ++ [ stateDir ]);
      fixed = hiveTypes.inOrAbove source hiveTypes.neverWritable;
      inside = hiveTypes.inOrAbove path (
        hiveTypes.ownInside
        ++ hiveTypes.bootsInside
        ++ lib.optionals (!bind.readOnly) hiveTypes.neverWritableInside
      );
      over = hiveTypes.inOrAbove path (map hiveTypes.normal (lib.remove said others));
    in
    [
      (require (hiveTypes.hostPath.check said) "${option}.binds: ${said} is no ${hiveTypes.hostPath.description}")
      (require (
        inside == null && !builtins.elem path hiveTypes.topsInside
      ) "${option}.binds: ${path} belongs to the machine itself; bind it elsewhere in it")
      (require (
        over == null
      ) "${option}.binds: ${path} and ${toString over} are in each other's way; bind one of them elsewhere")
      (require (kept == null) "${option}.binds.\"${path}\".source: ${source} has to do with ${toString kept}, which no machine gets")
      (require (
        bind.readOnly || fixed == null
      ) "${option}.binds.\"${path}\".readOnly: ${source} has to do with ${toString fixed}, which no machine may write")
    ];

  # What an agent's `settings` would say a second time.
  ownOption = {
    auto_start = "autoStart";
    binds = "binds";
    credentials = "credentials";
    image = "source";
    limits = "limits";
    network = "network";
  };

  atMost =
    count: option: values:
    require (
      builtins.length values <= count
    ) "${option}: ${toString (builtins.length values)} are more than the ${toString count} that hive-core takes";

  variableRules =
    option:
    mapAttrsToList (
      name: _:
      require (
        hiveTypes.variableName.check name && !hiveTypes.isOwnVariable name
      ) "${option}: ${name} is set by the hive, or is no name of a variable"
    );

  serverRules =
    option: name: server:
    [
      (require (
        builtins.match "[A-Za-z0-9][A-Za-z0-9_-]{0,62}" name != null && !lib.hasPrefix "hyperhive" (lib.toLower name)
      ) "${option}: ${name} is the hive's own, or no name of a server")
      (require (server.command != "") "${option}.${name}.command: it is empty; name a program in the machine")
    ]
    ++ variableRules "${option}.${name}.env" server.env;

  shadows =
    option: machine: [
      (require (
        !((config.systemd.nspawn or { }) ? ${machine})
      ) "${option}: systemd.nspawn.${machine} would win over what hive-core writes; remove it")
      (require (
        !((config.containers or { }) ? ${machine})
      ) "${option}: containers.${machine} has the name of its machine; rename it, or set ${top}.settings.machines.prefix")
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
        cfg.settings.run_dir == ""
        || (
          builtins.match "/run/[A-Za-z0-9][A-Za-z0-9._-]*" cfg.settings.run_dir != null
          && !builtins.elem (lib.removePrefix "/run/" cfg.settings.run_dir) hiveTypes.othersInRun
        )
      ) "${top}.settings.run_dir: ${cfg.settings.run_dir} is not a directory of its own directly below /run")
      (require (
        cfg.settings.state_dir == "" || hiveTypes.hostPath.check cfg.settings.state_dir
      ) "${top}.settings.state_dir: ${cfg.settings.state_dir} is no absolute path that systemd can take as it is")
      (visible "${top}.stateDir" stateDir)
      (require (
        unfit == null && !builtins.elem stateDir hiveTypes.systemsOwn
      ) "${top}.stateDir: ${stateDir} is the system's own${
        lib.optionalString (unfit != null) ", or lies in ${unfit}, where no state is kept"
      }; give the hive a directory of its own, such as /srv/hive")
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
          name == "manager" -> !(cfg.rendered.agents.${name} ? recipients)
        ) "${option}: the manager may write to everybody; take out ${
          if agent.settings.recipients != null then
            "settings.recipients"
          else
            "hyperhive.allowedRecipients of source.module"
        }")
        # The repository has no options; whoever gives it one is told so.
        (require (agent.source ? repo -> agent.source.repo == { }) "${option}.source.repo: it has no options")
        (atMost 32 "${option}.binds" (lib.attrNames agent.binds))
        (atMost 64 "${option}.credentials" (lib.attrNames agent.credentials))
        (atMost 32 "${option}.settings.mcp_servers" (lib.attrNames agent.settings.mcp_servers))
        (atMost 256 "${option}.settings.environment" (lib.attrNames agent.settings.environment))
        (atMost 256 "${option}.settings.recipients" (
          lib.optionals (agent.settings.recipients != null) agent.settings.recipients
        ))
      ]
      ++ shadows option (machineOf name)
      ++ mapAttrsToList (
        id: path: require (hiveTypes.credentialName.check id) "${option}.credentials: ${id} is no ${hiveTypes.credentialName.description}"
      ) agent.credentials
      ++ mapAttrsToList (id: path: visible "${option}.credentials.${id}" path) agent.credentials
      ++ concatLists (mapAttrsToList (bindRules option (lib.attrNames agent.binds)) agent.binds)
      ++ lib.optional (agent.settings.environment_file != null) (
        visible "${option}.settings.environment_file" agent.settings.environment_file
      )
      ++ variableRules "${option}.settings.environment" agent.settings.environment
      ++ concatLists (mapAttrsToList (serverRules "${option}.settings.mcp_servers") agent.settings.mcp_servers)
      ++ mapAttrsToList (
        key: instead: require (!(agent.settings ? ${key})) "${option}.settings.${key}: say it as ${option}.${instead}"
      ) ownOption
      ++ refuseUnknown "${option}.settings" agentOptions.settings (
        removeAttrs agent.settings (lib.attrNames ownOption)
      )
    )
    ++ lib.optionals (cfg.settings.approvals.manager && !(declared ? manager)) (
      shadows "${top}.manager.enable" (machineOf "manager")
    )
    ++ mapAttrsToList (
      model: _:
      require (
        hiveTypes.modelName.check model
      ) "${top}.contextWindowTokens: \"${model}\" is no ${hiveTypes.modelName.description}"
    ) cfg.contextWindowTokens
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
