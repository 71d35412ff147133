"""The adapter files of a run: a plain one with each checkpoint, and the two finished ones with everything known on them."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from studio.pipelines.adapters import (
    Adapter,
    AdapterInfo,
    Redaction,
    SparsePatch,
    TrainingRecord,
    load_adapter,
    save_adapter,
)
from studio.pipelines.adapters.conversion import to_full
from studio.pipelines.adapters.files import dialects_for
from studio.pipelines.errors import AdapterFileError
from studio.pipelines.families import ModelFamily
from studio.training.config import TrainConfig
from studio.training.method import Trainable
from studio.training.record import RunRecord
from studio.training.run_folder import RunFolder
from studio.training.samples import thumbnail_url
from studio.training.session import Concept

LARGEST_DIFFERENCES_BYTES = 2**30
DIFFERENCE_BYTES = 2
"""Of one weight in a file of full differences (float16)."""
STUDIO_ONLY = frozenset({"sparse"})
"""Types of adapters that no other tool reads as they are."""


def adapter_info(concept: Concept, step: int) -> AdapterInfo:
    """What is known about the adapter of a checkpoint."""
    config, base = concept.config, concept.base
    assert config.run.name is not None and config.data.resolution is not None
    return AdapterInfo(
        name=config.run.name,
        type="dora" if config.adapter.dora else concept.method.adapter_type,
        family=base.family.name,
        base_name=base.source,
        base_hash=base.content_hash if base.content_hash else None,
        trigger=concept.trigger,
        class_noun=config.concept.class_noun,
        roles=("subject",),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        prediction_type=base.prediction_type,
        resolution=(config.data.resolution, config.data.resolution),
        training=training_record(concept, step).as_strings(),
    )


def training_record(concept: Concept, step: int) -> TrainingRecord:
    """How the adapter was made, in sd-scripts' words."""
    config, dataset = concept.config, concept.dataset
    data, loss, optimizer, run = config.data, config.loss, config.optimizer, config.run
    assert data.batch_size is not None
    accumulation = run.gradient_accumulation_steps
    photos = len(dataset.train_items)
    per_epoch = max(1, -(-photos // (data.batch_size * accumulation)))
    folder = config.concept.images.name
    captions = [caption for item in dataset.train_items for caption in (item.captions.bare, *item.captions.full)]
    return TrainingRecord(
        learning_rate=optimizer.learning_rate,
        unet_lr=optimizer.learning_rate,
        text_encoder_lr=optimizer.text_encoder_learning_rate if config.adapter.train_text_encoder else None,
        optimizer=optimizer.name,
        lr_scheduler=config.schedule.name,
        lr_warmup_steps=config.schedule.warmup_steps,
        max_train_steps=config.schedule.steps,
        steps=step,
        epoch=-(-step // per_epoch),
        num_train_images=photos,
        num_reg_images=loss.num_class_images if loss.prior == "class-images" else 0,
        num_batches_per_epoch=per_epoch,
        batch_size_per_device=max(1, data.batch_size // concept.accelerator.num_processes),
        total_batch_size=data.batch_size * accumulation,
        gradient_accumulation_steps=accumulation,
        gradient_checkpointing=run.gradient_checkpointing,
        mixed_precision=str(concept.accelerator.mixed_precision),
        max_grad_norm=optimizer.max_grad_norm,
        resolution=f"({data.resolution}, {data.resolution})",
        enable_bucket=data.buckets,
        cache_latents=data.cache != "off",
        noise_offset=loss.noise_offset if loss.noise_offset > 0 else None,
        min_snr_gamma=loss.snr_gamma if loss.snr_gamma else None,
        prior_loss_weight=loss.prior_weight if loss.prior != "none" else None,
        caption_dropout_rate=config.concept.caption_dropout,
        seed=run.seed,
        output_name=run.name,
        dataset_dirs={folder: {"n_repeats": 1, "img_count": photos}},
        tag_frequency={folder: {caption: captions.count(caption) for caption in dict.fromkeys(captions)}},
    )


def save_checkpoint_adapter(concept: Concept, trainable: Trainable, step: int, path: Path) -> None:
    """Write what was learned so far as a file that can be used at once."""
    save_own(trainable.extract(adapter_info(concept, step)), path, concept.base.family)


def save_own(
    adapter: Adapter, path: Path, family: ModelFamily, redact: Redaction = "none", dtype: torch.dtype = torch.float16
) -> None:
    """Write `adapter` in the first dialect that holds it as it is: PEFT's where that is possible."""
    formats = dialects_for(adapter)
    for name in formats:
        try:
            return save_adapter(adapter, path, name, dtype=dtype, redact=redact, family=family)
        except AdapterFileError:  # the kind fits and the shape does not
            if name == formats[-1]:
                raise
    raise AdapterFileError(f"There is no file format that holds {' and '.join(adapter.kinds())} patches together.")


def save_for_others(adapter: Adapter, path: Path, family: ModelFamily, redact: Redaction = "none") -> bool:
    """Write `adapter` for A1111 and ComfyUI, in kohya's names; what only the studio reads, as full differences.

    Returns:
        Whether it was written: differences of more than a gigabyte are left to `studio export`.
    """
    own = next((name for name in ("kohya", "lycoris") if name in dialects_for(adapter)), None)
    if own is not None:
        save_adapter(adapter, path, own, redact=redact, family=family)
        return True
    shapes = [patch.weight_shape for patch in adapter.patches.values() if isinstance(patch, SparsePatch)]
    if DIFFERENCE_BYTES * sum(map(math.prod, shapes)) > LARGEST_DIFFERENCES_BYTES:
        return False
    save_adapter(to_full(adapter), path, "lycoris", redact=redact, family=family)
    return True


def save_final_adapters(
    concept: Concept,
    record: RunRecord,
    checkpoint_adapter: Path,
    folder: RunFolder,
    thumbnail: Image.Image | None,
    redact: Redaction,
) -> None:
    """Write the chosen checkpoint's adapter, for the studio and for other tools, with thumbnail and reason of the choice."""
    adapter = load_adapter(checkpoint_adapter)
    assert record.chosen_step is not None
    info = replace(
        adapter_info(concept, record.chosen_step),
        description=f"{concept.method.title} of {record.trigger}. {record.reason}",
        thumbnail=None if thumbnail is None else thumbnail_url(thumbnail),
        roles=adapter.info.roles,
        role_blocks=adapter.info.role_blocks,
    )
    finished = replace(adapter, info=info)
    save_own(finished, folder.adapter, concept.base.family, redact)
    save_for_others(finished, folder.kohya_adapter, concept.base.family, redact)


def usage_commands(folder: RunFolder, config: TrainConfig, trigger: str, adapter_type: str) -> tuple[str, ...]:
    """Lines to type to use the adapter."""
    base = "" if config.model.base == "embedded" else f" --base {_quoted(config.model.base)}"
    export = f"studio export {_quoted(str(folder.adapter))} --format"
    loading = {
        "pipelines": f'pipeline.load_lora_weights("{folder.path.name}", weight_name="adapter.safetensors")',
        "the UNet": f'pipeline.unet.load_lora_adapter("{folder.path.name}", weight_name="adapter.safetensors", prefix="unet")',
    }
    reach = _diffusers_reach(config, adapter_type)
    if reach in loading:
        others: tuple[str, ...] = (
            "# the same in Python, with diffusers",
            loading[reach],
            f'pipeline("a {trigger} in the snow").images[0]',
        )
    elif adapter_type in STUDIO_ONLY:
        others = ("# for other tools: a whole model in diffusers' layout", f"{export} merged{base}")
    else:
        others = ("# for diffusers: a LoRA, larger, that does the same", f"{export} lora")
    return (
        "# a picture with the studio",
        f'studio generate --prompt "a {trigger} in the snow" --adapter {_quoted(str(folder.adapter))}{base}',
        "",
        *others,
        "",
        "# what it is",
        f"studio inspect {_quoted(str(folder.adapter))}",
    )


def file_list(folder: RunFolder, config: TrainConfig, adapter_type: str) -> tuple[tuple[str, str], ...]:
    """The files of a finished run, and what each is for."""
    own = {
        "pipelines": "for diffusers, PEFT, SD.Next and the studio",
        "the UNet": "for the studio, PEFT and diffusers' UNets",
        "nothing": "for the studio",
    }
    kohya = "the same for A1111, Forge, ComfyUI and InvokeAI"
    if adapter_type in STUDIO_ONLY:
        kohya = "the same for A1111 and ComfyUI, larger"
    elif adapter_type == "lokr":
        kohya = "the same for A1111 and ComfyUI"
    return (
        (folder.adapter.name, own[_diffusers_reach(config, adapter_type)]),
        *([(folder.kohya_adapter.name, kohya)] if folder.kohya_adapter.is_file() else []),
        ("checkpoints/", "the adapters of earlier steps, and what resuming needs"),
        ("samples/", "the sample pictures of this page"),
        ("metrics.jsonl", "the loss of every step, a JSON object a line"),
        ("config.toml", "all settings; train again with --config config.toml"),
    )


def _diffusers_reach(config: TrainConfig, adapter_type: str) -> Literal["pipelines", "the UNet", "nothing"]:
    """What of diffusers loads `adapter.safetensors`: its pipelines, a UNet by itself, or nothing."""
    if adapter_type == "lokr":
        out, _, inputs = str(config.krona.factors).partition("x")
        return "the UNet" if out == inputs and not config.adapter.train_text_encoder else "nothing"
    return "nothing" if adapter_type in STUDIO_ONLY else "pipelines"


def _quoted(text: str) -> str:
    return f'"{text}"' if any(character.isspace() for character in text) else text
