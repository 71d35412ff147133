"""Real CLIP and DINOv2 models, by local path, behind the scorers' interface."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from studio.pipelines.errors import MissingFileError
from studio.pipelines.scoring.scorer import Picture

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 16


class ClipDinoScorer:
    """Prompt fidelity and style by CLIP, identity by DINOv2 (by CLIP where there is none): DreamBooth's CLIP-T and DINO.

    DINOv2 reads the whole picture: `class_noun` is not used.
    """

    def __init__(self, clip_dir: Path, dinov2_dir: Path | None = None) -> None:
        from transformers import CLIPModel, CLIPTokenizer, Dinov2Model

        for folder in (clip_dir, dinov2_dir):
            if folder is not None and not (folder / "config.json").is_file():
                raise MissingFileError(f"{folder} is no model folder: it has no config.json.")
        self.clip = CLIPModel.from_pretrained(str(clip_dir), local_files_only=True).eval().requires_grad_(False)
        self.tokenizer = CLIPTokenizer.from_pretrained(str(clip_dir), local_files_only=True)
        self.dino: Any = None
        if dinov2_dir is not None:
            self.dino = Dinov2Model.from_pretrained(str(dinov2_dir), local_files_only=True).eval().requires_grad_(False)
        self._folders = [folder for folder in (clip_dir, dinov2_dir) if folder is not None]

    @property
    def name(self) -> str:
        """`clip` or `clip+dinov2`."""
        return "clip" if self.dino is None else "clip+dinov2"

    @property
    def content_hash(self) -> str:
        """SHA-256 over the safetensors files of the model folders, by name."""
        digest = hashlib.sha256()
        for folder in self._folders:
            for path in sorted(folder.glob("*.safetensors")):
                digest.update(path.name.encode())
                digest.update(path.read_bytes())
        return digest.hexdigest()

    def identity(self, images: Sequence[Picture], references: Sequence[Picture], class_noun: str | None = None) -> Tensor:
        """Cosine `[N]` of each image's DINOv2 class token (or CLIP image embedding) to the references' mean embedding."""
        embed = self._embed_clip if self.dino is None else self._embed_dino
        return _to_mean(embed(images), embed(references))

    def prompt_fidelity(self, images: Sequence[Picture], prompts: Sequence[str]) -> Tensor:
        """CLIP's cosine of image i and prompt i, `[N]`."""
        with torch.no_grad():
            tokens = self.tokenizer(
                list(prompts),
                padding=True,
                truncation=True,
                max_length=self.clip.config.text_config.max_position_embeddings,
                return_tensors="pt",
            )
            texts = _pooled(self.clip.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]))
        return (self._embed_clip(images) * F.normalize(texts, dim=1)).sum(dim=1)

    def style_agreement(self, images: Sequence[Picture], references: Sequence[Picture]) -> Tensor:
        """Cosine `[N]` of CLIP's image embedding to the references' mean: subject and style together, as CLIP sees them."""
        return _to_mean(self._embed_clip(images), self._embed_clip(references))

    def _embed_clip(self, images: Sequence[Picture]) -> Tensor:
        size = int(self.clip.config.vision_config.image_size)
        return _embed(
            images, size, CLIP_MEAN, CLIP_STD, lambda pixels: _pooled(self.clip.get_image_features(pixel_values=pixels))
        )

    def _embed_dino(self, images: Sequence[Picture]) -> Tensor:
        patch = int(self.dino.config.patch_size)
        size = min(224 // patch * patch, int(self.dino.config.image_size) // patch * patch)
        return _embed(
            images, size, IMAGENET_MEAN, IMAGENET_STD, lambda pixels: self.dino(pixel_values=pixels).last_hidden_state[:, 0]
        )


def _pooled(output: Any) -> Tensor:
    """The embedding itself: transformers 5 returns it inside an output object, older ones bare."""
    tensor: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return tensor


def _embed(
    images: Sequence[Picture], size: int, mean: tuple[float, ...], std: tuple[float, ...], model: Callable[[Tensor], Tensor]
) -> Tensor:
    """Unit vectors `[N, D]` of pictures: shorter side to `size`, middle cut out, normalised, embedded."""
    parts = []
    for start in range(0, len(images), BATCH):
        pixels = torch.stack([_cut(image, size) for image in images[start : start + BATCH]])
        shape = (1, 3, 1, 1)
        with torch.no_grad():
            parts.append(model((pixels - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)))
    return F.normalize(torch.cat(parts), dim=1)


def _cut(image: Picture, size: int) -> Tensor:
    picture = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return torch.from_numpy(np.array(picture.crop((left, top, left + size, top + size)))).permute(2, 0, 1).float() / 255


def _to_mean(vectors: Tensor, references: Tensor) -> Tensor:
    return vectors @ F.normalize(references.mean(dim=0), dim=0)
