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

  # The eight groups of an address, or fewer with :: in it; the last two may be written as IPv4.
  isIpv6 =
    text:
    let
      halves = lib.splitString "::" text;
      groups = lib.concatMap (half: lib.optionals (half != "") (lib.splitString ":" half)) halves;
      endsInV4 =
        groups != [ ] && lib.last halves != "" && builtins.match ipv4 (lib.last groups) != null;
      hex = if endsInV4 then lib.init groups else groups;
      count = builtins.length hex + (if endsInV4 then 2 else 0);
    in
    builtins.length halves <= 2
    && lib.all (group: builtins.match "[0-9a-fA-F]{1,4}" group != null) hex
    && (if builtins.length halves == 2 then count <= 7 else count == 8);

  # Nix counts bytes.  Those that continue a character are 0x80 to 0xbf.
  characters =
    let
      byte = text: builtins.substring 1 1 (builtins.fromJSON text);
      first = byte ''"\u0080"'';
      last = byte ''"\u00bf"'';
    in
    text: lib.count (each: each < first || each > last) (lib.stringToCharacters text);

  # What ends a line, or steers a terminal, and is no control character to a regular expression.
  steering = map (digits: builtins.fromJSON ''"\u${digits}"'') (
    [
      "2028"
      "2029"
    ]
    ++ map (number: "00${lib.toLower (lib.toHexString number)}") (lib.range 128 159)
  );

  factors = {
    "" = 1.0;
    k = 1024.0;
    m = 1048576.0;
    g = 1073741824.0;
    t = 1099511627776.0;
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

  # With less no machine boots; more systemd cannot count.
  size = checked ''size such as "512M" or "4G", and not below 64M'' (
    value:
    let
      parts = builtins.match "([0-9]{1,15})([KMGTkmgt]?)" value;
      bytes = lib.toIntBase10 (lib.head parts) * factors.${lib.toLower (lib.last parts)};
    in
    parts != null && bytes >= 64 * factors.m && bytes < 8388608 * factors.t
  );

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
  hostPath = checked "absolute path of letters, digits and / . _ + @ = ~ , -, without . or .. as a name" (
    value:
    builtins.match "/[A-Za-z0-9/._+@=~,-]{0,1023}" value != null
    && lib.intersectLists [ "." ".." ] (lib.splitString "/" value) == [ ]
  );

  # The same path with one slash between names, and none at the end.
  normal = path: "/" + lib.concatStringsSep "/" (lib.remove "" (lib.splitString "/" path));

  # What is read from the host at run time: in the store, everybody could read it.
  secretPath = checked "${hostPath.description}, and not in /nix/store" (
    value: hostPath.check value && !lib.hasPrefix "/nix/store/" (normal value)
  );

  orEmpty = type: checked "${type.description}, or empty" (value: value == "" || type.check value);

  cidr = checked "network or address such as 192.0.2.0/24 or 2001:db8::/32" (
    value:
    let
      v6 = builtins.match "([^/]*)(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?" value;
    in
    builtins.match "${ipv4}(/(3[0-2]|[12]?[0-9]))?" value != null || (v6 != null && isIpv6 (lib.head v6))
  );

  # hive_core/domain/address.py: parse_subnet.
  subnet = checked "IPv4 network such as 10.213.0.0/16, of eight addresses at least, with nothing behind its prefix" (
    value:
    let
      parts = builtins.match "([0-9]+)\\.([0-9]+)\\.([0-9]+)\\.([0-9]+)/([0-9]+)" value;
      number = lib.foldl (sum: part: sum * 256 + lib.toIntBase10 part) 0 (lib.init parts);
      size = lib.foldl (sum: _: sum * 2) 1 (lib.range 1 (32 - lib.toIntBase10 (lib.last parts)));
    in
    builtins.match "${ipv4}/([12]?[0-9])" value != null && number / size * size == number
  );

  credentialName = matching "name of a credential (letters, digits and . _ -)" "[A-Za-z0-9_][A-Za-z0-9._-]{0,63}";

  variableName = matching "name of a variable" "[A-Za-z_][A-Za-z0-9_]{0,127}";

  userName = matching "name of a user" "[a-z_][a-z0-9_-]{0,30}";

  line = checked "text of one line, without control characters" (
    value: builtins.match "[^[:cntrl:]]*" value != null
  );

  # hive_core/declarable.py: Value.
  value = checked "text without control characters, but for tab and newline" (
    value: line.check (lib.replaceStrings [ "\n" "\t" ] [ "" "" ] value)
  );

  # hive_core/wire/ids.py: Label.
  label = checked "text of 1 to 64 characters, on one line" (
    value:
    value != ""
    && line.check value
    && characters value <= 64
    && !lib.any (each: lib.hasInfix each value) steering
  );

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

  # As it stands in lists such as HIVE_CONTEXT_WINDOW_TOKENS.
  modelName = matching "name of a model, without comma and =" "[^,=[:cntrl:]]{1,200}";

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
// import ./kept.nix { inherit lib; }
