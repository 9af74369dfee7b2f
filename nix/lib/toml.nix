# Renders attributes as TOML, without a derivation: what is written can be read, and tested, when it is evaluated.
{ lib }:
let
  inherit (builtins)
    isAttrs
    isBool
    isFloat
    isInt
    isList
    isString
    match
    toJSON
    ;

  # The escapes of JSON are also TOML's; the one character that only TOML wants escaped is DEL.
  string = text: lib.replaceStrings [ (builtins.fromJSON ''"\u007f"'') ] [ "\\u007F" ] (toJSON text);

  key = name: if match "[A-Za-z0-9_-]+" name != null then name else string name;

  # An empty table says nothing, but it is there.
  inline =
    value:
    if isString value then
      string value
    else if isBool value || isInt value || isFloat value then
      toJSON value
    else if isList value then
      "[${lib.concatMapStringsSep ", " inline value}]"
    else if isAttrs value then
      "{ ${lib.concatStringsSep ", " (lib.mapAttrsToList (name: inner: "${key name} = ${inline inner}") value)} }"
    else
      throw "cannot render a value of type ${builtins.typeOf value} as TOML";

  table =
    path: attrs:
    let
      tables = lib.filterAttrs (_: isAttrs) attrs;
      values = lib.filterAttrs (_: value: !isAttrs value) attrs;
      own = lib.mapAttrsToList (name: value: "${key name} = ${inline value}") values;
      header = lib.optional (path != [ ] && (own != [ ] || tables == { })) "[${lib.concatMapStringsSep "." key path}]";
    in
    lib.optional (header != [ ] || own != [ ]) (lib.concatStringsSep "\n" (header ++ own))
    ++ lib.concatLists (lib.mapAttrsToList (name: table (path ++ [ name ])) tables);
in
attrs: lib.concatStringsSep "\n\n" (table [ ] attrs) + "\n"
