#!/bin/sh
# Builds and runs the benchmark on a demo of its own (docs/PERFORMANCE.md).
# The programs must be built (not for -growth). Arguments go to it: -short, -requests, -service, -memory N, -growth N, -stream N, -fair, -rounds N, -json FILE.
set -eu
cd "$(dirname "$0")/.."
CGO_ENABLED=1 go build -trimpath -buildvcs=false -o bin/bench ./test/bench
exec bin/bench -json bin/bench.json "$@"
