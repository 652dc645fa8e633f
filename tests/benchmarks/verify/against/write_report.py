"""Plants three known faults, and writes what `verify --against` finds to benchmarks/results/against.md.

python -m tests.benchmarks.verify.against.write_report
"""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import openvino

from tests.benchmarks.verify.against.foreign_files import write_converted_mmproj, write_onnx_tower
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.benchmarks.verify.against.compare import compare_against, open_given
from tinyllava_edge.benchmarks.verify.against.findings import AgainstReport
from tinyllava_edge.checkpoint.names import NANO, checkpoint_path
from tinyllava_edge.checkpoint.opened import Checkpoint

PAGE = Path(__file__).parents[4] / "benchmarks" / "results" / "against.md"
HEAD = """# What `verify --against` finds in files with known faults

Written by `python -m tests.benchmarks.verify.against.write_report`, which makes the files: nano's tower as
llama.cpp's converter lays it out, a random CLIP tower likewise, and an OpenVINO IR of nano's tower with a
processor that crops. llama.cpp is the one in llama-cpp-python 0.3.36.
"""


def reports(folder: Path) -> Iterator[tuple[str, AgainstReport]]:
    nano = checkpoint_path(NANO)
    write_converted_mmproj(folder / "mmproj.gguf", nano)
    yield "llama.cpp's converter: one layer short (its issue 25817)", against(nano, folder / "mmproj.gguf")
    clip = write_tiny_checkpoint(folder / "clip", tower="clip_vision_model", vision_layers=4)
    write_converted_mmproj(folder / "clip.gguf", clip, layers=4)
    yield (
        "llama.cpp's graph: the class token behind the patches (its issue 25814)",
        against(clip, folder / "clip.gguf"),
    )
    ir = folder / "openvino"
    ir.mkdir()
    write_onnx_tower(folder / "tower.onnx", nano)
    openvino.save_model(
        openvino.convert_model(folder / "tower.onnx"), ir / "openvino_vision_embeddings_model.xml"
    )
    own = json.loads((nano / "preprocessor_config.json").read_text(encoding="utf-8"))
    crops = {"size": {"shortest_edge": 96}, "crop_size": {"height": 96, "width": 96}, "do_center_crop": True}
    (ir / "preprocessor_config.json").write_text(json.dumps(own | crops), encoding="utf-8")
    yield "OpenVINO: another resize", against(nano, ir)


def against(checkpoint: Path, file: Path) -> AgainstReport:
    opened = Checkpoint(checkpoint)
    return compare_against([file], open_given(opened))


def rows(report: AgainstReport) -> Iterator[str]:
    yield "| stage | of | | measured |"
    yield "|---|---|---|---|"
    for one in report.findings:
        if one.stage != "files" or not one.passed:
            figures = ", ".join(f"{name} {value:.4g}" for name, value in one.figures.items())
            about = "; ".join(part for part in (figures, one.cause) if part)
            mark = {True: "ok", False: "**differs**", None: "-"}[one.passed]
            yield f"| {one.stage} | {one.what} | {mark} | {about} |"


def main() -> None:
    with TemporaryDirectory() as scratch:
        parts = [HEAD]
        for title, report in reports(Path(scratch)):
            parts.append(f"## {title}\n\n" + "\n".join(rows(report)) + "\n")
    PAGE.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
