"""Everything about a TensorRT engine on this machine: build, cache, pack, choose, compare, run."""
