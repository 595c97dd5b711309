# make help lists what there is to make.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION  ?= dev
DATA     ?= data
TIME     ?= 10s
NAME     ?= .
GO       := go
TOOL     := $(GO) tool -modfile=tools/go.mod
BUILD    := CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -ldflags "-s -w -X keystead/cli.Version=$(VERSION)"

# Debian packages of the real clients that the tests drive.
PACKAGES := \
	chromium \
	chromium-driver \
	curl \
	gcc \
	iproute2 \
	jq \
	libc6-dev \
	libcoap3-bin \
	libstrongswan-extra-plugins \
	libstrongswan-standard-plugins \
	libxml2-utils \
	mender-client \
	mosquitto \
	mosquitto-clients \
	nginx-light \
	openssl \
	softhsm2 \
	strace \
	strongswan-pki

.PHONY: help build run test unit e2e check fmt lint tidy bench bench-scale profiles soak faults fuzz cover packages dist clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/keystead
	@$(BUILD) -o bin/keystead .

run: build ## build, start in ./data (DATA=dir) and say where things are
	@exec ./bin/keystead serve --data $(DATA)

test: packages build ## every test, with real clients; as root installs the Debian packages it needs
	@{ $(GO) test -json -timeout 8m ./... || true; \
	  CGO_ENABLED=1 $(GO) test -json -tags pkcs11 -run SoftHSM ./pki || true; \
	  $(GO) test -json -tags e2e -timeout 16m ./e2e/... || true; } | $(GO) run ./internal/tested -again

unit: ## the tests that need nothing but Go
	@$(GO) test ./...

e2e: packages ## the tests on the built binary, with real clients
	@$(GO) test -tags e2e ./e2e/...

check: ## what a commit must pass: format, lint, vet, tests with the race detector, tidy, build
	@unformatted=$$($(TOOL) golangci-lint fmt --diff); \
	if [ -n "$$unformatted" ]; then echo "$$unformatted"; echo "make fmt formats these"; exit 1; fi
	@$(TOOL) golangci-lint run ./...
	@$(GO) vet ./... && $(GO) vet -tags e2e ./...
	@$(GO) test -race -shuffle=on ./...
	@$(GO) mod tidy -diff
	@$(MAKE) --no-print-directory build

fmt: ## gofumpt and goimports
	@$(TOOL) golangci-lint fmt

lint: ## golangci-lint
	@$(TOOL) golangci-lint run ./...

tidy: ## go.mod and go.sum
	@$(GO) mod tidy

# Measuring and wearing out: the room is bench.

FLEETS  ?= .fleets
DEVICES ?= 1000000
REVOKED ?= 100000
ROUNDS  ?= 3
BENCH   := $(GO) run -buildvcs=false ./bench -keep $(FLEETS) -devices $(DEVICES) -revoked $(REVOKED) -rounds $(ROUNDS)

bench: packages build ## every benchmark beside its limit, into docs/benchmarks.md (NAME=regexp: some, printed only; DEVICES=, REVOKED=, ROUNDS=)
	@$(BENCH) -name '$(NAME)' $(if $(filter .,$(NAME)),-out docs/benchmarks.md)

T ?= 10m

bench-scale: build ## what must not grow with the fleet (DEVICES=10000000)
	@$(BENCH) -name 'resolve|https|start|crl|scale'

profiles: packages build ## CPU and allocations of the server under the benchmarks, into profiles/ (NAME=regexp), for go tool pprof
	@$(BENCH) -name '$(if $(filter .,$(NAME)),enrol|handshake|coap|https,$(NAME))' -rounds 2 -profiles profiles

soak: build ## everything at once for a time: T=10m
	@$(BENCH) -soak $(T)

faults: packages build ## kill -9, power cuts, full and failing disks, damaged files, floods, bad networks: what was tried and what was lost
	@{ $(GO) test -json -count=1 -run '$(FAULTS)' ./store/bolt ./coapgw ./server ./id || true; \
	  $(GO) test -json -count=1 -tags e2e -timeout 20m -run '$(FAULTS)' ./e2e || true; } | $(GO) run ./internal/tested -faults

FAULTS := Kill|Power|Disk|Fsync|Damage|Flood|Spoof|Network|Clock|Restore

fuzz: ## every fuzz target for TIME each (TIME=1m)
	@grep -rlE --include=*_test.go '^func Fuzz' . | sort | while read -r file; do \
	  for target in $$(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*)\(.*/\1/p' "$$file"); do \
	    echo "$$(dirname "$$file") $$target"; \
	    $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(TIME) -fuzzminimizetime 1s "$$(dirname "$$file")"; \
	  done; \
	done

cover: ## coverage by package, and coverage.html
	@$(GO) test -coverpkg=./... -coverprofile=coverage.out ./... >/dev/null
	@$(GO) tool cover -func=coverage.out | tail -1
	@$(GO) tool cover -html=coverage.out -o coverage.html

packages: # what the tests need and is missing: installed as root, else named
	@missing=$$(for p in $(PACKAGES); do \
	  dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done | xargs); \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "the tests need: $$missing"; echo "hint: apt-get install $$missing, or make test as root"; exit 1; fi; \
	echo "installing $$missing"; \
	apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $$missing >/dev/null

dist: ## static, stripped binaries for Linux in dist/ (VERSION=1.2.3)
	@for arch in amd64 arm64 arm; do \
	  GOOS=linux GOARCH=$$arch GOARM=7 $(BUILD) -o dist/keystead-$(VERSION)-linux-$$arch . ; done
	@cd dist && sha256sum keystead-$(VERSION)-linux-* > SHA256SUMS && ls -l

clean: ## what make made, but not the data
	@rm -rf bin dist coverage.out coverage.html
