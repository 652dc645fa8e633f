"""Power modes of a Jetson by their names: ids differ by board and release."""

from pathlib import Path

from tinyllava_edge.errors import UsageError
from tinyllava_edge.jetson import read_jetson, read_power_modes

CURRENT = ""  # the mode that is set


def read_modes(root: Path = Path("/")) -> dict[str, str]:
    """Ids of this board's power modes by their names."""
    return {name: number for number, name in read_power_modes(root).items()}


def chosen_modes(wanted: tuple[str, ...], root: Path = Path("/")) -> tuple[str, ...]:
    """The modes to measure in: those named, "all" of them, or the one that is set.

    Raises:
        UsageError: this board has no mode of that name.
    """
    modes = read_modes(root)
    if not wanted:
        return (CURRENT,)
    if wanted == ("all",):
        return tuple(modes) or (CURRENT,)
    for name in wanted:
        if name not in modes:
            there = ", ".join(modes) or "none: there is no /etc/nvpmodel.conf"
            raise UsageError(f"--modes {name}: this machine has no such power mode. It has: {there}.")
    return wanted


def set_mode(name: str, root: Path = Path("/")) -> tuple[tuple[str, ...], ...]:
    """Commands that set a mode: nothing for the current one. Where it asks for a restart, nobody answers."""
    if name == CURRENT:
        return ()
    return (("sudo", "-n", "nvpmodel", "-m", read_modes(root)[name]),)


def restore_mode(root: Path = Path("/")) -> tuple[tuple[str, ...], ...]:
    """Commands that set the mode of now again."""
    jetson = read_jetson(root)
    number = read_modes(root).get(jetson.power_mode or "") if jetson else None
    return (("sudo", "-n", "nvpmodel", "-m", number),) if number else ()
