"""What processes of the tests are forked from: training is imported, and no garbage is looked for in it."""

import gc

import transformers.models.llama.modeling_llama
import transformers.models.siglip.modeling_siglip
import transformers.trainer

import tinyllava_edge.train.finetune

__all__ = ["tinyllava_edge", "transformers"]
gc.freeze()
