#!/usr/bin/env bash
# The clients that `make conformance` asks only where they are installed: KServe's SDK (450 MB),
# and Triton's perf_analyzer with its libraries, in target/perf_analyzer. The newer wheels of
# perf_analyzer want a newer C library than Debian 12 has, so it comes out of an older
# tritonclient.
set -euo pipefail
cd "$(dirname "$0")/.."
# By its module, as its script names the folder it was made in.
pip() { target/clients/bin/python -m pip --quiet --disable-pip-version-check "$@"; }
pip install -r tests/requirements.txt kserve==0.21.0

folder=target/perf_analyzer
[ -x "$folder/perf_analyzer" ] && exit
if [ "$(uname -sm)" != "Linux x86_64" ] || ! command -v apt-get >/dev/null; then
  echo "tests: perf_analyzer is installed on Debian and Ubuntu on x86_64 only" >&2
  exit
fi
parts=$(mktemp -d)
chmod 755 "$parts" # or apt warns that its own user cannot write there
trap 'rm -rf "$parts"' EXIT
pip download --no-deps --only-binary=:all: --dest "$parts" \
  tritonclient==2.50.0 nvidia-cuda-runtime-cu12==12.9.79
for wheel in "$parts"/*.whl; do
  python3 -m zipfile --extract "$wheel" "$parts"
done
(cd "$parts" && apt-get download libb64-0d >/dev/null && dpkg-deb --extract libb64-0d_*.deb .)
mkdir -p "$folder"
cp "$parts"/nvidia/cuda_runtime/lib/libcudart.so.12 "$parts"/usr/lib/*/libb64.so.0d "$folder"
install "$parts"/tritonclient-*.data/data/bin/perf_analyzer "$folder"
