#!/bin/sh
# What tests need beside requirements.lock: a browser for tests/test_mlflow_ui.py, or with the word `cluster` what that needs.
set -eu
PATH="$PATH:/usr/sbin"
if [ "${1:-}" = cluster ]; then
    commands="slurmctld slurmd slurmdbd munged mariadbd sshd pg_ctlcluster" packages="slurm-wlm slurmdbd munge mariadb-server openssh-server postgresql"
else
    commands="chromium chromedriver" packages="chromium chromium-driver"
fi
missing=""
for command in $commands; do
    command -v "$command" >/dev/null || missing=yes
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "The tests need $commands; install them (Debian: apt-get install $packages)." >&2
    exit 1
fi
apt-get update -qq
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
