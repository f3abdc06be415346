from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pldcli import presets
from pldcli.data.loader import Batch
from pldcli.data.prepared import open_prepared
from pldcli.engine.precision import resolve_precision
from pldcli.engine.runtime import launch
from pldcli.engine.validation import fixed_batches, score_lm
from pldcli.huggingface.load import load_pretrained
from tests.benchmark_scripts import BENCHMARKS, load

hour, plans, reports = load("first_hour"), load("first_hour_plan"), load("first_hour_report")
PLANS = sorted((BENCHMARKS / "first_hour").glob("*.yaml"))

PLAN = """
seq_len: 32
budget: 8s
tuning_share: 0.25
seeds: [3, 4]
points: 4
contestants:
  peer:
    label: a peer
    kind: bert
    is_goal: true
    set: &sizes {num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, intermediate_size: 32}
    grid: {learning_rate: [1e-3, 2e-3]}
  modern:
    label: another peer
    kind: modernbert
    is_goal: true
    seeds: [3]
    set: {<<: *sizes, mask_probability: 0.3, warmup_fraction: 0.1, sparse_prediction: true}
  ours:
    label: ours
    kind: pld
    preset: bert-tiny-preln
    set: {model.num_hidden_layers: 2, model.hidden_size: 16, model.intermediate_size: 32, train.global_batch_size: 8}
    grid: {optim.learning_rate: [1e-3, 4e-3, 1e-2]}
    shares: [1.0, 0.5]
"""


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN, encoding="utf-8")
    return path


@pytest.fixture
def plan(plan_file: Path) -> Any:
    return plans.read_plan(plan_file)


@pytest.fixture
def work(prepared: Path, tmp_path: Path) -> Path:
    """A working directory with prepared text."""
    place = tmp_path / "work"
    place.mkdir()
    (place / "data").symlink_to(prepared)
    return place


def finished(job: Any, loss: float | None, seconds: float = 8.0) -> dict[str, Any]:
    """What a run leaves."""
    curve = [] if loss is None else [[seconds * part / 4, loss + 4.0 - part] for part in range(1, 5)]
    facts = {
        "steps": 80,
        "tokens": 8000,
        "num_parameters": 1_500_000,
        "precision": "fp32",
        "threads": 1,
        "wall_seconds": seconds + 1,
        "clock": "wall",
    }
    where = {"hardware": "a processor", "software": "a program 1.0", "command": f"train {job.key}"}
    return {"budget": job.budget, "seed": job.seed, "seconds": seconds, "curve": curve, "final_loss": loss, **facts, **where}


def run_main(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/first_hour.py", *map(str, words)])
    hour.main()


# Plans


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_shipped_plan_can_be_run(path: Path) -> None:
    plan = plans.read_plan(path)
    kinds = {"modernbert", "pld"} if path.stem in ("tiny-bf16", "small-fp32") else {"bert", "modernbert", "pld"}
    assert {contestant.kind for contestant in plan.contestants} == kinds
    for contestant in plan.contestants:
        for job in plan.tuning(contestant) or plan.final(contestant, contestant.candidates[0]):
            if job.kind == "pld":
                words = [f"data.seq_len={job.seq_len}", *(f"{name}={value}" for name, value in job.settings.items())]
                assert presets.resolve(job.preset, words).config.data.seq_len == job.seq_len
            else:
                assert plans.Peer(**job.settings).learning_rate > 0


def test_peers_are_trained_as_run_mlm_does_where_nothing_is_said() -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    theirs = transformers.TrainingArguments(output_dir="nowhere", report_to=[])
    peer = plans.Peer(num_hidden_layers=1, hidden_size=8, num_attention_heads=1, intermediate_size=8)
    assert (peer.learning_rate, peer.batch_size) == (theirs.learning_rate, theirs.per_device_train_batch_size)
    assert (peer.weight_decay, peer.adam_beta2, peer.adam_epsilon) == (theirs.weight_decay, theirs.adam_beta2, theirs.adam_epsilon)
    assert (peer.warmup_fraction, theirs.lr_scheduler_type, theirs.max_grad_norm) == (theirs.warmup_steps, "linear", 1.0)


def test_candidates_are_tried_for_a_share_of_the_budget_and_the_best_is_trained_from_every_seed(plan: Any) -> None:
    tuning = list(plan.jobs({}))
    assert [(job.contestant, job.budget, job.seed) for job in tuning[:5]] == [("peer", 2.0, 3)] * 2 + [("ours", 2.0, 3)] * 3
    assert [job.points for job in tuning] == [2] * 5 + [4], "a shorter run is validated less often"
    assert [job.key for job in tuning[5:]] == ["modern-8s-seed3"], "what has nothing to choose from need not wait"
    losses = {"ours-learning_rate0.001-2s-seed3": 5.0, "ours-learning_rate0.004-2s-seed3": 4.0, "ours-learning_rate0.01-2s-seed3": None}
    known = {key: {"final_loss": loss} for key, loss in losses.items()}
    then = [job for job in plan.jobs(known) if job.contestant == "ours" and job.budget > 2]
    assert [(job.settings["optim.learning_rate"], job.budget, job.seed) for job in then] == [
        (0.004, 8.0, 3),
        (0.004, 4.0, 3),
        (0.004, 8.0, 4),
        (0.004, 4.0, 4),
    ]
    assert plan.num_runs == (5, 7) and plan.core_seconds == 5 * 2 + 2 * 8 + 8 + 2 * (8 + 4)


def test_a_candidate_tried_for_the_whole_budget_is_not_trained_again(plan_file: Path) -> None:
    plan = plans.read_plan(plan_file, budget="1m", tuning_share=1.0)
    assert plan.num_runs == (5, 1 + 1 + 1 + 2)
    assert plan.core_seconds == 60 * (5 + 3) + 30 * 2


def test_a_contestant_of_which_everything_diverged_has_no_best(plan: Any) -> None:
    peer = plan.contestants[0]
    assert plan.best(peer, {job.key: {"final_loss": None} for job in plan.tuning(peer)}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("kind: bert", "kind: gpt"), "kind 'gpt' is none of bert, modernbert, pld"),
        (("hidden_size: 16, num_att", "hidden: 16, num_att"), "peer: hidden is no setting of a peer"),
        (("preset: bert-tiny-preln", "label: x"), "not a plan"),
        (("budget: 8s", "budget: soon"), "'soon' is not a time"),
        (("is_goal: true", "goal: true"), "not a plan"),
    ],
)
def test_a_mistake_in_a_plan_is_one_line(plan_file: Path, change: tuple[str, str], message: str) -> None:
    plan_file.write_text(PLAN.replace(*change), encoding="utf-8")
    with pytest.raises(SystemExit, match=message) as caught:
        plans.read_plan(plan_file)
    assert "\n" not in str(caught.value)


# Text


def test_equal_shares_of_every_corpus_are_prepared_whole_but_for_their_last_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        lines = [json.dumps({"text": f"{name} text number {i} about the river and the hills\n\nand more of it"}) for i in range(2000)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    hour.cut(tmp_path / "a.jsonl", 10_000, tmp_path / "cut.jsonl")
    texts = [json.loads(line)["text"] for line in (tmp_path / "cut.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum(len(text.encode()) for text in texts) == 10_000
    assert texts[0].endswith("\n\nand more of it"), "a blank line ends no document"
    with pytest.raises(SystemExit, match=r"b.jsonl holds 0.1 MB of text, of which 9.0 are wanted"):
        hour.cut(tmp_path / "b.jsonl", 9_000_000, tmp_path / "cut.jsonl")
    corpora = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    words = ["--corpus", *corpora, "--validation", *corpora, "--megabytes", 0.1, "--validation-megabytes", 0.02, "--vocab-size", 200]
    run_main(monkeypatch, "prepare", "--work", tmp_path / "work", *words)
    found = open_prepared(tmp_path / "work" / "data")
    assert found.vocab_size == 200 and "to validate on" in capsys.readouterr().err
    assert found.manifest["counts"]["validation"]["tokens"] == pytest.approx(found.manifest["counts"]["train"]["tokens"] / 5, rel=0.1)


# Runs


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs that take no time; the list names those that were made."""
    made: list[str] = []

    def pretend(words: list[str], **_: Any) -> str:
        job = hour.Job(**json.loads(words[words.index("--job") + 1]))
        made.append(job.key)
        place = Path(words[words.index("--place") + 1])
        assert place.is_dir() and list(place.iterdir()) == []
        (place / "model").mkdir()
        return json.dumps(finished(job, 5.0 - job.settings.get("learning_rate", 0.0)))

    monkeypatch.setattr(hour, "output_of_process", pretend)
    return made


def test_every_run_is_made_once_and_an_attempt_that_was_killed_begins_anew(
    pretended: list[str], plan_file: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leftover = work / "scratch" / "modern-8s-seed3"
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("of a run", encoding="utf-8")
    run_main(monkeypatch, "run", "--plan", plan_file, "--work", work, "--only", "peer", "modern")
    assert pretended == [
        "peer-learning_rate0.001-2s-seed3",
        "peer-learning_rate0.002-2s-seed3",
        "peer-learning_rate0.002-8s-seed3",
        "modern-8s-seed3",
        "peer-learning_rate0.002-8s-seed4",
    ]
    assert {path.stem for path in (work / "results").iterdir()} == {path.name for path in (work / "models").iterdir()} == set(pretended)
    assert not leftover.exists()
    run_main(monkeypatch, "run", "--plan", plan_file, "--work", work, "--only", "peer", "modern")
    assert len(pretended) == 5
    run_main(monkeypatch, "run", "--plan", plan_file, "--work", work, "--only", "modern", "--budget", "1s")
    assert pretended[5:] == ["modern-1s-seed3"], "another budget is another run"


def test_a_run_that_another_process_makes_is_left_to_it(
    pretended: list[str], plan_file: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = work / "scratch" / "modern-8s-seed3.lock"
    lock.parent.mkdir()

    def while_it_waits(seconds: float) -> None:
        assert pretended == []
        other.__exit__(None, None, None)

    monkeypatch.setattr(hour.time, "sleep", while_it_waits)
    other = hour.claimed(lock)
    assert other.__enter__()
    run_main(monkeypatch, "run", "--plan", plan_file, "--work", work, "--only", "modern")
    assert pretended == ["modern-8s-seed3"]


def test_without_text_nothing_is_run(plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="holds no text yet: begin with the stage `prepare`"):
        run_main(monkeypatch, "run", "--plan", plan_file, "--work", tmp_path / "nothing")


def our_loss(model: Path, batches: list[Batch]) -> float:
    with launch("cpu") as runtime:
        return score_lm(load_pretrained(model).masked_lm(dropout=0.0), batches, resolve_precision("fp32", runtime.device), runtime).loss


def trained(job: Any, work: Path, tmp_path: Path, *, clock: str = "wall") -> dict[str, Any]:
    place = tmp_path / "place"
    place.mkdir()
    found: dict[str, Any] = hour.run_one(job, argparse.Namespace(work=work, place=place, clock=clock))
    assert 0.05 * job.budget < found["seconds"] < 20 * job.budget, "on a machine with other work a step takes what it takes"
    assert found["curve"][-1] == [pytest.approx(found["seconds"], abs=1e-3), pytest.approx(found["final_loss"], abs=1e-4)]
    assert len(found["curve"]) <= job.points + 2 and found["curve"] == sorted(found["curve"])
    assert found["tokens"] == found["steps"] * 8 * job.seq_len
    return found


@pytest.mark.parametrize("name", ["peer", "modern"])
def test_a_peer_is_trained_by_trainer_for_its_budget_and_saved(plan: Any, name: str, work: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("datasets")
    transformers = pytest.importorskip("transformers")
    contestant = next(one for one in plan.contestants if one.name == name)
    settings = contestant.set | {"learning_rate": 1e-2}
    job = hour.Job(name, contestant.kind, None, settings, {}, budget=2.0, seed=0, seq_len=32, points=4)
    found = trained(job, work, tmp_path)
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "place" / "model")
    assert model.config.model_type == contestant.kind and model.num_parameters() == found["num_parameters"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "place" / "model")
    data = open_prepared(work / "data")
    assert load("first_hour_peers").score_peer(model, list(fixed_batches(data, 32))) == pytest.approx(found["final_loss"], rel=1e-5)
    special = data.special
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.cls_token_id) == (special.mask_id, special.pad_id, special.cls_id)


@pytest.mark.rehearsal
def test_ours_is_trained_by_the_command_for_its_budget(plan: Any, work: Path, tmp_path: Path) -> None:
    contestant = plan.contestants[2]
    settings = contestant.set | {"optim.learning_rate": 1e-2, "runtime.precision": "fp32"}
    job = hour.Job("ours", "pld", contestant.preset, settings, {}, budget=2.0, seed=0, seq_len=32, points=4)
    found = trained(job, work, tmp_path, clock="processor")
    assert found["command"].startswith("pld pretrain --preset bert-tiny-preln --data data data.seq_len=32 train.seed=0 ")
    assert our_loss(tmp_path / "place" / "model", list(fixed_batches(open_prepared(work / "data"), 32))) == pytest.approx(
        found["final_loss"]
    )


def test_peers_are_scored_on_the_very_targets_that_ours_are_scored_on(plan: Any, prepared: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    peers, data = load("first_hour_peers"), open_prepared(prepared)
    theirs = peers.build_peer(plans.Peer(**plan.contestants[0].set), "bert", data, seq_len=32, seed=0)
    with torch.no_grad():
        for parameter in theirs.parameters():  # so large that every weight shows in the loss
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    theirs.save_pretrained(tmp_path)
    peers.peer_tokenizer(data).save_pretrained(tmp_path)
    batches = list(fixed_batches(data, 32, max_sequences=40))
    with launch("cpu") as runtime:
        ours = score_lm(load_pretrained(tmp_path).masked_lm(dropout=0.0), batches, resolve_precision("fp32", runtime.device), runtime)
    assert peers.score_peer(theirs, batches) == pytest.approx(ours.loss, rel=1e-5)
    assert theirs.training, "it goes on training afterwards"


def test_peers_read_whole_rows_of_the_same_tokens(prepared: Path) -> None:
    pytest.importorskip("datasets")
    data = open_prepared(prepared)
    rows = load("first_hour_peers").training_rows(data, 32)
    assert len(rows) == pytest.approx(data.stream("train").num_tokens / 30, rel=0.01)
    ids = rows[0]["input_ids"]
    assert len(ids) == 32 and (ids[0], ids[-1]) == (data.special.cls_id, data.special.sep_id)
    assert ids[1:-1] == data.stream("train").slice(0, 30).tolist()
    assert rows[0]["special_tokens_mask"][:2] == [1, 0]


def test_the_chosen_models_are_fine_tuned_by_one_program_and_once(
    plan: Any, plan_file: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = plan.contestants[0]
    (work / "results").mkdir()
    for job in [*plan.tuning(peer), *plan.final(peer, {"learning_rate": 1e-3})]:
        (work / "results" / f"{job.key}.json").write_text(json.dumps({"final_loss": job.settings["learning_rate"]}), encoding="utf-8")
    typed: list[list[str]] = []

    def pretend(words: list[str], **_: Any) -> str:
        typed.append(words)
        out = Path(words[words.index("--out") + 1])
        out.mkdir(exist_ok=True)
        scores = [(0.4, "learning_rate=1e-4"), (0.6, "learning_rate=1e-3")]
        groups = [{"label": label, "score": {"mean": score, "values": [score] * 2}, "metrics": {"mcc": {}}} for score, label in scores]
        (out / "results.json").write_text(json.dumps({"groups": [*groups, {"score": None}]}), encoding="utf-8")
        return ""

    monkeypatch.setattr(load("measuring"), "output_of_process", pretend)
    words = ["finetune", "--plan", plan_file, "--work", work, "--data-dir", "glue", "--tasks", "cola", "--seeds", 2, "--set"]
    run_main(monkeypatch, *words, "learning_rate=1e-4,1e-3")
    run_main(monkeypatch, *words, "learning_rate=1e-4,1e-3")
    assert len(typed) == 1, "what is there is not done again"
    assert typed[0][2:6] == ["finetune", "glue/cola", "--model", str(work / "models" / "peer-learning_rate0.001-8s-seed3")]
    assert typed[0][-2:] == ["--seeds=2", "learning_rate=1e-4,1e-3"]
    [result] = reports.finetuned(work / "finetuned" / "peer-learning_rate0.001-8s-seed3").values()
    assert result["scores"] == [0.6, 0.6] and result["label"] == "learning_rate=1e-3"
    assert "ours: not trained yet, so not fine-tuned" in capsys.readouterr().err
    run_main(monkeypatch, *words, "learning_rate=1e-3")
    assert len(typed) == 2, "other settings are another fine-tuning"


# Report


@pytest.mark.parametrize(
    ("loss", "seconds"),
    [(5.0, 1.0), (4.5, 1.5), (4.0, 2.0), (3.5, 3.0), (2.9, None), (6.0, 1.0)],
)
def test_the_time_to_a_loss_lies_on_a_line_between_two_points(loss: float, seconds: float | None) -> None:
    assert reports.seconds_to(loss, [(1.0, 5.0), (2.0, 4.0), (4.0, 3.0), (5.0, 3.5)]) == seconds
    assert reports.seconds_to(loss, []) is None


@pytest.fixture
def measured(plan: Any, work: Path) -> Callable[[], dict[str, Any]]:
    """A report on made-up runs: the peers end at 4.0 and 3.5, ours at 2.5 and, in half of the time, at 3.25."""

    def gather() -> dict[str, Any]:
        results: dict[str, Any] = {}
        for contestant in plan.contestants:
            for number, job in enumerate(plan.tuning(contestant)):
                results[job.key] = finished(job, 6.0 - number / 10)
            end = {"peer": 4.0, "modern": 3.5, "ours": 2.5}[contestant.name]
            for job in plan.final(contestant, plan.best(contestant, results)):
                half = job.budget < plan.budget
                results[job.key] = finished(job, (3.75 if half else end) + (job.seed - 3) / 10, job.budget)
        place = work / "finetuned" / "ours-learning_rate0.01-8s-seed3"
        place.mkdir(parents=True)
        (place / "rte.json").write_text(
            json.dumps({"scores": [0.5, 0.6, 0.7], "task": "rte", "asked": ["--seeds=3", "learning_rate=1e-3"]}), encoding="utf-8"
        )
        found: dict[str, Any] = reports.gather(plan, results, work)
        return found

    return gather


def test_the_table_says_where_each_ends_and_when_it_has_the_loss_of_the_peers(measured: Callable[[], dict[str, Any]]) -> None:
    found = measured()
    table = reports.loss_table(found)
    assert table[0][4:] == (
        "loss after 8 s",
        "time to the final loss of a peer",
        "time to the final loss of another peer",
        "loss after 4 s, its schedule finished",
    )
    peer, modern, ours = table[1:]
    assert peer == ("a peer", "1.50 M", "100.0", "1,000", "4.050 (4.000 to 4.100)", "all of it", "not reached", "")
    assert modern[4:] == ("3.500", "6.9 s (86 %)", "all of it", "")
    assert ours[4] == "2.550 (2.500 to 2.600)" and ours[7] == "3.800 (3.750 to 3.850)"
    assert ours[5:7] == ("5.0 s (62 %)", "6.1 s (76 %)")
    assert reports.loss_table(found, with_speed=False)[3] == (ours[0], *ours[4:])


def test_what_needs_a_finished_schedule_is_said_apart(measured: Callable[[], dict[str, Any]]) -> None:
    written = reports.document(measured(), picture="hour.png")
    assert "- ours, whole run in 50 % of the time: 3.800 reaches the 4.050 of a peer." in written
    assert "- ours, whole run in 50 % of the time: 3.800 does not reach the 3.500 of another peer." in written
    assert "| ours | learning_rate 0.01 | 5.800 | chosen, at an end of its grid |" in written
    assert "| ours | 60.0 ± 10.0 | 60.0 |" in written
    assert "![Validation loss against minutes of training](hour.png)" in written


def test_a_run_that_took_more_time_than_it_had_is_named(measured: Callable[[], dict[str, Any]]) -> None:
    found = measured()
    assert "Off their budget" not in reports.document(found, picture="x.png")
    found["contestants"][1]["runs"][0]["seconds"] = 8.5
    assert "by more than 5 % (steps took more or less than when they were timed): another peer, seed 3: 1.06 of it." in reports.document(
        found, picture="x.png"
    )


def test_what_was_not_run_is_said_to_be_not_measured(plan: Any, work: Path) -> None:
    peer = plan.contestants[1]
    [job] = plan.final(peer, {})
    found = reports.gather(plan, {job.key: finished(job, 4.0)}, work)
    table = reports.loss_table(found)
    assert set(table[1][1:]) == set(table[3][1:]) == {"not measured"} and table[2][4] == "4.000"
    assert "not measured" in reports.document(found, picture="x.png")


def test_table_and_picture_come_out_of_the_committed_file_again(
    measured: Callable[[], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour.write_report(measured(), tmp_path / "hour")
    assert (tmp_path / "hour.json").stat().st_size < 50_000
    written = [(tmp_path / f"hour.{ending}").read_bytes() for ending in ("md", "png")]
    run_main(monkeypatch, "report", "--work", tmp_path, "--again", tmp_path / "hour.json", "--out", tmp_path / "hour")
    assert [(tmp_path / f"hour.{ending}").read_bytes() for ending in ("md", "png")] == written
