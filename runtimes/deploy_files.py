"""What `deploy` writes beside the bundle: a script that installs, and a page that says what to do."""

from string import Template

INSTALL = Template("""#!/bin/sh
# Installs tinyllava-edge in the folder of this script, and asks the first question.
# Needs python3-venv; llama.cpp is compiled (on an Orin Nano about 20 minutes, not yet measured).
set -eu
cd "$$(dirname "$$0")"
found=$$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$$found" != "$python" ]; then
    echo "python3 is $$found; these packages are for $python ($title)." >&2
    exit 2
fi
# The board's TensorRT is a package of its system, so the environment sees those, too.
python3 -m venv --system-site-packages .venv
export PIP_FIND_LINKS=wheels PIP_DISABLE_PIP_VERSION_CHECK=1
if ls wheels/llama_cpp_python-* > /dev/null 2>&1; then export PIP_NO_INDEX=1; fi
.venv/bin/python -m pip install --no-deps -r requirements.txt wheels/tinyllava_edge-*.whl
.venv/bin/python -m tinyllava_edge.install "$llama_cpp"
.venv/bin/tinyllava-edge doctor
echo "expected: $$(cat first_answer.txt)"
printf "here:     "
.venv/bin/tinyllava-edge run bundle "$picture" "$question" --max-tokens $max_tokens $options
""")

README = Template("""# $name for $title

1. Copy this folder to the board, and run `sh install.sh` in it. $network
2. It makes `.venv`, compiles llama.cpp for the board's GPU, and asks "$question" about `$picture`.
   Expected: `first_answer.txt`, as $host gave it; other processors round otherwise, so words may differ.
3. `.venv/bin/tinyllava-edge build bundle` then builds the vision tower's TensorRT engine (minutes, once).
4. Ask: `.venv/bin/tinyllava-edge run bundle PICTURE "QUESTION" $options`

Memory, planned: $needed.
`deploy.json` has it line by line, and the token ids of the answer.
Not yet run on this board: see docs/deploying.md of the repository for what was tried.
""")
