"""An answer as JSON that fits a schema: `python examples/json_answer.py BUNDLE PICTURE`."""

import json
import sys

from tinyllava_edge import open_bundle

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["mammal", "bird", "fruit", "vegetable", "building", "other"]}},
    "required": ["kind"],
    "additionalProperties": False,
}


def main(bundle: str, picture: str) -> None:
    """Print the kind that the model says."""
    with open_bundle(bundle) as model:
        stream = model.answer(
            [("What kind of thing is this?", None)], picture, json_schema=SCHEMA, max_tokens=64
        )
        text = "".join(stream)
        if stream.finish == "max_tokens":
            sys.exit(f"the answer was cut: {text}")
        print(json.loads(text)["kind"])


if __name__ == "__main__":
    main(*sys.argv[1:])
