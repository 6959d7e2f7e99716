#!/usr/bin/env bash
# Makes sure that a mosquitto binary is there. SLED starts its own private brokers with it and never uses
# the system's broker, so the service that a package starts on port 1883 is kept from starting.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"
command -v mosquitto >/dev/null && exit 0

if command -v brew >/dev/null; then exec brew install --quiet mosquitto; fi

as_root=()
if [ "$(id -u)" != 0 ]; then
    if sudo -n true 2>/dev/null; then as_root=(sudo -n); else
        echo "Mosquitto is missing and installing it needs root: run 'sudo apt-get install mosquitto' (or your system's equivalent), then try again." >&2
        exit 1
    fi
fi

echo "installing Mosquitto" >&2
if command -v apt-get >/dev/null; then
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
        "${as_root[@]}" chmod 755 "$policy"
        trap '"${as_root[@]}" rm -f "$policy"' EXIT
    fi
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mosquitto >/dev/null
elif command -v dnf >/dev/null; then "${as_root[@]}" dnf install -y -q mosquitto
elif command -v pacman >/dev/null; then "${as_root[@]}" pacman -S --noconfirm --quiet mosquitto
elif command -v apk >/dev/null; then "${as_root[@]}" apk add --quiet mosquitto
else
    echo "Mosquitto is missing: install the package 'mosquitto' (2.0.11 or later) with your package manager, then try again." >&2
    exit 1
fi
command -v mosquitto >/dev/null || { echo "Mosquitto was installed but no 'mosquitto' binary is on the PATH." >&2; exit 1; }
