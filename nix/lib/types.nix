# Types that are as strict as what reads the value: hive_core/wire, hive_core/config.py and systemd.
{ lib }:
let
  inherit (lib) mkOptionType types;

  # strMatching with words for the person who reads the error.
  matching =
    description: pattern:
    types.strMatching pattern
    // {
      inherit description;
      descriptionClass = "noun";
    };

  octet = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
  ipv4 = "${octet}\\.${octet}\\.${octet}\\.${octet}";

  checked =
    description: check:
    mkOptionType {
      name = "text";
      descriptionClass = "noun";
      inherit description;
      check = value: builtins.isString value && check value;
      merge = lib.mergeEqualOption;
    };
in
rec {
  reservedAgentNames = [
    "all"
    "operator"
    "reminder"
    "self"
    "system"
  ];

  agentName =
    matching "name of an agent (a-z, 0-9 and -, 1 to 63 characters, no hyphen at either end)"
      "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?";

  machinePrefix =
    matching "prefix of machine names (1 to 7 of a-z and 0-9, then a hyphen)"
      "[a-z0-9][a-z0-9]{0,6}-";

  size = matching ''size such as "512M" or "4G"'' "[0-9]{1,15}[KMGTkmgt]?";

  percent = matching ''share of processors such as "200%", which is two'' "[1-9][0-9]{0,5}%";

  tasks = types.ints.between 64 4194304;

  network = types.enum [
    "none"
    "veth"
  ];

  imageName =
    matching "name of a tree below /var/lib/machines, or path of a closure in /nix/store"
      "[A-Za-z0-9][A-Za-z0-9._-]{0,63}|/nix/store/[a-z0-9]{32}-[A-Za-z0-9+._?=-]{1,200}";

  # In a .nspawn file a colon ends a path and a percent sign begins a specifier.
  hostPath = checked "absolute path of letters, digits and / . _ + @ = ~ , -, without .." (
    value:
    builtins.match "/[A-Za-z0-9/._+@=~,-]*" value != null && !builtins.elem ".." (lib.splitString "/" value)
  );

  # What is read from the host at run time: in the store, everybody could read it.
  secretPath = checked "${hostPath.description}, and not in /nix/store" (
    value: hostPath.check value && !lib.hasPrefix "/nix/store/" value
  );

  orEmpty = type: checked "${type.description}, or empty" (value: value == "" || type.check value);

  cidr = matching "network or address such as 192.0.2.0/24 or 2001:db8::/32" "${ipv4}(/(3[0-2]|[12]?[0-9]))?|[0-9a-fA-F]*:[0-9a-fA-F:.]*(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?";

  subnet = matching "IPv4 network such as 10.213.0.0/16" "${ipv4}/(3[0-2]|[12]?[0-9])";

  credentialName = matching "name of a credential (letters, digits and . _ -)" "[A-Za-z0-9_][A-Za-z0-9._-]{0,63}";

  variableName = matching "name of a variable" "[A-Za-z_][A-Za-z0-9_]{0,127}";

  userName = matching "name of a user" "[a-z_][a-z0-9_-]{0,30}";

  line = checked "text of one line, without control characters" (
    value: builtins.match "[^[:cntrl:]]*" value != null
  );

  # hive_core/wire/ids.py: Label.
  label = checked "text of 1 to 64 characters, on one line" (
    value: builtins.match "[^[:cntrl:]]{1,64}" value != null
  );

  # hive_core/domain/manifest.py: what no machine is given, or gets to write, and what in it is its own.
  neverBound = [
    "/proc"
    "/sys"
    "/dev"
    "/run"
    "/var/run"
    "/boot"
    "/root"
    "/etc/hyperhive"
    "/var/lib/hyperhive"
    "/var/lib/machines"
  ];
  neverWritable = [
    "/usr"
    "/bin"
    "/sbin"
    "/lib"
    "/lib32"
    "/lib64"
    "/libx32"
    "/etc"
    "/nix"
    "/opt/hyperhive"
    "/var/spool/cron"
    "/var/lib/systemd"
  ];
  ownInside = [
    "/proc"
    "/sys"
    "/dev"
    "/run"
    "/nix"
    "/.image"
    "/opt/hyperhive"
    "/etc/hyperhive"
    "/state"
    "/agents"
    "/applied"
    "/meta"
    "/root/.claude"
  ];
  topsInside = [
    "/"
    "/bin"
    "/boot"
    "/etc"
    "/home"
    "/lib"
    "/lib32"
    "/lib64"
    "/libx32"
    "/root"
    "/sbin"
    "/tmp"
    "/usr"
    "/var"
  ];
  ownVariables = [
    "BASH_ENV"
    "BUN_OPTIONS"
    "CLAUDE_CONFIG_DIR"
    "CREDENTIALS_DIRECTORY"
    "ENV"
    "GCONV_PATH"
    "HOME"
    "IFS"
    "INVOCATION_ID"
    "LOGNAME"
    "NODE_OPTIONS"
    "NOTIFY_SOCKET"
    "OPENSSL_CONF"
    "OPENSSL_ENGINES"
    "OPENSSL_MODULES"
    "PATH"
    "RUNTIME_DIRECTORY"
    "SHELL"
    "TMPDIR"
    "USER"
  ];
  ownPrefixes = [
    "HIVE_"
    "HYPERHIVE_"
    "LD_"
    "PYTHON"
    "GLIBC_"
    "SYSTEMD_"
    "LISTEN_"
  ];

  isOwnVariable = name: builtins.elem name ownVariables || lib.any (prefix: lib.hasPrefix prefix name) ownPrefixes;

  # The one of `places` that `path` lies in, is, or holds; null: none.
  inOrAbove =
    path: places:
    let
      below = inner: outer: outer == "/" || inner == outer || lib.hasPrefix "${outer}/" inner;
    in
    lib.findFirst (place: below path place || below place path) null places;

  # A derivation, or the path of one: types.package would look the path up in the store, which pure evaluation cannot.
  closure = mkOptionType {
    name = "closure";
    description = "system closure, a derivation or a path directly below /nix/store";
    descriptionClass = "noun";
    check =
      value:
      lib.isDerivation value
      || (
        (builtins.isString value || builtins.isPath value)
        && builtins.match "/nix/store/[a-z0-9]{32}-[A-Za-z0-9+._?=-]{1,200}" (toString value) != null
      );
    merge = lib.mergeOneOption;
  };

  # Whatever a TOML file can hold.
  toml =
    let
      value =
        types.oneOf [
          types.bool
          types.int
          types.float
          types.str
          (types.attrsOf value)
          (types.listOf value)
        ]
        // {
          description = "value of a TOML file";
        };
    in
    value;
}
