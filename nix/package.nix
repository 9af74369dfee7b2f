# The application: programs, harness, units, manual pages.
#
#   out     bin/{hive,hive-core,hive-agent,python3}, lib/systemd/system, share/…: what a host gets
#   guest   lib/systemd/system/hive-agent.service: what the closure of an agent gets
#
# bin/python3 finds hive_core and hive_agent: the daemon seals machines with it, and runs as it, so that what it hands to
# a machine (sys.prefix) is whole.
{
  lib,
  coreutils,
  git,
  makeWrapper,
  nftables,
  python3,
  runCommand,
}:
let
  root = ../.;
  version = lib.head (
    builtins.match ".*VERSION = \"([^\"]+)\".*" (builtins.readFile (root + "/hive_core/wire/version.py"))
  );

  application = python3.pkgs.buildPythonApplication {
    pname = "hyperhive";
    inherit version;
    pyproject = true;

    src = lib.fileset.toSource {
      inherit root;
      fileset = lib.fileset.unions [
        (root + "/hive_agent")
        (root + "/hive_core")
        (root + "/tests")
        (root + "/docs")
        (root + "/systemd")
        (root + "/benchmarks")
        (root + "/.importlinter")
        (root + "/Makefile")
        (root + "/README.md")
        (root + "/ARCHITECTURE.md")
        (root + "/pyproject.toml")
        (root + "/requirements.lock")
        (root + "/requirements-dev.lock")
      ];
    };

    build-system = [ python3.pkgs.hatchling ];
    # The lock files pin what was tried; a NixOS has one version of each.
    pythonRelaxDeps = true;
    dependencies = with python3.pkgs; [
      apsw
      click
      msgspec
      pyroute2
      rich
      sdnotify
      trio
    ];

    nativeCheckInputs = [
      git
    ]
    ++ (with python3.pkgs; [
      hypothesis
      pytest-timeout
      pytest-trio
      pytest-xdist
      pytestCheckHook
    ]);
    # Of what is in no sandbox, and of style, which is checked where it is written.
    disabledTestPaths = [
      "tests/claude"
      "tests/host_bed"
      "tests/nix"
      "tests/project"
    ];
    disabledTestMarks = [
      "claude"
      "host_bed"
      "root"
    ];
    preCheck = ''
      export HOME=$TMPDIR
    '';
    pythonImportsCheck = [
      "hive_agent"
      "hive_core"
    ];

    meta = {
      description = "Runs a swarm of coding agents on your own machine, each in its own cage";
      mainProgram = "hive";
      platforms = lib.platforms.linux;
    };
  };

  environment = python3.withPackages (_: [ (python3.pkgs.toPythonModule application) ]);
in
runCommand "hyperhive-${version}"
  {
    inherit version;
    pname = "hyperhive";
    outputs = [
      "out"
      "guest"
    ];
    nativeBuildInputs = [ makeWrapper ];
    passthru = {
      inherit application environment;
    };
    meta = application.meta // {
      outputsToInstall = [ "out" ];
    };
  }
  ''
    mkdir -p $out/bin $out/lib $guest/lib/systemd/system
    # What python3 is: with -I it still has its packages, whatever the environment says.
    ln -s ${environment}/bin/python3 $out/bin/python3
    # By its name hive-core knows which Python a harness has.
    ln -s ${environment}/lib/python3.* $out/lib/
    for program in hive hive-core hive-agent; do
      makeWrapper ${environment}/bin/$program $out/bin/$program \
        --suffix PATH : ${
          lib.makeBinPath [
            git
            nftables
          ]
        }
    done

    cp -r --no-preserve=mode ${application}/lib/{systemd,sysctl.d,sysusers.d,tmpfiles.d} $out/lib/
    cp -r --no-preserve=mode ${application}/share $out/share
    substituteInPlace $out/lib/systemd/system/hive-core.service \
      --replace-fail "ExecStart=/opt/hyperhive/bin/hive-core serve" \
        "ExecStart=${environment}/bin/python3 -I -X faulthandler -m hive_core serve" \
      --replace-fail "ExecReload=kill " "ExecReload=${coreutils}/bin/kill "

    cp --no-preserve=mode ${root + "/systemd/hive-agent.service"} $guest/lib/systemd/system/hive-agent.service
    substituteInPlace $guest/lib/systemd/system/hive-agent.service \
      --replace-fail "/opt/hyperhive/bin/python3" "${environment}/bin/python3" \
      --replace-fail "PATH=/opt/hyperhive/bin:" "PATH=$out/bin:"
    if grep -rn '^[^#].*/opt/hyperhive' $out/lib/systemd $guest/lib/systemd; then
      echo 'a unit names /opt/hyperhive, which is not there on NixOS' >&2
      exit 1
    fi
  ''
