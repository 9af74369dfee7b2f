# Configurations of hosts and of agents: good ones, and bad ones with what the refusal has to say.
{ pkgs }:
let
  closure = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-nixos-system-carol";
  # With the prefix h- the longest machine name that systemd allows.
  longest = "a123456789b123456789c123456789d123456789e123456789f123456789gh";
  host = module: {
    imports = [ module ];
    services.hyperhive.enable = true;
  };
in
{
  host = {
    good = {
      disabled = { };

      minimal.services.hyperhive.enable = true;

      full = host {
        services.hyperhive = {
          adminUsers = [ "ada" ];
          manager.enable = true;
          dashboard.domain = "hive.example.org";
          operatorPronouns = "she/her";
          contextWindowTokens = {
            haiku = 200000;
            opus = 1000000;
          };
          defaults.limits.memoryMax = "2G";
          egress = {
            enable = true;
            allow = [
              "192.0.2.0/24"
              "2001:db8::/32"
            ];
          };
          settings = {
            log_level = "debug";
            harness = {
              provider = "claude";
              environment.ANTHROPIC_BASE_URL = "https://proxy.example.org/\"quoted\"";
              environment_file = "/etc/hyperhive/secrets.env";
            };
            machines.start_parallel = 2;
            retention.messages_days = 90;
          };
          agents = {
            alice = {
              source.module = {
                hyperhive = {
                  model = "haiku";
                  availableModels = [
                    "haiku"
                    "opus"
                  ];
                  allowedRecipients = [
                    "bob"
                    "operator"
                  ];
                  extraMcpServers.notes.command = "/run/current-system/sw/bin/notes-mcp";
                };
              };
              network = "veth";
              limits = {
                memoryMax = "8G";
                cpuQuota = "400%";
                tasksMax = 4096;
              };
              binds."/srv/books" = { };
              binds."/data" = {
                source = "/srv/data";
                readOnly = false;
              };
              credentials.api-key = "/run/secrets/alice";
            };
            bob = {
              source.image = "debian";
              autoStart = false;
              settings = {
                description = "counts words";
                provider = "scripted";
                recipients = [ ];
                environment.GREETING = "hello";
                mcp_servers.clock = {
                  command = "/usr/bin/clock";
                  args = [ "--utc" ];
                };
              };
            };
            carol.source.path = closure;
            dave = { };
            erin.enable = false;
          };
        };
        users.users.ada.isNormalUser = true;
      };

      elsewhere = host {
        services.hyperhive = {
          stateDir = "/srv/hive";
          settings = {
            run_dir = "/run/lab-hive";
            admin_group = "lab-admin";
            machines.prefix = "lab-";
          };
        };
      };

      two = host {
        services.hyperhive = {
          defaults.network = "none";
          agents.alice.source.image = "debian";
          agents.bob.source.image = "debian";
        };
      };

      # For a host that is no NixOS: a bed boots it (tests/host_bed).
      bed = host {
        services.hyperhive = {
          settings.machines.harness_dir = "/opt/hyperhive";
          agents.alice.source.image = "debian";
          agents.bob.source.image = "debian";
        };
        systemd.services.hive-core.path = pkgs.lib.mkForce [ "/usr" ];
      };

      # Names of the original.
      renamed = {
        services.hive-c0re = {
          enable = true;
          agentMemoryMax = "1G";
          agentCpuQuota = "50%";
          operatorPronouns = "they/them";
        };
      };

      # A package that is newer than this module.
      newer = host {
        services.hyperhive = {
          checkConfig = false;
          settings.teleport.enabled = true;
          agents.alice.settings.wings = 2;
        };
      };

      builder = host {
        services.hyperhive.settings.deploy = {
          builder = "nix";
          inputs = {
            hyperhive = "path:/nix/store/hyperhive";
            nixpkgs = "path:/nix/store/nixpkgs";
          };
        };
      };

      # What only looks wrong.
      odd = host {
        services.hyperhive = {
          stateDir = "/srv/hive/";
          defaults.network = "veth";
          egress.enable = true;
          egress.allow = [
            "::"
            "::/0"
            "::ffff:192.0.2.1"
            "1:2:3:4:5:6:7:8"
            "10.0.0.0/8"
            "10.1.0.0/16"
          ];
          settings.machines.subnet = "192.168.8.0/29";
          agents.manager.source.module = { };
          agents."007" = {
            limits.memoryMax = "64m";
            binds = {
              "/srv/books/" = { };
              "/usr/share/dict" = { };
            };
            settings = {
              # 64 characters, and more bytes.
              description = "äöü äöü äöü äöü äöü äöü äöü äöü äöü äöü äöü äöü äöü äöü äöü äöü!";
              recipients = [
                "manager"
                "operator"
              ];
              environment.KEY = "one\n\ttwo";
              mcp_servers.sh = {
                command = "/bin/sh";
                args = [
                  "-c"
                  "one\ntwo"
                ];
              };
            };
          };
        };
      };

      # "Empty" is what there is without a word.
      empty = host {
        services.hyperhive = {
          settings.state_dir = "";
          agents.alice.binds."/x".source = "/srv/x";
        };
      };

      longest = host {
        services.hyperhive.agents = {
          "${longest}" = { };
          manager.source.image = "debian";
        };
      };
    };

    bad = {
      size = {
        module = host { services.hyperhive.agents.alice.limits.memoryMax = "lots"; };
        says = "services.hyperhive.agents.alice.limits.memoryMax";
      };
      quota = {
        module = host { services.hyperhive.defaults.limits.cpuQuota = "0%"; };
        says = "services.hyperhive.defaults.limits.cpuQuota";
      };
      network = {
        module = host { services.hyperhive.agents.alice.network = "host"; };
        says = "services.hyperhive.agents.alice.network";
      };
      unknown-option = {
        module = host { services.hyperhive.agents.alice.autostart = true; };
        says = "services.hyperhive.agents.alice.autostart";
      };
      two-sources = {
        module = host {
          services.hyperhive.agents.alice.source = {
            image = "debian";
            path = closure;
          };
        };
        says = "services.hyperhive.agents.alice.source";
      };
      unknown-source = {
        module = host { services.hyperhive.agents.alice.source.flake = "github:ada/alice"; };
        says = "services.hyperhive.agents.alice.source";
      };
      path-outside-the-store = {
        module = host { services.hyperhive.agents.alice.source.path = "/home/ada/result"; };
        says = "services.hyperhive.agents.alice.source.path";
      };
      name = {
        module = host { services.hyperhive.agents.Bad_Name = { }; };
        says = "services.hyperhive.agents.Bad_Name: Bad_Name is no name of an agent";
      };
      reserved = {
        module = host { services.hyperhive.agents.operator = { }; };
        says = "services.hyperhive.agents.operator: the name operator is reserved";
      };
      too-long = {
        module = host { services.hyperhive.agents."${longest}x" = { }; };
        says = "longer than the 64 characters that systemd allows";
      };
      shadowed = {
        module = host {
          services.hyperhive.agents.alice = { };
          systemd.nspawn.h-alice = { };
        };
        says = "services.hyperhive.agents.alice: systemd.nspawn.h-alice would win";
      };
      egress-of-nobody = {
        module = host { services.hyperhive.egress.enable = true; };
        says = "services.hyperhive.egress.enable: no agent has network";
      };
      egress-of-a-name = {
        module = host {
          services.hyperhive = {
            defaults.network = "veth";
            egress.enable = true;
            egress.allow = [ "example.org" ];
          };
        };
        says = "services.hyperhive.egress.allow";
      };
      misspelt-key = {
        module = host { services.hyperhive.settings.machines.memmory_max = "4G"; };
        says = "services.hyperhive.settings.machines.memmory_max: hive-core of this version has no such key";
      };
      misspelt-table = {
        module = host { services.hyperhive.settings.machine.image = "debian"; };
        says = "services.hyperhive.settings.machine: hive-core of this version has no such key";
      };
      misspelt-key-of-an-agent = {
        module = host { services.hyperhive.agents.alice.settings.modell = "opus"; };
        says = "services.hyperhive.agents.alice.settings.modell: hive-core of this version has no such key";
      };
      out-of-bounds = {
        module = host { services.hyperhive.settings.machines.start_parallel = 65; };
        says = "services.hyperhive.settings.machines.start_parallel";
      };
      agents-as-settings = {
        module = host { services.hyperhive.settings.agents.alice.image = "debian"; };
        says = "services.hyperhive.settings.agents: declare agents in services.hyperhive.agents";
      };
      secret-in-the-store = {
        module = host { services.hyperhive.agents.alice.credentials.key = "${closure}/key"; };
        says = "services.hyperhive.agents.alice.credentials.key";
      };
      secret-at-home = {
        module = host { services.hyperhive.settings.harness.environment_file = "/root/secrets"; };
        says = "services.hyperhive.settings.harness.environment_file: /root/secrets is below /home, /root";
      };
      state-at-home = {
        module = host { services.hyperhive.stateDir = "/home/ada/hive"; };
        says = "services.hyperhive.stateDir: /home/ada/hive is below /home";
      };
      bind-over-the-machine = {
        module = host { services.hyperhive.agents.alice.binds."/run/hive/x".source = "/srv/x"; };
        says = "services.hyperhive.agents.alice.binds: /run/hive/x belongs to the machine itself";
      };
      bind-of-the-host = {
        module = host { services.hyperhive.agents.alice.binds."/x".source = "/var/lib"; };
        says = "services.hyperhive.agents.alice.binds.\"/x\".source: /var/lib has to do with /var/lib/hyperhive";
      };
      bind-that-is-written = {
        module = host {
          services.hyperhive.agents.alice.binds."/x" = {
            source = "/etc/nixos";
            readOnly = false;
          };
        };
        says = "services.hyperhive.agents.alice.binds.\"/x\".readOnly: /etc/nixos has to do with /etc";
      };
      variable-of-the-hive = {
        module = host { services.hyperhive.agents.alice.settings.environment.LD_PRELOAD = "x.so"; };
        says = "services.hyperhive.agents.alice.settings.environment: LD_PRELOAD is set by the hive";
      };
      bind-with-syntax = {
        module = host { services.hyperhive.agents.alice.binds."/x".source = "/srv/a:b"; };
        says = "services.hyperhive.agents.alice.binds.\"/x\".source";
      };
      run-dir = {
        module = host { services.hyperhive.settings.run_dir = "/var/run/hive"; };
        says = "services.hyperhive.settings.run_dir: /var/run/hive is not a directory of its own directly below /run";
      };
      builder-without-inputs = {
        module = host { services.hyperhive.settings.deploy.builder = "nix"; };
        says = "services.hyperhive.settings.deploy.inputs";
      };
      input-of-an-agent = {
        module = host { services.hyperhive.settings.deploy.inputs.agent-alice = "path:/srv/alice"; };
        says = "services.hyperhive.settings.deploy.inputs: agent-alice is no name";
      };
      without-nix = {
        module = host {
          nix.enable = false;
          services.hyperhive.agents.alice.source.module = { };
        };
        says = "services.hyperhive.agents.<name>.source.module: closures need nix.enable";
      };
      bind-where-a-machine-boots = {
        module = host { services.hyperhive.agents.alice.binds."/etc/systemd/system".source = "/srv/x"; };
        says = "services.hyperhive.agents.alice.binds: /etc/systemd/system belongs to the machine itself";
      };
      bind-that-is-written-inside = {
        module = host {
          services.hyperhive.agents.alice.binds."/usr/share/x" = {
            source = "/srv/x";
            readOnly = false;
          };
        };
        says = "services.hyperhive.agents.alice.binds: /usr/share/x belongs to the machine itself";
      };
      bind-with-more-slashes = {
        module = host { services.hyperhive.agents.alice.binds."/usr//".source = "//root/"; };
        says = "services.hyperhive.agents.alice.binds: /usr belongs to the machine itself";
      };
      bind-with-a-dot = {
        module = host { services.hyperhive.agents.alice.binds."/x".source = "/srv/./x"; };
        says = "services.hyperhive.agents.alice.binds.\"/x\".source";
      };
      bind-of-the-state = {
        module = host {
          services.hyperhive.stateDir = "/srv/hive/";
          services.hyperhive.agents.alice.binds."/x".source = "/srv/hive/agents";
        };
        says = "services.hyperhive.agents.alice.binds.\"/x\".source: /srv/hive/agents has to do with /srv/hive,";
      };
      binds-in-each-other = {
        module = host {
          services.hyperhive.agents.alice.binds = {
            "/data".source = "/srv/a";
            "/data/b".source = "/srv/b";
          };
        };
        says = "services.hyperhive.agents.alice.binds: /data and /data/b are in each other's way";
      };
      too-many-binds = {
        module = host {
          services.hyperhive.agents.alice.binds = pkgs.lib.genAttrs (map (n: "/x${toString n}") (pkgs.lib.range 1 33)) (_: { });
        };
        says = "services.hyperhive.agents.alice.binds: 33 are more than the 32";
      };
      too-little-memory = {
        module = host { services.hyperhive.agents.alice.limits.memoryMax = "1M"; };
        says = "services.hyperhive.agents.alice.limits.memoryMax";
      };
      state-on-the-root = {
        module = host { services.hyperhive.stateDir = "/"; };
        says = "services.hyperhive.stateDir: / is the system's own";
      };
      state-that-a-reboot-takes = {
        module = host { services.hyperhive.stateDir = "/run/hive-state"; };
        says = "services.hyperhive.stateDir: /run/hive-state is the system's own, or lies in /run";
      };
      run-dir-of-another = {
        module = host { services.hyperhive.settings.run_dir = "/run/systemd"; };
        says = "services.hyperhive.settings.run_dir: /run/systemd is not a directory of its own";
      };
      shadowed-manager = {
        module = host {
          services.hyperhive.manager.enable = true;
          systemd.nspawn.hm1nd = { };
        };
        says = "services.hyperhive.manager.enable: systemd.nspawn.hm1nd would win";
      };
      narrow-manager = {
        module = host {
          services.hyperhive.agents.manager.source.module.hyperhive.allowedRecipients = [ "bob" ];
        };
        says = "services.hyperhive.agents.manager: the manager may write to everybody; take out hyperhive.allowedRecipients";
      };
      repository-from-elsewhere = {
        module = host { services.hyperhive.agents.alice.source.repo.url = "https://example.org/alice"; };
        says = "services.hyperhive.agents.alice.source.repo.url";
      };
      image-as-a-setting = {
        module = host { services.hyperhive.agents.alice.settings.image = "debian"; };
        says = "services.hyperhive.agents.alice.settings.image: say it as services.hyperhive.agents.alice.source";
      };
      server-of-nothing = {
        module = host { services.hyperhive.agents.alice.settings.mcp_servers.notes.command = ""; };
        says = "services.hyperhive.agents.alice.settings.mcp_servers.notes.command: it is empty";
      };
      server-with-a-variable-of-the-hive = {
        module = host {
          services.hyperhive.agents.alice.settings.mcp_servers.notes = {
            command = "/bin/notes";
            env.LD_PRELOAD = "x.so";
          };
        };
        says = "services.hyperhive.agents.alice.settings.mcp_servers.notes.env: LD_PRELOAD is set by the hive";
      };
      name-with-a-line-end = {
        module = host {
          services.hyperhive.agents.alice.settings.description = builtins.fromJSON ''"one\u2028two"'';
        };
        says = "services.hyperhive.agents.alice.settings.description";
      };
      windows-of-two = {
        module = host { services.hyperhive.contextWindowTokens."haiku,opus" = 200000; };
        says = "services.hyperhive.contextWindowTokens: \"haiku,opus\" is no name of a model";
      };
      subnet-of-nobody = {
        module = host { services.hyperhive.settings.machines.subnet = "10.213.0.1/16"; };
        says = "services.hyperhive.settings.machines.subnet";
      };
      egress-of-no-address = {
        module = host {
          services.hyperhive = {
            defaults.network = "veth";
            egress.enable = true;
            egress.allow = [ "2001:db8/32" ];
          };
        };
        says = "services.hyperhive.egress.allow";
      };
      peers = {
        module = host { services.hyperhive.swarm.peers.other = { }; };
        says = "`services.hyperhive.swarm' in";
      };
      removed = {
        module = host { services.hive-c0re.dashboardPort = 7000; };
        says = "services.hive-c0re.dashboardPort";
      };
      # An agent's own mistakes are told with the option of the host.
      module-of-an-agent = {
        module = host {
          services.hyperhive.agents.alice.source.module.hyperhive = {
            model = "haiku";
            availableModels = [ "opus" ];
          };
        };
        says = "services.hyperhive.agents.alice.source.module: hyperhive.model: haiku is none of";
      };
    };
  };

  agent = {
    good = {
      minimal = { };
      full = {
        hyperhive = {
          model = "haiku";
          availableModels = [ "haiku" ];
          effortLevel = "high";
          autoCompact = false;
          contextWindowTokens.haiku = 200000;
          extraMcpServers.notes = {
            command = "/bin/notes";
            args = [ "a b" ];
            env.KEY = "value";
            allowedTools = [ "read" ];
          };
          claudePlugins = [ "code-review@official" ];
          backendEnvironmentFile = "/run/hive/credentials/backend";
          environment.GREETING = "say \"hello\" for $5";
          extraPackages = [ pkgs.jq ];
        };
      };
      # As a hive's own flake declares it; what the host alone decides is warned of.
      declared = {
        hyperhive.identity = {
          label = "alice";
          committer = {
            name = "alice";
            email = "alice@hyperhive";
          };
          isManager = false;
        };
        hyperhive.allowedRecipients = [ "bob" ];
      };
      # Since 25.11 NixOS has an option for it.
      newer = {
        options.boot.isNspawnContainer = pkgs.lib.mkOption {
          type = pkgs.lib.types.bool;
          default = false;
        };
      };
    };

    bad = {
      model = {
        module.hyperhive = {
          model = "opus";
          availableModels = [ "haiku" ];
        };
        says = "hyperhive.model: opus is none of hyperhive.availableModels";
      };
      hosts-own = {
        module.hyperhive.environment.HIVE_LABEL = "mallory";
        says = "hyperhive.environment.\"HIVE_LABEL\": the host says it";
      };
      hives-programs = {
        module.hyperhive.environment.LD_PRELOAD = "x.so";
        says = "hyperhive.environment.\"LD_PRELOAD\": the host says it, or it would change";
      };
      windows-of-two = {
        module.hyperhive.contextWindowTokens."haiku,opus" = 200000;
        says = "hyperhive.contextWindowTokens: \"haiku,opus\" is no name of a model";
      };
      models-in-one = {
        module.hyperhive.availableModels = [ "haiku,opus" ];
        says = "hyperhive.availableModels";
      };
      server-of-nothing = {
        module.hyperhive.extraMcpServers.notes.command = "";
        says = "hyperhive.extraMcpServers.notes.command: it is empty";
      };
      server-with-a-variable-of-the-hive = {
        module.hyperhive.extraMcpServers.notes = {
          command = "/bin/notes";
          env.PYTHONPATH = "/x";
        };
        says = "hyperhive.extraMcpServers.notes.env.\"PYTHONPATH\"";
      };
      package-of-another = {
        module.hyperhive.package = pkgs.jq;
        says = "hyperhive.package: jq has no output guest";
      };
      of-the-original = {
        module.hyperhive.gui.enable = true;
        says = "`hyperhive.gui' in";
      };
      server = {
        module.hyperhive.extraMcpServers.hyperhive.command = "/bin/sh";
        says = "hyperhive.extraMcpServers.hyperhive: that name is the hive's own";
      };
      plugin = {
        module.hyperhive.claudePlugins = [ "--help; true" ];
        says = "hyperhive.claudePlugins";
      };
      effort = {
        module.hyperhive.effortLevel = "huge";
        says = "hyperhive.effortLevel";
      };
      secret-in-the-store = {
        module.hyperhive.backendEnvironmentFile = "${closure}/env";
        says = "hyperhive.backendEnvironmentFile";
      };
      cage = {
        module.hyperhive.network = "host";
        says = "hyperhive.network";
      };
    };
  };
}
