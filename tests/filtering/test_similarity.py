import random

import numpy as np
import pytest

from pldcli.corpus.docstrings import docstring_corpus
from pldcli.filtering import similarity
from pldcli.filtering.similarity import Signer, near_earlier_ones

SIZE = 5


@pytest.fixture(scope="module")
def needed():
    pytest.importorskip("rensa", reason="needs pldcli[dedup]")


def runs(text):
    words = text.casefold().split()
    return {tuple(words[start : start + SIZE]) for start in range(max(1, len(words) - SIZE + 1))}


def jaccard(one, other):
    return len(runs(one) & runs(other)) / len(runs(one) | runs(other))


def sign(texts):
    signer = Signer()
    return np.stack([signer.add(text, last=True) for text in texts])


def changed(text, share, draw):
    """Replace a share of the words."""
    words = text.split()
    for place in draw.sample(range(len(words)), round(share * len(words))):
        words[place] = f"other{draw.randrange(10**6)}"
    return " ".join(words)


def test_recall_and_precision_on_a_planted_set(needed):
    draw = random.Random(1)
    originals = [" ".join(text.split()[:400]) for text in docstring_corpus(1_500_000) if len(text.split()) >= 100]
    originals = [text for number, text in enumerate(dict.fromkeys(originals)) if number < 400]
    texts, pairs = list(originals), []
    for number, text in enumerate(originals):
        copy = changed(text, (0.0, 0.01, 0.03, 0.06, 0.15)[number % 5], draw)
        texts.append(copy)
        pairs.append(jaccard(text, copy))
    found = near_earlier_ones(sign(texts), 0.8)
    among_originals = found[: len(originals)]
    assert among_originals.mean() < 0.03, "documents that nobody planted"
    copies = found[len(originals) :]
    near, far = (np.array([test(similar) for similar in pairs]) for test in (lambda s: s >= 0.87, lambda s: s <= 0.7))
    assert near.sum() > 100 and far.sum() > 100
    assert copies[near].mean() >= 0.99, "recall"
    assert copies[far & ~among_originals].mean() <= 0.02, "precision"


def test_a_text_is_signed_the_same_in_any_pieces(needed):
    text = " ".join(f"Word{number % 17} and, {number}" for number in range(300))
    [whole] = sign([text])
    signer, words = Signer(), text.split(" ")
    assert all(signer.add(f"{word} ", last=False) is None for word in words[:-1])
    assert np.array_equal(signer.add(words[-1], last=True), whole)
    assert np.array_equal(signer.add(text.upper(), last=True), whole), "nothing is left of the text before"


@pytest.mark.parametrize("text", ["two words", "!!! ???", "", "東京都は日本の首都であり、人口が多い。"])
def test_short_texts_and_scripts_without_spaces(needed, text):
    other = text.replace("日本", "世界") if "日本" in text else f"{text} x"
    signatures = sign([text, text, other, "something else that is longer than five words"])
    assert near_earlier_ones(signatures, 0.8).tolist() == [False, True, False, False]


def test_what_is_near_to_a_near_one_goes_with_the_first(needed):
    """Each is near to the one before, and the last no more to the first."""
    words = [f"w{number}" for number in range(200)]
    chain = [" ".join([*(f"x{number}" for number in range(9 * step)), *words[9 * step :]]) for step in range(5)]
    assert jaccard(chain[0], chain[1]) > 0.85 and jaccard(chain[0], chain[-1]) < 0.75
    assert near_earlier_ones(sign(chain), 0.8).tolist() == [False, True, True, True, True]
    assert near_earlier_ones(sign(chain[::-1]), 0.8).tolist() == [False, True, True, True, True]
    assert not near_earlier_ones(sign(chain), 1.0).any()


def test_bands_find_nearly_all_pairs_at_any_threshold():
    for threshold in np.linspace(0.05, 1.0, 20):
        rows = similarity._rows_of_a_band(float(threshold))
        chance = 1 - (1 - threshold**rows) ** (128 // rows)
        assert chance >= 0.99 or rows == 1
    assert similarity._rows_of_a_band(0.8) == 4
