#!/usr/bin/env bash
# Runs the kernels' tests for aarch64, whose NEON code no other machine compiles: as they are
# where this is one, else under QEMU's emulation of one process. Arguments are cargo's, instead
# of `-p wisp-kernels`. Needs a cross compiler's linker, QEMU, and either rustup's
# aarch64-unknown-linux-gnu target or Debian's rustc-web packages, which build the standard
# library themselves; says what to install where something is missing, or installs it where it
# is root on Debian.
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu
arguments=(test --release --locked --target "$target")
[ $# -gt 0 ] || set -- -p wisp-kernels
export CARGO_TARGET_DIR="$PWD/target/aarch64"

libdir=$(rustc --print target-libdir --target "$target" 2>/dev/null || true)
has_target() { [ -n "$libdir" ] && [ -d "$libdir" ]; }
if [ "$(uname -m)" = aarch64 ] && has_target; then
  exec cargo "${arguments[@]}" "$@"
fi

has_emulator() {
  command -v aarch64-linux-gnu-gcc >/dev/null && command -v qemu-aarch64 >/dev/null &&
    [ -d /usr/aarch64-linux-gnu/lib ]
}
has_debian_toolchain() {
  [ -x /usr/bin/cargo ] && [ -x /usr/bin/rustc ] && [ -d /usr/lib/rustlib/src/rust/library ]
}

packages=()
has_emulator || packages+=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)
has_target || has_debian_toolchain ||
  packages+=(rustc-web cargo-web rust-web-src rust-web-llvm lld-22)
if [ ${#packages[@]} -gt 0 ]; then
  if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "tests: not all is there for $target. On Debian 12 run" >&2
    echo "tests: 'apt-get install ${packages[*]}'." >&2
    has_target || has_debian_toolchain ||
      echo "tests: 'rustup target add $target' does instead of rustc-web and all after it." >&2
    exit 1
  fi
  echo "tests: installing ${packages[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[@]}" >/dev/null
fi

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
if has_target; then
  exec cargo "${arguments[@]}" "$@"
fi
export PATH="/usr/bin:$PATH" RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1
exec /usr/bin/cargo "${arguments[@]}" -Zbuild-std=std,panic_unwind,test "$@"
