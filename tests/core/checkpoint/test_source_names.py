"""What a name of config.json may be called under --sources; nothing of it leads out of there."""

import pytest

from tinyllava_edge.checkpoint.source_names import hub_name, names_under_sources, public_name

PUBLIC = ("google/siglip-so400m-patch14-384", "openai/clip-vit-large-patch14")
SNAPSHOT = "/home/a/.cache/huggingface/hub/models--google--siglip-so400m-patch14-384/snapshots/0123abc"


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("own/tower", ["own/tower", "tower"]),
        ("/data/hf/google/siglip", ["google/siglip", "siglip"]),
        ("./weights/tower/", ["./weights/tower/", "weights/tower", "tower"]),
        (r"D:\models\google\siglip", ["google/siglip", "siglip"]),
        (SNAPSHOT, ["google/siglip-so400m-patch14-384", "snapshots/0123abc", "0123abc"]),
        ("../secret", ["secret"]),
        ("own/../../secret", ["secret"]),
        ("..", []),
        ("/", []),
        ("", []),
    ],
)
def test_names_under_sources(name: str, names: list[str]) -> None:
    assert names_under_sources(name) == names


@pytest.mark.parametrize(
    ("name", "public"),
    [
        (PUBLIC[0], PUBLIC[0]),
        (f"/data/hf/{PUBLIC[0]}", PUBLIC[0]),
        (f"C:\\hf\\{PUBLIC[1]}".replace("/", "\\"), PUBLIC[1]),
        ("/models/siglip-so400m-patch14-384", PUBLIC[0]),
        (SNAPSHOT, PUBLIC[0]),
        ("/models/my-siglip-so400m-patch14-384", None),
        ("google", None),
        ("", None),
    ],
)
def test_public_name_inside_a_path(name: str, public: str | None) -> None:
    assert public_name(name, PUBLIC) == public


def test_the_hub_is_asked_for_what_its_own_cache_was_of() -> None:
    assert hub_name(SNAPSHOT) == "google/siglip-so400m-patch14-384"
    assert hub_name("/data/google/siglip") == "/data/google/siglip"
