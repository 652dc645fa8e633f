"""The torch reference model, shared by export and train. Needs the `torch` extra."""

import logging

# transformers imports torchao where that is installed, which tells of kernels that other devices would need.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
