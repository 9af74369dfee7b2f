#!/bin/sh
# Puts hyperhive on a plain host with systemd, or takes it away: `make install`, `make uninstall`.
#   PREFIX    the programs; bound read-only into each machine as /opt/hyperhive  [/opt/hyperhive]
#   DESTDIR   install below it, as packagers do; this host is then left alone
#   PYTHON    the interpreter, which machines must have at the same path  [/usr/bin/python3]
set -eu
umask 022
PREFIX=${PREFIX:-/opt/hyperhive} PREFIX=${PREFIX%/} DESTDIR=${DESTDIR:-} PYTHON=${PYTHON:-/usr/bin/python3}
src=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
home=$DESTDIR$PREFIX
config=/etc/hyperhive/config.toml
programs='hive hive-core hive-agent'

fail() {
    printf 'cannot %s: %s\n' "$verb" "$1" >&2
    exit 1
}

# What goes where besides PREFIX: SOURCE TARGET, one per line.
files() {
    units=/usr/local/lib/systemd/system
    for unit in hive-core.service hive-core.socket machine-hive.slice; do
        echo "$unit $units/$unit"
    done
    echo "sysusers.d/hyperhive.conf /usr/local/lib/sysusers.d/hyperhive.conf"
    echo "tmpfiles.d/hyperhive.conf /usr/local/lib/tmpfiles.d/hyperhive.conf"
    echo "sysctl.d/60-hyperhive.conf /usr/local/lib/sysctl.d/60-hyperhive.conf"
    echo "network/10-hyperhive.network /usr/local/lib/systemd/network/10-hyperhive.network"
    echo "polkit/49-hyperhive.rules /etc/polkit-1/rules.d/49-hyperhive.rules"
    for page in hive.1 hive-agent.1 hive.toml.5 hive-core.8; do
        echo "../docs/man/$page /usr/local/share/man/man${page##*.}/$page"
    done
    echo "../docs/completions/hive.bash /usr/local/share/bash-completion/completions/hive"
    echo "../docs/completions/_hive /usr/local/share/zsh/site-functions/_hive"
    echo "../docs/completions/hive.fish /usr/local/share/fish/vendor_completions.d/hive.fish"
}

on_this_host() { [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; }

check() {
    case $PREFIX in
        /*/*) ;;
        *) fail "PREFIX is $PREFIX; give a directory of its own, such as /opt/hyperhive" ;;
    esac
    case $PREFIX$DESTDIR in
        *[!A-Za-z0-9/._+-]*) fail "PREFIX and DESTDIR may have letters, digits and / . _ + - only" ;;
    esac
    case $DESTDIR in
        '' | /*) ;;
        *) fail "DESTDIR is $DESTDIR; give it from / on" ;;
    esac
    [ -n "$DESTDIR" ] || [ "$(id -u)" = 0 ] || fail "it changes this host; run it as root"
    # It is replaced as a whole, so it has to be ours.
    [ ! -e "$home" ] || [ -e "$home/.installed" ] || [ -z "$(ls -A "$home")" ] ||
        fail "$home has something else in it; give another PREFIX"
}

check_more() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null ||
        fail "$PYTHON is no Python 3.11 or newer; give one with PYTHON=, at a path that machines have too"
    "$PYTHON" -c 'import ensurepip, venv' 2> /dev/null ||
        fail "$PYTHON cannot make virtual environments; on Debian and Ubuntu run  apt install python3-venv"
    for program in $programs; do
        link=$DESTDIR/usr/local/bin/$program
        [ ! -e "$link" ] && [ ! -L "$link" ] || [ "$(readlink "$link")" = "$PREFIX/bin/$program" ] ||
            fail "$link is there and not ours; move it away"
    done
}

# A whole tree under another name, swapped in at the end: a machine that runs keeps the one it has.
build() {
    new=$home.new
    trap 'rm -rf "$new"' EXIT
    trap 'exit 1' HUP INT TERM
    rm -rf "$new"
    mkdir -p "$new"
    echo "Installing the locked dependencies and hyperhive into $home …"
    "$PYTHON" -m venv "$new"
    pip="$new/bin/python3 -m pip --disable-pip-version-check --quiet --quiet"
    export PIP_ROOT_USER_ACTION=ignore
    $pip install --no-compile --require-hashes -r "$src/requirements.lock"
    $pip install --no-compile --no-deps --no-build-isolation "$src"
    # In a cage it is not for installing more.
    $pip uninstall --yes hatchling editables setuptools pip
    find "$new/bin" ! -type d ! -name 'python*' ! -name hive ! -name hive-core ! -name hive-agent -delete
    # Where it was built is nobody's business, and soon gone.
    sed -i '/^command/d' "$new/pyvenv.cfg"
    rm -f "$new"/lib/python3*/site-packages/hyperhive-*.dist-info/direct_url.json
    for program in $programs; do
        sed -i "1s|.*|#!$PREFIX/bin/python3|" "$new/bin/$program"
    done
    "$new/bin/python3" -m compileall -q -f -j 0 -s "$new" -p "$PREFIX" "$new/lib"
    touch "$new/.installed"
}

swap() {
    rm -rf "$home.old"
    [ ! -e "$home" ] || mv -T "$home" "$home.old"
    mv -T "$new" "$home"
}

install_files() {
    files | while read -r source target; do
        mkdir -p "$DESTDIR${target%/*}"
        sed "s|/opt/hyperhive|$PREFIX|g" "$src/systemd/$source" > "$DESTDIR$target.new"
        mv "$DESTDIR$target.new" "$DESTDIR$target"
    done
    mkdir -p "$DESTDIR/usr/local/bin"
    for program in $programs; do
        ln -sf "$PREFIX/bin/$program" "$DESTDIR/usr/local/bin/$program"
    done
    if [ ! -e "$DESTDIR$config" ]; then
        install -D -m 600 "$src/systemd/config.toml" "$DESTDIR$config"
    fi
}

tell_systemd() {
    systemd-sysusers /usr/local/lib/sysusers.d/hyperhive.conf
    /usr/lib/systemd/systemd-sysctl --prefix=/fs/inotify
    systemd-tmpfiles --create /usr/local/lib/tmpfiles.d/hyperhive.conf
    ! systemctl --quiet is-active systemd-networkd.service || networkctl reload
    systemctl daemon-reload
    systemctl try-restart hive-core.service
}

next() {
    cat << END
Installed $("$home/bin/python3" -I -c 'from hive_core.wire.version import VERSION; print("hyperhive", VERSION)') in $home.  Next:

    usermod -aG hive-admin NAME          who may operate the hive, from the next login on
    systemctl enable --now hive-core     the daemon, and its socket
    hive image build debian              a first image for machines; about a minute
    hive doctor                          what this host still lacks, and how to mend it
END
    [ ! -d "$home.old" ] || echo "
An agent that runs goes on with the old version until:  hive rebuild AGENT"
}

install_all() {
    check
    check_more
    build
    swap
    install_files
    if on_this_host; then tell_systemd; fi
    next
}

uninstall() {
    check
    if on_this_host; then
        systemctl disable --quiet --now hive-core.socket hive-core.service 2> /dev/null || :
    fi
    files | while read -r _ target; do rm -f "$DESTDIR$target"; done
    for program in $programs; do
        link=$DESTDIR/usr/local/bin/$program
        [ "$(readlink "$link")" != "$PREFIX/bin/$program" ] || rm "$link"
    done
    if cmp -s "$src/systemd/config.toml" "$DESTDIR$config"; then
        rm "$DESTDIR$config"
        rmdir --ignore-fail-on-non-empty "$DESTDIR${config%/*}"
    fi
    rm -rf "$home" "$home.old"
    if on_this_host; then systemctl daemon-reload; fi
    echo "Removed hyperhive from $home.  Not touched: /var/lib/hyperhive, changed files in /etc/hyperhive,
the group hive-admin, the users hive-git and hive-nix, and machines: those that run go on (machinectl list)."
}

verb=${1:-}
case $verb in
    install) install_all ;;
    # All but PREFIX, for who brings the programs himself.
    install-files) install_files && if on_this_host; then tell_systemd; fi ;;
    uninstall) uninstall ;;
    *) echo "usage: $0 install|install-files|uninstall" >&2; exit 2 ;;
esac
