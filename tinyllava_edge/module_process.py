"""A module of ours in a process of its own: `python .../module_process.py MODULE ARGUMENT...`.

`python -m MODULE` would put the current directory first on sys.path, and run a numpy.py that a
user has there. PYTHONPATH stays as it is; PYTHONSAFEPATH, which also helps, is not known to Python 3.10.
"""

import os
import sys

_FOLDER = os.path.dirname(os.path.abspath(__file__))


def module_command(module: str, *arguments: str) -> list[str]:
    """What starts a module of ours, the same package as in this process, by this Python."""
    return [sys.executable, os.path.join(_FOLDER, "module_process.py"), module, *arguments]


def _run(module: str) -> None:
    sys.path[:] = [place for place in sys.path if os.path.abspath(place) != _FOLDER]  # `python FILE` adds it
    from importlib import import_module
    from runpy import run_module

    where = os.path.dirname(_FOLDER)
    sys.path.insert(0, where)
    import_module("tinyllava_edge")
    sys.path.remove(where)  # it need not be an installed one; what it imports stands in its __path__
    run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _run(sys.argv.pop(1))
