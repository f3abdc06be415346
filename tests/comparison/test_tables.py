from __future__ import annotations

import pytest

from pldcli.comparison.comparison import Comparison, compare_runs
from pldcli.comparison.tables import sections, summary, words
from pldcli.console.section import Section
from tests.comparison.test_runs import START, made_up_run

DENSE = "pld.theta_bar=1"


def section(comparison: Comparison, start: str) -> Section:
    [found] = [one for one in sections(comparison) if one.title.startswith(start)]
    return found


def pairs(*finals: float) -> Comparison:
    """Hold runs with these final losses against a baseline that ends at 2.5, seed by seed."""
    runs = [made_up_run(f"pre-{seed}", DENSE, f"train.seed={seed}", losses=(5.0, 4.0, 3.0, 2.5)) for seed in range(len(finals))]
    runs += [made_up_run(f"pld-{seed}", f"train.seed={seed}", losses=(4.5, 3.75, 3.0, last)) for seed, last in enumerate(finals)]
    return compare_runs(runs)


def test_a_mean_stands_only_where_every_run_got_there() -> None:
    table = section(pairs(2.0, 2.25), "To the final validation loss of pre")
    assert table.rows[-1] == ("pld: mean", "", "", "", "90%", "90%", "90%", "1.12x")
    some = section(pairs(2.0, 2.75), "To the final validation loss of pre")
    assert [row[0] for row in some.rows] == ["pre-0", "pre-1", "pld-0*", "pld-1"]
    assert "1 of its 2 runs reach that loss." in summary(pairs(2.0, 2.75))[0]
    assert "0 of its 2 runs reach that loss." in summary(pairs(2.6, 2.75))[0]


def test_a_difference_that_may_be_chance_is_called_so() -> None:
    assert "which may be chance" in summary(pairs(2.4, 2.55))[0]
    assert "which may be chance" not in summary(pairs(2.4, 2.41))[0]


@pytest.mark.parametrize(("seconds", "text"), [(2.0001, "0.0%"), (1.9999, "0.0%"), (2.5, "-25.0%"), (1.5, "25.0%")])
def test_what_rounds_to_nothing_has_no_sign(seconds: float, text: str) -> None:
    comparison = compare_runs([made_up_run("pre", DENSE), made_up_run("pld", seconds_per_step=seconds)])
    assert section(comparison, "Saved per token").rows[0][3:] == (text, text)


def test_a_crossing_says_what_it_is_worth() -> None:
    comparison = compare_runs([made_up_run("pre", DENSE, losses=(5.0, 4.0, 3.5, 3.25)), made_up_run("pld", losses=(3.0, 2.0))])
    [label] = [note for note in section(comparison, "To the final").notes if note.startswith("pld:")]
    assert label == (
        "pld: * SCHEDULE NOT FINISHED: read at 25% of its steps, learning rate at 75% of its peak; no run of that length was done; "
        "* UNFINISHED: this run or pre has not come to its end; at its first validation already, so perhaps earlier"
    )


def test_a_diverged_run_and_one_without_a_second_log_row() -> None:
    diverged = made_up_run("hot", "optim.learning_rate=9", losses=(4.0, 3.0, 2.0, None))
    short = made_up_run("short", "model.dropout=0.2", losses=(4.0,))
    object.__setattr__(short, "training", short.training[:1])
    comparison = compare_runs([made_up_run("pre", DENSE), diverged, short])
    assert section(comparison, "Final losses").rows[1][-2:] == ("diverged", "-")
    assert section(comparison, "Speed").rows[2][1] == "-"
    assert section(comparison, "Saved per token").rows[1][3] == "-"
    assert section(comparison, "Final validation loss less").rows[0][1] == "does not compare"


def test_losses_that_do_not_compare() -> None:
    other = made_up_run("b", starts=[{**START, "data_fingerprint": "e" * 64}])
    comparison = compare_runs([made_up_run("a", DENSE), other])
    assert summary(comparison)[0].startswith("b: its losses and those of a do not compare. Per token it takes")
    assert not any(one.title.startswith("To the final") for one in sections(comparison))


def test_the_words_name_the_control() -> None:
    comparison = compare_runs([made_up_run("post", DENSE, "model.norm=post"), made_up_run("pre", DENSE), made_up_run("pld")])
    told = dict(words(comparison))
    assert told["post (baseline)"] == ["nothing dropped"]
    assert told["pre"] == ["LayerNorm: Pre-LN (baseline: Post-LN)"]
    assert told["pld"][-1] == "control (Pre-LN, same shape, objective and optimizer, nothing dropped): pre"


def test_scores_after_fine_tuning() -> None:
    scores = {"pre": [(0.5, 0.7), (0.5,)], "pld": [(0.7,), (0.75,)]}
    runs = [
        made_up_run(f"{name}-{seed}", *([DENSE] if name == "pre" else []), f"train.seed={seed}", finetuned={"glue/rte": values})
        for name, seeds in scores.items()
        for seed, values in enumerate(seeds)
    ]
    table = section(compare_runs(runs), "After fine-tuning")
    assert table.headings == ("task", "system", "score", "n", "difference", "95 % interval", "pairs")
    assert table.rows == (
        ("glue/rte", "pre", "55.00 ± 7.07", "3", "", "", ""),
        ("glue/rte", "pld", "72.50 ± 3.54", "2", "+17.50", "-77.80 to +112.80", "2"),
    )
    one = section(compare_runs([runs[0], runs[2]]), "After fine-tuning")
    assert one.rows[1][4:] == ("+10.00", "none", "1")
