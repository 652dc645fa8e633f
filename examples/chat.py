"""Talk about a picture, a question a line of the input: `python examples/chat.py BUNDLE PICTURE`."""

import sys

from tinyllava_edge import open_bundle
from tinyllava_edge.errors import TinyLlavaEdgeError


def main(bundle: str, picture: str) -> None:
    """Print each answer as it comes, and how long its first token took."""
    with open_bundle(bundle) as model:
        pictures = [picture]
        for line in sys.stdin:
            try:
                stream = model.chat(line.strip(), pictures)
                for piece in stream:
                    print(piece, end="", flush=True)
            except TinyLlavaEdgeError as error:  # a conversation that is full, for example
                print(error)
                continue
            pictures = []  # the conversation has it
            assert stream.timings is not None
            print(f"  ({stream.timings.first_token_ms:.0f} ms to the first token)")


if __name__ == "__main__":
    main(*sys.argv[1:])
