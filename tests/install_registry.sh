#!/usr/bin/env bash
# The registry that tests/registry.rs speaks to, where it is missing: Debian's package, as root;
# elsewhere says what to install.
set -euo pipefail
command -v docker-registry >/dev/null && exit
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  echo "tests: installing docker-registry"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq docker-registry >/dev/null
else
  echo "tests: docker-registry is missing: run 'apt-get install docker-registry', or put that" >&2
  echo "tests: program of https://github.com/distribution/distribution into the PATH." >&2
  exit 1
fi
