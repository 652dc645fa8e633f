"""How much memory a bundle needs on a device, before anything is opened."""

BATCH = 512  # rows of one llama.cpp call, which sizes its working memory by them
OUTPUT_ROWS = 64  # rows whose logits are kept at once: 512 of a vocabulary of 150,000 would be 297 MiB
