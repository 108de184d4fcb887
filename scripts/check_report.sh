#!/bin/sh
# Opens a report in a real browser and looks for what must not be there:
#   scripts/check_report.sh report.html [folder for the screenshots]
# Light, dark, phone and print are rendered without a network. It fails on any message on the console, where anything that
# the page would load is told too, and where it is wider than a phone of 360 pixels. Without a Chromium it fetches one
# (scripts/get_chromium.sh).
set -eu
[ $# -ge 1 ] && [ -f "$1" ] || { echo "usage: $0 report.html [folder]" >&2; exit 2; }
page=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
out=$(mkdir -p "${2:-build/report-check}" && cd "${2:-build/report-check}" && pwd)
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/scripts/get_chromium.sh" "$root/build/chromium"
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT

# browse LOG OPTION…: the profile and whatever else it writes go to a folder of its own.
browse() {
  log=$1
  shift
  HOME=$home timeout 120 "$root/build/chromium/chromium" --headless --no-sandbox --disable-gpu --hide-scrollbars \
    --enable-logging=stderr --user-data-dir="$home/profile" --host-resolver-rules="MAP * ~NOTFOUND" "$@" 2> "$log" || {
    echo "The browser stopped: $(tail -n 1 "$log")" >&2
    exit 1
  }
  if grep 'CONSOLE' "$log" >&2; then
    echo "The page writes to the console." >&2
    exit 1
  fi
}

# Blink numbers its colour schemes: 0 is dark, 1 is light.
browse "$home/log" --window-size=1280,6000 --blink-settings=preferredColorScheme=1 --screenshot="$out/light.png" "file://$page"
browse "$home/log" --window-size=1280,6000 --blink-settings=preferredColorScheme=0 --screenshot="$out/dark.png" "file://$page"
browse "$home/log" --window-size=360,9000 --force-device-scale-factor=2 --blink-settings=preferredColorScheme=1 \
  --screenshot="$out/phone.png" "file://$page"
browse "$home/log" --no-pdf-header-footer --print-to-pdf="$out/print.pdf" "file://$page"

# The page allows no script, so a page around it measures.
cat > "$home/around.html" << HTML
<!DOCTYPE html><iframe id="page" width="360" height="800" style="border: 0"></iframe><p id="found">nothing</p>
<script>
  const frame = document.getElementById("page");
  frame.onload = () => {
    const width = frame.contentWindow.document.documentElement.scrollWidth;
    document.getElementById("found").textContent = width + " pixels";
  };
  frame.src = "file://$page";
</script>
HTML
browse "$home/log" --allow-file-access-from-files --virtual-time-budget=5000 --dump-dom "file://$home/around.html" > "$home/dom"
found=$(sed -n 's/.*id="found">\([^<]*\)<.*/\1/p' "$home/dom")
[ "$found" = "360 pixels" ] || {
  echo "On a screen of 360 pixels the page is wider: $found" >&2
  exit 1
}
echo "Nothing on the console, and as wide as a phone. To look at: $out/light.png, dark.png, phone.png, print.pdf"
