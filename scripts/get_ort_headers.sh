#!/bin/sh
# ONNX Runtime's C/C++ headers, into the folder $1 (default build/ort-headers); $1/.ready then holds their include path.
# Taken from $ONNXRUNTIME_INCLUDE_DIR or the system if they are there. Debian 12 has no package for them: it exists from
# Debian 13 (trixie) on, so it is downloaded from there.
set -eu
. "$(dirname "$0")/debian_packages.sh"
out=$(mkdir -p "${1:-build/ort-headers}" && cd "${1:-build/ort-headers}" && pwd)

for dir in "${ONNXRUNTIME_INCLUDE_DIR:-}" /usr/include/onnxruntime /usr/local/include/onnxruntime /opt/homebrew/include/onnxruntime; do
  if [ -n "$dir" ] && [ -f "$dir/onnxruntime_cxx_api.h" ]; then
    echo "$dir" > "$out/.ready"
    exit 0
  fi
done

cd "$out"
debian_apt "$out/apt" trixie "$(dpkg --print-architecture 2> /dev/null || echo amd64)" download libonnxruntime-dev || {
  echo "ONNX Runtime's headers are not there: set ONNXRUNTIME_INCLUDE_DIR to the folder with onnxruntime_cxx_api.h." >&2
  exit 2
}
dpkg-deb -x libonnxruntime-dev_*.deb .
rm -rf "$out/apt"
echo "$out/usr/include/onnxruntime" > "$out/.ready"
