"""New prompts by a language model on this machine: SELMA's first step, with any causal language model in a folder.

The paper asks gpt-3.5-turbo-instruct for 20 more captions after three examples, at temperature 1; here it is whatever model
lies in the folder. Nothing is downloaded, and only safetensors weights are read.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import torch

from studio.pipelines.errors import ConfigError, MissingFileError
from studio.workflows.selma_skills import Skill
from studio.workflows.selma_text import PromptPool, words_of

PER_REQUEST = 20
NUM_EXAMPLES = 3
MOST_BARREN_REQUESTS = 10
TOKENS_PER_WORD = 3


class LanguageModel:
    """A causal language model called `name`, and how to ask it for prompts."""

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.name = name
        self.model = model.eval()
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> LanguageModel:
        """The model in a folder that transformers can read.

        Raises:
            MissingFileError: there is no such folder. ConfigError: what is there is no causal language model.
        """
        if not (folder / "config.json").is_file():
            raise MissingFileError(f"There is no language model in {folder}: a transformers folder with a config.json is needed.")
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"{folder} cannot be read as a causal language model with safetensors weights: {reason}") from error
        return cls(model.to(device), tokenizer, folder.name)

    def propose(self, skill: Skill, examples: list[str], seed: int, max_words: int) -> list[str]:
        """What the model writes after `examples`, line by line, without numbers and quotes; nothing is checked yet."""
        text = self._request(skill, examples)
        tokens = self.tokenizer(text, return_tensors="pt").to(self.model.device)
        length = tokens.input_ids.shape[1]
        room = getattr(self.model.config, "max_position_embeddings", None)
        wanted = PER_REQUEST * (max_words + 2) * TOKENS_PER_WORD
        most = wanted if room is None else max(1, min(wanted, int(room) - length))
        end = self.tokenizer.eos_token_id
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            made = self.model.generate(
                input_ids=tokens.input_ids,
                attention_mask=tokens.attention_mask,
                do_sample=True,
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                max_new_tokens=most,
                pad_token_id=end if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id,
            )
        return _lines(self.tokenizer.decode(made[0, length:], skip_special_tokens=True))

    def _request(self, skill: Skill, examples: list[str]) -> str:
        what = skill.instruction or f"Captions of pictures that need the skill {skill.name!r}, one sentence each."
        listed = "\n".join(f"{number}. {example}" for number, example in enumerate(examples, start=1))
        wish = f"Write {PER_REQUEST} more, as different from each other as you can, with a number before each."
        task = f"{what} {wish}\n\n{listed}\n"
        if getattr(self.tokenizer, "chat_template", None):
            told = [{"role": "user", "content": task}]
            return str(self.tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True))
        return f"{task}{len(examples) + 1}."


def write_prompts(model: LanguageModel, skill: Skill, pool: PromptPool, num: int, *, seed: int, max_words: int) -> str | None:
    """Fill `pool` up to `num` prompts; None, or a sentence if the model has no more new ideas.

    The examples are drawn at random from all that was accepted so far, the skill's own among it, as in the paper.
    """
    barren = 0
    request = 0
    while len(pool) < num:
        rng = random.Random(f"{seed} {skill.name} {request} {len(pool)}")
        known = [*skill.examples, *pool.prompts]
        examples = rng.sample(known, min(NUM_EXAMPLES, len(known)))
        before = len(pool)
        for line in model.propose(skill, examples, rng.getrandbits(62), max_words):
            if len(pool) < num and 2 <= len(words_of(line)) <= max_words:
                pool.take(line)
        barren = 0 if len(pool) > before else barren + 1
        request += 1
        if barren == MOST_BARREN_REQUESTS:
            return (
                f"The language model wrote {len(pool)} different prompts for {skill.name!r}, not {num}: {barren} requests in a "
                "row gave nothing new."
            )
    return None


def _lines(text: str) -> list[str]:
    stripped = (re.sub(r"^\s*(?:[-*•]|\d+[.):])\s*", "", line).strip().strip("\"'“”") for line in text.splitlines())
    return [" ".join(line.split()) for line in stripped if line.strip()]
