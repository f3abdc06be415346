"""Compute the masked-LM loss of a model that knows how frequent tokens are and reads nothing else: what training must get below.

    python benchmarks/frequency_floor.py --data data

A target is shown as [MASK] in 80 % of the cases, as it is in 10 %, as a token drawn evenly in 10 % (Devlin et al. 2019, section 3.1).
Such a model answers [MASK] with the frequencies of the training text, and a token with the probability that it was left as it is, the
frequencies otherwise. A validation loss near this number has learned nothing from context, however slowly it falls.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pldcli.data.shards import TokenStream, open_prepared

CHUNK_TOKENS = 10_000_000
MASKED, KEPT, RANDOM = 0.8, 0.1, 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a prepared directory")
    options = parser.parse_args()
    prepared = open_prepared(options.data, verify=False)
    train, validation = (
        frequencies(prepared.stream(split), prepared.vocab_size, prepared.special.ids) for split in ("train", "validation")
    )
    unigram, floor = floors(train, validation)
    print(f"{options.data}: V {prepared.vocab_size:,}, unigram {unigram:.4f} nats, masked-LM loss of frequencies alone {floor:.4f} nats")


def frequencies(stream: TokenStream, vocab_size: int, special_ids: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Count a stream's tokens, special ones left out, as shares [V]."""
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, stream.num_tokens, CHUNK_TOKENS):
        counts += np.bincount(stream.slice(start, start + CHUNK_TOKENS), minlength=vocab_size)
    counts[list(special_ids)] = 0
    return counts / counts.sum()


def floors(train: npt.NDArray[np.float64], validation: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Compute the cross-entropy of validation tokens under the training frequencies, and with what 20 % of the targets show.

    Args:
        train: Share of each token, [V].
        validation: The same of the text that is scored.
    """
    known = np.maximum(train, 1e-9)
    vocab_size = len(train)
    left = KEPT * known / (KEPT * known + RANDOM / vocab_size)  # probability that a token shown is the true one, [V]
    unigram = float(-(validation * np.log(known)).sum())
    kept = float(-(validation * np.log(left + (1.0 - left) * known)).sum())
    random = float(-np.log(1.0 - left).mean()) + unigram
    return unigram, MASKED * unigram + KEPT * kept + RANDOM * random


if __name__ == "__main__":
    main()
