"""Prompts by a language model in a folder: offline, safetensors only, the same for the same seed, none much like another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from studio.pipelines.errors import ConfigError, MissingFileError
from studio.workflows.selma_language import LanguageModel, write_prompts
from studio.workflows.selma_prompts import skill_prompts
from studio.workflows.selma_skills import Skill, SkillSet
from studio.workflows.selma_text import PromptPool, rouge_l, words_of

WORDS = ["red", "blue", "cat", "dog", "mug", "snow", "night", "in", "at", "the", "a", "two", "three"]
SKILL = Skill(name="count", examples=("two red cat in the snow", "three blue dog at night", "a mug"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random GPT-2 whose tokens are words and line ends: its lines are random words, which is all that is needed."""
    path = tmp_path_factory.mktemp("language model")
    tokens = ["<end>", "\n", " ", *WORDS]
    tokenizer = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=" "))
    tokenizer.pre_tokenizer = Split("\n", "isolated")  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokens), n_positions=160, n_embd=16, n_layer=1, n_head=2))
    model.lm_head.weight.data[0] = -100 * model.lm_head.weight.data[0].abs()
    model.save_pretrained(path, safe_serialization=True)
    return path


def test_prompts_differ_and_are_the_same_for_the_same_seed(folder: Path):
    model = LanguageModel.load(folder)
    found = []
    for _ in range(2):
        pool = PromptPool(0.8)
        assert write_prompts(model, SKILL, pool, 6, seed=3, max_words=9) is None
        found.append(pool.prompts)
    assert found[0] == found[1] and len(found[0]) == 6
    assert all(2 <= len(words_of(prompt)) <= 9 for prompt in found[0])
    assert all(rouge_l(one, other) <= 0.8 for index, one in enumerate(found[0]) for other in found[0][:index])
    other = PromptPool(0.8)
    write_prompts(model, SKILL, other, 6, seed=4, max_words=9)
    assert other.prompts != found[0]


def test_lines_lose_their_numbers_and_quotes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    model = LanguageModel.load(folder)
    monkeypatch.setattr(model.tokenizer, "decode", lambda *a, **k: ' a red cat\n5. "two dogs"\n- three  mugs\n\n6)')
    assert model.propose(SKILL, list(SKILL.examples), 0, 9)[:3] == ["a red cat", "two dogs", "three mugs"]


def test_a_model_without_new_ideas_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch):
    model = LanguageModel.load(folder)
    monkeypatch.setattr(model, "propose", lambda *arguments: ["two red cats"])
    remark = write_prompts(model, SKILL, PromptPool(0.8), 5, seed=0, max_words=9)
    assert remark is not None and "1 different prompts for 'count', not 5" in remark


def test_they_are_kept_while_they_are_made(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, skills = LanguageModel.load(folder), SkillSet(skills=(SKILL,))

    def make(num: int) -> list[str]:
        return skill_prompts(
            skills, SKILL, tmp_path, num=num, most_alike=0.8, max_words=9, seed=0, language_model=model, say=lambda text: None
        )

    first = make(4)
    monkeypatch.setattr(model, "propose", lambda *arguments: pytest.fail("they were there"))
    assert make(4) == first and make(3) == first[:3]
    with pytest.raises(ConfigError, match="--language-model"):
        skill_prompts(skills, SKILL, tmp_path / "none", num=3, most_alike=0.8, max_words=9, seed=0, say=lambda text: None)


def test_what_is_no_language_model_is_refused(tmp_path: Path):
    with pytest.raises(MissingFileError, match="no language model"):
        LanguageModel.load(tmp_path)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read as a causal language model"):
        LanguageModel.load(tmp_path)
