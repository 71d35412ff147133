"""Facts read from configs are those of the loaded model."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.pipelines.base_facts import read_base_facts
from studio.pipelines.base_model import load_base
from studio.pipelines.errors import BaseModelError, MissingFileError
from tests.support.tiny_bases import tiny_embedded_dir, tiny_sd15_dir, tiny_sdxl_dir


@pytest.mark.parametrize("write", [tiny_embedded_dir, tiny_sd15_dir, tiny_sdxl_dir])
def test_facts_are_those_of_the_loaded_model(write, tmp_path: Path):
    folder = write(tmp_path / "base")
    facts, base = read_base_facts(str(folder)), load_base(folder)
    assert (facts.family, facts.size, facts.content_hash) == (base.family, base.size, base.content_hash)
    assert (facts.source, set(facts.files)) == (base.source, set(base.weight_files))


def test_what_is_no_base_model_is_refused(tmp_path: Path):
    with pytest.raises(MissingFileError, match="no base model"):
        read_base_facts(str(tmp_path / "none"))
    with pytest.raises(BaseModelError, match="no unet"):
        read_base_facts(str(tmp_path))
    (tmp_path / "a.safetensors").write_bytes(b"x")
    with pytest.raises(BaseModelError, match="damaged"):
        read_base_facts(str(tmp_path / "a.safetensors"))
