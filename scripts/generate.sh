#!/bin/bash
# Regenerates the committed code from its sources. One function per generator;
# versions are pinned here, so that two machines write the same bytes. The
# generators are built into bin/tools, which git ignores.
#
#   scripts/generate.sh            everything
#   scripts/generate.sh protobuf   one generator
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$PWD/bin/tools

# install_tool NAME MODULE@VERSION builds a generator once per version.
install_tool() {
	local name=$1 module=$2 stamp=$tools/.$1.version
	if [ -x "$tools/$name" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$module" ]; then
		return
	fi
	mkdir -p "$tools"
	GOBIN=$tools GOFLAGS='' go install "$module"
	echo "$module" >"$stamp"
}

# cryptoserver/cryptopb: messages and gRPC stubs. Needs protoc, Debian's
# protobuf-compiler (scripts/setup.sh --generate installs it).
generate_protobuf() {
	if ! command -v protoc >/dev/null 2>&1; then
		echo 'protoc is missing: run scripts/setup.sh --generate' >&2
		exit 1
	fi
	install_tool protoc-gen-go google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
	install_tool protoc-gen-go-grpc google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
	protoc -I . \
		--plugin="$tools/protoc-gen-go" --go_out=. --go_opt=paths=source_relative \
		--plugin="$tools/protoc-gen-go-grpc" --go-grpc_out=. --go-grpc_opt=paths=source_relative \
		cryptoserver/cryptopb/cryptoserver.proto
	# The version of protoc is the machine's, not the code's.
	sed -i -E '/^\/\/[[:space:]]+(- )?protoc[[:space:]]+(\(unknown\)|v[0-9])/d' cryptoserver/cryptopb/*.pb.go
}

# openapi: models, chi server and strict server in openapi/gen.go, the Go client
# in openapi/client/gen.go. The contract itself is embedded as written.
generate_openapi() {
	install_tool oapi-codegen github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.0
	"$tools/oapi-codegen" -config openapi/server.yaml openapi/openapi.yaml
	"$tools/oapi-codegen" -config openapi/client.yaml openapi/openapi.yaml
}

# clients/typescript: the types of the contract. Needs npm (scripts/setup.sh
# --clients installs it); versions are pinned in package-lock.json.
generate_typescript() {
	if ! command -v npm >/dev/null 2>&1; then
		echo 'npm is missing: run scripts/setup.sh --clients' >&2
		exit 1
	fi
	(cd clients/typescript && npm ci --no-audit --no-fund --ignore-scripts --silent && npm run --silent generate)
}

generators=${*:-protobuf openapi typescript}
for g in $generators; do
	"generate_$g"
done
