#!/bin/sh
# Installs the C library: header, shared and static library, and headrace.pc for pkg-config.
#
#   cargo build --release -p transfer-capi && csrc/install.sh PREFIX [DIRECTORY]
#
# PREFIX is an absolute path, such as /usr/local; DIRECTORY is where the libraries were built, target/release if it is
# not given. DESTDIR goes before every path that is written to, for those who make packages.
set -eu

source=$(cd "$(dirname "$0")" && pwd)
case ${1-} in
    /*) prefix=${1%/} ;;
    *) echo "usage: csrc/install.sh PREFIX [DIRECTORY]; PREFIX is an absolute path" >&2 && exit 2 ;;
esac
built=${2-$source/../target/release}
to=${DESTDIR-}$prefix

for file in libheadrace.so libheadrace.a; do
    [ -f "$built/$file" ] || { echo "install.sh: no $built/$file; run cargo build --release -p transfer-capi" >&2 && exit 1; }
done
number() {
    sed -n "s/^#define HR_VERSION_$1 \([0-9]*\)$/\1/p" "$source/headrace.h"
}
major=$(number MAJOR)
version=$major.$(number MINOR).$(number PATCH)

mkdir -p "$to/include" "$to/lib/pkgconfig"
# A running program keeps the old files: each is made anew under another name and then takes its place.
put() {
    cp "$1" "$2.new"
    chmod "$3" "$2.new"
    mv -f "$2.new" "$2"
}
put "$source/headrace.h" "$to/include/headrace.h" 644
put "$built/libheadrace.a" "$to/lib/libheadrace.a" 644
put "$built/libheadrace.so" "$to/lib/libheadrace.so.$version" 755
ln -sf "libheadrace.so.$version" "$to/lib/libheadrace.so.$major"
ln -sf "libheadrace.so.$major" "$to/lib/libheadrace.so"
cat >"$to/lib/pkgconfig/headrace.pc" <<END
prefix=$prefix
includedir=\${prefix}/include
libdir=\${prefix}/lib

Name: headrace
Description: Moves bytes between the memories of processes: KV caches, weights
Version: $version
Cflags: -I\${includedir}
Libs: -L\${libdir} -lheadrace
Libs.private: -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc
END
echo "headrace $version is in $to"
