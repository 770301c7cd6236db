#!/usr/bin/env bash
# Starts the server, sends it a photograph, prints what it sees, and serves until stopped.
set -euo pipefail
cd "$(dirname "$0")"
port=${1:-8000}
photo=tests/fixtures/photos/cat.jpg

target/release/wisp serve models --listen "127.0.0.1:$port" --log warn &
server=$!
trap 'kill $server 2>/dev/null; wait $server 2>/dev/null' EXIT
trap 'exit 0' INT TERM
url=http://127.0.0.1:$port/v2

for _ in $(seq 100); do
  kill -0 $server 2>/dev/null || exit 1
  curl -fs "$url/health/ready" >/dev/null 2>&1 && break
  sleep 0.1
done

echo
echo "\$ curl --data-binary @$photo -H 'content-type: image/jpeg' $url/models/imagenet/infer"
for _ in 1 2 3; do # twice to warm up: the first pays for memory that is then kept
  answer=$(curl -fsS -D target/demo-headers --data-binary @$photo -H 'content-type: image/jpeg' "$url/models/imagenet/infer")
done
python3 - "$answer" <<'PY'
import json, sys
outputs = {output["name"]: output["data"] for output in json.loads(sys.argv[1])["outputs"]}
for label, probability in zip(outputs["label"], outputs["probability"]):
    print(f"  {probability:6.1%}  {label}")
PY
echo "  $(grep -i '^server-timing' target/demo-headers | tr -d '\r') (ms)"
echo
echo "Serving on http://127.0.0.1:$port until Ctrl-C. Try your own photo."
wait $server
