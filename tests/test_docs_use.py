"""The programs of docs/guides/use.md, run as they stand there on an exported model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pldcli.config import ModelConfig
from pldcli.huggingface.save import save_pretrained
from pldcli.model import StBert
from pldcli.tokenization.training import train_tokenizer
from tests.typed_commands import ROOT, load

pages = load("pages")
BLOCKS = pages.read_blocks(ROOT / "docs" / "guides" / "use.md")


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [package for package in packages if find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a small rotary model, whose windows are shorter than the texts, and the files of the page."""
    lines = ["return the number of items in a list", "open a path and read the text of a file", "sort words in order, split a line"]
    tokenizer = train_tokenizer(lines * 10, vocab_size=60)
    shape = {"position_embedding": "rotary", "feed_forward": "geglu", "first_attention_norm": False, "type_vocab_size": 0}
    sizes = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
    settings = ModelConfig(**sizes, **shape, vocab_size=tokenizer.vocab_size, global_layers=2, local_attention=8)
    model = tmp_path / "runs" / "dropping" / "model"
    model.mkdir(parents=True)
    save_pretrained(model, StBert(**vars(settings), seed=1), settings, tokenizer=tokenizer, seq_len=32)
    pages.write_files(BLOCKS, tmp_path)
    return tmp_path


def printed_by(program: str, place: Path) -> str:
    """Run a program, offline, and return the last line that it prints."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, program], cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def words_of(model: Path) -> Tensor:
    """Read the embeddings of a saved encoder."""
    [found] = [tensor for name, tensor in load_file(model / "model.safetensors").items() if name.endswith("tok_embeddings.weight")]
    return found


@needs("transformers", "accelerate", "sentence_transformers")
def test_an_exported_encoder_is_fine_tuned_for_embeddings(place: Path) -> None:
    similarities = json.loads(printed_by("embeddings.py", place))
    assert [len(row) for row in similarities] == [3, 3, 3] and similarities[0][0] == pytest.approx(1, abs=1e-5)
    before, after = (words_of(place / directory) for directory in ("runs/dropping/model", "embeddings/model"))
    assert before.shape == after.shape and not torch.equal(before, after), "it was trained"
    assert json.loads((place / "embeddings" / "model" / "config.json").read_text())["model_type"] == "modernbert"


@needs("transformers", "onnx", "onnxscript", "onnxruntime")
def test_onnxruntime_computes_what_was_exported(place: Path) -> None:
    words, _, difference = printed_by("to_onnx.py", place).partition(": ")
    assert words == "largest difference" and float(difference) < 1e-5
    assert (place / "model.onnx").is_file()
