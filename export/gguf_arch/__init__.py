"""GGUF names and metadata, one module per language-model family."""
