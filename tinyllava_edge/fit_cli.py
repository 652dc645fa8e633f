"""`tinyllava-edge inspect BUNDLE --device DEVICE`: what a bundle takes there, and whether it fits."""

from typing import Any

import typer
from rich.table import Table

from tinyllava_edge import console
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.command_options import FitOptions
from tinyllava_edge.memory_fit import Target, find_target, fit_facts, verdict
from tinyllava_edge.memory_plan import MIB, chosen_setting


def show_fit(path: str, device: str, asked: FitOptions, *, json: bool) -> None:
    """Print the memory plan of a bundle on a device.

    Raises:
        BundleError: it is no bundle, or has no such variant.
        UsageError: there is no such device.
    """
    target = find_target(device)
    bundle = Bundle.open(bundle_path(path))
    facts = fit_facts(bundle, target, chosen_setting(bundle, **vars(asked)))
    if json:
        console.print_json({"path": path, **facts, "verdict": verdict(facts)})
    else:
        _print_fit(facts, target)
    if not facts["fits"]:
        raise typer.Exit(1)


def _print_fit(facts: dict[str, Any], target: Target) -> None:
    """The table, the setting, what takes less, and the verdict."""
    table = Table("what", "MiB", "where", "from")
    table.columns[1].justify = "right"
    for line in facts["lines"]:
        where = "shared" if target.shares_memory and target.gpu else line["place"]
        table.add_row(line["name"], f"{line['bytes'] / MIB:,.1f}", where, line["note"])
    for pool in facts["needed"]:
        table.add_row(f"all, of the {pool['memory']}", f"{pool['needed'] / MIB:,.1f}", "", "sum")
        table.add_row("free", f"{pool['free'] / MIB:,.1f}", "", target.source)
    console.stdout.print(table)
    setting = facts["setting"]
    shown = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in setting.items())
    console.stdout.print(shown, highlight=False, soft_wrap=True)
    for each in facts["smaller"]:
        word = "fits" if each["fits"] else "does not fit"
        console.stdout.print(
            f"with {each['change']}: {each['bytes'] / MIB:,.0f} MiB, {word}", highlight=False
        )
    console.stdout.print(verdict(facts), highlight=False, soft_wrap=True)
