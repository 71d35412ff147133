"""Whatever bytes an adapter file has, the answer is an adapter or one sentence: no other exception, no crash, no hang."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import save

from studio.pipelines.adapters import load_adapter, save_adapter
from studio.pipelines.adapters.files import dialects_for
from studio.pipelines.errors import StudioError
from tests.proof.conftest import FULL, SMALL
from tests.support.adapters import random_adapter, random_kronecker
from tests.support.tiny_models import tiny_embedded, tiny_sd15

IS_FULL = os.environ.get("STUDIO_PROOF") == "full"
CASES = (FULL if IS_FULL else SMALL).fuzz_cases
HANG_SECONDS = 60
OUTCOMES: Counter[str] = Counter()

LAYER = "lora_unet_mid_block_attentions_0_proj_in"
PEFT = "unet.mid_block.attentions.0.proj_in"


def small_file(**parts: tuple[int, ...]) -> bytes:
    """A file of one layer with parts of these shapes, in kohya's or LyCORIS's names."""
    return save({f"{LAYER}.{part.replace('__', '.')}": torch.ones(shape) for part, shape in parts.items()})


SMALL_FILES = [
    small_file(lora_down__weight=(2, 4), lora_up__weight=(6, 2), alpha=()),
    small_file(lora_down__weight=(2, 4), lora_up__weight=(6, 2), dora_scale=(6, 1)),
    small_file(lokr_w1=(2, 2), lokr_w2=(3, 2), alpha=()),
    small_file(hada_w1_a=(6, 2), hada_w1_b=(2, 4), hada_w2_a=(6, 2), hada_w2_b=(2, 4), alpha=()),
    small_file(diff=(6, 4)),
    save({f"{PEFT}.lora_A.weight": torch.ones(2, 4), f"{PEFT}.lora_B.weight": torch.ones(6, 2)}),
]
PARTS = ["lora_down.weight", "lora_up.weight", "alpha", "lora_A.weight", "lora_B.weight", "dora_scale", "lokr_w1", "lokr_w2"]
PARTS += ["hada_w1_a", "diff", "diff_b", "lora_mid.weight"]
DTYPES = ["F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "C64", "F12", ""]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "adapter.safetensors"


@contextlib.contextmanager
def not_longer_than(seconds: float) -> Iterator[None]:
    def hang(number: int, frame: object) -> None:
        raise AssertionError(f"reading took more than {seconds} seconds")

    former = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def try_to_read(place: Path, content: bytes) -> None:
    """The claim itself."""
    place.write_bytes(content)
    with not_longer_than(HANG_SECONDS):
        try:
            adapter = load_adapter(place)
        except StudioError as error:
            OUTCOMES["refused"] += 1
            assert str(place) in str(error)  # noqa: PT017
            assert len(str(error)) < 1000 + len(str(place))  # noqa: PT017
        else:
            OUTCOMES["read"] += 1
            assert adapter.patches
            assert all(tensor.isfinite().all() for tensor in adapter.named_tensors().values() if tensor.is_floating_point())


def fuzz(share: float):
    """A hypothesis test with its share of the cases."""
    return lambda test: settings(
        max_examples=max(10, int(CASES * share)),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        derandomize=not IS_FULL,
    )(seed(6)(test) if IS_FULL else test)


@fuzz(0.4)
@given(data=st.data())
def test_bytes_changed_cut_and_added(place: Path, data: st.DataObject):
    content = bytearray(data.draw(st.sampled_from(SMALL_FILES)))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, max(0, len(content) - 1)))
        how = data.draw(st.sampled_from(["change", "cut", "insert", "remove", "repeat"]))
        if how == "change" and content:
            content[position] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del content[position:]
        elif how == "insert":
            content[position:position] = data.draw(st.binary(max_size=16))
        elif how == "remove":
            del content[position : position + data.draw(st.integers(1, 16))]
        else:
            content += content[: position + 1]
    try_to_read(place, bytes(content))


numbers = st.one_of(st.integers(-4, 64), st.integers(2**31 - 2, 2**64), st.floats(allow_nan=False), st.booleans(), st.none())
entries = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.one_of(st.sampled_from(DTYPES), st.integers(), st.none()),
            "shape": st.one_of(st.lists(numbers, max_size=5), st.none(), st.text(max_size=3)),
            "data_offsets": st.one_of(st.lists(numbers, max_size=3), st.none()),
        }
    ),
    st.dictionaries(st.text(max_size=5), numbers, max_size=3),
    numbers,
)
names = st.one_of(
    st.text(max_size=20),
    st.builds(lambda part: f"{LAYER}.{part}", st.sampled_from(PARTS)),
    st.just("__metadata__"),
    st.builds(lambda part: f"{PEFT}.{part}", st.sampled_from(PARTS)),
)


@fuzz(0.3)
@given(header=st.dictionaries(names, entries, max_size=6), data=st.binary(max_size=200))
def test_headers_of_any_json(place: Path, header: dict, data: bytes):
    text = json.dumps(header).encode()
    try_to_read(place, struct.pack("<Q", len(text)) + text + data)


shapes = st.lists(st.integers(0, 7), max_size=4).map(tuple)
values = st.sampled_from([0.0, 1.0, -3.5, float("nan"), float("inf"), 1e30])
dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])


@fuzz(0.2)
@given(
    tensors=st.dictionaries(names.filter(lambda name: name != "__metadata__"), st.tuples(shapes, values, dtypes), max_size=8),
    metadata=st.dictionaries(st.text(max_size=20), st.text(max_size=40), max_size=4),
)
def test_whole_files_of_any_tensors(place: Path, tensors: dict, metadata: dict):
    made = {}
    for name, (shape, value, dtype) in tensors.items():
        fits = dtype.is_floating_point or abs(value) < 100  # no whole number is NaN
        made[name] = torch.full(shape, value if fits else 1.0, dtype=torch.float32 if not fits else None).to(dtype)
    try_to_read(place, save(made, metadata or None))


@pytest.fixture(scope="module")
def real_files(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """One small real adapter in every dialect that the studio writes."""
    folder = tmp_path_factory.mktemp("real")
    found = []
    for model in (tiny_sd15(), tiny_embedded()):
        targets = {"unet": r".*mid_block\.attentions\.0\..*attn2\.to_[qk]"}
        for adapter in (
            random_adapter(model, targets=targets, rank=2),
            random_adapter(model, targets=targets, rank=2, dora=True),
            random_kronecker(model, targets=targets),
        ):
            for dialect in dialects_for(adapter):
                path = folder / f"{len(found)}.safetensors"
                save_adapter(adapter, path, dialect)
                found.append(path.read_bytes())
    return found


@fuzz(0.1)
@given(data=st.data())
def test_real_files_with_one_thing_changed(place: Path, real_files: list[bytes], data: st.DataObject):
    content = data.draw(st.sampled_from(real_files))
    (length,) = struct.unpack("<Q", content[:8])
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = data.draw(st.sampled_from(sorted(header)))
    how = data.draw(st.sampled_from(["remove", "rename", "entry", "shape", "metadata", "swap", "byte"]))
    if how == "remove":
        del header[name]
    elif how == "rename":
        header[data.draw(names)] = header.pop(name)
    elif how == "entry":
        header[name] = data.draw(entries)
    elif how == "shape" and "shape" in header[name]:
        header[name]["shape"] = header[name]["shape"][::-1]
    elif how == "metadata":
        header["__metadata__"] = data.draw(st.dictionaries(st.text(max_size=20), st.text(max_size=60), max_size=5))
    elif how == "swap":
        other = data.draw(st.sampled_from(sorted(header)))
        header[name], header[other] = header[other], header[name]
    else:
        position = data.draw(st.integers(0, max(0, len(rest) - 1)))
        rest = rest[:position] + bytes([data.draw(st.integers(0, 255))]) + rest[position + 1 :]
    text = json.dumps(header).encode()
    try_to_read(place, struct.pack("<Q", len(text)) + text + rest)


def test_zz_what_came_of_it(record):
    """Runs last: the cases were of both kinds, and as many as were meant."""
    record("fuzz", cases=sum(OUTCOMES.values()), **OUTCOMES, crashes=0, hangs=0)
    assert sum(OUTCOMES.values()) >= CASES * 0.95
    assert min(OUTCOMES["read"], OUTCOMES["refused"]) > CASES * 0.02
