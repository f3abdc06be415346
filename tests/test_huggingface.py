from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pldcli.config import ModelConfig
from pldcli.errors import CheckpointError
from pldcli.huggingface.load import load_pretrained
from pldcli.huggingface.read_back import largest_difference
from pldcli.huggingface.save import save_pretrained
from pldcli.model import StBert
from pldcli.tokenization.tokenizer import Tokenizer, load_tokenizer
from pldcli.tokenization.training import train_tokenizer

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

Norm = Literal["pre", "post"]
NORMS: list[Norm] = ["pre", "post"]
MODEL_TYPES = {"pre": "roberta-prelayernorm", "post": "bert"}
MAX_TOKENS = 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    nouns, verbs = ["river", "engine", "village", "teacher", "winter", "market"], ["moved", "followed", "watched", "found", "opened"]
    adjectives = ["small", "old", "quiet", "northern", "broken", "famous", "green"]
    lines = [f"The {a} {n} {v} a {b} {m}, no. {len(a + n)}." for a in adjectives for n in nouns for v in verbs for b, m in [(a[::-1], n)]]
    assert len(lines) > 200
    return train_tokenizer(lines, vocab_size=150)


def make_settings(norm: Norm, tokenizer: Tokenizer, **changes: Any) -> ModelConfig:
    sizes: dict[str, Any] = {
        "num_hidden_layers": 3,
        "hidden_size": 16,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "vocab_size": tokenizer.vocab_size,
        "max_position_embeddings": MAX_TOKENS,
        "norm": norm,
        "dropout": 0.1,
    }
    return ModelConfig(**(sizes | changes))


def shaken(model: torch.nn.Module) -> Any:
    """Move every parameter away from its initial value; logits then are of the order of 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture
def export(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., tuple[Path, StBert]]:
    def call(norm: Norm, *, next_sentence: bool = False, **changes: Any) -> tuple[Path, StBert]:
        directory = tmp_path / norm
        directory.mkdir()
        settings = make_settings(norm, tokenizer, **changes)
        model = shaken(StBert(**vars(settings), next_sentence=next_sentence))
        save_pretrained(directory, model, settings, tokenizer=tokenizer, seq_len=MAX_TOKENS - 2)
        return directory, model

    return call


def random_input(batch: int, tokens: int, vocab_size: int) -> Tensor:
    return torch.randint(5, vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def our_logits(model: StBert, input_ids: Tensor, **inputs: Any) -> Tensor:
    return model.mlm_logits(model(input_ids, **inputs))


# Out


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_transformers_computes_the_same_logits(
    export: Callable[..., tuple[Path, StBert]], norm: Norm, dtype: torch.dtype, tolerance: float, attention: str
) -> None:
    directory, model = export(norm)
    model = model.to(dtype)
    theirs, info = transformers.AutoModelForMaskedLM.from_pretrained(
        directory, dtype=dtype, attn_implementation=attention, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(theirs).__name__ == {"pre": "RobertaPreLayerNormForMaskedLM", "post": "BertForMaskedLM"}[norm]
    theirs.eval()
    with torch.no_grad():
        input_ids = random_input(3, MAX_TOKENS, 150)  # as long as the position table
        ours = our_logits(model, input_ids)
        assert ours.std() > 0.5
        torch.testing.assert_close(theirs(input_ids=input_ids).logits, ours, rtol=0, atol=tolerance)

        types = torch.arange(MAX_TOKENS).expand(3, -1) // 7 % 2
        got = theirs(input_ids=input_ids, token_type_ids=types).logits
        torch.testing.assert_close(got, our_logits(model, input_ids, token_type_ids_BT=types), rtol=0, atol=tolerance)

        mask = torch.arange(MAX_TOKENS) < torch.tensor([[20], [13], [1]])
        input_ids[~mask] = 0  # [PAD]
        got = theirs(input_ids=input_ids, attention_mask=mask.long()).logits
        torch.testing.assert_close(got[mask], our_logits(model, input_ids, attention_mask_BT=mask)[mask], rtol=0, atol=tolerance)


@pytest.mark.parametrize("norm", NORMS)
def test_the_files(export: Callable[..., tuple[Path, StBert]], norm: Norm, tokenizer: Tokenizer) -> None:
    directory, model = export(norm, next_sentence=True)
    assert {path.name for path in directory.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    config = json.loads((directory / "config.json").read_text())
    assert config["model_type"] == MODEL_TYPES[norm]
    assert config["max_position_embeddings"] == MAX_TOKENS + (norm == "pre")
    assert config["pad_token_id"] == tokenizer.special.pad_id
    assert "auto_map" not in config
    weights = load_file(directory / "model.safetensors")
    without_head = sum(parameter.numel() for name, parameter in model.named_parameters() if not name.startswith("nsp_head"))
    assert sum(tensor.numel() for tensor in weights.values()) == without_head + (norm == "pre") * 16, "each weight once, and the unused row"
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert not [name for name in weights if "decoder" in name or "nsp" in name or "pooler" in name]


def test_saving_leaves_the_model_alone(export: Callable[..., tuple[Path, StBert]], tokenizer: Tokenizer, tmp_path: Path) -> None:
    directory, model = export("pre")
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = make_settings("pre", tokenizer)
    first = (directory / "model.safetensors").read_bytes()
    save_pretrained(directory, model, settings, tokenizer=tokenizer, seq_len=18)
    assert (directory / "model.safetensors").read_bytes() == first, "equal weights give equal bytes"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training


@pytest.mark.parametrize("norm", NORMS)
def test_the_tokenizer_loads(export: Callable[..., tuple[Path, StBert]], norm: Norm, tokenizer: Tokenizer) -> None:
    directory, _ = export(norm)
    fast = transformers.AutoTokenizer.from_pretrained(directory)
    special = tokenizer.special
    assert (fast.pad_token_id, fast.unk_token_id, fast.cls_token_id) == (special.pad_id, special.unk_id, special.cls_id)
    assert (fast.sep_token_id, fast.mask_token_id) == (special.sep_id, special.mask_id)
    assert len(fast) == tokenizer.vocab_size
    assert fast.model_max_length == MAX_TOKENS
    text = "The old river found a quiet market."
    ids = tokenizer.encode_document_lines([text])
    assert special.unk_id not in ids
    assert fast(text)["input_ids"] == [special.cls_id, *ids, special.sep_id]
    pair = fast(text, "A winter.")
    second = tokenizer.encode_document_lines(["A winter."])
    assert pair["input_ids"] == [special.cls_id, *ids, special.sep_id, *second, special.sep_id]
    assert pair["token_type_ids"] == [0] * (len(ids) + 2) + [1] * (len(second) + 1)
    masked = fast("The [MASK] river.")["input_ids"]
    assert masked.count(special.mask_id) == 1
    assert fast.convert_ids_to_tokens(special.mask_id) == "[MASK]"
    assert "[MASK]" in fast.decode(masked)
    assert fast.decode(fast(text)["input_ids"], skip_special_tokens=True) == text.lower()
    padded = fast([text, "Old."], padding=True)
    assert padded["input_ids"][1][-1] == special.pad_id
    assert padded["attention_mask"][1][-1] == 0


@pytest.mark.parametrize("norm", NORMS)
def test_fill_mask_works_on_the_directory(export: Callable[..., tuple[Path, StBert]], norm: Norm) -> None:
    directory, model = export(norm)
    fill = transformers.pipeline("fill-mask", model=str(directory), device="cpu")
    answers = fill("The old [MASK] found.", top_k=3)
    assert len(answers) == 3
    input_ids = torch.tensor([fill.tokenizer("The old [MASK] found.")["input_ids"]])
    place = input_ids[0].tolist().index(fill.tokenizer.mask_token_id)
    best = our_logits(model, input_ids)[0, place].softmax(-1).topk(3)
    assert [answer["token"] for answer in answers] == best.indices.tolist()
    assert [answer["score"] for answer in answers] == pytest.approx(best.values.tolist(), rel=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_largest_difference(export: Callable[..., tuple[Path, StBert]], norm: Norm) -> None:
    directory, model = export(norm)
    model.train()
    input_ids = random_input(2, MAX_TOKENS, 150)
    difference = largest_difference(directory, model, input_ids)
    assert difference < 1e-5
    assert model.training
    with torch.no_grad():
        model.blocks[1].ffn_output.bias[0] += 1.0
    assert largest_difference(directory, model, input_ids) > 1e-2, "another model must be seen as one"


# Out and in again


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("type_vocab_size", [1, 2])
def test_loading_what_was_saved_gives_equal_bits(
    export: Callable[..., tuple[Path, StBert]], norm: Norm, type_vocab_size: int, tokenizer: Tokenizer
) -> None:
    changes = {"type_vocab_size": type_vocab_size, "layer_norm_eps": 1e-7, "dropout": 0.2, "initializer_range": 0.03}
    directory, model = export(norm, next_sentence=True, **changes)
    loaded = load_pretrained(directory)
    assert loaded.settings == make_settings(norm, tokenizer, **changes)
    assert loaded.seq_len == MAX_TOKENS - 2
    assert loaded.tokenizer.fingerprint == tokenizer.fingerprint
    ours = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("nsp_head")}
    theirs = loaded.masked_lm().state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# In, from transformers


def save_theirs(directory: Path, norm: Norm, tokenizer: Tokenizer, **changes: Any) -> Any:
    kinds = {
        "pre": (transformers.RobertaPreLayerNormConfig, transformers.RobertaPreLayerNormForMaskedLM),
        "post": (transformers.BertConfig, transformers.BertForMaskedLM),
    }
    config, model = kinds[norm]
    sizes = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": MAX_TOKENS + (2 if norm == "pre" else 0),
    }
    made = shaken(model(config(**(sizes | changes))))
    made.save_pretrained(directory)
    tokenizer.save(directory)
    return made


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("changes", [{}, {"layer_norm_eps": 1e-5, "type_vocab_size": 3}])
def test_a_model_of_transformers_gives_equal_logits(tmp_path: Path, norm: Norm, changes: dict[str, Any], tokenizer: Tokenizer) -> None:
    """RoBERTa's own padding id is 1, and its positions begin at 2."""
    theirs = save_theirs(tmp_path, norm, tokenizer, **changes)
    pad_id = theirs.config.pad_token_id
    assert pad_id == (1 if norm == "pre" else 0)
    loaded = load_pretrained(tmp_path)
    assert loaded.settings.max_position_embeddings == MAX_TOKENS
    assert loaded.seq_len == MAX_TOKENS
    ours = loaded.masked_lm().eval()
    input_ids = random_input(2, MAX_TOKENS, 150)
    with torch.no_grad():
        expected = theirs(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits
        torch.testing.assert_close(our_logits(ours, input_ids), expected, rtol=0, atol=1e-5)
        mask = torch.arange(MAX_TOKENS).expand(2, -1) < 11
        input_ids[~mask] = pad_id
        expected = theirs(input_ids=input_ids, attention_mask=mask.long()).logits
        torch.testing.assert_close(our_logits(ours, input_ids, attention_mask_BT=mask)[mask], expected[mask], rtol=0, atol=1e-5)


def rewrite_weights(directory: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = directory / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)


def rewrite_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_old_names_of_norms_are_understood(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The first BERT checkpoints say gamma and beta, hold the pooler and the next-sentence head, and the tied decoder."""
    save_theirs(tmp_path, "post", tokenizer)
    before = load_pretrained(tmp_path).masked_lm().state_dict()

    def rename(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        spelling = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        old = {next((name.replace(new, old) for new, old in spelling.items() if new in name), name): t for name, t in weights.items()}
        assert sum("gamma" in name for name in old) == 6
        extra = {"bert.pooler.dense.weight": torch.ones(16, 16), "cls.seq_relationship.weight": torch.ones(2, 16)}
        return old | extra | {"cls.predictions.decoder.weight": old["bert.embeddings.word_embeddings.weight"].clone()}

    rewrite_weights(tmp_path, rename)
    after = load_pretrained(tmp_path).masked_lm().state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_half_precision_weights_are_widened(tmp_path: Path, tokenizer: Tokenizer) -> None:
    theirs = save_theirs(tmp_path, "post", tokenizer)
    theirs.to(torch.bfloat16).save_pretrained(tmp_path)
    model = load_pretrained(tmp_path).masked_lm()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    word = theirs.get_input_embeddings().weight
    assert torch.equal(model.embeddings.word.weight, word.float())


def test_a_config_that_leaves_defaults_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """RoBERTa's padding id is 1 where config.json says nothing."""
    theirs = save_theirs(tmp_path, "pre", tokenizer)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("pad_token_id", "layer_norm_eps", "hidden_act", "type_vocab_size", "initializer_range", "hidden_dropout_prob"):
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    input_ids = random_input(2, MAX_TOKENS, 150)
    with torch.no_grad():
        expected = theirs(input_ids=input_ids).logits
    torch.testing.assert_close(our_logits(load_pretrained(tmp_path).masked_lm().eval(), input_ids), expected, rtol=0, atol=1e-5)


def test_vocab_txt_and_tokenizer_json_have_one_fingerprint(tmp_path: Path, tokenizer: Tokenizer) -> None:
    save_theirs(tmp_path, "post", tokenizer)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##s", "river", "é", "\u2028x"]
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8", newline="\n")
    of_vocabulary = load_pretrained(tmp_path).tokenizer.fingerprint
    wordpiece = load_tokenizer(tmp_path / "vocab.txt")
    assert of_vocabulary == wordpiece.fingerprint
    wordpiece.save(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    assert load_pretrained(tmp_path).tokenizer.fingerprint == of_vocabulary
    words[7] = "rivers"
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8", newline="\n")
    assert load_pretrained(tmp_path).tokenizer.fingerprint != of_vocabulary


# Bad input


def no_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def config_is_no_json(directory: Path) -> None:
    (directory / "config.json").write_text("{")


def config_is_a_list(directory: Path) -> None:
    (directory / "config.json").write_text("[]")


def config_is_binary(directory: Path) -> None:
    (directory / "config.json").write_bytes(b"\xff\xfe\x00")


def other_model_type(directory: Path) -> None:
    rewrite_config(directory, model_type="distilbert")


def model_type_is_no_word(directory: Path) -> None:
    rewrite_config(directory, model_type=["bert"])


def other_activation(directory: Path) -> None:
    rewrite_config(directory, hidden_act="relu")


def relative_positions(directory: Path) -> None:
    rewrite_config(directory, position_embedding_type="relative_key")


def no_hidden_size(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    del config["hidden_size"]
    (directory / "config.json").write_text(json.dumps(config))


def a_size_is_a_word(directory: Path) -> None:
    rewrite_config(directory, hidden_size="large")


def a_size_is_a_fraction(directory: Path) -> None:
    rewrite_config(directory, hidden_size=16.5)


def heads_do_not_divide(directory: Path) -> None:
    rewrite_config(directory, num_attention_heads=3)


def a_size_is_zero(directory: Path) -> None:
    rewrite_config(directory, num_hidden_layers=0)


def no_positions_left(directory: Path) -> None:
    rewrite_config(directory, max_position_embeddings=0)


def seq_len_is_a_word(directory: Path) -> None:
    rewrite_config(directory, pld_seq_len="long")


def seq_len_over_the_positions(directory: Path) -> None:
    rewrite_config(directory, pld_seq_len=MAX_TOKENS + 1)


def deeper_than_the_weights(directory: Path) -> None:
    rewrite_config(directory, num_hidden_layers=4)


def shallower_than_the_weights(directory: Path) -> None:
    rewrite_config(directory, num_hidden_layers=2)


def a_decoder(directory: Path) -> None:
    rewrite_config(directory, is_decoder=True)


def no_head(directory: Path) -> None:
    rewrite_weights(directory, lambda weights: {name: t for name, t in weights.items() if not name.startswith(("cls", "lm_head"))})


def missing_weight(directory: Path) -> None:
    rewrite_weights(directory, lambda weights: {name: t for name, t in weights.items() if "layer.1.intermediate.dense.bias" not in name})


def missing_query(directory: Path) -> None:
    rewrite_weights(directory, lambda weights: {name: t for name, t in weights.items() if "layer.0.attention.self.query.bias" not in name})


def wrong_shape(directory: Path) -> None:
    rewrite_weights(directory, lambda weights: {name: t[:-1] if "word_embeddings" in name else t for name, t in weights.items()})


def wrong_rank(directory: Path) -> None:
    rewrite_weights(directory, lambda weights: {name: t[None] if "0.attention.self.key" in name else t for name, t in weights.items()})


def shapes_that_cannot_be_joined(directory: Path) -> None:
    rewrite_weights(directory, lambda weights: {name: t[:, :-1] if "self.key.weight" in name else t for name, t in weights.items()})


def untied_decoder(directory: Path) -> None:
    def untie(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        word = next(tensor for name, tensor in weights.items() if "word_embeddings" in name)
        head = "cls.predictions" if any(name.startswith("cls.") for name in weights) else "lm_head"
        return weights | {f"{head}.decoder.weight": word + 1}

    rewrite_config(directory, tie_word_embeddings=False)
    rewrite_weights(directory, untie)


def damaged_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def damaged_header(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def empty_weights(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"")


def only_a_pickle(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def no_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


def everything_gone(directory: Path) -> None:
    shutil.rmtree(directory)


BAD: dict[Callable[[Path], None], str] = {
    no_config: r"no readable config\.json",
    config_is_no_json: r"no readable config\.json",
    config_is_a_list: r"config\.json",
    config_is_binary: r"no readable config\.json",
    everything_gone: r"no readable config\.json",
    other_model_type: r"model_type 'distilbert', this program reads roberta-prelayernorm and bert",
    model_type_is_no_word: r"model_type",
    other_activation: r"config\.json has an unusable hidden_act: 'relu', this program reads 'gelu' only",
    relative_positions: r"config\.json has an unusable position_embedding_type: 'relative_key'",
    no_hidden_size: r"config\.json.*hidden_size",
    a_size_is_a_word: r"config\.json",
    a_size_is_a_fraction: r"config\.json",
    heads_do_not_divide: r"config\.json.*num_attention_heads",
    a_size_is_zero: r"config\.json.*num_hidden_layers",
    no_positions_left: r"config\.json.*max_position_embeddings",
    seq_len_is_a_word: r"config\.json.*pld_seq_len",
    seq_len_over_the_positions: r"config\.json.*pld_seq_len: 21",
    deeper_than_the_weights: r"no weight .*layer\.3\.",
    shallower_than_the_weights: r"weight .*layer\.2\..* no place",
    a_decoder: r"config\.json has an unusable is_decoder: True",
    no_head: r"has no masked-LM head",
    missing_weight: r"layer\.1\.intermediate\.dense\.bias",
    missing_query: r"layer\.0\.attention\.self\.query\.bias",
    wrong_shape: r"do not fit.*embeddings\.word\.weight",
    wrong_rank: r"fit",
    shapes_that_cannot_be_joined: r"fit",
    untied_decoder: r"decoder",
    damaged_weights: r"model\.safetensors: is damaged",
    damaged_header: r"model\.safetensors: is damaged",
    empty_weights: r"model\.safetensors: is damaged",
    only_a_pickle: r"only pytorch_model\.bin, a pickle; save it again as safetensors, or add --allow-bin",
    no_weights: r"no model\.safetensors",
    no_tokenizer: r"no tokenizer\.json and no vocab\.txt",
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_bad_directories_have_one_clear_line(export: Callable[..., tuple[Path, StBert]], norm: Norm, spoil: Callable[[Path], None]) -> None:
    directory, _ = export(norm)
    spoil(directory)
    with pytest.raises(CheckpointError, match=BAD[spoil]) as raised:
        load_pretrained(directory).masked_lm()
    assert "\n" not in str(raised.value)
    assert str(directory) in str(raised.value)


@pytest.mark.parametrize("pad_token_id", ["0", None])
def test_a_padding_id_that_is_no_number_matters_where_positions_begin_after_it(
    export: Callable[..., tuple[Path, StBert]], pad_token_id: str | None
) -> None:
    pre, _ = export("pre")
    rewrite_config(pre, pad_token_id=pad_token_id)
    with pytest.raises(CheckpointError, match=r"config\.json has an unusable pad_token_id"):
        load_pretrained(pre)


@pytest.mark.parametrize("norm", NORMS)
def test_an_encoder_without_its_head(tmp_path: Path, norm: Norm, tokenizer: Tokenizer) -> None:
    """What `AutoModel` saves has no head, and its names lack the prefix."""
    theirs = save_theirs(tmp_path, norm, tokenizer)
    theirs.base_model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="has no masked-LM head; give a model that was saved with its pre-training head"):
        load_pretrained(tmp_path).masked_lm()
