#!/bin/bash
# Compares the contract with the last one released (openapi/released): whatever
# would break a client that was generated from that one fails. What oasdiff does
# not look at, go test ./openapi does.
#
#   scripts/check-contract.sh           compare
#   scripts/check-contract.sh --prove   break the contract in each way, and look that it is found
set -euo pipefail
cd "$(dirname "$0")/.."

tool=$PWD/bin/tools/oasdiff module=github.com/oasdiff/oasdiff@v1.36.0
if [ ! -x "$tool" ] || [ "$(cat bin/tools/.oasdiff.version 2>/dev/null)" != "$module" ]; then
	mkdir -p bin/tools
	GOBIN=$PWD/bin/tools GOFLAGS='' CGO_ENABLED=0 go install "$module"
	echo "$module" >bin/tools/.oasdiff.version
fi

contract=openapi/openapi.yaml
breaking() { "$tool" breaking "$1" "$2" --fail-on ERR --format singleline --color never --allow-external-refs=false; }

case ${1:-} in
'')
	last=$(find openapi/released -name '[0-9]*.yaml' | sort -V | tail -1)
	breaking "$last" "$contract" && echo "nothing in $last is broken"
	;;
--prove)
	broken=$(mktemp --suffix=.yaml)
	trap 'rm -f "$broken"' EXIT
	missed=0
	# prove WHAT SED-PROGRAM: so changed, the contract is found to be broken.
	prove() {
		sed "$2" "$contract" >"$broken"
		if cmp -s "$contract" "$broken"; then
			echo "not changed by: $1" >&2; missed=1
		elif breaking "$contract" "$broken" >/dev/null 2>&1; then
			echo "not found: $1" >&2; missed=1
		fi
	}
	breaking "$contract" "$contract" >/dev/null
	prove 'a path less' 's|^  /v1/changes:|  /v1/news:|'
	prove 'a member of answers less' '/^    Series:/,/^    [A-Z]/s/^        obis:/        code:/'
	prove 'a required member of requests more' 's/^      required: \[from, to, purpose\]$/      required: [from, to, purpose, class]/'
	prove 'a member of answers no longer sure to be there' '/^    Series:/,/^    [A-Z]/s/deliveredCount, days\]/days]/'
	prove 'a number made text' '/^        deliveredCount:/,/type:/s/type: integer/type: string/'
	prove 'a purpose less' '/^    Purpose:/,/^    [A-Z]/s/SWITCH, MOVE, CUSTOMER_SERVICE\]/SWITCH, MOVE]/'
	prove 'fewer metering points' 's/maxItems: 100000/maxItems: 1000/'
	prove 'a parameter made required' '/^    AsOf:/,/^    [A-Z]/s/in: query/in: query\n      required: true/'
	prove 'a format less' '/operationId: queryReadings/,/^  \/v1/s|text/csv|text/tab-separated-values|'
	exit $missed
	;;
*)
	echo "usage: scripts/check-contract.sh [--prove]" >&2
	exit 2
	;;
esac
