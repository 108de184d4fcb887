#!/bin/sh
# A Java compiler and runtime for tests/docs, into the folder $1 (default build/jdk): $1/javac and $1/java. Taken from the
# PATH if they are there; else from this machine's own Debian mirror, about 120 MB. Nothing is installed and no root is needed.
set -eu
. "$(dirname "$0")/debian_packages.sh"
out=$(mkdir -p "${1:-build/jdk}" && cd "${1:-build/jdk}" && pwd)
[ ! -x "$out/java" ] || exit 0

if command -v javac > /dev/null && command -v java > /dev/null; then
  ln -sf "$(command -v javac)" "$out/javac"
  ln -sf "$(command -v java)" "$out/java"
  exit 0
fi

host=$(dpkg --print-architecture 2> /dev/null || echo amd64)
(mkdir -p "$out/packages" && cd "$out/packages" && debian_apt "$out/apt" bookworm "$host" download openjdk-17-jre-headless openjdk-17-jdk-headless)
for package in "$out"/packages/*.deb; do
  dpkg-deb -x "$package" "$out/root"
done
# Its configuration is reached by links from the root of the system.
find "$out/root/usr/lib/jvm" -type l -lname '/etc/*' | while read -r link; do
  ln -sf "$out/root$(readlink "$link")" "$link"
done
rm -rf "$out/apt" "$out/packages"
for program in javac java; do
  ln -sf "$(find "$out/root/usr/lib/jvm" -path "*/bin/$program" | head -n 1)" "$out/$program"
done
