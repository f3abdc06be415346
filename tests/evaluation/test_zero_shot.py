import gzip
import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file

from pldcli.data.prepared import open_prepared
from pldcli.data.text_stream import tokenise
from pldcli.errors import CheckpointError, DataError, UsageError
from pldcli.evaluation import evaluate as engine
from pldcli.evaluation import zero_shot
from pldcli.evaluation.fill_mask import fill_mask
from pldcli.evaluation.pseudo_likelihood import masked_copies, pseudo_log_likelihoods
from pldcli.evaluation.subject import open_subject
from pldcli.evaluation.zero_shot import Pair, judge_pairs, read_pairs
from pldcli.huggingface.save import save_pretrained
from pldcli.model import StBert
from pldcli.tokenization.tokenizer import SpecialTokens, load_prepared_tokenizer
from tests.conftest import tiny_config
from tests.test_huggingface import shaken

transformers = pytest.importorskip("transformers")

SEQ_LEN = 16


@pytest.fixture(scope="module", params=["pre", "post"])
def model_directory(request, prepared, tmp_path_factory):
    """Weights far from their initial values, so that every block and every neighbour matters."""
    tokenizer = load_prepared_tokenizer(prepared)
    changes = (f"model.norm={request.param}", f"model.vocab_size={tokenizer.vocab_size}", f"model.max_position_embeddings={SEQ_LEN}")
    settings = tiny_config(*changes, f"data.seq_len={SEQ_LEN}").model
    place = tmp_path_factory.mktemp("model")
    save_pretrained(place, shaken(StBert(**vars(settings))), settings, tokenizer=tokenizer, seq_len=SEQ_LEN)
    return place


@pytest.fixture(scope="module")
def subject(model_directory):
    with open_subject(model_directory, device="cpu") as opened:
        yield opened


@pytest.fixture(scope="module")
def pipeline(model_directory):
    return transformers.pipeline("fill-mask", model=str(model_directory), device="cpu")


def encode(subject, text):
    return subject.loaded.tokenizer.encode_document_lines([text])


@torch.no_grad()
def slow_likelihood(subject, ids, gates=None):
    """One forward pass per token, no padding, the full head."""
    special, total = subject.loaded.tokenizer.special, 0.0
    for place, token_id in enumerate(ids):
        row = torch.tensor([[special.cls_id, *ids[:place], special.mask_id, *ids[place + 1 :], special.sep_id]])
        logits = subject.model.mlm_logits(subject.model(row, gates=gates))
        total += float(logits[0, place + 1].double().log_softmax(-1)[token_id])
    return total


TEXTS = ["Return the value.", "a", "the file is not open for reading", "Raise an error when the list is empty."]


def test_pseudo_likelihood_is_a_sum_over_masked_tokens(subject):
    texts = [encode(subject, text)[: SEQ_LEN - 2] for text in TEXTS]
    assert len({len(text) for text in texts}) > 2
    found = pseudo_log_likelihoods(subject, texts)
    assert found == pytest.approx([slow_likelihood(subject, ids) for ids in texts], rel=1e-5)
    gates = (True, False, True)
    with_two = pseudo_log_likelihoods(subject, texts, gates=gates)
    assert with_two == pytest.approx([slow_likelihood(subject, ids, gates) for ids in texts], rel=1e-5)
    assert abs(with_two[0] - found[0]) > 0.01


def test_long_texts_are_scored_row_by_row_and_equal_ones_alike(subject):
    ids = (encode(subject, TEXTS[2]) * 5)[: 2 * (SEQ_LEN - 2) + 3]
    heard = []
    long, short, again = pseudo_log_likelihoods(subject, [ids, [7, 8], ids], advance=heard.append)
    span = SEQ_LEN - 2
    parts = [ids[start : start + span] for start in range(0, len(ids), span)]
    assert long == pytest.approx(sum(slow_likelihood(subject, part) for part in parts), rel=1e-5)
    assert again == long and short != long
    assert sum(heard) == len(ids) + 2, "equal texts once"


def test_the_batches_hold_to_their_size():
    special = SpecialTokens(pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4)
    batches = list(masked_copies([[9] * 5, [8] * 8, []], special, 10, most_tokens=40))
    assert max(batch.input_ids.numel() for batch, _ in batches) <= 40
    assert [batch.input_ids.shape[1] for batch, _ in batches] == sorted((batch.input_ids.shape[1] for batch, _ in batches), reverse=True)
    assert sum(len(owners) for _, owners in batches) == 13
    for batch, _ in batches:
        assert (batch.input_ids.flatten()[batch.positions] == 4).all() and (batch.input_ids == 4).sum() == len(batch.positions)


def test_pseudo_perplexity_of_a_file(model_directory, subject, tmp_path):
    (tmp_path / "a.txt").write_text(f"{TEXTS[0]}\n\n{TEXTS[3]}\n")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps({"body": TEXTS[1]}) + "\n")
    result = engine.evaluate(
        model_directory, "pseudo-perplexity", [tmp_path / "a.txt", tmp_path / "b.jsonl.gz"], text_field="body", device="cpu"
    )
    ids = [encode(subject, TEXTS[place]) for place in (0, 3, 1)]
    assert [text.num_tokens for text in result.score.texts] == [len(one) for one in ids]
    likelihoods = pseudo_log_likelihoods(subject, ids)
    assert [text.pseudo_log_likelihood for text in result.score.texts] == pytest.approx(likelihoods, rel=1e-5)
    assert result.score.pseudo_perplexity == pytest.approx(math.exp(-sum(likelihoods) / sum(map(len, ids))), rel=1e-4)


# Minimal pairs


def write_pairs(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def pair(good, bad, **fields):
    return {"sentence_good": good, "sentence_bad": bad, **fields}


def test_choices_and_kinds(monkeypatch):
    likelihood = {(1,): -1.0, (2,): -2.0, (3,): -2.0}
    monkeypatch.setattr(zero_shot, "pseudo_log_likelihoods", lambda _, texts, **__: [likelihood[text] for text in texts])
    kinds = [
        {"UID": "a", "note": "x", "half": "1", "pair_id": "0"},
        {"UID": "b", "note": "y", "half": "1", "pair_id": "1"},
        {"UID": "a", "note": "z", "half": "2"},
        {"half": "2", "pair_id": "0"},
    ]
    ids = [((1,), (2,)), ((2,), (1,)), ((2,), (3,)), ((1,), (3,))]
    pairs = [Pair(*of_pair, fields, file) for of_pair, fields, file in zip(ids, kinds, "xxxy", strict=True)]
    score = judge_pairs(None, pairs)
    assert [found.is_right for found in score.scores] == [True, False, False, True]
    assert (score.accuracy, score.num_ties) == (0.5, 1), "a tie is no choice"
    assert {name: (found.accuracy, found.num_pairs) for name, found in score.files.items()} == {"x": (1 / 3, 3), "y": (1.0, 1)}
    assert score.mean_accuracy == pytest.approx(2 / 3), "each file counts as much"
    assert {name: {value: (g.accuracy, g.num_pairs) for value, g in kinds.items()} for name, kinds in score.groups.items()} == {
        "UID": {"a": (0.5, 2), "b": (0.0, 1)},
        "half": {"1": (0.5, 2), "2": (0.5, 2)},
    }, "a column with a value for each pair, or for each pair of a file, names no kind"


def test_pairs_from_files(model_directory, subject, tmp_path):
    write_pairs(tmp_path / "a.jsonl", pair(TEXTS[0], TEXTS[1], UID="u", n=3), pair(TEXTS[1], TEXTS[1], UID="v"))
    (tmp_path / "b.csv").write_text(f'sentence_good,sentence_bad\n"{TEXTS[1]}",{TEXTS[0]}\n')
    score = engine.evaluate(model_directory, "minimal-pairs", [tmp_path / "a.jsonl", tmp_path / "b.csv"], device="cpu").score
    expected = [
        [slow_likelihood(subject, encode(subject, TEXTS[place])[: SEQ_LEN - 2]) for place in places] for places in ((0, 1), (1, 1), (1, 0))
    ]
    assert [one.good for one in score.scores] == pytest.approx([good for good, _ in expected], rel=1e-5)
    assert [one.bad for one in score.scores] == pytest.approx([bad for _, bad in expected], rel=1e-5)
    assert score.num_ties == 1 and score.accuracy == sum(good > bad for good, bad in (expected[0], expected[2])) / 3
    assert list(score.files) == ["a.jsonl", "b.csv"]
    (tmp_path / "b.csv").unlink()
    (tmp_path / "more").mkdir()
    write_pairs(tmp_path / "more" / "c.jsonl", pair(TEXTS[0], TEXTS[1]))
    found = [one.file for one in read_pairs([tmp_path], subject.loaded.tokenizer)]
    assert found == ["a.jsonl", "a.jsonl", "more/c.jsonl"], "a directory stands for its .jsonl files"
    again = [tmp_path, tmp_path / "more", tmp_path / "more" / ".." / "a.jsonl"]
    assert [one.file for one in read_pairs(again, subject.loaded.tokenizer)] == found, "each file counts once"


def test_directories_of_pairs(subject, tmp_path):
    """Every kind of table counts, and equal names in several directories are several files."""
    one, other = tmp_path / "one", tmp_path / "other"
    for place in (one, other):
        place.mkdir()
        write_pairs(place / "x.jsonl", pair(TEXTS[0], TEXTS[1]))
    (one / "y.jsonl.gz").write_bytes(gzip.compress(json.dumps(pair(TEXTS[0], TEXTS[1])).encode()))
    (one / "z.tsv").write_text(f"sentence_good\tsentence_bad\n{TEXTS[0]}\t{TEXTS[1]}\n")
    (one / "README.txt").write_text("not pairs\n")
    (one / "dataset_infos.json").write_text("{}\n")
    found = [pair.file for pair in read_pairs([one, other], subject.loaded.tokenizer)]
    assert found == [str(one / "x.jsonl"), "y.jsonl.gz", "z.tsv", str(other / "x.jsonl")]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"sentence_good": "a", "sentence_bad": "b"}', "{"], ":2: is not JSON"),
        (['{"sentence_good": "a"}'], ": has no column 'sentence_bad'"),
        (['{"sentence_good": "a", "sentence_bad": "b"}', '{"sentence_good": "a"}'], ":2: has no 'sentence_bad'; each line needs"),
        (['{"sentence_good": "a", "sentence_bad": 3}'], ":1: 'sentence_bad' is not a string; each line needs"),
        (['{"sentence_good": " ", "sentence_bad": "b"}'], ":1: 'sentence_good' is empty; each line needs"),
        (["[1]", ""], "is not a JSON object"),
        ([], "is empty"),
    ],
)
def test_bad_pairs(subject, tmp_path, lines, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError) as raised:
        read_pairs([path], subject.loaded.tokenizer)
    assert str(raised.value).startswith(str(path)) and message in str(raised.value) and "\n" not in str(raised.value)


def test_no_pairs_there(subject, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_pairs([tmp_path / "a.jsonl"], subject.loaded.tokenizer)
    with pytest.raises(DataError, match=r"holds no \.arrow, \.csv, \.jsonl, \.ndjson, \.parquet, \.tsv files; name the files"):
        read_pairs([tmp_path], subject.loaded.tokenizer)


# Masks


@pytest.mark.parametrize("text", ["Return the [MASK] of this.", "[MASK] the list", "the end is [MASK]"])
def test_fill_mask_agrees_with_transformers(subject, pipeline, text):
    (found,) = fill_mask(subject, text, top=7)
    expected = pipeline(text, top_k=7)
    assert [candidate.token_id for candidate in found] == [one["token"] for one in expected]
    assert [candidate.probability for candidate in found] == pytest.approx([one["score"] for one in expected], rel=1e-4)
    assert [candidate.token for candidate in found] == [one["token_str"] for one in expected]
    assert fill_mask(subject, text.replace("[MASK]", "<mask>"), top=7) == [found], "another spelling"


def test_several_masks_are_filled_each_on_its_own(subject, pipeline):
    text = "the [MASK] of a [MASK] file"
    found, expected = fill_mask(subject, text, top=3), pipeline(text, top_k=3)
    assert [[c.token_id for c in one] for one in found] == [[c["token"] for c in one] for one in expected]
    assert [[c.probability for c in one] for one in found] == [pytest.approx([c["score"] for c in one], rel=1e-4) for one in expected]
    assert all(candidate.text.count("[MASK]") == 1 for candidates in found for candidate in candidates)


def test_a_tokenizer_that_does_not_declare_its_mask(subject):
    content = json.loads(subject.loaded.tokenizer.json_text)
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] != "[MASK]"]
    tokenizer = replace(subject.loaded.tokenizer, json_text=json.dumps(content))
    undeclared = replace(subject, loaded=replace(subject.loaded, tokenizer=tokenizer))
    assert fill_mask(undeclared, "the [MASK] file") == fill_mask(subject, "the [MASK] file")


@pytest.mark.parametrize(
    ("text", "top", "message"),
    [
        ("no mask here", 5, "--fill: there is no [MASK] in 'no mask here'; for example \"the capital of [MASK] is paris\""),
        ("[MASK] " + "open " * 40, 5, "this model reads 16 at most; shorten it"),
        ("[MASK]", 0, "--top: must be between 1 and the "),
        ("[MASK]", 10**6, "--top: must be between 1 and the "),
    ],
)
def test_masks_that_cannot_be_filled(subject, text, top, message):
    with pytest.raises(UsageError) as raised:
        fill_mask(subject, text, top=top)
    assert message in str(raised.value) and "\n" not in str(raised.value)


# Text


def test_text_is_cut_as_prepared_data_is(prepared, tmp_path):
    """The same documents, tokenised here, give the stream that `prepare` wrote."""
    data, tokenizer = open_prepared(prepared), load_prepared_tokenizer(prepared)
    stream = tokenise([prepared.parent / "corpus.txt"], tokenizer, document_per="line")
    documents = [ids.tolist() for ids in stream.documents()]
    train = data.stream("train")
    wanted, start = [], 0
    for end in train.document_ends.tolist():
        wanted.append(train.slice(start, end - 1).tolist())
        start = end
    assert len(documents) > len(wanted) > 100
    place = 0
    for ids in wanted:
        place = documents.index(ids, place) + 1
    assert stream.slice(0, 10**9)[stream.document_ends - 1].tolist() == [tokenizer.special.sep_id] * len(documents)


def test_a_long_document_is_one_document(prepared, tmp_path):
    (tmp_path / "a.txt").write_text("open the file " * 80_000 + "\nthe end\n")
    tokenizer = load_prepared_tokenizer(prepared)
    stream = tokenise([tmp_path / "a.txt"], tokenizer, document_per="line")
    long, short = stream.documents()
    assert len(long) > 200_000 > 20 > len(short) and stream.num_tokens == len(long) + len(short) + 2
    assert tokenizer.special.sep_id not in long, "the mark stands at its end only, although it is read in pieces"


def test_masked_lm_on_text(model_directory, tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS * 30))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 30))
    plain, lines = (engine.evaluate(model_directory, "text", [tmp_path / name], device="cpu").score for name in ("a.txt", "b.jsonl"))
    assert plain.num_targets == lines.num_targets > 100 and plain.loss == lines.loss
    both = engine.evaluate(model_directory, "text", [tmp_path / "a.txt", tmp_path / "b.jsonl"], device="cpu").score
    assert both.num_tokens > 1.9 * plain.num_tokens


@pytest.mark.parametrize(
    ("name", "content", "message"), [("a.txt", b"\n \n", "holds no text"), ("b.txt", b"", "is empty"), ("c.txt", b"\0", "is binary")]
)
def test_text_that_is_none(model_directory, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    for material in ("text", "pseudo-perplexity"):
        with pytest.raises(DataError, match=message) as raised:
            engine.evaluate(model_directory, material, [tmp_path / name])
        assert str(raised.value).startswith(str(tmp_path / name))


def test_bytes_that_are_no_text_are_said(model_directory, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"the file \xff is open\n")
    assert engine.evaluate(model_directory, "text", [tmp_path / "a.txt"]).notes == ("bytes that are not UTF-8 and were replaced: 1",)


# Fewer blocks


@pytest.mark.parametrize("material", ["text", "pseudo-perplexity", "minimal-pairs"])
def test_depths_of_every_material(model_directory, tmp_path, material):
    inputs = [write_pairs(tmp_path / "a.jsonl", *(pair(a, b, text=a) for a, b in pairwise(TEXTS)))]
    report = engine.evaluate_depths(model_directory, "1,3", "first", material=material, inputs=inputs, device="cpu").score
    assert [score.num_blocks for score in report.scores] == [1, 3] and report.num_blocks == 3
    one, whole = ({**score.values} for score in report.scores)
    assert whole == engine.evaluate(model_directory, material, inputs, device="cpu").score.values
    assert material == "minimal-pairs" or one != whole


def test_a_model_without_the_head_says_so(model_directory, tmp_path):
    for path in model_directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in weights.items() if not name.startswith(("cls.", "lm_head."))}, tmp_path / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match="has no masked-LM head; give a model that was saved with its pre-training head"):
        engine.fill_mask(tmp_path, "[MASK]")
