#!/bin/sh
# ONNX Runtime's C/C++ headers, into the folder $1 (default build/ort-headers); $1/.ready then holds their include path.
# Taken from $ONNXRUNTIME_INCLUDE_DIR or the system if they are there. Debian 12 has no package for them: it exists from
# Debian 13 (trixie) on, so it is downloaded from there, from this machine's own mirror, into apt directories of its own.
set -eu
out=$(mkdir -p "${1:-build/ort-headers}" && cd "${1:-build/ort-headers}" && pwd)

for dir in "${ONNXRUNTIME_INCLUDE_DIR:-}" /usr/include/onnxruntime /usr/local/include/onnxruntime /opt/homebrew/include/onnxruntime; do
  if [ -n "$dir" ] && [ -f "$dir/onnxruntime_cxx_api.h" ]; then
    echo "$dir" > "$out/.ready"
    exit 0
  fi
done

command -v apt-get > /dev/null && command -v dpkg > /dev/null || {
  echo "ONNX Runtime headers not found, and this is not Debian: set ONNXRUNTIME_INCLUDE_DIR to the folder with onnxruntime_cxx_api.h." >&2
  exit 2
}

mkdir -p "$out/lists/partial" "$out/cache/archives/partial" "$out/parts"
# Both forms of apt sources: deb822 stanzas and one-line entries. Only the main archive has a suite called trixie.
for file in /etc/apt/sources.list.d/*.sources; do
  [ -f "$file" ] || continue
  awk 'BEGIN { RS = ""; ORS = "\n\n" } /debian-archive/ && !/security/' "$file" | sed 's/^Suites:.*/Suites: trixie/'
done > "$out/parts/trixie.sources"
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
  [ -f "$file" ] || continue
  sed -n 's/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\/debian\/\{0,1\}\) bookworm main.*/deb \1\2 trixie main/p' "$file"
done > "$out/parts/trixie.list"

apt_own() {
  apt-get -qq -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$out/parts" -o Dir::State::Lists="$out/lists" \
    -o Dir::Cache="$out/cache" -o APT::Sandbox::User=root "$@"
}
apt_own update || { echo "Cannot read the package list of Debian 13 from this machine's mirror: set ONNXRUNTIME_INCLUDE_DIR to the folder with onnxruntime_cxx_api.h." >&2; exit 2; }
cd "$out"
apt_own download libonnxruntime-dev || { echo "Cannot download libonnxruntime-dev: set ONNXRUNTIME_INCLUDE_DIR to the folder with onnxruntime_cxx_api.h." >&2; exit 2; }
dpkg -x libonnxruntime-dev_*.deb .
echo "$out/usr/include/onnxruntime" > "$out/.ready"
