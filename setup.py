"""What pyproject.toml cannot say of a checkout with four links in it: `tinyllava_edge/export` and so on.

setuptools walks through links, so MANIFEST.in leaves them out, and a source archive gets them here: its tests
import `tinyllava_edge.export`. Where they are, an editable install is a plain path, which type checkers read;
where git could make none (Windows) it is setuptools' own finder, which they do not.
"""

import os

from setuptools import setup
from setuptools.command.editable_wheel import editable_wheel
from setuptools.command.sdist import sdist

LINKED = ("export", "runtimes", "train", "benchmarks")


class _SdistWithLinks(sdist):
    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, [name for name in files if "__pycache__" not in name])
        for name in LINKED:
            os.symlink(f"../{name}", os.path.join(base_dir, "tinyllava_edge", name))


class _EditableAsPath(editable_wheel):
    def finalize_options(self) -> None:
        super().finalize_options()
        if all(os.path.isdir(os.path.join("tinyllava_edge", name)) for name in LINKED):
            self.package_dir = {"": "."}


setup(cmdclass={"sdist": _SdistWithLinks, "editable_wheel": _EditableAsPath})
