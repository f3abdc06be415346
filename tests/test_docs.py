from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from pldcli import presets
from tests.typed_commands import ROOT, arguments_of, load, run_all, write_inputs

generate, pages, screen = load("generate"), load("pages"), load("screen")

PAGES = [page for page in pages.pages() if page.name != "getting-started.md"]
"""README.md's test runs the commands of the other one, which are for other runs."""
BLOCKS = [block for page in PAGES for block in pages.read_blocks(page)]
COMMANDS = [line for block in BLOCKS for line in block.commands]


def test_every_page_is_in_the_navigation() -> None:
    assert set(pages.pages()) == set((ROOT / "docs").rglob("*.md"))


@pytest.mark.usefixtures("drawn")
def test_every_command_of_the_guides_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pld: Callable[..., Any]) -> None:
    monkeypatch.chdir(tmp_path)
    write_inputs(monkeypatch)
    pages.write_files(BLOCKS, tmp_path)
    assert {line.split()[0] for line in COMMANDS} == {"pld", "torchrun", "python3"}
    run_all((line for line in COMMANDS if line.startswith("pld ")), pld)
    assert Path("schedules.png").is_file() and Path("bench.png").is_file()
    assert Path("glue.zip").is_file() and Path("smaller", "model.safetensors").is_file() and Path("depth.png").is_file()


def test_the_study_of_the_guide_is_valid(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pld: Callable[..., Any]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(prepared)
    pages.write_files(BLOCKS, tmp_path)
    outcome = pld("study", "small.yaml", "--report-only")
    assert outcome.code == 2 and outcome.err.startswith("error: studies/small: nothing was trained")


@pytest.mark.usefixtures("forked")
def test_the_line_for_several_processes_works(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.run import main

    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(prepared)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    [line] = [line for line in COMMANDS if line.startswith("torchrun ")]
    main(arguments_of(line)[1:])
    assert (tmp_path / "runs" / "two-processes" / "model" / "model.safetensors").is_file()


MANIFEST = next(block for block in BLOCKS if block.title == "job.yaml").body
SCRIPTS = {block.title: block.body for block in BLOCKS if block.title and block.title.endswith(".sbatch")}
FOR_MACHINES = [
    next(part for part in yaml.safe_load_all(MANIFEST) if part["kind"] == "Job")["spec"]["template"]["spec"]["containers"][0]["command"],
    shlex.split(SCRIPTS["several.sbatch"].replace("\\\n", " ").partition("srun ")[2].partition(" &")[0]),
    *(shlex.split(block.body) for block in BLOCKS if block.language == "text" and block.body.startswith("torchrun ")),
]


@pytest.mark.parametrize("words", FOR_MACHINES, ids=["kubernetes", "slurm", "by-hand"])
def test_the_commands_for_several_machines_name_options_that_exist(words: list[str], pld: Callable[..., Any]) -> None:
    options = get_args_parser().parse_args(words[1:])
    assert words[0] == "torchrun" and options.module and options.training_script == "pldcli"
    assert options.rdzv_backend == "c10d" and options.rdzv_endpoint.partition(":")[2] and options.rdzv_id != "none"
    typed = options.training_script_args
    outcome = pld(*typed, "--help")
    assert outcome.code == 0 and "Usage: pld pretrain" in outcome.out, outcome.err
    preset = " ".join(typed).replace("=", " ").partition("--preset ")[2].split()[0]
    assert presets.resolve(preset).config.share_of_group(2 * int(options.nproc_per_node))


def test_the_pods_of_the_manifest_find_each_other() -> None:
    service, job = yaml.safe_load_all(MANIFEST)
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    options = get_args_parser().parse_args(container["command"][1:])
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == int(options.nnodes)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(options.nproc_per_node)
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert options.rdzv_endpoint.startswith(f"{job['metadata']['name']}-0.{pod['subdomain']}.$(NAMESPACE).svc.")
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_of_the_guide_are_shell(name: str, pld: Callable[..., Any]) -> None:
    assert subprocess.run(["bash", "-n"], input=SCRIPTS[name], text=True, check=False).returncode == 0
    for line in SCRIPTS[name].splitlines():
        if line.startswith("pld "):
            assert pld(*shlex.split(line.rstrip(" &"))[1:], "--help").code == 0


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.is_exact for block in pages.read_blocks(page))], ids=lambda page: page.name
)
def test_outputs_that_are_the_same_everywhere_are_current(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pld: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    pages.write_files(pages.read_blocks(page), tmp_path)

    def output_of(block: Any, lines: list[str]) -> str | None:
        return "".join(pld(*arguments_of(line)[1:]).out for line in lines) if block.is_exact else None

    assert pages.replace_outputs(page, output_of) == page.read_text(encoding="utf-8"), f"run python docs/record.py {page.relative_to(ROOT)}"


def test_every_output_is_recorded() -> None:
    assert all(block.body.strip() for block in BLOCKS if block.how is not None)


@pytest.mark.parametrize("name", generate.PAGES)
def test_the_references_are_current(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == generate.PAGES[name](), "run python docs/generate.py"


def test_the_references_hold_every_option_and_key(pld: Callable[..., Any]) -> None:
    reference, keys = generate.reference(), generate.configuration()
    for option in ("--seeds", "--pseudo-perplexity", "--find-micro-batch", "--cased / --uncased", "--json"):
        assert f"| `{option}` |" in reference
    sections = yaml.safe_load(presets.dump(presets.resolve("bert-tiny-pld").config))
    assert all(f"| `{section}.{key}` |" in keys for section, values in sections.items() for key in values)


def test_the_table_of_presets_is_complete() -> None:
    text = (ROOT / "docs" / "guides" / "config.md").read_text(encoding="utf-8")
    families = {"-".join(name.split("-")[:2]) for name in presets.names()}
    assert len(families) == 9
    for family in families:
        config = presets.resolve(f"{family}-pld").config.model
        shape = f"| {config.num_hidden_layers} x {config.hidden_size} | {config.vocab_size:,} |"
        hardware = presets.header(f"{family}-pld")["Hardware"].partition(";")[0].rstrip(".")
        assert f"| `{family}-*` {shape} {hardware}" in text


def test_the_table_of_systems_is_complete_and_says_which_sizes_lack_one() -> None:
    text = (ROOT / "docs" / "guides" / "config.md").read_text(encoding="utf-8")
    pairs = [(f"{kind}-*", system) for kind, _, system in (name.split("-", 2) for name in presets.names())]
    kinds = {kind for kind, _ in pairs}
    for system in {system for _, system in pairs} - {"pld-paper"}:
        [row] = [line for line in text.splitlines() if line.startswith(f"| `-{system}` |")]
        having = {kind for kind, one in pairs if one == system}
        assert having == kinds or row.endswith(f"; {', '.join(f'`{kind}`' for kind in sorted(having))} only |")


def test_a_progress_bar_leaves_no_trace_in_the_picture_of_the_screen() -> None:
    printed = "1/2 one\n\x1b[?25lbar 10 %\r\x1b[2Kbar 90 %\n\x1b[?25h\r\x1b[1A\x1b[2K2/2 \x1b[1mtwo\x1b[0m\n"
    assert screen.what_stays(printed) == ["1/2 one", "2/2 \x1b[1mtwo\x1b[0m"]
    drawn = screen.draw(printed)
    assert (
        "two" in drawn
        and "bar" not in drawn
        and "http" not in drawn.replace("http://www.w3.org/2000/svg", "").replace("https://www.textualize.io", "")
    )
