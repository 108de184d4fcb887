#!/bin/sh
# A headless Chromium for scripts/check_report.sh, into the folder $1 (default build/chromium): $1/chromium starts it.
# Taken from $CHROMIUM or the PATH if it is there; else from this machine's own Debian mirror, 160 MB with the libraries
# it needs. Nothing is installed and no root is needed.
set -eu
. "$(dirname "$0")/debian_packages.sh"
out=$(mkdir -p "${1:-build/chromium}" && cd "${1:-build/chromium}" && pwd)
[ ! -x "$out/chromium" ] || exit 0

for program in "${CHROMIUM:-}" chromium-headless-shell chromium chromium-browser google-chrome; do
  found=$(command -v "${program:-/nowhere}" || true)
  if [ -n "$found" ]; then
    ln -sf "$found" "$out/chromium"
    exit 0
  fi
done

host=$(dpkg --print-architecture 2> /dev/null || echo amd64)
debian_apt "$out/apt" bookworm "$host" -d install chromium-headless-shell fonts-dejavu-core
for package in "$out"/apt/cache/archives/*.deb; do
  case ${package##*/} in
    # The C library is the machine's own: its loader takes no other.
    libc6_* | libc-bin_*) ;;
    *) dpkg-deb -x "$package" "$out/root" ;;
  esac
done
program=$(find "$out/root/usr/lib" -name 'chromium-headless-shell' -o -name 'headless_shell' -o -name 'chrome-headless-shell' | head -n 1)
# Some of its libraries find theirs in folders of their own, which the paths in them name from the root.
libraries=$(find "$out/root/usr/lib" "$out/root/lib" -name '*.so*' -exec dirname {} + | sort -u | tr '\n' ':')
cat > "$out/chromium.partial" << RUN
#!/bin/sh
LD_LIBRARY_PATH="$libraries" exec "$program" "\$@"
RUN
chmod +x "$out/chromium.partial"
rm -rf "$out/apt"
mv "$out/chromium.partial" "$out/chromium"
