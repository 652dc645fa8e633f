"""`tinyllava-edge`, with FSDP let in on CPUs: torch has it there (gloo), accelerate asks for GPUs."""

from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from tinyllava_edge.__main__ import main

_begin = AcceleratorState.__init__


def _begin_with_fsdp(state: AcceleratorState, *args: Any, **kwargs: Any) -> None:
    _begin(state, *args, **kwargs)
    plugin = kwargs.get("fsdp_plugin")
    if plugin is not None and state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    AcceleratorState.__init__ = _begin_with_fsdp
    main()
