import pytest

from pldcli.errors import UsageError
from pldcli.tasks.registry import TASKS, find_task, glue_tasks


def test_glue_is_complete_and_in_the_order_of_its_leaderboard():
    names = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax"]
    assert [task.name for task in glue_tasks()] == [f"glue/{name}" for name in names]
    assert list(TASKS) == [*(f"glue/{name}" for name in names), "squad", "squad_v2"]
    files = [file for task in glue_tasks() for file in task.server_files.values()]
    expected = "CoLA SST-2 MRPC STS-B QQP MNLI-m MNLI-mm QNLI RTE WNLI AX"
    assert files == [f"{name}.tsv" for name in expected.split()]


def test_sizes_are_the_official_ones():
    # Table 1 of the GLUE paper, by the thousand; QNLI is its second version.
    thousands = {"cola": 8.5, "sst2": 67, "mrpc": 3.7, "stsb": 7, "qqp": 364, "mnli": 393, "qnli": 105, "rte": 2.5, "wnli": 0.634}
    for name, size in thousands.items():
        assert TASKS[f"glue/{name}"].num_rows["train"] == pytest.approx(1000 * size, rel=0.18 if name == "stsb" else 0.01)
    for task in TASKS.values():
        assert set(task.num_rows) == {*([task.train] if task.train else []), *task.validation, *task.test}
        assert set(task.server_files) == (set(task.test) if task.name.startswith("glue/") else set())


def test_labels_are_spelled_as_the_published_files_do():
    assert [TASKS["glue/cola"].spelled(number) for number in range(2)] == [0, 1]
    assert TASKS["glue/wnli"].labels == ("not_entailment", "entailment") and TASKS["glue/wnli"].spelled(1) == 1
    assert TASKS["glue/rte"].labels == ("entailment", "not_entailment") and TASKS["glue/rte"].spelled(1) == "not_entailment"
    assert TASKS["glue/mnli"].labels == TASKS["glue/ax"].labels == ("entailment", "neutral", "contradiction")


@pytest.mark.parametrize("name", ["glue/mnli", "GLUE/MNLI", " glue/mnli "])
def test_a_task_is_found_by_its_name(name):
    assert find_task(name).name == "glue/mnli"


@pytest.mark.parametrize(
    ("name", "close"), [("mrpc", "glue/mrpc"), ("SST-2", "glue/sst2"), ("glue/mlni", "glue/mnli"), ("squadv2", "squad_v2")]
)
def test_a_name_that_is_almost_right(name, close):
    with pytest.raises(UsageError) as caught:
        find_task(name)
    assert f"there is no task {name!r}; did you mean {close!r}? `pld tasks` lists all" in str(caught.value)


def test_a_name_that_is_nothing():
    with pytest.raises(UsageError, match=r"^glue/all: stands for every task of GLUE, and only `pld finetune` takes it; name one of them$"):
        find_task("GLUE/all")
    with pytest.raises(UsageError, match=r"^there is no task 'xyzzy'; `pld tasks` lists all; a task of your own is named by its file$"):
        find_task("xyzzy")
