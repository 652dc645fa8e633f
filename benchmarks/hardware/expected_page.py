"""Prints docs/expected_figures.md: `python -m tinyllava_edge.benchmarks.hardware.expected_page`."""

import sys
from collections.abc import Iterator

from tinyllava_edge.boards import BOARDS

from .expectations import Figure, Record, expected_figures, read_expectations


def page_lines() -> Iterator[str]:
    """The page, from the data alone."""
    data = read_expectations()
    prompt = data["prompt"]
    yield "# What devices are expected to do"
    yield ""
    yield (
        f"Registered on {data['registered']}, {data['state']}: nothing on this page was measured by us. "
        "`tinyllava-edge hardware-check` measures and says where each figure lies. Data: "
        "`benchmarks/hardware/expectations.json` and `tinyllava_edge/boards.py`; this page is made by "
        "`python -m tinyllava_edge.benchmarks.hardware.expected_page`."
    )
    yield ""
    yield (
        f"One picture of {prompt['picture_tokens']} tokens, {prompt['text_tokens']} tokens of text, "
        f"{prompt['answer_tokens']} greedy tokens, batch 1; {data['tower']['name']} in float16 by TensorRT, "
        "the language model as Q4_K_M by llama.cpp. A range is the arithmetic with the utilisations below; "
        "*roof* is the same with all of the device's published FLOPS or bandwidth, and the percentages are "
        "what the range reaches of it. A *goal* is what this project set itself; where the range says that "
        f"it will hardly be met, that stands. {data['goals_because']}."
    )
    for board in data["boards"]:
        for model, language in data["models"].items():
            yield ""
            yield f"## {language['title']} on {BOARDS[board].title}"
            yield ""
            yield "| figure | expected | goal | roof | of the roof | arithmetic |"
            yield "|---|---:|---:|---:|---:|---|"
            yield from (figure_row(figure) for figure in expected_figures(board, model))
    yield ""
    yield "## Where the utilisations come from"
    yield ""
    for kind, found in data["kinds"].items():
        for name, because in found["because"].items():
            low, high = found[name]
            yield f"- {kind}, {name.replace('_', ' ')} {low:,} to {high:,}: {because}."
    for language in data["models"].values():
        yield f"- {language['title']}, bytes: {language['bytes_because']}."
    yield ""
    yield "## Published figures of others"
    yield ""
    yield "Other models than ours, most of them larger; *implies* is what they make of the device's roof."
    yield ""
    yield "| what | device | figures | implies | source |"
    yield "|---|---|---|---|---|"
    for row in data["published"]:
        cells = (row["what"], row["device"], row["figures"], implied(row) or "-", row["source"])
        yield f"| {' | '.join(cells)} |"


def figure_row(figure: Figure) -> str:
    """A row of a table."""
    digits = 0 if figure.high >= 100 else 1
    ends = sorted((figure.low, figure.high), reverse=not figure.more_is_better)
    shares = [figure.share_of_roof(value) for value in ends]
    share = (
        "-" if figure.roof is None else " to ".join(f"{value:.0%}" for value in shares if value is not None)
    )
    sign = ">=" if figure.more_is_better else "<="
    cells = (
        figure.title,
        f"{figure.low:.{digits}f} to {figure.high:.{digits}f} {figure.unit}",
        "-" if figure.goal is None else f"{sign} {figure.goal:g}",
        "-" if figure.roof is None else f"{figure.roof:.{digits}f}",
        share,
        figure.arithmetic,
    )
    return f"| {' | '.join(cells)} |"


def implied(row: Record) -> str:
    """What a published figure makes of its device's roof."""
    said = []
    for part in ("tower", "prefill"):
        if f"{part}_tflop" in row:
            flops = BOARDS[row["board"]].float16_flops
            share = 1e15 * row[f"{part}_tflop"] / row[f"{part}_ms"] / flops
            said.append(f"{part} {share:.0%} of {flops / 1e12:g} TFLOPS")
    if "token_gb" in row:
        bandwidth = BOARDS[row["board"]].bandwidth_bytes
        share = 1e9 * row["token_gb"] * row["tokens_per_second"] / bandwidth
        said.append(f"{share:.0%} of {bandwidth / 1e9:g} GB/s")
    return ", ".join(said)


if __name__ == "__main__":
    sys.stdout.write("\n".join(page_lines()) + "\n")
