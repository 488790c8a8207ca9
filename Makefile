# Daily commands. `make test` is what CI runs.

SEEDS ?= 12
SEED ?= 1
ROUNDS ?= 1
PROGRAMS = mooseng mooseng-master mooseng-chunkserver mooseng-certs
UNITS = mooseng-master@.service mooseng-chunkserver@.service mooseng-mount@.service mooseng-certs-renew.service
EXAMPLES = systemd/mnt-mooseng.mount examples/master.toml examples/chunkserver.toml
# Always the whole workspace, of which cargo then builds what is asked for: features of crates are the same in each step, so that none is built twice.
BINS = --workspace $(addprefix --bin ,$(PROGRAMS))
E2E_BINS = $(addprefix --bin ,mooseng-load mooseng-lock mooseng-faults mooseng-geo mooseng-bench-geo mooseng-differential)
BENCH_BINS = $(addprefix --bin ,mooseng-bench mooseng-passthrough)
DEV_DIR ?= .mooseng-dev
PREFIX ?= /usr/local
# mount(8) looks for mount.mooseng in /sbin alone, whatever the prefix.
SBINDIR ?= /sbin
UNITDIR ?= $(PREFIX)/lib/systemd/system
# Where `make install` takes the binaries from.
FROM ?= target/release
export RUST_BACKTRACE ?= 0
# Unit tests, simulation and end-to-end tests are of one build, with the places for planted bugs in it (docs/simulation.md): none is planted but where a run says so.
TESTED = --workspace --features mooseng-sim/plants

.PHONY: help build install uninstall dev dev-down test test-all test-faults test-geo faults-plants check fix lint unit e2e sim bench bench-geo deps

help:
	@sed -n 's/^## //p' Makefile

## make dev        build, start two regions and a witness in .mooseng-dev and mount them; make dev-down ends them
dev:
	cargo build $(BINS)
	target/debug/mooseng dev up --dir $(DEV_DIR) --detach
	@echo "Or: make dev-down"

dev-down:
	target/debug/mooseng dev down --dir $(DEV_DIR)

## make build      the release binaries, for make install
build:
	cargo build --release $(BINS)

## make install    what `make build` made: binaries, mount.mooseng, units, examples, manual pages, completions (DESTDIR, PREFIX=/usr/local)
install:
	@test -x $(FROM)/mooseng || { echo "There are no binaries in $(FROM): run 'make build' first." >&2; exit 1; }
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(SBINDIR) $(DESTDIR)$(UNITDIR) $(DESTDIR)$(PREFIX)/share/man/man1 \
	  $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	install -m 755 $(addprefix $(FROM)/,$(PROGRAMS)) $(DESTDIR)$(PREFIX)/bin
	ln -sfn $(PREFIX)/bin/mooseng $(DESTDIR)$(SBINDIR)/mount.mooseng
	ln -sfn $(PREFIX)/bin/mooseng $(DESTDIR)$(SBINDIR)/mount.fuse.mooseng
	for unit in $(UNITS); do \
	  sed 's|@BINDIR@|$(PREFIX)/bin|g' packaging/systemd/$$unit > $(DESTDIR)$(UNITDIR)/$$unit || exit 1; \
	  chmod 644 $(DESTDIR)$(UNITDIR)/$$unit; \
	done
	$(FROM)/mooseng man $(DESTDIR)$(PREFIX)/share/man/man1
	$(FROM)/mooseng completions bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/mooseng
	install -d $(DESTDIR)$(PREFIX)/share/doc/mooseng
	install -m 644 $(addprefix packaging/,$(EXAMPLES)) $(DESTDIR)$(PREFIX)/share/doc/mooseng

## make uninstall  takes that away again
uninstall:
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(PROGRAMS)) $(addprefix $(DESTDIR)$(UNITDIR)/,$(UNITS))
	rm -f $(DESTDIR)$(SBINDIR)/mount.mooseng $(DESTDIR)$(SBINDIR)/mount.fuse.mooseng
	rm -f $(DESTDIR)$(PREFIX)/share/man/man1/mooseng.1 $(DESTDIR)$(PREFIX)/share/man/man1/mooseng-*.1
	rm -f $(DESTDIR)$(PREFIX)/share/bash-completion/completions/mooseng
	rm -rf $(DESTDIR)$(PREFIX)/share/doc/mooseng

## make check      format and types (under a minute when warm); clippy is in make test
check:
	cargo fmt --all --check
	cargo check --workspace --all-targets

## make fix        what check would complain about, as far as a machine can mend it
fix:
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged

## make test       everything that CI runs
test: deps lint unit sim e2e

deps:
	scripts/install-deps

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

# Two at a time, here and below: the longest ones wait most of their time.
AT_ONCE ?= 2
unit:
	AT_ONCE=$(AT_ONCE) scripts/unit $(TESTED)

e2e:
	cargo build $(TESTED) $(addprefix --bin ,$(PROGRAMS)) $(BENCH_BINS) --test e2e
	test=$$(cargo test $(TESTED) --test e2e --no-run 2>&1 | sed -n 's/.*Executable.*(\(.*\)).*/\1/p') && \
	AT_ONCE=$(AT_ONCE) ROUNDS=$(ROUNDS) HOSTILE_PORTS=$(HOSTILE_PORTS) GEO_ROUNDS=$(GEO_ROUNDS) scripts/e2e "$$test" $(E2E)

## make test-all   make test with every figure in full - ten minutes of certificate renewal, 10,000 looks, ten kills, 1 GiB rewritten -, 1,000 seeds, 100 rounds of faults, planted bugs; hours
test-all:
	$(MAKE) test ROUNDS=10 ROTATE_SECONDS=600 HOSTILE_PORTS=all COHERENCE=10000 REWRITE_MIB=1024 GEO_ROUNDS=1
	$(MAKE) sim SEEDS=1000
# By itself: what a hung process may cost is asserted only where the machine has nothing else to do.
	$(MAKE) test-faults ROUNDS=100
	$(MAKE) faults-plants ROUNDS=100

## make sim        the simulation, SEEDS=N of them or as many other ones as fit in FOR=SECONDS, and of each planted bug as many as it takes (docs/simulation.md)
sim: SIMULATED = $(if $(FOR),--for $(FOR),--seeds $(SEEDS))
sim:
	cargo build $(TESTED) --bin mooseng-sim
# The first of them has all that only some seeds have (docs/simulation.md).
	target/debug/mooseng-sim --from 3 --seeds 2 --twice
	target/debug/mooseng-sim --regions --from 3 --seeds 2 --twice
	scripts/sim-plants target/debug/mooseng-sim docs/simulation.md
	target/debug/mooseng-sim $(SIMULATED) & one=$$!; target/debug/mooseng-sim --regions $(SIMULATED) && wait $$one

## make test-faults  faults against real processes, SEED=S and ROUNDS=N of them, with a planted bug if PLANT=NAME (docs/faults.md); needs root
test-faults: ROUNDS = 100
test-faults: deps
	cargo build $(if $(PLANT),$(TESTED) $(addprefix --bin ,$(PROGRAMS)),$(BINS)) $(E2E_BINS)
	target/debug/mooseng-faults --seed $(SEED) --rounds $(ROUNDS) $(if $(PLANT),--plant $(PLANT))

## make test-geo   the home region of a geo volume is cut off, killed or paused, ROUNDS=N times in each way, SEED=S, of REGIONS=N, 2 to 4 (docs/faults.md); needs root
test-geo: ROUNDS = 10
test-geo: deps
	cargo build $(BINS) $(E2E_BINS)
	target/debug/mooseng-geo --seed $(SEED) --rounds $(ROUNDS) $(if $(REGIONS),--regions $(REGIONS))

## make faults-plants  shows that such a campaign finds planted bugs, 100 rounds for each at most (docs/faults.md)
faults-plants: ROUNDS = 100
faults-plants: deps
	scripts/faults-plants docs/faults.md $(ROUNDS)

## make bench-geo  figures of several regions: reads elsewhere, fsync, replication age, bytes sent, failover (docs/bench.md); needs root
bench-geo: deps
	cargo build --release $(BINS) $(E2E_BINS)
	target/release/mooseng-bench-geo --json target/bench-geo.json $(BENCH)

## make bench      MooseNG beside a FUSE passthrough and the bare disk, release build (docs/bench.md); BENCH="--quick --no-strace"
bench: deps
	cargo build --release $(BINS) $(BENCH_BINS)
	target/release/mooseng-bench --json target/bench.json $(BENCH)
