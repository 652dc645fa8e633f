# Two commands set everything up: `make demo` and `make test`. Each builds .venv when it is not there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo-out

# Elsewhere on Linux PyPI's torch is the CUDA build; TORCH can name another one.
TORCH ?= torch==2.13.0
LLAMA_CPP ?= llama-cpp-python==0.3.36
# llama.cpp is built with CUDA where there is a GPU; LLAMA_BUILD=--cpu leaves that out. pip keeps a CPU wheel and offers
# it to every later machine that shares its cache, so on x86-64 it is for AVX2. LLAMA_BUILD="--every-processor --fresh"
# has a backend for each kind of processor. A wheel that runs is taken, and what it leaves unused is said.
LLAMA_BUILD ?=
INSTALL_LLAMA = $(BIN)/python -m tinyllava_edge.install $(LLAMA_BUILD) "$(LLAMA_CPP)"
# Says what is going on while a command is silent.
STEP := $(PYTHON) tools/step.py
LLAMA_SUITS = $(BIN)/python -m tinyllava_edge.runtimes.llamacpp_build

# SmolLM2-135M with the ViT-S/14 of a package, where `make smollm2` has put it.
SMOLLM2 ?= $(OUT)/smollm2-135m
# The shape of Qwen2-0.5B and SigLIP-so400m with random weights, where `make qwen2-shape` has put it.
QWEN2 ?= $(OUT)/qwen2-0.5b-siglip
SMOLLM2_RUNTIMES := openvino-int8,onnxruntime+llamacpp
QWEN2_RUNTIMES := openvino-int8,openvino-bf16,onnxruntime+llamacpp
# As many as 24 GB of memory hold beside each other.
QWEN2_RIVALS := mtmd,llama-server,transformers-bf16,openvino-int8,openvino-int4
COLD_RIVALS := mtmd,transformers-bf16,openvino-int8,openvino-int4
# Questions to score nano's rows with: make bench QUESTIONS=questions.json IMAGES=folder
SCORED := $(if $(QUESTIONS),--questions $(QUESTIONS) --images $(IMAGES))
VISION ?= fp32,fp16
COMMA := ,
RESULTS ?= benchmarks/results
# Rivals in the same rounds, where `make peers` has put them: $(call rivals,NAMES,CHECKPOINT)
rivals = $(if $(wildcard .peers/*/ready),--peers $(1) --peers-checkpoint $(2))

# Drawings that nano's tower sees besides those it is asked about: things, not flags, signs or shapes.
OPENCLIPART ?= /usr/share/openclipart/png
DRAWINGS := animals buildings computer/hardware containers decorations education electronics food office people \
	plants recreation/holiday recreation/music recreation/party recreation/sports recreation/toys science \
	signs_and_symbols/clocks signs_and_symbols/weather tools transportation unsorted

# A result of verify in the user's cache is of this machine, and not on it.
NANO_CARD = XDG_CACHE_HOME=$(abspath $(OUT))/no-cache $(BIN)/tinyllava-edge card nano --bench $(RESULTS)/nano \
	> docs/nano_card.md

.PHONY: ablation against-mlx-vlm cold-and-busy long browser demo bench imatrix ort-int8 smollm2 qwen2-shape aarch64 locks python test fuzz faults check format hub-check hardware-check peers serve-load test-lmms newcomer nano nano-budgets smollm2-budgets nano-bundle nano-card example clean

$(VENV)/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed")'
	$(STEP) "1 of 3: a virtual environment in $(VENV)" sh -c '$(PYTHON) -m venv $(VENV) && \
		$(BIN)/python -m pip install --upgrade pip'
	$(STEP) "2 of 3: llama.cpp; compiled once, 7 to 12 minutes on two cores, later a wheel of pip's cache" $(INSTALL_LLAMA)
	$(STEP) "3 of 3: PyTorch, ONNX, ONNX Runtime and others; minutes, most of them to download" \
		$(BIN)/python -m pip install "$(TORCH)" --editable '.[dev]'
	$(LLAMA_SUITS) || { $(STEP) "llama.cpp again, for this machine; 7 to 12 minutes" $(INSTALL_LLAMA) --fresh && \
		$(LLAMA_SUITS); }
	touch $@

# The main job on the embedded default model: export, verify, ask about drawings, compare.
demo: $(VENV)/ready
	@echo "== export nano: its vision tower to ONNX, its language model to GGUF; about half a minute"
	$(BIN)/tinyllava-edge export nano -o $(OUT)/nano --vision fp32,fp16 --language f32,f16,q8_0,q4_k_m --force
	@echo "== prove the bundle equal to its checkpoint, stage by stage; one to two minutes"
	$(BIN)/tinyllava-edge verify $(OUT)/nano --checkpoint nano
	@echo "== ask nano what it was made for: 80 questions about 40 drawings that it never saw"
	$(BIN)/python -m examples.demo $(OUT)/nano
	@echo "== compare runtimes and variants; the longest part"
	$(BIN)/tinyllava-edge bench $(OUT)/nano --checkpoint nano --sessions 2 --runs 12 -o $(OUT)/bench --force
	@echo "table and plot: $(OUT)/bench/report.md, $(OUT)/bench/report.png"

# The results that README shows, and README itself. An hour, and one and a half more with the shape of Qwen2-0.5B; on
# a machine that does nothing else.
bench: $(VENV)/ready
	$(BIN)/tinyllava-edge export nano -o $(OUT)/nano --vision $(VISION) --language f32,f16,q8_0,q4_k_m \
		--interchange mmproj --force
	$(BIN)/tinyllava-edge export nano -o $(OUT)/nano-llava --interchange transformers --force
	$(BIN)/tinyllava-edge verify $(OUT)/nano --checkpoint nano
	$(BIN)/tinyllava-edge bench $(OUT)/nano --checkpoint nano --vision all --runs 66 $(SCORED) \
		$(call rivals,all,$(OUT)/nano-llava) --growth -o $(RESULTS)/nano --force
ifneq ($(wildcard $(SMOLLM2)/config.json),)
	$(BIN)/tinyllava-edge export $(SMOLLM2) -o $(OUT)/smollm2 --vision fp32,int8 --language f16,q8_0,ov_int8 --force
	$(BIN)/tinyllava-edge export $(SMOLLM2) -o $(OUT)/smollm2-llava --interchange transformers --force
	$(BIN)/tinyllava-edge verify $(OUT)/smollm2 --checkpoint $(SMOLLM2)
	$(BIN)/tinyllava-edge verify $(OUT)/smollm2 --checkpoint $(SMOLLM2) --runtime openvino-int8
	$(BIN)/tinyllava-edge bench $(OUT)/smollm2 --checkpoint $(SMOLLM2) --runtime $(SMOLLM2_RUNTIMES) \
		--vision int8 --language f16,ov_int8 --tokens 32 --sessions 2 --runs 12 $(call rivals,all,$(OUT)/smollm2-llava) \
		-o $(RESULTS)/smollm2-135m --force
else
	@echo "without SmolLM2-135M: make smollm2 downloads it"
endif
ifneq ($(wildcard $(QWEN2)/config.json),)
	$(BIN)/tinyllava-edge export $(QWEN2) -o $(OUT)/qwen2-0.5b-siglip-random --vision int8 \
		--language q4_0,ov_int8,ov_int4 --interchange mmproj --force
	$(BIN)/tinyllava-edge export $(QWEN2) -o $(OUT)/qwen2-llava --interchange transformers --force
	$(BIN)/tinyllava-edge bench $(OUT)/qwen2-0.5b-siglip-random --runtime $(QWEN2_RUNTIMES) --vision int8 \
		--tokens 32 --runs 12 --within 60 $(call rivals,$(QWEN2_RIVALS),$(OUT)/qwen2-llava) \
		-o $(RESULTS)/qwen2-0.5b-siglip-random --force
else
	@echo "without the shape of Qwen2-0.5B and SigLIP: make qwen2-shape TOKENIZERS=DIR writes it"
endif
	$(BIN)/python -m tools.readme
	$(NANO_CARD)

# What bench does not tell: a new process's first token, and decode beside a busy process, on the bundles of `make bench`.
COLD_AND_BUSY = $(BIN)/python -m tools.cold_and_busy
cold-and-busy: $(VENV)/ready
	$(COLD_AND_BUSY) $(OUT)/nano --vision fp16 --language f16 $(call rivals,$(COLD_RIVALS),$(OUT)/nano-llava) \
		-o $(RESULTS)/cold_and_busy/nano
	test ! -e $(OUT)/smollm2 || $(COLD_AND_BUSY) $(OUT)/smollm2 --runtime $(SMOLLM2_RUNTIMES) --vision int8 \
		--language q8_0,ov_int8 $(call rivals,$(COLD_RIVALS),$(OUT)/smollm2-llava) \
		-o $(RESULTS)/cold_and_busy/smollm2-135m
	test ! -e $(OUT)/qwen2-0.5b-siglip-random || $(COLD_AND_BUSY) $(OUT)/qwen2-0.5b-siglip-random \
		--runtime openvino-int8,onnxruntime+llamacpp --vision int8 --language q4_0,ov_int8 \
		$(call rivals,$(COLD_RIVALS),$(OUT)/qwen2-llava) -o $(RESULTS)/cold_and_busy/qwen2-0.5b-siglip-random

# What an imatrix and types of tensors gain; goes on with what is there, so remove the JSON first to measure anew. An hour.
imatrix: $(VENV)/ready
	@test -n "$(DATA)" -a -n "$(JUDGE)" || { echo "make imatrix DATA=train.json JUDGE=val.json"; exit 2; }
	$(BIN)/python -m tools.imatrix nano $(wildcard $(SMOLLM2)) --data $(DATA) --judge $(JUDGE) -o $(RESULTS)/imatrix

# Real weights from two packages of the index, and a random connector; needs a network.
smollm2: $(VENV)/ready
	$(BIN)/python -m tools.smollm2 $(SMOLLM2)

# Random weights, for speed alone; TOKENIZERS has a folder qwen2 with the vocabulary's files.
qwen2-shape: $(VENV)/ready
	$(BIN)/python -m tools.random_checkpoint qwen2-0.5b-siglip $(QWEN2) --tokenizers $(TOKENIZERS)

# Six cells of an ablation at nano's size, on the data that nano was trained on; minutes on two cores.
ablation: $(VENV)/ready
	test -e $(OUT)/nano-parts || $(BIN)/python -m examples.nano.parts -o $(OUT)/nano-parts
	$(BIN)/tinyllava-edge ablate examples/ablation.yaml -o $(OUT)/ablation --resume
	mkdir -p $(RESULTS)/ablation
	cp $(OUT)/ablation/report.* $(RESULTS)/ablation

# nano on emulated ARM processors; needs a network, and the packages that the script names. 20 minutes.
aarch64: $(VENV)/ready
	test -e $(OUT)/arm64/ready || CMAKE_ARGS="$$($(BIN)/python -m tinyllava_edge.install --left-out)" \
		PATH=$(abspath $(BIN)):$$PATH tools/aarch64/build_root.sh $(OUT)/arm64 "$(LLAMA_CPP)"
	$(BIN)/tinyllava-edge export nano -o $(OUT)/nano-arm64 --vision fp32,fp16,int8 --language f32,f16,q8_0,q4_k_m --force
	$(BIN)/python -m tools.aarch64 $(OUT)/arm64 $(OUT)/nano-arm64 -o $(RESULTS)/aarch64.md

# Integers of ONNX Runtime beside OpenVINO's: what they lose on the real weights that `make smollm2` leaves, and their
# times, on a machine that does nothing else.
ort-int8: $(VENV)/ready
	$(BIN)/python -m tools.ort_int8 $(SMOLLM2) --speed -o $(RESULTS)/ort_int8

# What boards get, resolved for aarch64 and their Pythons; needs a network.
locks: $(VENV)/ready
	$(BIN)/python -m pip install -qq uv
	$(BIN)/python -m tools.locks

# Core and runtimes without torch on another Python, as a device has them: make python PYTHON=python3.12
python: OTHER = $(OUT)/$(notdir $(PYTHON))
python:
	$(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/python -m tinyllava_edge.install $(LLAMA_BUILD) "$(LLAMA_CPP)"
	$(OTHER)/bin/python -m pip install -qq --editable '.[ort,llamacpp,packs,tests]'
	$(OTHER)/bin/python -m pytest tests/core tests/runtimes tests/test_cli.py tests/test_windows.py tests/test_packaging.py

test: $(VENV)/ready
	$(BIN)/python -m pytest

# What the suite leaves out for its time: every planted fault under the gates of every compute class, nano through the
# rule of "verified", families that the golden checkpoints walk, an export's
# memory at real size, a training killed within an ablation.
long: $(VENV)/ready
	$(BIN)/python -m pytest -m long

# The page of `serve`, a report and a card in Debian's Chromium (apt-get install chromium npm), and pictures of them.
# Playwright and axe-core are put into a folder of their own; needs a network the first time.
BROWSER ?= /usr/bin/chromium
browser: $(VENV)/ready $(OUT)/browser/ready
	PYTHONPATH=$(OUT)/browser TINYLLAVA_EDGE_BROWSER=$(BROWSER) TINYLLAVA_EDGE_SHOTS=docs/pictures \
		TINYLLAVA_EDGE_AXE=$(OUT)/browser/node_modules/axe-core/axe.min.js \
		$(BIN)/python -m pytest -s -m browser tests/runtimes/serve tests/benchmarks/test_pages_in_a_browser.py

$(OUT)/browser/ready:
	$(BIN)/python -m pip install -qq --target $(@D) playwright==1.65.2
	npm install --silent --no-save --prefix $(@D) axe-core@4
	touch $@

# Hostile files for every reader: SEED names the inputs, COUNT is how many there are of each kind. 1000 take 40 minutes.
SEED ?= 1
COUNT ?= 100
fuzz: $(VENV)/ready
	$(BIN)/python -m tests.fuzz --seed $(SEED) --count $(COUNT)

# Every operation on the disk fails or kills, one run each, in export, prune, train, a bundle and an engine's record;
# then what --force refuses.
faults: $(VENV)/ready
	$(BIN)/python -m tests.faults
	$(BIN)/python -m tests.faults --force-cases

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -m "not slow and not network and not long and not browser"

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# For who has a network: the released checkpoints of the hub, from download to score.
# EVAL_DATA=DIR holds pope/ and textvqa/ as TinyLLaVA's own scripts have them; HUB_CHECK_OPTIONS=... for the rest. Goes on
# with what an earlier one left.
hub-check: $(VENV)/ready
	$(BIN)/tinyllava-edge hub-check -o $(OUT)/hub-check --resume $(if $(EVAL_DATA),--eval-data $(EVAL_DATA)) $(HUB_CHECK_OPTIONS)

# For an owner of a Jetson or a card: all that it can show, beside what was expected of it; one file to send back.
# BUNDLES="DIR ..." for others than nano's; HARDWARE_CHECK_OPTIONS="--modes all --soak 10 --peers all" for the rest.
hardware-check: $(VENV)/ready
	$(BIN)/tinyllava-edge hardware-check $(BUNDLES) -o $(OUT)/hardware-check --force $(HARDWARE_CHECK_OPTIONS)

# Rivals that `bench --peers` measures, each in an environment of its own below .peers; needs a network. PEERS="NAME ..."
# for some of them: transformers, openvino, optimum-onnx, llama-server; vllm.
PEERS ?= transformers openvino optimum-onnx llama-server
LISTS := benchmarks/bench/peers/requirements-
peers: $(PEERS:%=.peers/%/ready)

.peers/%/ready: $(LISTS)%.txt
	$(PYTHON) -m venv .peers/$*
	.peers/$*/bin/python -m pip install -qq --no-deps -r $<
	touch $@

# Not among those of `make peers` alone: 2 GB, most of them torch and numba's compiler.
.peers/vllm/ready: $(LISTS)vllm.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"vLLM needs Python 3.11 or newer: make peers PEERS=vllm PYTHON=python3.11")'
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -qq --no-deps -r $<
	touch $@

# The program, for this machine and of the very source that the library is built from.
.peers/llama-server/ready: $(LISTS)llama-server.txt $(VENV)/ready
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -qq --no-deps -r $<
	$(BIN)/python -m tools.llama_server $(@D) "$(LLAMA_CPP)"
	touch $@

# llama-cpp-python's server, around the very library that was compiled for this machine.
.peers/llama-cpp-server/ready: $(LISTS)llama-cpp-server.txt $(VENV)/ready
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -qq --no-deps -r $<
	ln -sfn "$$($(BIN)/python -c 'import os, llama_cpp; print(os.path.dirname(llama_cpp.__file__))')" \
		"$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/llama_cpp"
	touch $@

# What mlx-vlm computes on this CPU from the files of `--interchange transformers`, held against nano; a minute.
against-mlx-vlm: $(VENV)/ready .peers/mlx-vlm/ready
	$(BIN)/tinyllava-edge export nano -o $(OUT)/nano-llava --interchange transformers --force
	.peers/mlx-vlm/bin/python tools/mlx_vlm_dump.py $(OUT)/nano-llava examples/demo/pictures/twitter-1f951.webp $(OUT)/mlx-vlm.npz
	$(BIN)/tinyllava-edge verify --against $(OUT)/mlx-vlm.npz --checkpoint nano --json > $(RESULTS)/against_mlx_vlm.json

# `serve` beside llama-cpp-python's own server, 1 to 8 clients, on a machine that does nothing else; 5 minutes.
# SERVE_LOAD_OPTIONS="--rounds 1 --seconds 2" for a look, with RESULTS elsewhere.
serve-load: $(VENV)/ready .peers/llama-cpp-server/ready
	$(BIN)/tinyllava-edge export nano -o $(OUT)/nano-serve --vision fp16 --language f16 --interchange mmproj --force
	$(BIN)/python -m tools.serve_peer $(OUT)/nano-serve .peers/llama-cpp-server -o $(RESULTS)/serve $(SERVE_LOAD_OPTIONS)

# README's commands in a Debian made for it, with what each printed and its time; root, debootstrap and a network. An hour.
newcomer: $(VENV)/ready
	$(BIN)/python -m tools.newcomer $(OUT)/newcomer -o $(RESULTS)/newcomer.md

# lmms-eval in an environment of its own, whose accuracy of nano must be that of our eval; needs a network. 3 minutes.
.peers/lmms-eval/ready: benchmarks/evals/requirements-lmms-eval.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -qq --no-deps -r $<
	$(@D)/bin/python -m tinyllava_edge.install $(LLAMA_BUILD) "$(LLAMA_CPP)"
	$(@D)/bin/python -m pip install -qq --no-deps --editable .
	touch $@

test-lmms: $(VENV)/ready .peers/lmms-eval/ready
	$(BIN)/python -m pytest -m "" tests/benchmarks/evals/test_lmms_adapter.py

# nano from nothing, as the shipped one was trained. Its drawings are Debian's: apt-get install openclipart-png.
# NANO_DATA=train.json, if the questions are not at ../shared/data/emoji_vqa.
nano: $(VENV)/ready
	$(BIN)/python -m pip install -q -r examples/nano/requirements.txt
	$(BIN)/python -m examples.nano -o $(OUT)/nano-checkpoint $(if $(NANO_DATA),--data $(NANO_DATA)) \
		$(DRAWINGS:%=--pictures $(OPENCLIPART)/%)

# nano learning four budgets of visual tokens at once: what each costs, and what it saves before the first token.
EMOJI ?= ../shared/data/emoji_vqa
nano-budgets: $(VENV)/ready
	$(BIN)/tinyllava-edge train --from nano --budgets 36,9,4,1 --tune connector+llm --learning-rate 3e-4 --batch-size 24 \
		--max-steps 160 --data $(EMOJI)/train.json --images $(EMOJI) -o $(OUT)/nano-budgets-checkpoint --force
	$(BIN)/tinyllava-edge export $(OUT)/nano-budgets-checkpoint -o $(OUT)/nano-budgets --vision fp16 --language f16,q8_0 --force
	$(BIN)/tinyllava-edge verify $(OUT)/nano-budgets --checkpoint $(OUT)/nano-budgets-checkpoint
	$(BIN)/tinyllava-edge bench $(OUT)/nano-budgets --vision fp16 --language f16 --budgets all --runtime onnxruntime+llamacpp \
		--questions $(EMOJI)/test_vendor.json --images $(EMOJI) -o $(RESULTS)/nano-budgets --force

# SmolLM2 at all of its tower's patches and at a quarter, beside OpenVINO's rows at all: times alone, as its connector
# is random. One step makes it a checkpoint of two budgets. What `make smollm2 bench` leaves is needed.
smollm2-budgets: $(VENV)/ready
	$(BIN)/tinyllava-edge train --from $(SMOLLM2) --budgets 256,64 --tune connector --max-steps 1 --batch-size 2 \
		--data $(EMOJI)/train.json --images $(EMOJI) -o $(OUT)/smollm2-budgets-checkpoint --force
	$(BIN)/tinyllava-edge export $(OUT)/smollm2-budgets-checkpoint -o $(OUT)/smollm2-budgets --vision int8 --language ov_int8 --force
	$(BIN)/tinyllava-edge verify $(OUT)/smollm2-budgets --checkpoint $(OUT)/smollm2-budgets-checkpoint --runtime openvino-int8
	$(BIN)/tinyllava-edge bench $(OUT)/smollm2-budgets --runtime openvino-int8 --vision int8 --budgets all --tokens 32 \
		--sessions 2 --runs 12 $(call rivals,openvino-int8$(COMMA)openvino-int4,$(OUT)/smollm2-llava) \
		-o $(RESULTS)/smollm2-budgets --force

# The bundle that comes with the package, made anew from the checkpoint beside it.
nano-bundle: $(VENV)/ready
	$(BIN)/tinyllava-edge export nano -o tinyllava_edge/nano/bundle --vision fp16 --language f16,q8_0 --force
	$(NANO_CARD)

# docs/nano_card.md, from what comes with the package and the committed report.
nano-card: $(VENV)/ready
	$(NANO_CARD)

# DINOv2-S and SmolLM2-135M as one model, from packages to its card, line by line what a user types: examples/smollm2_dinov2.
# Its pictures come by npm (apt-get install npm); needs a network.
EXAMPLE ?= $(OUT)/example
EXAMPLE_FILES := examples/smollm2_dinov2
EXAMPLE_RESULTS ?= $(RESULTS)/smollm2-dinov2
example: $(VENV)/ready $(EXAMPLE)/data $(EXAMPLE)/parts
	$(BIN)/tinyllava-edge train --recipe $(EXAMPLE_FILES)/pretrain.yaml --tower $(EXAMPLE)/parts/tower \
		--llm $(EXAMPLE)/parts/llm --data $(EXAMPLE)/data/captions.json -o $(EXAMPLE)/aligned
	$(BIN)/tinyllava-edge train --recipe $(EXAMPLE_FILES)/finetune.yaml --from $(EXAMPLE)/aligned \
		--data $(EXAMPLE)/data/train.json -o $(EXAMPLE)/tuned
	$(BIN)/tinyllava-edge export $(EXAMPLE)/tuned -o $(EXAMPLE)/bundle --vision fp32,int8 --language f16,q8_0,q4_k_m --force
	$(BIN)/tinyllava-edge verify $(EXAMPLE)/bundle --checkpoint $(EXAMPLE)/tuned
	mkdir -p $(EXAMPLE_RESULTS)
	$(BIN)/tinyllava-edge eval $(EXAMPLE)/bundle --questions $(EXAMPLE)/data/test.json --images $(EXAMPLE)/data \
		--vision fp32 --language f16,q8_0,q4_k_m --answers $(EXAMPLE)/answers.jsonl --force --json > $(EXAMPLE_RESULTS)/eval.json
	$(BIN)/tinyllava-edge eval compare $(EXAMPLE)/answers.fp32+f16.blind.jsonl $(EXAMPLE)/answers.jsonl --json \
		> $(EXAMPLE_RESULTS)/against_blind.json
	cp $(EXAMPLE)/aligned/training_log.jsonl $(EXAMPLE_RESULTS)/pretrain.jsonl
	cp $(EXAMPLE)/tuned/training_log.jsonl $(EXAMPLE_RESULTS)/finetune.jsonl
	$(BIN)/tinyllava-edge bench $(EXAMPLE)/bundle --checkpoint $(EXAMPLE)/tuned --vision all --runs 12 \
		-o $(EXAMPLE_RESULTS)/bench --force
	$(BIN)/tinyllava-edge card $(EXAMPLE)/bundle --checkpoint $(EXAMPLE)/tuned --name smollm2-dinov2 \
		--bench $(EXAMPLE_RESULTS)/bench --eval $(EXAMPLE_RESULTS)/eval.json > $(EXAMPLE_FILES)/card.md

$(EXAMPLE)/parts: | $(VENV)/ready
	$(BIN)/python -m examples.smollm2_dinov2.parts $@

$(EXAMPLE)/data: | $(VENV)/ready
	npm install --prefix $(EXAMPLE)/npm --ignore-scripts --no-audit emojibase-data@17.0.0 emoji-datasource-google@16.0.0 \
		emoji-datasource-twitter@16.0.0 @lobehub/fluent-emoji-3d@1.1.0
	$(BIN)/python -m examples.smollm2_dinov2.data $(EXAMPLE)/npm/node_modules -o $@

clean:
	rm -rf $(VENV) $(OUT) build *.egg-info
