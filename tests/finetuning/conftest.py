"""A task that a tiny model learns in a second, and the model: does a text name the river?"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from pldcli.config import ModelConfig
from pldcli.finetuning.config import FinetuneConfig, cells
from pldcli.finetuning.experiment import Experiment
from pldcli.finetuning.finetune import Finetuned, finetune
from pldcli.huggingface.save import save_pretrained
from pldcli.model import StBert
from pldcli.tokenization.tokenizer import Tokenizer, load_tokenizer

WORDS = [
    "river",
    "engine",
    "village",
    "teacher",
    "winter",
    "market",
    "moved",
    "followed",
    "watched",
    "found",
    "opened",
    "small",
    "old",
    "quiet",
    "northern",
    "broken",
    "famous",
    "green",
    "the",
    "a",
    "in",
    "of",
    "and",
    "by",
    "with",
    "house",
    "tree",
    "cloud",
    "road",
    "stone",
    "bread",
    "water",
    "music",
    "paper",
    "wheel",
    "garden",
]

FAST = ("learning_rate=3e-3", "batch_size=16", "epochs=6", "precision=fp32", "dropout=0")
"""Settings under which the tiny model learns whether the river is named, in about a second."""


@pytest.fixture(scope="session")
def words_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A WordPiece tokenizer of whole words and letters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters[1:], *(f"##{letter}" for letter in letters), ".", "0", "1"]
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    path.write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return load_tokenizer(path)


def save_tiny(directory: Path, tokenizer: Tokenizer, *, norm: Literal["pre", "post"] = "pre", **changes: Any) -> Path:
    """Write a tiny model with random weights as a Hugging Face directory."""
    sizes: dict[str, Any] = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": tokenizer.vocab_size,
        "max_position_embeddings": 48,
        "norm": norm,
        "dropout": 0.0,
        "initializer_range": 0.1,
    }
    settings = ModelConfig(**(sizes | changes))
    directory.mkdir(parents=True)
    save_pretrained(directory, StBert(**vars(settings), seed=7), settings, tokenizer=tokenizer, seq_len=32)
    return directory


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, words_tokenizer: Tokenizer) -> Path:
    """A Pre-LN model of two blocks."""
    return save_tiny(tmp_path_factory.mktemp("tiny") / "tiny", words_tokenizer)


@pytest.fixture(scope="session")
def tiny_post(tmp_path_factory: pytest.TempPathFactory, words_tokenizer: Tokenizer) -> Path:
    """The same, Post-LN."""
    return save_tiny(tmp_path_factory.mktemp("tiny-post") / "tiny", words_tokenizer, norm="post")


@pytest.fixture(scope="session")
def tiny_rotary(tmp_path_factory: pytest.TempPathFactory, words_tokenizer: Tokenizer) -> Path:
    """One of ModernBERT's architecture, whose second block is local and sees less than a text."""
    changes = {"position_embedding": "rotary", "feed_forward": "geglu", "first_attention_norm": False, "type_vocab_size": 0}
    window = {"global_layers": 2, "local_attention": 4}
    return save_tiny(tmp_path_factory.mktemp("tiny-rotary") / "tiny", words_tokenizer, **changes, **window)


@pytest.fixture(params=["tiny", "tiny_rotary"])
def either(request: pytest.FixtureRequest) -> Path:
    """Return a Pre-LN model with learned positions, then one with rotary positions."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def river_rows(number: int, seed: int) -> list[dict[str, Any]]:
    """Make up texts of some words; half of them name the river."""
    draw = random.Random(seed)
    rows = []
    for index in range(number):
        words = [draw.choice(WORDS[1:]) for _ in range(draw.randint(3, 12))]
        if index % 2:
            words[draw.randrange(len(words))] = "river"
        rows.append({"text": " ".join(words), "label": "water" if index % 2 else "land"})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def rivers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with train, validation and test (without labels) as JSON lines."""
    place = tmp_path_factory.mktemp("rivers")
    write_rows(place / "train.jsonl", river_rows(160, 1))
    write_rows(place / "validation.jsonl", river_rows(50, 2))
    write_rows(place / "test.jsonl", [{"text": row["text"]} for row in river_rows(20, 3)])
    return place


@pytest.fixture(scope="session")
def river_experiment(tiny: Path, rivers: Path) -> Callable[..., Experiment]:
    """Build the experiment, changed as asked."""

    def build(**changes: Any) -> Experiment:
        files = {"validation": str(rivers / "validation.jsonl")}
        return Experiment(**({"task": str(rivers / "train.jsonl"), "model": str(tiny), "files": files} | changes))

    return build


@pytest.fixture(scope="session")
def learn() -> Callable[..., Finetuned]:
    """Fine-tune on the CPU, one cell after the other unless told otherwise."""

    def call(experiment: Experiment, out: Path, *overrides: str, seeds: int = 1, **options: Any) -> Finetuned:
        settings: list[FinetuneConfig] = cells([*FAST, *overrides], num_seeds=seeds)
        return finetune(experiment, settings, out=out, **({"jobs": 1, "device": "cpu"} | options))

    return call


@pytest.fixture(scope="session")
def learned(river_experiment: Callable[..., Experiment], learn: Callable[..., Finetuned], rivers: Path, tmp_path_factory: Any) -> Finetuned:
    """The task learned once, test split predicted; leave it as it is."""
    files = {name: str(rivers / f"{name}.jsonl") for name in ("validation", "test")}
    return learn(river_experiment(files=files), tmp_path_factory.mktemp("learned") / "out")
