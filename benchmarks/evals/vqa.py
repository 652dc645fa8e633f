"""Short answers against ten people's, as VQAv2's and TextVQA's own scorers count them.

What three people said is right, one or two give thirds, each person's vote left out in turn; after a
normalisation of spelling that the two scorers do not do alike: docs/sources/measuring.md#scores-of-answers.
"""

import re
from collections.abc import Callable, Sequence

PEOPLE = 10
Credit = Callable[[str, Sequence[str]], float]
_NUMBERS = ("none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(max(index - 1, 0)) for index, word in enumerate(_NUMBERS)}
_ARTICLES = {"a", "an", "the"}
# What lacks exactly one of its apostrophes is given it back.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've
you'll you're you've
"""
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS.split()
    for place in range(len(word))
    if word[place] == "'"
} | {"somebody'd": "somebodyd"}  # the scorers' own slip
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_POINT = re.compile(r"\.(?!\d)")
_MOST_POINTS = 32  # the scorers pass a flag where the count stands
_THOUSANDS = re.compile(r"\d,\d")


def normalised_textvqa(text: str) -> str:
    """An answer in the spelling in which TextVQA's scorer compares."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return _spelled(_one_line(text))


def normalised_vqav2(text: str) -> str:
    """An answer in the spelling in which VQAv2's scorer compares."""
    return _spelled(_one_line(text))


def _one_line(text: str) -> str:
    return text.strip().replace("\n", " ").replace("\t", " ").strip()


def _spelled(original: str) -> str:
    text = original
    has_thousands = _THOUSANDS.search(original) is not None
    for mark in _PUNCTUATION:
        at_a_space = f"{mark} " in original or f" {mark}" in original
        text = text.replace(mark, "" if at_a_space or has_thousands else " ")
    text = _POINT.sub("", text, count=_MOST_POINTS)
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def credit_textvqa(answer: str, people: Sequence[str]) -> float:
    """Between 0 and 1: for each person, how many of the others said the same, three being enough."""
    return _credit(normalised_textvqa(answer), [normalised_textvqa(text) for text in people])


def credit_vqav2(answer: str, people: Sequence[str]) -> float:
    """The same, with VQAv2's spelling; where all people said the same, nothing but spaces is changed."""
    own, said = _one_line(answer), [_one_line(text) for text in people]
    if len(set(said)) > 1:
        own, said = normalised_vqav2(own), [normalised_vqav2(text) for text in said]
    return _credit(own, said)


def _credit(own: str, said: Sequence[str]) -> float:
    agreeing = said.count(own)
    return sum(min(1.0, (agreeing - (text == own)) / 3) for text in said) / len(said) if agreeing else 0.0
