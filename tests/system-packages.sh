#!/bin/sh
# The browser that tests/test_mlflow_ui.py drives. Everything else comes from requirements.lock.
set -eu
command -v chromium >/dev/null && command -v chromedriver >/dev/null && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "The browser test needs chromium and chromedriver; install them (Debian: apt-get install chromium chromium-driver)." >&2
    exit 1
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null
