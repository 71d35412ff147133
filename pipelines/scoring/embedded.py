"""The embedded referees as scorers: they read pictures of the toy world, and embed any picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from studio.pipelines.scoring.checklist import PRESENT_FROM, check, parse_prompt
from studio.pipelines.scoring.network import PictureReading, RefereeNetwork, RegionReading
from studio.pipelines.scoring.regions import boxes_from_distances, heat_peaks, suppress
from studio.pipelines.scoring.scorer import Box, Detection, Picture, PromptScore, Reading, to_pixels

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
SMALLEST_SCORE = 0.05
MAX_DETECTIONS = 8
MAX_OVERLAP = 0.5
BATCH = 64


class EmbeddedScorer:
    """The guide or the judge. Pictures of any size are resized to the network's 96 pixels.

    Words outside its world do no harm: an unknown class noun means that identity is read from the whole picture, and
    a prompt with nothing checkable in it is scored by the joint embedding, in which unknown words have no meaning.
    """

    def __init__(self, network: RefereeNetwork, name: str, content_hash: str) -> None:
        self.network = network.eval().requires_grad_(False)
        self.config = network.config
        self._name = name
        self._content_hash = content_hash

    @property
    def name(self) -> str:
        """`guide` or `judge`."""
        return self._name

    @property
    def content_hash(self) -> str:
        """SHA-256 of the weight file."""
        return self._content_hash

    def read(self, images: Sequence[Picture]) -> list[Reading]:
        """Objects, background and style of each picture. Objects come best first, down to a score of .05."""
        readings: list[Reading] = []
        for pixels, raw in self._batches(images):
            detections = self._detect(pixels, raw)
            background, style = raw.background.softmax(dim=1), raw.style.softmax(dim=1)
            for index, found in enumerate(detections):
                scene, manner = int(background[index].argmax()), int(style[index].argmax())
                readings.append(
                    Reading(
                        detections=tuple(found),
                        background=self.config.backgrounds[scene],
                        background_score=float(background[index, scene]),
                        style=self.config.styles[manner],
                        style_score=float(style[index, manner]),
                    )
                )
        return readings

    def embed_regions(self, images: Sequence[Picture], boxes: Sequence[Box]) -> Tensor:
        """Identity embeddings `[N, D]`, unit length, of one box (fractions) in each image."""
        parts, start = [torch.zeros(0, self.config.identity_dim)], 0
        for pixels, raw in self._batches(images):
            chunk = torch.tensor(boxes[start : start + len(pixels)], dtype=torch.float32)
            parts.append(self._identity(pixels, raw, torch.arange(len(pixels)), chunk))
            start += len(pixels)
        return torch.cat(parts)

    def identity(self, images: Sequence[Picture], references: Sequence[Picture], class_noun: str | None = None) -> Tensor:
        """Cosine `[N]` of the thing in each image to the mean embedding of the thing in the references.

        The thing is found by `class_noun`: in an image with several of the class, the one most alike counts; where
        none is found, the place that looks most like one. Without a noun of this world it is the whole picture.
        """
        target = F.normalize(torch.stack([group[0] for group in self.embed_things(references, class_noun)]).mean(dim=0), dim=0)
        scores = [(group @ target).max() for group in self.embed_things(images, class_noun)]
        return torch.stack(scores) if scores else torch.zeros(0)

    def embed_things(self, images: Sequence[Picture], class_noun: str | None = None) -> list[Tensor]:
        """Identity embeddings `[K, D]` of the K >= 1 things of a class in each image, the surest first."""
        known = class_noun in self.config.classes
        kind = self.config.classes.index(class_noun) if known and class_noun is not None else None
        groups: list[Tensor] = []
        for pixels, raw in self._batches(images):
            boxes = [self._boxes_of(raw, index, kind) for index in range(len(pixels))]
            picture = torch.tensor([index for index, group in enumerate(boxes) for _ in range(len(group))])
            vectors = self._identity(pixels, raw, picture, torch.cat(boxes))
            groups += list(vectors.split([len(group) for group in boxes]))
        return groups

    def embed_images(self, images: Sequence[Picture]) -> Tensor:
        """Joint embedding `[N, D]` of pictures, unit length."""
        return torch.cat([torch.zeros(0, self.config.joint_dim), *(raw.joint for _, raw in self._batches(images))])

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Joint embedding `[N, D]` of prompts, unit length."""
        with torch.no_grad():
            return self.network.embed_text(list(prompts)) if prompts else torch.zeros(0, self.config.joint_dim)

    def features(self, images: Sequence[Picture]) -> Tensor:
        """Pooled backbone features `[N, F]`, for distances between sets of pictures."""
        parts = [raw.pooled for _, raw in self._batches(images)]
        return torch.cat(parts) if parts else torch.zeros(0, 0)

    def prompt_scores(self, images: Sequence[Picture], prompts: Sequence[str]) -> list[PromptScore]:
        """Checklist and cosine of each image and its prompt; see `PromptScore`."""
        cosines = (self.embed_images(images) * self.embed_texts(prompts)).sum(dim=1)
        scores = []
        for reading, prompt, cosine in zip(self.read(images), prompts, cosines.tolist(), strict=True):
            items = check(parse_prompt(prompt), reading)
            share = sum(holds for _, holds in items) / len(items) if items else None
            scores.append(PromptScore(score=cosine if share is None else share, checklist=share, cosine=cosine, items=items))
        return scores

    def prompt_fidelity(self, images: Sequence[Picture], prompts: Sequence[str]) -> Tensor:
        """Share of the prompt's checkable statements that hold, `[N]`; the joint cosine where there are none."""
        return torch.tensor([score.score for score in self.prompt_scores(images, prompts)])

    def style_agreement(self, images: Sequence[Picture], references: Sequence[Picture]) -> Tensor:
        """Overlap `sum(sqrt(p q))` of each image's style distribution with the references' mean one, `[N]`, 0..1."""
        target = self._style_shares(references).mean(dim=0)
        return (self._style_shares(images) * target).sqrt().sum(dim=1)

    def _style_shares(self, images: Sequence[Picture]) -> Tensor:
        parts = [raw.style.softmax(dim=1) for _, raw in self._batches(images)]
        return torch.cat([torch.zeros(0, len(self.config.styles)), *parts])

    def _batches(self, images: Sequence[Picture]) -> Iterator[tuple[Tensor, PictureReading]]:
        for start in range(0, len(images), BATCH):
            pixels = to_pixels(images[start : start + BATCH], self.config.image_size)
            with torch.no_grad():
                reading: PictureReading = self.network(pixels)
            yield pixels, reading

    def _identity(self, pixels: Tensor, raw: PictureReading, picture: Tensor, boxes: Tensor) -> Tensor:
        """Identity embedding `[R, D]` of boxes, averaged over the box and its mirror image: facing left is the same thing.

        A box with its sides swapped samples mirrored. Measured: one to two points in a hundred more individuals right.
        """
        mirrored = boxes[:, [2, 1, 0, 3]]
        with torch.no_grad():
            both = [self.network.regions(pixels, raw, picture, each).identity for each in (boxes, mirrored)]
        return F.normalize(both[0] + both[1], dim=1)

    def _boxes_of(self, raw: PictureReading, index: int, kind: int | None) -> Tensor:
        """Boxes `[K, 4]` of the things of a class in a picture; the surest place when none is sure."""
        if kind is None:
            return torch.tensor([WHOLE])
        heat = raw.heat[index : index + 1].sigmoid()
        boxes = boxes_from_distances(raw.distances[index : index + 1])[0].flatten(0, 1)
        peaks = heat_peaks(heat[:, kind : kind + 1])[0, 0].flatten()
        scores, cells = peaks.topk(MAX_DETECTIONS)
        kept = suppress(scores, boxes[cells], MAX_OVERLAP)
        sure = [place for place in kept if scores[place] >= PRESENT_FROM]
        return boxes[cells[sure if sure else kept[:1]]]

    def _detect(self, pixels: Tensor, raw: PictureReading) -> list[list[Detection]]:
        """Peaks of the heat maps, read as regions; the class is where heat and region agree most."""
        num = len(raw.heat)
        heat = raw.heat.sigmoid()
        strongest = heat_peaks(heat).amax(dim=1).flatten(1)  # [N, G*G]
        scores, cells = strongest.topk(MAX_DETECTIONS, dim=1)
        picture = torch.arange(num)[:, None].expand_as(cells)
        keep = scores >= SMALLEST_SCORE
        keep[:, 0] = True
        picture, cells = picture[keep], cells[keep]
        boxes = boxes_from_distances(raw.distances).flatten(1, 2)[picture, cells]
        with torch.no_grad():
            region = self.network.regions(pixels, raw, picture, boxes)
        at_cell = heat.flatten(2)[picture, :, cells]  # [R, classes]
        classes = (at_cell * region.class_name.softmax(dim=1)).sqrt()
        found: list[list[Detection]] = [[] for _ in range(num)]
        for index in range(num):
            rows = (picture == index).nonzero()[:, 0]
            best = classes[rows].amax(dim=1)
            for row in rows[suppress(best, boxes[rows], MAX_OVERLAP)].tolist():
                found[index].append(self._detection(classes[row], boxes[row], region, row))
        return found

    def _detection(self, classes: Tensor, box: Tensor, region: RegionReading, row: int) -> Detection:
        colours, patterns = region.colour[row].softmax(dim=0), region.pattern[row].softmax(dim=0)
        kind, colour, pattern = int(classes.argmax()), int(colours.argmax()), int(patterns.argmax())
        x0, y0, x1, y1 = box.clamp(0, 1).tolist()
        return Detection(
            class_name=self.config.classes[kind],
            score=float(classes[kind]),
            box=(x0, y0, x1, y1),
            colour=self.config.colours[colour],
            colour_score=float(colours[colour]),
            pattern=self.config.patterns[pattern],
            pattern_score=float(patterns[pattern]),
        )
