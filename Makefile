# The two commands of a newcomer are `make demo` and `make test`.
.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-clients test-portal lint-contract soak bench bench-memory bench-growth bench-storage bench-ingest bench-stream test-stream lint build generate check-generated setup clean FORCE

GOFLAGS_BUILD := -trimpath -buildvcs=false
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X main.version=$(VERSION)

STATE ?= .demo
SOAK ?= 10m
BLOCKS ?= 10000000
POINTS ?= 1000000
LONG := ^Test(HistoriesAgreeWithTheBook|Changes(OfEveryDay|WhileStoring)|TenThousandConnections|HandshakesThatDoNotEnd|SlowBodies|BodiesOfAGigabyte|SlowReaders|HTTP2Floods|SlowBrowsers|StreamSurvives)$$
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 18

setup: ## install (or say how to install) PostgreSQL, SoftHSM and a C compiler
	@scripts/setup.sh

demo: setup build ## everything on this machine, until interrupted; STATE=dir keeps its data there
	bin/kluis demo --state '$(STATE)'

# -count=1: some tests build and run the programs, which go's cache of test
# results knows nothing of. ./test/e2e takes longest, and waits as much as it
# computes: it begins first, and others run beside it (-p). A program built with
# -race sleeps a second before it exits; a race is reported when it is seen.
test: setup ## the tests, on real PostgreSQL and SoftHSM
	GORACE=atexit_sleep_ms=0 go test -race -count=1 -p 3 -timeout 20m ./test/e2e ./...

test-stream: setup ## a stream of 100000 metering points through killed gateways and cryptoservers and a restarted PostgreSQL; takes minutes
	go test -count=1 -timeout 15m -v -run TestStreamSurvives ./test/e2e -stream-points 100000

test-clients: build ## the clients, their pages and /docs in a browser, against a demo; needs Node.js, Chromium and more
	@scripts/setup.sh --clients
	go vet -tags clients ./test/clients
	go test -tags clients -count=1 -timeout 20m ./test/clients

test-portal: build ## the portal, in a browser and by a thief of its certificate, against a demo; needs Node.js and Chromium; pictures go to bin/screenshots
	@scripts/setup.sh --clients
	go vet -tags portal ./test/portal
	go test -tags portal -count=1 -timeout 30m ./test/portal

test-long: setup ## the tests that make test leaves out: floods, ten thousand connections, every day of the feed
	KLUIS_TEST_LONG=1 go test -race -count=1 -timeout 30m -run '$(LONG)' ./authz ./cmd/gateway ./web ./test/e2e

soak: setup ## the HSM under mixed faults for SOAK=10m, two million calls, and fail-over; says what grew
	go test -count=1 -timeout 0 -v -run 'TestSoak|TestMillionCalls|TestRewrapLeavesNothing' ./internal/hsm -soak $(SOAK)
	go test -count=1 -v -run TestFailOver ./cmd/cryptoserver

bench: setup build ## speed and memory, beside the floor measured in the same run
	scripts/bench.sh

bench-memory: setup build ## resident memory of the cryptoservers over BLOCKS=10000000 blocks opened
	scripts/bench.sh -memory $(BLOCKS) -json bin/memory.json

bench-growth: setup ## the database's part with 10000 and with POINTS=1000000 metering points; takes minutes and 25 GB of disk
	scripts/bench.sh -growth $(POINTS) -json bin/growth.json

bench-storage: setup ## a month of POINTS=100000 metering points, as it came and put in order; takes half an hour and 22 GB of disk
	scripts/bench.sh -storage $(if $(filter file,$(origin POINTS)),100000,$(POINTS)) -json bin/storage.json

bench-ingest: setup build ## one day of POINTS=100000 metering points, through the cryptoservers of a demo
	scripts/bench.sh -ingest $(if $(filter file,$(origin POINTS)),100000,$(POINTS)) -json bin/ingest.json

bench-stream: setup build ## streams of readings of 10000 and of POINTS=100000 metering points; takes 10 minutes and 10 GB of disk
	scripts/bench.sh -stream $(if $(filter file,$(origin POINTS)),100000,$(POINTS)) -json bin/stream.json

build: bin/gateway bin/issuer bin/portal bin/kluis bin/auditproof bin/cryptoserver ## every binary, into bin/

# The gateway, the issuer, the portal and the operator's command never link C: no PKCS#11.
bin/gateway bin/issuer bin/portal bin/kluis bin/auditproof: bin/%: FORCE
	CGO_ENABLED=0 go build $(GOFLAGS_BUILD) -ldflags '$(LDFLAGS)' -o $@ ./cmd/$*

bin/cryptoserver: FORCE
	CGO_ENABLED=1 go build $(GOFLAGS_BUILD) -ldflags '$(LDFLAGS)' -o $@ ./cmd/cryptoserver

lint: ## formatting, go.mod, vet, staticcheck
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo 'gofmt would change:'; gofmt -l $$(git ls-files '*.go'); exit 1; }
	go mod tidy -diff
	go vet ./...
	go run $(STATICCHECK) ./...

lint-contract: ## the contract by Spectral, and against the one released before; needs Node.js
	@scripts/setup.sh --clients
	cd openapi/lint && npm ci --no-audit --no-fund --ignore-scripts --silent && npm run --silent lint && ./test.sh
	scripts/check-contract.sh
	scripts/check-contract.sh --prove

generate: ## regenerate code from openapi.yaml and cryptoserver.proto
	@scripts/setup.sh --generate
	scripts/generate.sh

check-generated: generate ## fail if the committed generated code is not current
	@git diff --exit-code --stat -- openapi cryptoserver/cryptopb clients/typescript/src/schema.ts || { echo 'Generated code is not current: run make generate and commit.'; exit 1; }

clean: ## remove what was built; the demo's data stays
	rm -rf bin
