"""Write `slow_ids.json`: token ids of 600 texts by transformers' *slow* tokenizers, which upstream uses.

They are gone in transformers 5, so run this in an environment of its own:

    pip install "transformers==4.57.*" sentencepiece
    python tests/model/make_slow_ids.py ../shared/fixtures tests/model/slow_ids.json
"""

import json
import random
import sys
from pathlib import Path

# Family -> the folder with its tokenizer, below the shared fixtures.
FOLDERS = {
    "llama": "tokenizers/llama-spm",
    "phi": "tokenizers/phi-gpt2",
    "qwen2": "tokenizers/qwen2",
    "gemma": "checkpoints/gemma-clip-mlp3x-clspatch/model",
    "stablelm": "checkpoints/stablelm-siglip-linear-fp16/model",
}
ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz ",
    "ABC abc 0123456789 .,;:!?'\"()[]{}<>-_/\\|@#$%^&*+=~`",
    "  \t\n\r ",
    "àéîõüßñçøåœæ ĳ ǅ İı ſ ",  # noqa: RUF001 - ambiguous on purpose
    "АБВгде жзий αβγδ ωΩ ",
    "中文字符 日本語テスト 한국어 ",
    "שלום عربي हिन्दी ไทย ",
    "🐱🐶👨‍👩‍👧‍👦🏳️‍🌈 e\u0301 a\u0308 \u200b\u200d\ufeff\u00a0\u3000",
    "I'm you're it's don't WE'LL they'd 'S ",
]
SPECIAL = [
    "<s>",
    "</s>",
    "<unk>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<eos>",
    "<bos>",
    "<pad>",
    "\u2581",
]
FIXED = [
    "",
    " ",
    "  ",
    "   leading",
    "trailing   ",
    "double  spaces  inside",
    "\n",
    "\n\n\n",
    "a\n\nb",
    "\tindent\n        eight\n                sixteen",
    "1234567890 3.14159 1,000,000",
    "USER: What is this? ASSISTANT:",
    *SPECIAL,
    *(f"{token} after" for token in SPECIAL),
    *(f"before {token}" for token in SPECIAL),
    *(f"a{token}b{token}{token} c" for token in SPECIAL),
]


def texts(count: int = 600) -> list[str]:
    """Texts of every kind, the same ones each time."""
    rng = random.Random(0)
    found = list(FIXED)
    while len(found) < count:
        letters = rng.choice(ALPHABETS) + rng.choice(["", " ", rng.choice(ALPHABETS)])
        text = "".join(rng.choice(letters) for _ in range(rng.randint(1, 40)))
        if rng.random() < 0.2:
            text += rng.choice(SPECIAL) + "".join(rng.choice(letters) for _ in range(rng.randint(0, 8)))
        found.append(text)
    return found


def main(fixtures: Path, output: Path) -> None:
    """Load each slow tokenizer as upstream does, and write its ids."""
    from transformers import AutoTokenizer

    ids = {}
    for family, folder in FOLDERS.items():
        tokenizer = AutoTokenizer.from_pretrained(fixtures / folder, use_fast=False)
        assert not tokenizer.is_fast
        ids[family] = [tokenizer(text).input_ids for text in texts()]
    output.write_text(json.dumps(ids, separators=(",", ":")))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
