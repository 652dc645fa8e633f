"""Where rivals live: `make peers` makes an environment for each, with the versions of a committed list."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

HOME = Path(".peers")
SERVER = "llama-server"
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)", re.MULTILINE)


@dataclass(frozen=True)
class Environment:
    """One rival's environment.

    Attributes:
        name: of its folder, and of the list `requirements-NAME.txt` here.
        root: the folder.
    """

    name: str
    root: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.root / "bin" / "python"

    @property
    def mend(self) -> str:
        """The line that makes it."""
        return f"make peers PEERS={self.name}"

    def fault(self) -> str:
        """What is missing, or of another version than listed; nothing where it is as it should be."""
        if not self.python.is_file():
            return f"no environment at {self.root}: {self.mend}"
        installed = installed_versions(self.root)
        for package, version in listed_versions(self.name).items():
            found = installed.get(package)
            if found is None or found.split("+")[0] != version.split("+")[0]:
                return f"{self.root} has {package} {found or 'not'}, {version} is listed: {self.mend}"
        return ""


def installed_versions(root: Path) -> dict[str, str]:
    """Versions of the packages in a virtual environment, by their normalized names."""
    places = [str(path) for path in root.glob("lib/python*/site-packages")]
    return {_plain(found.name): found.version for found in distributions(path=places)}


def listed_versions(name: str) -> Mapping[str, str]:
    """What `requirements-NAME.txt` pins."""
    text = (Path(__file__).parent / f"requirements-{name}.txt").read_text(encoding="utf-8")
    return {_plain(package): version for package, version in _PIN.findall(text)}


def _plain(name: str) -> str:
    """PEP 503's normal form."""
    return re.sub(r"[-_.]+", "-", name).lower()
