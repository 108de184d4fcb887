# Read by scripts that need Debian packages of another suite or architecture: nothing is installed and no root is needed,
# because apt keeps its lists and packages in a folder of its own. They come from this machine's own mirror.

# debian_apt STATE SUITE ARCHITECTURE COMMAND…: apt-get on the main archive of one suite and architecture, with the folder
# STATE. What `download` fetches lands in the current folder, what `-d install` fetches in STATE/cache/archives.
debian_apt() {
  state=$1 suite=$2 architecture=$3
  shift 3
  command -v apt-get > /dev/null && command -v dpkg-deb > /dev/null || {
    echo "This is not Debian: there is no apt-get or dpkg-deb." >&2
    return 2
  }
  if [ ! -f "$state/.lists" ]; then
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$state/parts"
    : > "$state/status"
    # Both forms of apt sources: deb822 stanzas and one-line entries. Only the main archive has every suite.
    for file in /etc/apt/sources.list.d/*.sources; do
      [ -f "$file" ] || continue
      awk 'BEGIN { RS = ""; ORS = "\n\n" } /debian-archive/ && !/security/' "$file" | sed "s/^Suites:.*/Suites: $suite/"
    done > "$state/parts/own.sources"
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
      [ -f "$file" ] || continue
      sed -n "s/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\/debian\/\{0,1\}\) bookworm main.*/deb \1\2 $suite main/p" "$file"
    done > "$state/parts/own.list"
    cat > "$state/apt.conf" <<CONF
APT { Architecture "$architecture"; Architectures { "$architecture"; }; Sandbox::User "root"; Install-Recommends "false"; };
Dir { Etc::SourceList "/dev/null"; Etc::SourceParts "$state/parts"; State::Lists "$state/lists"; State::status "$state/status";
  Cache "$state/cache"; };
Debug::NoLocking "true";
CONF
    APT_CONFIG=$state/apt.conf apt-get -qq update || {
      echo "Cannot read the package list of Debian's $suite for $architecture from this machine's mirror." >&2
      return 2
    }
    touch "$state/.lists"
  fi
  APT_CONFIG=$state/apt.conf apt-get -qq -y "$@" || {
    echo "Cannot download a package of Debian's $suite for $architecture from this machine's mirror." >&2
    return 2
  }
}
