# Every target sets up what it needs first; set-up is quick when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Where pip should take torch from, as --index-url or --find-links; by default where everything comes from.
TORCH_ARGS ?=
TORCH := $(shell grep '^torch==' constraints.txt)

SERVE ?=
.PHONY: setup serve demo test check pure unit slow soak stress sanitize chaos lives clients storm fuzz lm-eval bench figures bench-parts gpu wheel docs fmt clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt setup.py $(wildcard native/*.h native/*.cpp native/isa/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "shardwise needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	@# torch by itself and pinned: a range would let pip fetch another, far larger build.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH_ARGS) "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

serve: setup  ## the bundled model behind an HTTP API at http://127.0.0.1:8000; SERVE="MODEL -tp 2" for other flags
	@exec $(BIN)/shardwise serve $(SERVE)

demo: setup  ## the bundled model answers a question on two ranks, with the cut drawn
	@$(BIN)/shardwise generate shardling -tp 2 --device cpu --chat --prompt "What is tensor parallelism?" --temperature 0 --max-tokens 120 --show-cut --stats

test: check pure unit  ## everything that has to hold before a change goes in

check: setup  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pure: setup  ## the pure floors' tests, where torch cannot be imported
	$(BIN)/python -m pytest -q -n 2 -p tests.no_torch -r fE -m 'pure and not slow' tests/spec tests/sched

unit: setup  ## all tests but those `pure` has run
	$(BIN)/python -m pytest -q -n 2 -m 'not pure and not slow and not gpu'

slow: setup  ## minutes long: large models, real memory limits, many trials
	$(BIN)/python -m pytest -q -m slow --timeout 1800

RESULTS ?= bench/results
SEED ?= 0
soak: setup  ## a million simulated requests; SEED=n for other ones
	$(BIN)/python -m tests.sched.simulation --requests 1000000 --seed $(SEED)

stress: setup  ## ten million rounds through shared memory by two to seven processes; SEED=n for other ones
	$(BIN)/python -m tests.comm.shm_stress --rounds 10000000 --seed $(SEED)

SANITIZED := .sanitized
sanitize: setup  ## compiled kernels and shared memory under sanitizers: addresses and undefined behaviour, then threads
	rm -rf $(SANITIZED) && mkdir $(SANITIZED)
	cp -r src native tests setup.py pyproject.toml README.md LICENSE $(SANITIZED)/ && rm -f $(SANITIZED)/src/shardwise/_native*.so
	cd $(SANITIZED) && CFLAGS="-g -fsanitize=address,undefined -fno-sanitize-recover=undefined" ../$(BIN)/python setup.py -q build_ext --inplace
	cd $(SANITIZED) && PYTHONPATH=src ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		../$(BIN)/python -m pytest -q -n 0 --timeout 1800 -p no:cacheprovider tests/nn/kernels tests/comm/test_comm_shm.py
	$(BIN)/python -m pytest -q -n 0 -m slow --timeout 1800 tests/comm/test_shm_races.py

TRIALS ?= 150
chaos: setup  ## hundreds of faults in live servers, each stream held against its oracle; SEED=n, TRIALS=n for others
	$(BIN)/shardwise chaos -tp 2 --faults kill --trials $(TRIALS) --seed $(SEED)
	$(BIN)/shardwise chaos -tp 4 --faults kill --trials $(TRIALS) --seed $(SEED)
	$(BIN)/shardwise chaos -tp 2 --faults stop,stall,spin,starve --trials $(TRIALS) --seed $(SEED)
	$(BIN)/shardwise chaos -tp 2 --api-workers 2 --faults double,engine,front,parent,group,all --trials $(TRIALS) --seed $(SEED)

lives: setup  ## ten thousand simulated lives of an engine that loses ranks; SEED=n for other ones
	$(BIN)/python -m tests.engine.recovery.simulation --seeds 10000 --seed $(SEED)

CLIENTS ?=
clients: setup  ## unmodified clients in environments of their own against a server: OpenAI's (Python, Node, and its own tests), Anthropic's, litellm, llm, huggingface_hub
	$(BIN)/python -m tests.clients.run $(CLIENTS)

storm: setup  ## clients that leave, drains, overload: thousands, against real servers
	$(BIN)/python -m pytest -q -n 0 -m slow --timeout 1800 tests/server/test_storm.py tests/server/test_drains.py tests/server/test_overload.py

fuzz: setup  ## ten thousand hostile requests, five thousand without a key, and schemathesis, while good streams run; SEED=n for other ones
	$(BIN)/python -m tests.hostile.fuzz --requests 10000 --keyless 5000 --examples 120 --seed $(SEED)

lm-eval: setup  ## lm-eval's log-likelihoods and bits per byte at degrees 1, 2, 3 against transformers
	$(BIN)/python -m tests.scoring.harness --degrees 1 2 3

bench: setup  ## ten minutes: the machine's limits, sums over ranks, and decode, prefill and scaling of a 1 B model with random weights
	$(BIN)/shardwise bench limits --rounds 3 --out $(RESULTS)
	$(BIN)/shardwise bench comm --ranks 2,4 --out $(RESULTS)
	$(BIN)/shardwise bench decode -tp 1,2 --quantization none,int8,int4 --batches 1,16 --steps 16 --rounds 2 --out $(RESULTS)
	$(BIN)/shardwise bench prefill -tp 2 --quantization none,int8,int4 --lengths 512 --rounds 2 --out $(RESULTS)
	$(BIN)/shardwise bench scaling --quantization int8 --steps 16 --out $(RESULTS)

figures: setup  ## an hour on a quiet machine: what bench leaves out of the 1 B model: long contexts, all batches, degrees in pairs, more ranks than cores, starts, memory, idling
	$(BIN)/shardwise bench decode -tp 2 --quantization int8 --batches 1 --contexts 64,4000 --rounds 5 --name decode-context --out $(RESULTS)
	$(BIN)/shardwise bench decode -tp 2 --quantization none,int8,int4 --batches 1,2,4,8,16,32 --rounds 5 --name decode-batches --out $(RESULTS)
	$(BIN)/shardwise bench decode -tp 1,2 --quantization none,int8,int4 --batches 1 --rounds 5 --name decode-degrees --out $(RESULTS)
	$(BIN)/shardwise bench decode -tp 2,3,4,6 -t 1 --quantization int8 --batches 1 --name decode-crowded --out $(RESULTS)
	$(BIN)/python bench/start.py --reference scratch/llama-1b --tp 2 --quantization none,int8 --idle 10 --json $(RESULTS)/$$(date +%F)-start-1b.json
	$(BIN)/python bench/start.py --tp 6 --runs 1 --idle 10 --json $(RESULTS)/$$(date +%F)-idle-6.json

bench-parts: setup  ## what many requests, choosing, the scheduler, fronts and a start cost
	$(BIN)/python bench/many.py
	$(BIN)/python bench/sampling.py
	$(BIN)/python bench/scheduler.py
	$(BIN)/python bench/bridge.py
	$(BIN)/python bench/front.py
	$(BIN)/python bench/neighbours.py
	$(BIN)/python bench/start.py

gpu:  ## on a machine with a GPU, with whatever torch is there
	PYTHONPATH=src python3 -m pytest -q -m gpu tests/gpu

wheel: setup  ## dist/*.whl, installed into an environment of its own, from which it serves
	rm -rf dist && $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(BIN)/python -m pytest -q -m slow tests/test_wheel.py

docs: setup  ## docs/api.md, from the routes and their structs
	$(BIN)/python -c "from shardwise.server.docs import markdown; from shardwise.server.routes import ROUTES; print(markdown(ROUTES), end='')" > docs/api.md

fmt: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .clients $(SANITIZED) build dist src/shardwise/_native*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
