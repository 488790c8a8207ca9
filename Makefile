# Daily commands. `make test` is what CI runs.

SEEDS ?= 20
SEED ?= 1
ROUNDS ?= 1
BINS = -p mooseng-master -p mooseng-chunkserver -p mooseng-cli -p mooseng-certs
DEV_DIR ?= .mooseng-dev
export RUST_BACKTRACE ?= 0

.PHONY: help dev dev-down test test-all test-faults faults-plants check fix lint unit e2e sim bench deps

help:
	@sed -n 's/^## //p' Makefile

## make dev        build, start a cluster in .mooseng-dev and mount it; make dev-down ends it
dev:
	cargo build $(BINS)
	target/debug/mooseng dev up --dir $(DEV_DIR) --detach
	@echo "Or: make dev-down"

dev-down:
	target/debug/mooseng dev down --dir $(DEV_DIR)

## make check      format, clippy and types (under a minute when warm)
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

unit:
	cargo test --workspace --exclude mooseng-e2e
	cargo test -p mooseng-e2e --lib

# One after the other: each starts a cluster, and two cores are enough for one.
e2e:
	cargo build $(BINS) -p mooseng-e2e -p mooseng-bench --bins
	ROUNDS=$(ROUNDS) cargo test -p mooseng-e2e --test e2e -- --test-threads=1 --nocapture

## make test-all   make test, with ten minutes of certificate renewal, more kills and more seeds
test-all:
	$(MAKE) test ROUNDS=10 ROTATE_SECONDS=600
	$(MAKE) sim SEEDS=1000

## make sim        the simulation, SEEDS=N of them, and of each planted bug as many as it takes (docs/simulation.md)
sim:
	cargo build -p mooseng-sim --features plants
	target/debug/mooseng-sim --seeds 2 --twice
	scripts/sim-plants target/debug/mooseng-sim docs/simulation.md
	target/debug/mooseng-sim --seeds $(SEEDS)

## make test-faults  faults against real processes, SEED=S and ROUNDS=N of them (docs/faults.md); needs root
test-faults: ROUNDS = 100
test-faults: deps
	cargo build $(BINS) -p mooseng-e2e --bins
	target/debug/mooseng-faults --seed $(SEED) --rounds $(ROUNDS)

## make faults-plants  shows that such a campaign finds planted bugs, 100 rounds for each at most (docs/faults.md)
faults-plants: ROUNDS = 100
faults-plants: deps
	scripts/faults-plants docs/faults.md $(ROUNDS)

## make bench      MooseNG beside a FUSE passthrough and the bare disk, release build (docs/bench.md); BENCH="--quick --strace"
bench: deps
	cargo build --release $(BINS) -p mooseng-bench
	target/release/mooseng-bench --json target/bench.json $(BENCH)
