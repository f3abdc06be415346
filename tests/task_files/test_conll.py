from pathlib import Path

import pytest

from pldcli.errors import DataError
from pldcli.task_files.conll import read_conll


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


PLAIN = "John NNP B-PER\nruns VBZ O\n\nHi UH O\n"
SENTENCES = [["John", "runs"], ["Hi"]]
LABELS = [["B-PER", "O"], ["O"]]


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.rstrip("\n"),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.encode("utf-16"),
        PLAIN.replace(" ", "\t"),
        PLAIN.replace(" ", "\t").replace("\n", "\r\n"),
        PLAIN.replace(" ", "  \t ").replace("\n", " \n"),
        "\ufeff" + PLAIN,
        "\n\n \n\t\n" + PLAIN.replace("\n\n", "\n \t \n\n") + "\n\n",
        "-DOCSTART- -X- O\n\n" + PLAIN,
        "-DOCSTART-\n" + PLAIN.replace("\n\n", "\n-DOCSTART- -X- O O\n"),
    ],
)
def test_the_same_sentences_in_many_spellings(tmp_path, content):
    assert read_conll(write(tmp_path / "a.txt", content)) == (SENTENCES, LABELS)


def test_columns_are_chosen(tmp_path):
    path = write(tmp_path / "a.txt", PLAIN)
    assert read_conll(path, label_column=1) == (SENTENCES, [["NNP", "VBZ"], ["UH"]])
    assert read_conll(path, text_column=-2, label_column=0) == ([["NNP", "VBZ"], ["UH"]], SENTENCES)


def test_one_column_has_no_labels(tmp_path):
    assert read_conll(write(tmp_path / "a.txt", "John\nruns\n\nHi"), text_column=1, label_column=3) == (SENTENCES, None)


def test_words_with_spaces_are_kept_where_tabs_part_columns(tmp_path):
    assert read_conll(write(tmp_path / "a.txt", "New York\tB-LOC\n in \tO\n")) == ([["New York", "in"]], [["B-LOC", "O"]])


def test_other_spaces_and_line_ends_of_unicode_are_characters(tmp_path):
    words = ["\u00a0", "a\u2028b", "\u0085", "x\u3000y"]
    path = write(tmp_path / "a.txt", "".join(f"{word} O\n" for word in words))
    assert read_conll(path) == ([words], [["O"] * 4])


def test_a_hash_may_be_a_word(tmp_path):
    content = "# # B-NP\n1 CD I-NP\n\nsay VB O\n# # B-NP\n1 CD I-NP\n"
    assert read_conll(write(tmp_path / "a.txt", content))[0] == [["#", "1"], ["say", "#", "1"]]
    assert read_conll(write(tmp_path / "b.txt", "#\tB\n#1\tI\n\n#tag\tO\n"))[0] == [["#", "#1"], ["#tag"]]


def test_comments_with_as_many_columns_as_words_have(tmp_path):
    """MultiCoNER's comments have a tab, where the words' columns are parted by spaces."""
    content = "".join(f"# id {number}\tdomain=en\ndoris _ _ B-PER\nday{number} _ _ I-PER\nsang _ _ O\n\n" for number in range(3))
    words, labels = read_conll(write(tmp_path / "a.conll", content))
    assert words == [["doris", f"day{number}", "sang"] for number in range(3)] and labels == [["B-PER", "I-PER", "O"]] * 3
    content = "# sent1\nEU B-ORG\nsaid O\n\n# {}\nleads O\n"
    assert read_conll(write(tmp_path / "b.conll", content.format("sent2")))[0] == [["EU", "said"], ["leads"]]
    assert read_conll(write(tmp_path / "c.conll", content.format("O")))[0] == [["#", "EU", "said"], ["#", "leads"]], (
        "a label that words have"
    )
    content = "#breaking HASHTAG\nEU B-ORG\nsaid O\n\nEU B-ORG\nsaid O\n"
    assert read_conll(write(tmp_path / "d.conll", content))[0] == [["#breaking", "EU", "said"], ["EU", "said"]]


def test_a_heading_is_no_word(tmp_path):
    content = "\nEU\tB-ORG\nsaid\tO\n\ntoken\tO\n"
    assert read_conll(write(tmp_path / "a.tsv", f"Token\tTag{content}"))[0] == [["EU", "said"], ["token"]]
    assert read_conll(write(tmp_path / "b.tsv", f"token\tO{content}"))[0] == [["token", "EU", "said"], ["token"]]
    assert read_conll(write(tmp_path / "c.tsv", f"Tolkien\tB-PER{content}"))[0] == [["Tolkien", "EU", "said"], ["token"]]


def test_comments_and_odd_lines_of_conllu(tmp_path):
    row = "\t".join(["{}", "{}", "_", "{}", *"______"])
    lines = [
        "# newdoc id = 1",
        "# text = Dámelo ya",
        row.format("1-2", "Dámelo", "_"),
        row.format("1", "Dá", "VERB"),
        row.format("2", "melo", "PRON"),
        row.format("2.1", "nada", "NOUN"),
        row.format("3", "#", "SYM"),
        "",
        "# global.columns = ID FORM",
        "#",
        row.format("1", "# x", "ADV"),
    ]
    path = write(tmp_path / "a.conllu", "\n".join(lines))
    assert read_conll(path, text_column=1, label_column=3) == ([["Dá", "melo", "#"], ["# x"]], [["VERB", "PRON", "SYM"], ["ADV"]])


def test_comments_where_spaces_part_columns(tmp_path):
    content = "# id = x\na b c O\n\n# source: a longer page\nb b c O\n\n# x = y\n# b c O\n"
    assert read_conll(write(tmp_path / "a.txt", content)) == ([["a"], ["b"], ["#"]], [["O"], ["O"], ["O"]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a O\nb\n", r"a.txt:2: has 1 column, and the first word's line has 2; give every word the same columns"),
        ("a O\n\nb x O\n", r"a.txt:3: has 3 columns, and the first word's line has 2"),
        ("a\tO\nb O\n", r"a.txt:2: has 1 column, and the first word's line has 2"),
        ("a O\n# b O\n", r"a.txt:2: has 3 columns"),
        ("a\tO\nb\t\n", r"a.txt:2: has an empty label; give every word a label"),
        ("a\tO\n\tO\n", r"a.txt:2: has an empty word"),
        ("", r"a.txt: holds no words; one word a line is needed"),
        ("\n \n-DOCSTART- -X- O\n# a = b\n", r"a.txt: holds no words"),
        (b"a O\nb O\nc\xe9 O\n", r"a.txt:3: byte 0xe9 is not UTF-8; convert the file"),
        ("a O\n".encode("utf-16")[:-1], r"a.txt: is not in the encoding that its byte-order mark says; save it as UTF-8"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read_conll(write(tmp_path / "a.txt", content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text_column": 3}, r"a.txt:1: has 3 columns, so none for the word at 3; columns count from 0"),
        ({"text_column": -4}, r"a.txt:1: has 3 columns, so none for the word at -4"),
        ({"label_column": 5}, r"a.txt:1: has 3 columns, so none for the label at 5"),
    ],
)
def test_columns_that_are_not_there(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        read_conll(write(tmp_path / "a.txt", PLAIN), **columns)


def test_bad_sentences_are_left_out_and_collected(tmp_path):
    path = write(tmp_path / "a.txt", "a O\n\nb\nc O\n\nd O\ne O O\n\nf O\n")
    bad: list[DataError] = []
    assert read_conll(path, bad=bad) == ([["a"], ["f"]], [["O"], ["O"]])
    assert [error.where for error in bad] == [f"{path}:3", f"{path}:7"]
    with pytest.raises(DataError, match=r"all 4 sentences are unusable; the first: .*a.txt:1: has 2 columns, so none for the label at 5"):
        read_conll(path, label_column=5, bad=[])


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"none.txt: no such file"):
        read_conll(tmp_path / "none.txt")
    with pytest.raises(DataError, match=r"cannot be read \(is a directory\)"):
        read_conll(tmp_path)


@pytest.mark.parametrize(("name", "num_sentences", "num_words", "num_labels"), [("train", 8936, 211_727, 22), ("test", 2012, 47_377, 19)])
def test_conll2000(real_data, name, num_sentences, num_words, num_labels):
    sentences, labels = read_conll(real_data / "downstream" / "conll2000" / f"{name}.txt")
    assert len(sentences) == num_sentences and sum(map(len, sentences)) == num_words
    assert labels is not None and [len(one) for one in labels] == [len(one) for one in sentences]
    found = {label for one in labels for label in one}
    assert {"B-NP", "O"} < found and len(found) == num_labels
