from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pldcli import processor


@pytest.fixture(autouse=True)
def unread() -> Iterator[None]:
    processor.processor_fields.cache_clear()
    yield
    processor.processor_fields.cache_clear()


def test_fields_and_flags_are_those_of_the_first_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: First: 2 GHz\nflags\t\t: fpu avx2\n\nmodel name\t: Second\nflags\t\t: fpu\n")
    monkeypatch.setattr(processor, "_CPUINFO", cpuinfo)
    assert processor.processor_fields() == {"model name": "First: 2 GHz", "flags": "fpu avx2"}
    assert processor.processor_flags() == {"fpu", "avx2"}


def test_without_the_file_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "missing")
    assert processor.processor_fields() == {}
    assert processor.processor_flags() == set()
