#!/bin/sh
# Installs MindMerger Edge from this folder, with no network. ./install.sh --help says how.
# Plain sh and what every Debian has; nothing outside --prefix and --bin is written.
set -eu

say() { printf '%s\n' "install.sh: $*" >&2; }
# die CODE SENTENCE: 1 other errors, 2 wrong command line, 3 something is in the way, 4 damaged, 5 not for this machine
die() { code=$1; shift; say "$*"; exit "$code"; }

usage() {
    cat <<'END'
Usage: ./install.sh [--prefix DIR] [--bin DIR] [--python PYTHON] [--no-check]
       ./install.sh --uninstall [--prefix DIR]

  --prefix DIR     where it is installed. [root: /opt/mindmerger, others: ~/.local/share/mindmerger]
  --bin DIR        where the commands are linked. [root: /usr/local/bin, others: ~/.local/bin]
  --python PYTHON  the Python that runs it. [the one that the kit was made for]
  --no-check       do not try what was installed at the end
  --uninstall      remove what was installed, links included

Nothing is downloaded. A second call replaces what is installed, at the very end; if anything fails, all stays as it was.
Exit codes: 0 done, 1 another error, 2 wrong command line, 3 a file is in the way, 4 the kit is damaged, 5 this machine
cannot run it, 130 interrupted.
END
}

if [ "$(id -u)" = 0 ]; then
    prefix=/opt/mindmerger bin=/usr/local/bin
else
    prefix=${HOME:?}/.local/share/mindmerger bin=${HOME:?}/.local/bin
fi
python='' check=yes uninstall=no
while [ $# -gt 0 ]; do
    case $1 in
        --prefix | --bin | --python)
            [ $# -ge 2 ] && [ -n "$2" ] || die 2 "$1 needs a value; --help says how"
            case $1 in --prefix) prefix=$2 ;; --bin) bin=$2 ;; --python) python=$2 ;; esac
            shift 2
            ;;
        --no-check) check=no; shift ;;
        --uninstall) uninstall=yes; shift ;;
        -h | --help) usage; exit 0 ;;
        *) die 2 "unknown option $1; --help says how" ;;
    esac
done
absolute() { case $1 in /*) printf '%s\n' "$1" ;; *) printf '%s\n' "$PWD/$1" ;; esac; }
prefix=$(absolute "${prefix%/}") bin=$(absolute "${bin%/}")
# They are written into scripts.
case $prefix$bin in *[\'\"\\\$\`]* | *'
'*) die 2 "--prefix and --bin must not have quotes, back-slashes, dollars or line ends" ;; esac
MARK=$prefix/.mindmerger-kit

unlink_commands() { # the links that an installation in $prefix has made
    if [ -f "$MARK" ]; then
        while IFS= read -r link; do
            case $(readlink -- "$link" 2>/dev/null || true) in
                "$prefix"/*) rm -f -- "$link" ;;
            esac
        done < "$MARK"
    fi
}

if [ $uninstall = yes ]; then
    [ -f "$MARK" ] || die 3 "nothing of this kit is installed in $prefix: give its --prefix"
    unlink_commands
    rm -rf -- "$prefix"
    say "removed $prefix and its commands"
    exit 0
fi

# ---------------------------------------------------------------------------------------------- is the kit whole?
kit=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cd -- "$kit"
command -v sha256sum > /dev/null || die 5 "sha256sum is not here: install the package coreutils"
[ -f SHA256SUMS ] || die 4 "SHA256SUMS is missing: copy the whole folder again"
say "checking the files of the kit"
if ! sha256sum --check --strict --quiet SHA256SUMS >&2; then
    die 4 "files are damaged or missing, nothing was installed: copy the kit again"
fi
. ./kit.env

# ---------------------------------------------------------------------------------------- is this machine like it?
[ "$(uname -s)" = Linux ] || die 5 "this kit is for Linux, this is $(uname -s)"
[ "$(uname -m)" = "$KIT_MACHINE" ] || die 5 "this kit is for $KIT_MACHINE, this is $(uname -m): make one on such a machine"
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed -n 's/^glibc 2\.\([0-9]*\).*/\1/p')
[ -n "$glibc" ] || die 5 "this system has another C library than glibc, which the kit's programs need"
[ "$glibc" -ge "$KIT_GLIBC" ] || die 5 "the kit needs glibc 2.$KIT_GLIBC, here is 2.$glibc: make it on an older system"
have=" $(sed -n 's/^\(flags\|Features\)[[:space:]]*: *//p' /proc/cpuinfo | head -n 1) "
lacking=''
if [ "$have" != '  ' ]; then # some systems do not tell
    for flag in $KIT_FLAGS; do
        case $have in *" $flag "*) ;; *) lacking="$lacking $flag" ;; esac
    done
fi
[ -z "$lacking" ] || die 5 "this processor lacks$lacking, which the kit was built for: make it with --any-processor"

fits() { "$1" -c "import sys, platform; sys.exit(sys.version_info[:2] != ($KIT_PYTHON_TUPLE) or platform.python_implementation() != 'CPython')" 2> /dev/null; }
if [ -n "$python" ]; then
    fits "$python" || die 5 "$python is not Python $KIT_PYTHON, which the kit is for"
else
    for one in "python$KIT_PYTHON" python3 python; do
        if command -v "$one" > /dev/null && fits "$one"; then python=$(command -v "$one"); break; fi
    done
    [ -n "$python" ] || die 5 "Python $KIT_PYTHON is not here. On Debian it is the package python$KIT_PYTHON; without a network, \
copy its .deb files from the installation medium and use dpkg -i. Or give --python"
fi
# ensurepip, which Debian keeps in python3-venv, is not needed: the kit has pip.
"$python" -c 'import venv, ctypes, ssl' 2> /dev/null || die 5 "$python has no module venv: install the packages \
python$KIT_PYTHON-venv and libpython$KIT_PYTHON-stdlib (from the installation medium where there is no network)"

above=$prefix
while [ ! -d "$above" ]; do above=$(dirname -- "$above"); done
free=$(df -Pk -- "$above" | awk 'NR == 2 { print $4 }')
[ "$free" -ge "$KIT_KILOBYTES" ] || die 5 "the installation needs $((KIT_KILOBYTES / 1024)) MB and $above has $((free / 1024)) MB"
if [ -e "$prefix" ] && [ ! -f "$MARK" ]; then
    rmdir -- "$prefix" 2> /dev/null || die 3 "$prefix is not empty and not of this kit: give another --prefix"
fi
for name in $KIT_COMMANDS; do
    if [ -e "$bin/$name" ] || [ -L "$bin/$name" ]; then
        case $(readlink -- "$bin/$name" || true) in
            "$prefix"/*) ;;
            *) die 3 "$bin/$name is there and not of this kit: remove it, or give another --bin" ;;
        esac
    fi
done

# -------------------------------------------------------------------------------------------------------- install
umask 022
mkdir -p -- "$prefix/releases" "$bin" 2> /dev/null || die 5 "$prefix or $bin cannot be written: be root, or give others"
new=$prefix/releases/$KIT_ID-$$
ended() { # whatever ends it early, nothing half-made stays
    code=$?
    trap - EXIT HUP INT TERM
    rm -rf -- "$new"
    [ -f "$MARK" ] || { rmdir -- "$prefix/releases" "$prefix" 2> /dev/null || true; }
    exit "$code"
}
trap ended EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir -- "$new"
say "installing into $prefix (half a minute)"
"$python" -m venv --without-pip "$new/venv"
for pip in "$kit"/installer/pip-*.whl; do :; done
# --isolated: neither this user's settings of pip nor its environment matter
"$new/venv/bin/python" "$pip/pip" --isolated install --quiet --no-index --no-cache-dir --disable-pip-version-check \
    --no-warn-script-location --find-links "$kit/wheels" "$KIT_REQUIREMENT" >&2 || die 1 "pip could not install the packages"

# Shared libraries that this machine may lack go beside those that need them.
where=$(dirname -- "$(find "$new/venv/lib" -path '*/llama_cpp/lib/libllama.so' -print)")
for library in $(ldd "$where"/*.so 2> /dev/null | awk '/not found/ { print $1 }' | sort -u); do
    [ -f "$kit/libraries/$library" ] || die 5 "$library is not here and not in the kit: install its package"
    cp -- "$kit/libraries/$library" "$where/"
    say "took along $library, which this machine does not have"
done

cp -R -- "$kit/bundle" "$new/bundle"
cp -- "$kit/README.md" "$kit/THIRD_PARTY_NOTICES.txt" "$kit/sbom.cdx.json" "$new/"
mkdir -- "$new/commands"
for name in $KIT_COMMANDS; do
    cat > "$new/commands/$name" << END
#!/bin/sh
# The bundle of the kit is the default; MINDMERGER_BUNDLE or --bundle names another.
MINDMERGER_BUNDLE=\${MINDMERGER_BUNDLE:-'$prefix/current/bundle'}
export MINDMERGER_BUNDLE
exec '$prefix/current/venv/bin/$name' "\$@"
END
    chmod 755 "$new/commands/$name"
done

if [ $check = yes ]; then
    say "trying it: mm-doctor --quick, and a short answer"
    if ! report=$("$new/venv/bin/mm-doctor" --quick --bundle "$new/bundle" 2>&1 &&
        "$new/venv/bin/mm-run" --bundle "$new/bundle" --quiet --max-tokens 8 "1 + 1" 2>&1); then
        printf '%s\n' "$report" >&2
        die 5 "what was installed does not work here, so it was removed: the lines above say why; --no-check keeps it"
    fi
fi

# ---------------------------------------------------------------------------------------------------- from here on
ln -s -- "releases/$KIT_ID-$$" "$prefix/.current-$$"
old=$(readlink -- "$prefix/current" 2> /dev/null || true)
unlink_commands
for name in $KIT_COMMANDS; do printf '%s\n' "$bin/$name"; done > "$MARK"
mv -T -- "$prefix/.current-$$" "$prefix/current"
trap - EXIT HUP INT TERM
for name in $KIT_COMMANDS; do ln -sfn -- "$prefix/current/commands/$name" "$bin/$name"; done
case $old in releases/*) rm -rf -- "${prefix:?}/$old" ;; esac
printf '%s\n' "$prefix"
case :$PATH: in
    *":$bin:"*) say "installed. Ask: mm-run \"¿Cuánto es 15 + 27?\"" ;;
    *) say "installed. Ask: $bin/mm-run \"¿Cuánto es 15 + 27?\" ($bin is not in PATH)" ;;
esac
