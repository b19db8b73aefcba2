# faultgraft. `make` prints the targets.

SHELL       := /bin/bash -o pipefail
VERSION     := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS     := -s -w -X main.version=$(VERSION)
PREFIX      ?= /usr/local
GOLANGCI    := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
SCRIPTS     := $(wildcard contrib/lab/*.sh contrib/testkernel/*.sh) $(addprefix contrib/testkernel/,init testrun arm64run) tracer/parasite/build.sh contrib/ci/need-go contrib/ci/fuzz .ci/run
export FAULTGRAFT_BIN := $(CURDIR)/bin/faultgraft

.PHONY: help build test fuzz test-vm test-arm64 demo soak bench lint man install uninstall lab lab-down clean go

help: ## print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

go:
	@contrib/ci/need-go

build: go ## build the one static binary: bin/faultgraft
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/faultgraft ./cmd/faultgraft

test: go build ## run the tests by tier; TIERS="unit fs" runs some
	@go run ./test/tiers $(TIERS)

fuzz: go ## run each fuzzer of the tree for FUZZTIME=20s, one after another (root); PACKAGES=./fusefs runs some
	@contrib/ci/fuzz $(or $(FUZZTIME),20s) $(or $(PACKAGES),./...)

demo: go ## set everything up and break, and heal, a running container's disk (root)
	@contrib/lab/packages.sh lab
	@$(MAKE) --no-print-directory build
	@go run ./test/demo

soak: go build ## databases in containers under grafts, faults and kills, checked all along, for HOURS=1 (root); SOAK="-seed 7 -v"
	@contrib/lab/packages.sh lab
	@go run ./test/soak -hours $(or $(HOURS),1) $(SOAK)

bench: go build ## compare the layer with the file system under it and with its peers, and measure the pause and kernel faults (root); BENCH="-only create"
	@contrib/lab/packages.sh bench vm
	@contrib/lab/packages.sh peers || echo 'peers that are missing are left out'
	@go run ./test/bench -faultgraft bin/faultgraft $(BENCH)

test-vm: go ## run the tests of kernel faults in an emulated machine; KERNEL="fault debian-6.1 debian" PACKAGES=kernel ONLY=REGEXP TEST_KERNEL=IMAGE
	@contrib/lab/packages.sh vm
	@ONLY='$(ONLY)' PACKAGES='$(PACKAGES)' TEST_KERNEL='$(TEST_KERNEL)' contrib/testkernel/vm.sh $(or $(KERNEL),fault)

test-arm64: go ## run the swap tests on arm64 in an emulated machine (slow); ONLY=REGEXP runs some
	@contrib/lab/packages.sh arm64
	@contrib/testkernel/arm64.sh '$(or $(ONLY),.)'

lint: go ## gofmt, go vet, builds for other machines, golangci-lint, shellcheck
	@contrib/lab/packages.sh lint
	@bad=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$bad" ] || { echo "gofmt would change: $$bad" >&2; exit 1; }
	go vet ./...
	GOARCH=arm64 go vet ./tracer && GOARCH=arm64 go build -o /dev/null ./cmd/faultgraft && GOARCH=riscv64 go build ./tracer
	go run $(GOLANGCI) run ./...
	shellcheck -x $(SCRIPTS)

man: build ## write the manual pages: bin/man
	@rm -rf bin/man
	@bin/faultgraft man bin/man

install: build man ## install to PREFIX (/usr/local); NRI=1 as containerd's plugin, SYSTEMD=1 the unit
	install -D -m 755 bin/faultgraft $(DESTDIR)$(PREFIX)/bin/faultgraft
	install -d $(DESTDIR)$(PREFIX)/share/man/man8
	install -m 644 bin/man/*.8 $(DESTDIR)$(PREFIX)/share/man/man8/
ifdef NRI
	install -D -m 755 bin/faultgraft $(DESTDIR)/opt/nri/plugins/10-faultgraft
endif
ifdef SYSTEMD
	install -D -m 644 contrib/systemd/faultgraft.service $(DESTDIR)/etc/systemd/system/faultgraft.service
endif

uninstall: ## end all faults and remove what install put there; stop the agent first
	@[ -n '$(DESTDIR)' ] || [ ! -x $(PREFIX)/bin/faultgraft ] || $(PREFIX)/bin/faultgraft purge
	rm -f $(DESTDIR)$(PREFIX)/bin/faultgraft $(DESTDIR)$(PREFIX)/share/man/man8/faultgraft*.8
	rm -f $(DESTDIR)/opt/nri/plugins/10-faultgraft $(DESTDIR)/etc/systemd/system/faultgraft.service

lab: build ## start the private containerd lab (root); see contrib/lab/README.md
	@contrib/lab/lab.sh up
	@contrib/lab/lab.sh status
	@echo 'try: contrib/lab/lab.sh nerdctl run --rm --net none lab.local/busybox:1 echo hello'

lab-down: ## stop the lab and remove what runs in it
	@contrib/lab/lab.sh down

clean: ## remove bin; the lab's cache goes with contrib/lab/lab.sh purge
	rm -rf bin
