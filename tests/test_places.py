"""Where the test of something is: a test's place and name say which module, or which room, it is of."""

from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
# Folders of tests that are not called as their source.
SOURCES = {"core": "tinyllava_edge", "model": "tinyllava_edge/model"}
# Of chains through several rooms, of hardware, and campaigns against all that is read or written.
NO_ROOM = ("integration", "device", "faults", "fuzz")
# Of several modules of their room together.
OF_A_ROOM = {
    "benchmarks/test_pages_in_a_browser",  # of reports and cards
    "benchmarks/verify/test_damage",  # whole ladders: a wrong bundle fails, and at which stage
    "benchmarks/verify/test_planted_faults",
    "benchmarks/verify/test_documentation",
    "benchmarks/verify/test_same_gates",  # export and verify judge the same
    "benchmarks/verify/test_same_rule",
    "examples/test_scripts",  # each runs
    "runtimes/serve/test_access",  # the server from outside, by its clients and its enemies
    "runtimes/serve/test_campaign",
    "runtimes/serve/test_hand_cases",
    "runtimes/serve/test_hostile",
    "runtimes/serve/test_openai_client",
    "runtimes/serve/test_soak",
    "runtimes/trt/test_docs",  # docs/tensorrt.md
    "runtimes/trt/test_fake_tensorrt",  # the stand-in that the tests have
    "train/test_budgets",  # one training, from its options to its checkpoint
}


def is_of_a_module(test: Path) -> bool:
    """Whether it is called test_MODULE or test_MODULE_SUBJECT; the room's own name stands for all of it."""
    room = test.parent.relative_to(TESTS).as_posix()
    first, *rest = room.split("/")
    source = ROOT.joinpath(SOURCES.get(first, first), *rest)
    assert source.is_dir(), f"{test} is a test of no room"
    modules = {path.stem for path in source.iterdir()} | {source.name}
    words = test.stem.split("_")[1:]
    return any("_".join(words[:end]) in modules for end in range(1, len(words) + 1))


def test_where_the_test_of_a_module_is_has_one_answer() -> None:
    tests = [path for path in TESTS.glob("*/**/test_*.py") if path.relative_to(TESTS).parts[0] not in NO_ROOM]
    assert len(tests) > 200
    others = {
        path.relative_to(TESTS).with_suffix("").as_posix() for path in tests if not is_of_a_module(path)
    }
    assert others == OF_A_ROOM
