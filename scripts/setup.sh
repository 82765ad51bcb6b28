#!/bin/sh
# Installs, or says how to install, what `make demo` and `make test` need of a
# Debian 12 with Go: PostgreSQL's server programs, SoftHSM and a C compiler.
#
#   --generate   also what `make generate` needs
#   --clients    also what `make test-clients` and `make lint-contract` need
#   --ci         also what .ci/run needs, all of the above
set -eu

generate=0 clients=0 ci=0
case "${1:-}" in
--generate) generate=1 ;;
--clients) clients=1 ;;
--ci) generate=1 clients=1 ci=1 ;;
esac

missing=""
need() { missing="$missing $1"; }

command -v gcc >/dev/null 2>&1 || need gcc
[ -e /usr/include/stdlib.h ] || need libc6-dev
ls /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so >/dev/null 2>&1 || need softhsm2
pg=0
for d in /usr/lib/postgresql/*/bin; do
	[ -x "$d/initdb" ] && [ "$(basename "$(dirname "$d")")" -ge 15 ] && pg=1
done
[ "$pg" = 1 ] || need postgresql
[ "$generate" = 0 ] || command -v protoc >/dev/null 2>&1 || need protobuf-compiler
[ "$ci" = 0 ] || command -v make >/dev/null 2>&1 || need make
[ "$ci" = 0 ] || command -v git >/dev/null 2>&1 || need git
[ "$clients$generate" = 00 ] || command -v node >/dev/null 2>&1 || need nodejs
[ "$clients$generate" = 00 ] || command -v npm >/dev/null 2>&1 || need npm
[ "$clients" = 0 ] || command -v curl >/dev/null 2>&1 || need curl
[ "$clients" = 0 ] || command -v chromium >/dev/null 2>&1 || need chromium
[ "$clients" = 0 ] || perl -MOpenAPI::Client -e1 2>/dev/null || need libopenapi-client-perl
[ "$clients" = 0 ] || perl -MIO::Socket::SSL -e1 2>/dev/null || need libio-socket-ssl-perl
[ "$clients" = 0 ] || perl -MYAML::XS -e1 2>/dev/null || need libyaml-libyaml-perl

if ! command -v go >/dev/null 2>&1; then
	echo "Kluis needs Go (see go.mod for the version), and no 'go' is on the PATH." >&2
	exit 1
fi
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
	echo "Installing$missing ..." >&2
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq >&2
	# shellcheck disable=SC2086 # a list of packages
	apt-get install -y -qq --no-install-recommends $missing >&2
	case "$missing" in *postgresql*)
		echo "Debian's postgresql package may also have started a server of its own; Kluis does not use it." >&2 ;;
	esac
else
	echo "Kluis needs these Debian packages:$missing" >&2
	echo "Install them, then run the same command again:" >&2
	echo "" >&2
	echo "    sudo apt-get update && sudo apt-get install -y --no-install-recommends$missing" >&2
	exit 1
fi
