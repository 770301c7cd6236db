#!/usr/bin/env bash
# Builds guests into components: target/guests/NAME.wasm for each NAME given (all guests of
# this repository without one). Needs either rustup's wasm32-unknown-unknown target
# or Debian's rustc-web packages, which build the standard library themselves; says what
# to install where there is neither, or installs it where it is root on Debian.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
target=wasm32-unknown-unknown
debian_packages=(rustc-web cargo-web rust-web-src rust-web-llvm lld-22)

names=("$@")
[ ${#names[@]} -gt 0 ] || names=(classify echo embed hostile reference tensor)
packages=()
for name in "${names[@]}"; do packages+=(-p "wisp-guest-$name"); done

# The component linker and SIMD are part of what a guest is: one set of flags for both
# toolchains, as the standard library is rebuilt whenever they change.
export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=wasm-component-ld
export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS="-C target-feature=+simd128"
export CARGO_TARGET_DIR="$root/target/wasm"
arguments=(build --profile guest --locked --target "$target" "${packages[@]}")

has_debian_toolchain() {
  [ -x /usr/bin/cargo ] && [ -x /usr/bin/rustc ] && [ -d /usr/lib/rustlib/src/rust/library ] &&
    compgen -G '/usr/lib/rustlib/*/bin/wasm-component-ld' >/dev/null
}

libdir=$(rustc --print target-libdir --target "$target" 2>/dev/null || true)
if [ -n "$libdir" ] && [ -d "$libdir" ]; then
  cargo "${arguments[@]}"
else
  if ! has_debian_toolchain && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "guests: installing ${debian_packages[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${debian_packages[@]}" >/dev/null
  fi
  if ! has_debian_toolchain; then
    echo "guests: no toolchain for $target. Run 'rustup target add $target'," >&2
    echo "guests: or on Debian 12 'apt-get install ${debian_packages[*]}'." >&2
    exit 1
  fi
  export PATH="/usr/bin:$PATH" RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1
  /usr/bin/cargo "${arguments[@]}" -Zbuild-std=std,panic_abort
fi

mkdir -p target/guests
for name in "${names[@]}"; do
  built="$CARGO_TARGET_DIR/$target/guest/${name//-/_}.wasm"
  # Untouched where it is the same, so that nothing that embeds it is rebuilt.
  cmp -s "$built" "target/guests/$name.wasm" || cp "$built" "target/guests/$name.wasm"
  echo "guests: target/guests/$name.wasm ($(wc -c <"$built") bytes)"
done
