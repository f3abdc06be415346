import numpy as np
import pytest

from pldcli.errors import UsageError
from pldcli.tasks.windows import frame_of, window_starts
from pldcli.tokenization.tokenizer import load_tokenizer


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def bert_tokenizer(path):
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]) + "\n", encoding="utf-8")
    return load_tokenizer(path)


def with_processor(path, processor):
    """Give the tokenizer of BERT another post-processor, or none."""
    from tokenizers import Tokenizer

    fast = Tokenizer.from_str(bert_tokenizer(path).json_text)
    fast.post_processor = processor
    fast.save(str(path.with_suffix(".json")))
    return load_tokenizer(path.with_suffix(".json"))


def test_the_frame_of_bert(tmp_path):
    frame = frame_of(bert_tokenizer(tmp_path / "vocab.txt"), 2)
    row, types = frame.row(ids(10, 11), ids(12))
    assert row.tolist() == [2, 10, 11, 3, 12, 3] and types.tolist() == [0, 0, 0, 0, 1, 1]
    assert row.dtype == np.int32 and types.dtype == np.int8
    assert frame.num_special == 3 and frame.room(10) == 7
    row, types = frame_of(bert_tokenizer(tmp_path / "vocab.txt"), 1).row(ids(10))
    assert row.tolist() == [2, 10, 3] and types.tolist() == [0, 0, 0]


def test_the_frame_of_roberta(tmp_path):
    from tokenizers.processors import RobertaProcessing

    tokenizer = with_processor(tmp_path / "vocab.txt", RobertaProcessing(("[SEP]", 3), ("[CLS]", 2)))
    row, types = frame_of(tokenizer, 2).row(ids(10, 11), ids(12))
    assert row.tolist() == [2, 10, 11, 3, 3, 12, 3] and types.tolist() == [0] * 7


def test_a_tokenizer_without_a_frame_gets_berts(tmp_path):
    from tokenizers.processors import Sequence

    tokenizer = with_processor(tmp_path / "vocab.txt", Sequence([]))
    row, types = frame_of(tokenizer, 2).row(ids(10, 11), ids(12))
    assert row.tolist() == [2, 10, 11, 3, 12, 3] and types.tolist() == [0, 0, 0, 0, 1, 1]


def test_rows_without_room(tmp_path):
    frame = frame_of(bert_tokenizer(tmp_path / "vocab.txt"), 2)
    assert frame.room(5) == 2
    with pytest.raises(UsageError, match=r"max_seq_len: 4 tokens leave no room for text; 5 is the least"):
        frame.room(4)


@pytest.mark.parametrize(
    ("num_tokens", "room", "stride", "expected"),
    [
        (0, 4, 1, [0]),
        (4, 4, 1, [0]),
        (5, 4, 1, [0, 3]),
        (7, 4, 1, [0, 3]),
        (8, 4, 1, [0, 3, 6]),
        (8, 4, 0, [0, 4]),
        (6, 4, 99, [0, 2]),
        (3, 1, 5, [0, 1, 2]),
    ],
)
def test_where_windows_begin(num_tokens, room, stride, expected):
    assert list(window_starts(num_tokens, room, stride)) == expected
