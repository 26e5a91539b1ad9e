# make pareto: the main job on the embedded model.  make test: the tests.  make ui: MLflow's pages.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PORT ?= 5000
RUN := $(VENV)/bin/python
READY := $(VENV)/.installed

.PHONY: pareto test test-slow lint ui bench-exact bench-pool clean

pareto: $(READY)
	$(RUN) -m ptsearch +study=pareto $(ARGS)

test: $(READY)
	$(RUN) -m ruff check ptsearch tests experiments
	$(RUN) -m ruff format --check ptsearch tests experiments
	$(RUN) -m mypy
	$(RUN) -m pytest $(ARGS)

test-slow: $(READY)
	$(RUN) -m pytest -m slow $(ARGS)

ui: $(READY)
	MLFLOW_DISABLE_TELEMETRY=true $(VENV)/bin/mlflow ui --port $(PORT) \
		--backend-store-uri sqlite:///$(CURDIR)/mlruns/mlflow.db

bench-exact: $(READY)
	$(RUN) experiments/bench_exact.py $(ARGS)

# PEERS=FOLDER of llmcompressor_pool.py and checkpoint.py; goes on where it stopped
bench-pool: $(READY) mlruns/peers/.installed
	$(RUN) experiments/bench_pool.py $(ARGS)

mlruns/peers/.installed:
	$(PYTHON) -m venv mlruns/peers
	mlruns/peers/bin/python -m pip install --quiet torch==2.13.0
	mlruns/peers/bin/python -m pip install --quiet transformers==5.17.0 compressed-tensors==0.19.0 \
		llmcompressor==0.14.0.1
	touch $@

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $(READY)

clean:
	rm -rf $(VENV) mlruns
