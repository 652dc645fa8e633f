"""Every link, citation and path in the repository's texts leads somewhere. Nothing is fetched. No model."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = (
    *("tinyllava_edge", "export", "runtimes", "train", "benchmarks", "tests", "docs", "tools", "examples"),
    ".ci",
)
SOURCES = sorted((ROOT / "docs" / "sources").glob("*.md"))

_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_CITED = re.compile(r"\bdocs/[\w/-]+\.md(?:#[\w-]+)?")
_NOTES = re.compile(r"\bspec/[a-z_]+\.md|\bspec (?:sections?|[A-C]?\d)", re.IGNORECASE)
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"(?P<path>[\w.-]+(?:/[\w.-]+)*\.(?:py|c|md|json|toml|npz))(?:::\w+)?")
_FOLDER = re.compile(r"[\w.-]+(?:/[\w.-]+)*/")
_MODULE = re.compile(r"-m (?:pytest )?((?:tinyllava_edge|tests|tools|examples)(?:\.\w+)+)")
_ORIGIN = re.compile(
    r"https://[\w.-]+/\S+|[\w.-]+/[\w.-]+\s[\w./-]+@(?:[0-9a-f]{7,40}|v[\d.]+)|arXiv\s\d{4}\.\d{5}"
)


def text_files(*suffixes: str) -> list[Path]:
    """Files of the source tree, not what links, environments and builds add to it."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for room in ROOMS:
        found += [path for path in (ROOT / room).rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(path for path in found if path.suffix in suffixes or path.name in suffixes)


PAGES = text_files(".md")
CITING = [path for path in text_files(".py", ".md", ".c", ".toml", "Makefile") if path != Path(__file__)]


def slugs(page: str) -> list[str]:
    """The anchors that GitHub gives a page's headings."""
    found: list[str] = []
    for heading in _HEADING.findall(_FENCE.sub("", page)):
        words = re.sub(r"[^\w\s-]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower())
        slug = words.replace(" ", "-")
        again = sum(
            other == slug or re.fullmatch(f"{re.escape(slug)}-\\d+", other) is not None for other in found
        )
        found.append(f"{slug}-{again}" if again else slug)
    return found


def broken_link(target: str, page: Path, base: Path) -> str | None:
    """Why a link of a page does not lead anywhere; None where it does, or leaves the repository."""
    if re.match(r"[a-z]+:", target):
        return None
    path, _, anchor = target.partition("#")
    file = (base / path).resolve() if path else page
    if not file.exists():
        return f"{target}: there is no {path}"
    if anchor and anchor not in slugs(file.read_text(encoding="utf-8")):
        return f"{target}: {file.name} has no heading {anchor}"
    return None


def named_paths(text: str) -> Iterator[str]:
    """Paths in backticks that look like files or folders of this repository, and modules that are run."""
    for code in _CODE.findall(_FENCE.sub("", text)):
        for word in code.split():
            if match := _PATH.fullmatch(word):
                yield match["path"]
            elif _FOLDER.fullmatch(word):
                yield word
    for module in _MODULE.findall(text):
        yield module.replace(".", "/")


def quoted_paths(text: str) -> list[str]:
    """Files of this repository that code, its comments and its docstrings name."""
    return re.findall(rf"\b(?:{'|'.join(ROOMS[:-1])})/[\w/-]+\.(?:py|md|json|npz|c)\b", _ORIGIN.sub("", text))


def is_there(path: str) -> bool:
    """Whether a path is in the repository; what stands in no room of it is somebody else's.

    A bare name of a Python file may stand in any room.
    """
    room, inside, _ = path.partition("/")
    if not inside:
        return not path.endswith(".py") or any(file.name == path for file in text_files(".py"))
    if room not in ROOMS:
        return True
    place = ROOT / path
    return place.exists() or place.with_suffix(".py").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))
    assert [fault for link in links if (fault := broken_link(link, page, page.parent))] == []


def test_every_page_that_a_file_cites_is_there_with_its_heading() -> None:
    faults = [
        f"{path.relative_to(ROOT)}: {fault}"
        for path in CITING
        for cited in _CITED.findall(_ORIGIN.sub("", path.read_text(encoding="utf-8")))
        if (fault := broken_link(cited, path, ROOT))
    ]
    assert faults == []


def test_no_file_cites_notes_that_the_repository_does_not_have() -> None:
    found = {path.name: _NOTES.findall(path.read_text(encoding="utf-8")) for path in CITING}
    assert {name: cited for name, cited in found.items() if cited} == {}


def test_every_file_and_module_that_a_page_names_is_there() -> None:
    pages = [page for page in (*PAGES, ROOT / "Makefile") if page not in SOURCES]
    faults = [
        f"{page.relative_to(ROOT)}: {path}"
        for page in pages
        for path in named_paths(page.read_text(encoding="utf-8"))
        if not is_there(path)
    ]
    assert faults == []


def test_every_file_that_code_names_is_there() -> None:
    faults = [
        f"{path.relative_to(ROOT)}: {named}"
        for path in CITING
        if path.suffix != ".md"
        for named in quoted_paths(path.read_text(encoding="utf-8"))
        if not is_there(named)
    ]
    assert faults == []


@pytest.mark.parametrize("page", SOURCES, ids=lambda page: page.name)
def test_every_fact_has_a_public_origin(page: Path) -> None:
    _, *sections = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sections
    without = [section.splitlines()[0] for section in sections if not _ORIGIN.search(section)]
    assert without == []


def test_every_section_of_the_sources_is_cited() -> None:
    cited = {
        link
        for path in CITING
        for link in re.findall(r"sources/\w+\.md#[\w-]+", path.read_text(encoding="utf-8"))
    }
    sections = {f"sources/{page.name}#{slug}" for page in SOURCES for slug in slugs(page.read_text())[1:]}
    assert sections - cited == set()


SAMPLE = """# A page

## What `it` does, in *two* parts (draft)

```sh
# not a heading
[not a link](nowhere.md)
```

## Again
## Again

[one](#again-1), [two](page.md#no-such), [three](absent.md), [four](https://example.org/x#y), ![five](page.md)
See `benchmarks/absent.py`, `tests/test_links.py::test_x`, `their/own.py`, `absent_anywhere.py`,
`train/absent/` and `python -m tinyllava_edge.absent`.
"""


def test_the_checks_see_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(SAMPLE, encoding="utf-8")
    assert slugs(SAMPLE) == ["a-page", "what-it-does-in-two-parts-draft", "again", "again-1"]
    links = _LINK.findall(_FENCE.sub("", SAMPLE))
    assert links == ["#again-1", "page.md#no-such", "absent.md", "https://example.org/x#y", "page.md"]
    faults = [broken_link(link, page, tmp_path) for link in links]
    assert [fault is not None for fault in faults] == [False, True, True, False, False]
    assert [path for path in named_paths(SAMPLE) if not is_there(path)] == [
        "benchmarks/absent.py",
        "absent_anywhere.py",
        "train/absent/",
        "tinyllava_edge/absent",
    ]
    assert [
        path for path in quoted_paths('# as in train/absent.py; "docs/measuring.md"') if not is_there(path)
    ] == ["train/absent.py"]
    assert _CITED.findall("Source: docs/absent.md#there, and docs/sources/tinyllava.md.") == [
        "docs/absent.md#there",
        "docs/sources/tinyllava.md",
    ]
    assert _NOTES.search("spec" + "/tinyllava.md")
    assert _NOTES.search("spec" + " section 3")
    origins = ("a/b c/d.py@0123abc", "https://example.org/x", "arXiv 2404.14619", "read in the code")
    assert [_ORIGIN.search(text) is not None for text in origins] == [True, True, True, False]
