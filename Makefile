# What a newcomer and CI type; each verb is one script. `make` alone explains.

SHELL := /usr/bin/env bash
export CARGO_TARGET_DIR ?= $(HOME)/.cache/verdict/target
export VERDICT_CACHE ?= $(HOME)/.cache/verdict
export PATH := $(VERDICT_CACHE)/tools/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help demo up down test unit lint check-deploy check-observe drill images plan fmt bench proto models tools clean-cache

help: ## explains the verbs
	@echo "Verdict: decisions that can be explained, audited and undone."
	@echo
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)$$/\1\t\2/' | \
		while IFS=$$'\t' read -r verb text; do printf '  make %-12s %s\n' "$$verb" "$$text"; done
	@echo
	@echo "Start with \`make demo\`. Downloads, tools and build output live in $(VERDICT_CACHE)."

demo: ## builds, fetches the models, plays the story on three real services, stops them
	@scripts/demo.sh run

up: ## like demo, but leaves the three services running
	@scripts/demo.sh up

down: ## stops what `make up` started
	@scripts/demo.sh down

test: ## starts the servers the tests need and runs every test
	@scripts/test.sh

unit: models ## runs the tests that need no server
	@scripts/tools.sh nextest
	@cargo nextest run --workspace -E 'not test(/(^|::)live(_[a-z]+)?::/)'

lint: ## formatting, contracts, scripts, workflows, dependencies, clippy
	@scripts/lint.sh

check-deploy: ## images, compose file, charts, workflows, Terraform: linted, rendered, validated, scanned
	@scripts/check_deploy.sh

images: ## builds the three images with the Docker engine that is there
	@scripts/images.sh load

plan: ## what Terraform would change: make plan ENVIRONMENT=staging, after terraform init (docs/deploy.md)
	@terraform -chdir=terraform plan -var-file=env/$(or $(ENVIRONMENT),staging).tfvars

check-observe: ## checks alert rules, their tests, dashboards, Alertmanager, the collector, runbooks
	@scripts/check_observe.sh

drill: ## backs a running stack up, destroys it, restores it, proves that nothing is missing
	@scripts/drill.sh

fmt: ## formats Rust and the contracts
	@scripts/tools.sh python
	@cargo fmt --all
	@buf format proto --write

bench: ## measures the services beside their peers and prints ratios
	@scripts/bench.sh

proto: ## regenerates crates/api from proto/
	@UPDATE=1 cargo test --quiet -p verdict-api

models: ## fetches the models into the cache, pinned by SHA-256
	@scripts/models.py

tools: ## installs the tools the other verbs call
	@scripts/tools.sh all

clean-cache: ## removes downloads, tools and build output
	rm -rf "$(VERDICT_CACHE)/models" "$(VERDICT_CACHE)/python" "$(VERDICT_CACHE)/tools" "$(VERDICT_CACHE)/bench" "$(CARGO_TARGET_DIR)"
