"""What a newcomer types is read out of README itself. CPU, without a root of its own (`make newcomer`)."""

import pytest

from tools.newcomer import README, Step, read_readme, report


def test_the_commands_are_those_of_readme() -> None:
    found = read_readme(README.read_text(encoding="utf-8"))
    assert found.packages.startswith("apt install -y ")
    assert {"python3-venv", "g++", "cmake", "make"} <= set(found.packages.split())
    assert found.commands == ["make demo", "make test"]
    assert found.serve == ".venv/bin/tinyllava-edge serve nano"
    compile(found.python, "README", "exec")


@pytest.mark.parametrize("absent", ["apt install", "    make ", "tinyllava-edge serve", "```python"])
def test_a_readme_without_one_is_refused(absent: str) -> None:
    text = README.read_text(encoding="utf-8").replace(absent, "-")
    with pytest.raises(ValueError, match="were not found"):
        read_readme(text)


def test_a_command_that_failed_is_seen_at_once() -> None:
    steps = [Step("make demo", 0, 61.0, ["a"] * 20), Step("make test", 2, 5.0, ["no"])]
    text = report(README.parent, "trixie", steps)
    assert "NOT ALL ENDED WELL" in text
    assert "$ make demo\n...\na\n" in text
    assert "1 min 1 s\n" in text
    assert "0 min 5 s, EXIT CODE 2\n" in text
