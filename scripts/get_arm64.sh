#!/bin/sh
# What it takes to build for 64-bit ARM Linux and to run it here, into the folder $1 (default build/arm64):
#   tools/  qemu-aarch64, and the cross compiler if none is in PATH
#   root/   an ARM64 Debian's C and C++ libraries and Python, never chrooted into
#   site/   ONNX Runtime and numpy for ARM64, unpacked wheels
# Nothing is installed and no root is needed. $1/.ready is made last; each part that is there already is kept.
set -eu
. "$(dirname "$0")/debian_packages.sh"
out=$(mkdir -p "${1:-build/arm64}" && cd "${1:-build/arm64}" && pwd)
pip=${PIP:-.venv/bin/pip}
version_of() { sed -n "s/^$1==//p" constraints.txt; }
host=$(dpkg --print-architecture 2> /dev/null || echo amd64)
packages=$out/packages
mkdir -p "$out/tools/bin" "$out/root"

# fetch SUITE ARCHITECTURE PACKAGE…: into $packages, emptied before.
fetch() {
  suite=$1 architecture=$2
  shift 2
  rm -rf "$packages"
  mkdir -p "$packages"
  (cd "$packages" && debian_apt "$out/apt/$suite-$architecture" "$suite" "$architecture" download "$@")
}

# Debian 12's qemu 7.2 crashes when ONNX Runtime loads; Debian 13's is one static file that runs here too, 17 MB of a
# package of 71.
if [ ! -x "$out/tools/bin/qemu-aarch64" ]; then
  fetch trixie "$host" qemu-user
  dpkg-deb --fsys-tarfile "$packages"/qemu-user_*.deb | tar -x -C "$packages" ./usr/bin/qemu-aarch64
  mv "$packages/usr/bin/qemu-aarch64" "$out/tools/bin/"
fi

if ! command -v aarch64-linux-gnu-g++ > /dev/null && [ ! -x "$out/tools/bin/aarch64-linux-gnu-g++" ]; then
  fetch bookworm "$host" g++-12-aarch64-linux-gnu gcc-12-aarch64-linux-gnu gcc-12-aarch64-linux-gnu-base \
    cpp-12-aarch64-linux-gnu binutils-aarch64-linux-gnu libc6-dev-arm64-cross libc6-arm64-cross linux-libc-dev-arm64-cross \
    libstdc++-12-dev-arm64-cross libstdc++6-arm64-cross libgcc-12-dev-arm64-cross libgcc-s1-arm64-cross \
    libisl23 libmpc3 libmpfr6 libgmp10 libjansson4 libctf0 libctf-nobfd0 libbinutils
  cross=$out/tools/cross
  for package in "$packages"/*.deb; do dpkg-deb -x "$package" "$cross"; done
  # gcc finds its parts beside itself. What knows the absolute path of its home: the linker scripts among the libraries,
  # and, for shared libraries of the tools themselves, the loader.
  for script in "$cross"/usr/aarch64-linux-gnu/lib/*.so; do
    head -c 20 "$script" | grep -q 'GNU ld script' && sed -i "s# /usr/aarch64-linux-gnu# $cross/usr/aarch64-linux-gnu#g" "$script"
  done
  libraries=$(dirname "$(find "$cross/usr/lib" -name 'libbfd-*-arm64.so' | head -n 1)")
  for tool in g++ ar ranlib strip readelf nm objdump; do
    program=$cross/usr/bin/aarch64-linux-gnu-$tool
    [ -x "$program" ] || program=$program-12
    printf '#!/bin/sh\nLD_LIBRARY_PATH="%s" exec "%s" "$@"\n' "$libraries" "$program" > "$out/tools/bin/aarch64-linux-gnu-$tool"
    chmod +x "$out/tools/bin/aarch64-linux-gnu-$tool"
  done
fi

if [ ! -x "$out/root/usr/bin/python3.11" ]; then
  debian_apt "$out/apt/bookworm-arm64" bookworm arm64 -d install libc6 libstdc++6 libgcc-s1 python3.11-minimal \
    libpython3.11-stdlib zlib1g libgomp1
  for package in "$out"/apt/bookworm-arm64/cache/archives/*.deb; do dpkg-deb -x "$package" "$out/root"; done
fi

wheels="onnxruntime==$(version_of onnxruntime) numpy==$(version_of numpy)"
if [ "$(cat "$out/site/.wheels" 2> /dev/null)" != "$wheels" ]; then
  rm -rf "$out/site"
  "$pip" install -q --no-deps --target "$out/site" --only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 $wheels
  echo "$wheels" > "$out/site/.wheels"
fi

rm -rf "$packages" "$out/apt"
touch "$out/.ready"
