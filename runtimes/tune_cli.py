"""The command `tinyllava-edge tune`."""

from typing import Annotated

import typer

from tinyllava_edge.command_options import BundleArgument, JsonOption
from tinyllava_edge.console import note, print_json, stdout


def tune(
    bundle: BundleArgument,
    seconds: Annotated[float, typer.Option(help="Begin nothing more after this long.", min=1)] = 60.0,
    json: JsonOption = False,
) -> None:
    """Measure a bundle's variants and settings on this machine, once; run and open_bundle take the fastest.

    What each preset then means in bytes, accuracy and time goes to stdout.
    """
    from tinyllava_edge.bundle import Bundle
    from tinyllava_edge.checkpoint.names import bundle_path
    from tinyllava_edge.presets import BOUND, DEFAULT_PRESET
    from tinyllava_edge.tuned import write_tuned

    from .preset_table import preset_rows, preset_table
    from .tune import tune as measure

    opened = Bundle.open(bundle_path(bundle)).at_tokens()
    tuned = measure(opened, seconds=seconds, say=note)
    path = write_tuned(opened, tuned)
    rows = preset_rows(opened, tuned)
    if json:
        print_json({**tuned.model_dump(), "path": str(path), "presets": rows})
        return
    stdout.print(preset_table(rows))
    bound = " and ".join(
        f"{gate.metric} {'<=' if gate.kind == 'max' else '>='} {gate.limit:g}" for gate in BOUND
    )
    balanced = next(row for row in rows if row["preset"] == DEFAULT_PRESET)
    note(f"{balanced['why'] or f'balanced is within {bound} of the checkpoint'}; kept in {path}")
