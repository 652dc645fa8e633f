"""What lmms-eval finds under the entry point `lmms_eval.models`; imported by that program alone."""

from typing import Any


def manifest() -> Any:
    """The model `tinyllava_edge` of lmms-eval, whose class is imported when it is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    path = "tinyllava_edge.benchmarks.evals.lmms_adapter.TinyllavaEdge"
    return ModelManifest(model_id="tinyllava_edge", simple_class_path=path)
