import math
import statistics
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from pldcli.tasks.metrics import METRICS, glue_average, multi_label_scores, paper_geometric_mean, summary, task_score


def drawn(seed: int, num_classes: int, size: int = 60) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, num_classes, size)
    return labels, np.where(draw.random(size) < 0.6, labels, draw.integers(0, num_classes, size))


@pytest.mark.parametrize("num_classes", [2, 3, 6])
@pytest.mark.parametrize("seed", range(5))
def test_classes_against_scikit_learn(seed, num_classes):
    labels, predictions = drawn(seed, num_classes)
    assert METRICS["accuracy"](labels, predictions) == pytest.approx(sklearn.metrics.accuracy_score(labels, predictions), abs=1e-12)
    assert METRICS["matthews"](labels, predictions) == pytest.approx(sklearn.metrics.matthews_corrcoef(labels, predictions), abs=1e-12)
    macro = sklearn.metrics.f1_score(labels, predictions, average="macro")
    assert METRICS["macro_f1"](labels, predictions) == pytest.approx(macro, abs=1e-12)
    of_class_1 = sklearn.metrics.f1_score(labels, predictions, labels=[1], average=None)[0]
    assert METRICS["f1"](labels, predictions) == pytest.approx(of_class_1, abs=1e-12)


@pytest.mark.parametrize(
    ("labels", "predictions"),
    [
        ([0, 1, 1, 0], [1, 1, 1, 1]),
        ([0, 0, 0], [0, 1, 0]),
        ([1, 1], [1, 1]),
        ([0, 0], [0, 0]),
        ([0, 1], [1, 0]),
        ([1], [1]),
        ([2, 0, 2], [2, 0, 5]),
        ([0, 1] * 60_000, [0, 1, 0, 1, 1, 0] * 20_000),
    ],
)
def test_classes_at_the_edges_against_scikit_learn(labels, predictions):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert METRICS["matthews"](labels, predictions) == pytest.approx(sklearn.metrics.matthews_corrcoef(labels, predictions), abs=1e-12)
        expected = sklearn.metrics.f1_score(labels, predictions, average="macro")
        assert METRICS["macro_f1"](labels, predictions) == pytest.approx(expected, abs=1e-12)
        if set(labels + predictions) <= {0, 1}:
            expected = sklearn.metrics.f1_score(labels, predictions, zero_division=0)
            assert METRICS["f1"](labels, predictions) == pytest.approx(expected, abs=1e-12)


def test_sets_of_labels_against_scikit_learn():
    draw = np.random.default_rng(0)
    for _ in range(1000):
        shape = draw.integers(1, 20), draw.integers(2, 6)
        labels, predictions = (draw.random(shape) < draw.random() for _ in range(2))
        found = multi_label_scores(labels, predictions)
        for average in ("micro", "macro"):
            expected = sklearn.metrics.f1_score(labels, predictions, average=average, zero_division=0)
            assert found[f"{average}_f1"] == pytest.approx(expected, abs=1e-12)
        assert found["subset_accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, predictions), abs=1e-12)


def test_no_sets_of_labels():
    assert set(multi_label_scores(np.zeros((0, 3), bool), np.zeros((0, 3), bool)).values()) == {0.0}


def test_classes_by_hand():
    labels, predictions = [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0]
    assert METRICS["accuracy"](labels, predictions) == 6 / 8
    assert METRICS["f1"](labels, predictions) == pytest.approx(2 / 3)
    assert METRICS["macro_f1"](labels, predictions) == pytest.approx((2 / 3 + 8 / 10) / 2)
    assert METRICS["matthews"](labels, predictions) == pytest.approx((2 * 4 - 1 * 1) / 15)


@pytest.mark.parametrize("decimals", [0, 1, 8])
@pytest.mark.parametrize("seed", range(5))
def test_correlations_against_scipy_with_ties(seed, decimals):
    draw = np.random.default_rng(seed)
    labels = np.round(draw.random(80) * 5, decimals)
    predictions = np.round(labels + draw.normal(size=80), decimals)
    assert METRICS["pearson"](labels, predictions) == pytest.approx(scipy.stats.pearsonr(labels, predictions)[0], abs=1e-12)
    assert METRICS["spearman"](labels, predictions) == pytest.approx(scipy.stats.spearmanr(labels, predictions)[0], abs=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_correlations_at_any_scale(scale):
    labels = np.array([1.0, 2.0, 3.0, 5.0])
    assert METRICS["pearson"](labels, labels * scale) == pytest.approx(1.0)
    assert METRICS["pearson"](labels, -labels * scale) == pytest.approx(-1.0)
    assert METRICS["spearman"](labels, np.exp(labels) * scale) == pytest.approx(1.0)


def test_correlations_of_values_that_hardly_differ():
    close = [1e16, 1e16 + 2, 1e16 + 4, 1e16 + 8]
    assert METRICS["pearson"]([0, 1, 2, 4], close) == pytest.approx(1.0)
    assert METRICS["pearson"]([0.0, 1.0], [0.1, np.nextafter(0.1, 1)]) == pytest.approx(1.0)
    assert METRICS["pearson"]([0.0, 1.0], [0.0, 5e-324]) == pytest.approx(1.0)
    assert METRICS["pearson"]([0.0, 1.0], [-1.7e308, 1.7e308]) == pytest.approx(1.0)


def test_single_precision_predictions():
    draw = np.random.default_rng(0)
    labels, predictions = draw.random(50), draw.random(50).astype(np.float32)
    assert METRICS["pearson"](labels, predictions) == pytest.approx(scipy.stats.pearsonr(labels, predictions.astype(np.float64))[0])


@pytest.mark.parametrize("name", ["matthews", "pearson", "spearman"])
@pytest.mark.parametrize(
    ("labels", "predictions"), [([0, 1, 0], [1, 1, 1]), ([1, 1, 1], [0, 1, 0]), ([1, 1], [1, 1]), ([3], [3]), ([], [])]
)
def test_correlations_of_constants_are_zero(name, labels, predictions):
    assert METRICS[name](labels, predictions) == 0.0


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_correlations_with_what_is_no_number_are_nan(name, bad):
    assert math.isnan(METRICS[name]([1.0, 2.0, 3.0], [1.0, bad, 3.0]))
    assert math.isnan(METRICS[name]([1.0, bad, 3.0], [1.0, 2.0, 3.0]))


def test_no_positive_and_no_examples():
    assert METRICS["f1"]([0, 0], [0, 0]) == 0.0
    assert METRICS["f1"]([0, 1], [0, 0]) == 0.0
    assert [METRICS[name]([], []) for name in ("accuracy", "f1", "macro_f1")] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", sorted(METRICS))
def test_metrics_are_plain_numbers_and_want_equal_lengths(name):
    assert type(METRICS[name]([0, 1, 1], [0, 1, 0])) is float
    with pytest.raises(AssertionError, match="labels"):
        METRICS[name]([0, 1], [0])
    with pytest.raises(AssertionError, match="labels"):
        METRICS[name]([0, 1], [[0], [1]])


def test_a_task_with_two_metrics_scores_their_mean():
    assert task_score({"accuracy": 0.8, "f1": 0.9, "loss": 7.0}, ("f1", "accuracy")) == pytest.approx(0.85)


def paper(rte, mrpc, stsb, cola, sst2, qnli, qqp, mnli) -> dict[str, dict[str, float]]:
    return {
        "glue/rte": {"accuracy": rte},
        "glue/mrpc": {"f1": mrpc[0], "accuracy": mrpc[1]},
        "glue/stsb": {"pearson": stsb[0], "spearman": stsb[1]},
        "glue/cola": {"matthews": cola},
        "glue/sst2": {"accuracy": sst2},
        "glue/qnli": {"accuracy": qnli},
        "glue/qqp": {"f1": qqp[0], "accuracy": qqp[1]},
        "glue/mnli": {"accuracy": mnli[0], "accuracy_mismatched": mnli[1]},
    }


BASELINE = paper(67.8, (88.0, 86.0), (89.5, 89.2), 52.5, 91.2, 87.1, (89.0, 90.6), (82.5, 83.4))
PLD = paper(69.3, (86.6, 84.3), (90.0, 89.6), 55.8, 91.6, 90.7, (89.6, 91.2), (84.1, 83.8))


def without(scores, task, metric):
    return {name: {key: value for key, value in one.items() if (name, key) != (task, metric)} for name, one in scores.items()}


def test_the_geometric_mean_of_the_papers_rows():
    assert round(paper_geometric_mean(BASELINE), 2) == 82.17
    assert round(paper_geometric_mean(PLD), 2) == 83.13
    hundredth = {task: {name: value / 100 for name, value in one.items()} for task, one in PLD.items()}
    assert paper_geometric_mean(hundredth) == pytest.approx(paper_geometric_mean(PLD) / 100)
    assert paper_geometric_mean({**PLD, "glue/wnli": {"accuracy": 1.0}}) == paper_geometric_mean(PLD)


@pytest.mark.parametrize(("task", "metric"), [(task, metric) for task, one in PLD.items() for metric in one])
def test_means_need_every_number(task, metric):
    assert paper_geometric_mean(without(PLD, task, metric)) is None
    assert glue_average(without({**PLD, "glue/wnli": {"accuracy": 56.3}}, task, metric)) is None


def test_the_geometric_mean_of_zero_and_negative_numbers():
    assert paper_geometric_mean({**PLD, "glue/cola": {"matthews": 0.0}}) == 0.0
    assert paper_geometric_mean({**PLD, "glue/cola": {"matthews": -0.1}}) is None
    assert paper_geometric_mean({}) is None


def test_the_leaderboards_average():
    scores = {**PLD, "glue/wnli": {"accuracy": 56.3}}
    tasks = [69.3, (86.6 + 84.3) / 2, (90.0 + 89.6) / 2, 55.8, 91.6, 90.7, (89.6 + 91.2) / 2, (84.1 + 83.8) / 2, 56.3]
    assert glue_average(scores) == pytest.approx(sum(tasks) / 9)
    assert glue_average({**scores, "glue/ax": {"matthews": 0.0}, "squad": {"squad_f1": 0.0}}) == glue_average(scores)
    assert glue_average(PLD) is None
    assert glue_average({**scores, "glue/cola": {"matthews": -55.8}}) == pytest.approx((sum(tasks) - 2 * 55.8) / 9)


def test_a_summary():
    found = summary([0.7, 0.9, 0.5, 0.6])
    assert (found.mean, found.median, found.minimum, found.maximum) == pytest.approx((0.675, 0.65, 0.5, 0.9))
    assert found.std == pytest.approx(math.sqrt((0.025**2 + 0.225**2 + 0.175**2 + 0.075**2) / 3))
    assert found.values == (0.7, 0.9, 0.5, 0.6)
    assert summary([3]) == type(found)(3.0, 0.0, 3.0, 3.0, 3.0, (3.0,))
    assert summary(np.float32([1, 2])).std == pytest.approx(statistics.stdev([1, 2]))
    assert summary([0.1] * 3).std == 0.0
    with pytest.raises(AssertionError, match="nothing to summarise"):
        summary([])
