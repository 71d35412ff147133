"""Reading photos: everything a camera or an image program writes, and everything that must be refused in one sentence."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from studio.pipelines.errors import DatasetError, ImageError
from studio.training.data.folder import duplicates, find_images, natural_key, read_photos
from studio.training.data.images import ImageLimits, open_image, pixel_hash, read_photo


def gradient(width: int = 48, height: int = 32) -> Image.Image:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 60)], axis=-1).astype(np.uint8))


def png_of_declared_size(width: int, height: int) -> bytes:
    """A valid 1-bit grey PNG of any size, small because it is all zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def close(image: Image.Image, expected: Image.Image, tolerance: float = 2.0) -> bool:
    """Whether two pictures are the same but for rounding and compression."""
    assert image.size == expected.size
    assert image.mode == "RGB"
    return float(np.abs(np.asarray(image, float) - np.asarray(expected.convert("RGB"), float)).mean()) <= tolerance


def refusal(path: Path) -> str:
    """The sentence that refuses a file."""
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert caught.value.exit_code == 2
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff", "gif"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    gradient().save(path, **({"quality": 95} if suffix in ("jpg", "webp") else {}))
    assert close(open_image(path), gradient(), tolerance=8.0)


@pytest.mark.parametrize("name", ["mit Leerzeichen.png", "🐕🦴.png", "كلب.png", "ДОМ.PNG", "con.png", "a'b\"c;$(x).png"])
def test_names(tmp_path: Path, name: str) -> None:
    gradient().save(tmp_path / name)
    assert [path.name for path in find_images(tmp_path)] == [name]
    assert close(open_image(tmp_path / name), gradient())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = gradient(48, 32)
    turned = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    stored = upright
    for operation in turned:
        stored = stored.transpose(operation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif, **({} if suffix == "png" else {"quality": 95}))
    assert close(open_image(path), upright, tolerance=6.0)


def test_damaged_exif_is_noted_or_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    gradient().save(path, quality=95, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    assert close(open_image(path), gradient(), tolerance=6.0)


def test_cmyk(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    gradient().convert("CMYK").save(path, quality=95)
    photo = read_photo(path)
    assert close(photo.image, gradient(), tolerance=8.0)
    assert any("CMYK" in note for note in photo.notes)


def test_palette_with_transparency_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (32, 32), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (0, 0, 16, 32))
    path = tmp_path / "a.png"
    image.save(path, transparency=0)
    photo = read_photo(path)
    assert photo.image.getpixel((4, 4)) == (255, 0, 0)
    assert photo.image.getpixel((28, 4)) == (255, 255, 255)
    assert any("white" in note for note in photo.notes)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_on_white(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (32, 32), (0, 0, 0, 128) if mode == "RGBA" else (0, 128))
    image.save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").getpixel((3, 3)) == (127, 127, 127)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled_and_not_cut_off(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(values).save(path)
    read = np.asarray(open_image(path))[..., 0].astype(float)
    assert np.abs(read - values / 257.0).max() <= 0.51


def test_float_grey(tmp_path: Path) -> None:
    values = np.linspace(0.0, 1.0, 32 * 32, dtype=np.float32).reshape(32, 32)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert np.abs(np.asarray(open_image(tmp_path / "a.tiff"))[..., 0] - values * 255.0).max() <= 0.51
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "b.tiff")
    assert "colours of mode" in refusal(tmp_path / "b.tiff")


@pytest.mark.parametrize("mode", ["1", "L", "HSV", "YCbCr", "LAB"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    image = gradient().convert(mode) if mode != "LAB" else Image.new("LAB", (32, 32), (128, 128, 128))
    path = tmp_path / ("a.jpg" if mode == "YCbCr" else "a.tiff" if mode in ("LAB",) else "a.png")
    (image if mode != "HSV" else image.convert("RGB")).save(path)
    assert open_image(path).mode == "RGB"


def test_colour_profile_is_followed(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 32), (200, 40, 40))
    lab_like = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(tmp_path / "srgb.png", icc_profile=lab_like)
    assert open_image(tmp_path / "srgb.png").getpixel((0, 0)) == (200, 40, 40)
    image.save(tmp_path / "broken.png", icc_profile=b"no profile at all")
    assert open_image(tmp_path / "broken.png").getpixel((0, 0)) == (200, 40, 40)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animation_gives_its_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "green")]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=100, **({"lossless": True} if suffix == "webp" else {})
    )
    photo = read_photo(path)
    assert close(photo.image, frames[0], tolerance=4.0)
    assert photo.notes == ("only the first of 3 frames is used",)


def test_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_declared_size(12_000, 12_000))
    assert path.stat().st_size < 30_000
    assert "12000 × 12000 pixels are 144 megapixels, and more than 64 are refused" in refusal(path)
    path.write_bytes(png_of_declared_size(20_000, 20_000))
    assert "megapixels" in refusal(path)


def test_text_bomb_in_a_png(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    buffer = io.BytesIO()
    gradient().save(buffer, format="PNG")
    whole = buffer.getvalue()
    text = b"k\x00\x00" + zlib.compress(bytes(8 * 2**20), 9)
    bomb = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    path.write_bytes(whole[:33] + bomb + whole[33:])
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff"])
@pytest.mark.parametrize("share", [0.02, 0.6])
def test_truncated(tmp_path: Path, suffix: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8))
    path = tmp_path / f"a.{suffix}"
    noise.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert any(word in refusal(path) for word in ("truncated", "damaged"))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jpg", b"", "is empty (0 bytes)"),
        ("a.jpg", b"hello world, this is text", "is no picture"),
        ("a.heic", b"anything", "HEIC pictures cannot be read; save it as JPEG or PNG"),
        ("a.jpg", b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "HEIC pictures cannot be read"),
        ("a.svg", b"<svg/>", "SVG pictures cannot be read"),
        ("a.png", b"<?xml version='1.0'?><svg xmlns='x'/>", "SVG pictures cannot be read"),
        ("a.png", b"%PDF-1.7", "PDF pictures cannot be read"),
        ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "is no picture"),
    ],
)
def test_other_content(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert expected in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(1, 1, "are too few"), (15, 15, "are too few"), (1000, 20, "too long a shape"), (20, 1000, "too long a shape")],
)
def test_sizes_refused(tmp_path: Path, width: int, height: int, expected: str) -> None:
    gradient(width, height).save(tmp_path / "a.png")
    assert expected in refusal(tmp_path / "a.png")


def test_limits_are_settings(tmp_path: Path) -> None:
    gradient(100, 50).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="megapixels"):
        open_image(tmp_path / "a.png", ImageLimits(max_pixels=4999))
    assert open_image(tmp_path / "a.png", ImageLimits(max_pixels=5000)).size == (100, 50)


def test_missing_and_folder(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.png")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    assert "No such file" in refusal(tmp_path / "dangling.png")


def test_all_bad_files_are_named_at_once(tmp_path: Path) -> None:
    gradient().save(tmp_path / "good.png")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "phone.HEIC").write_bytes(b"x")
    with pytest.raises(ImageError) as caught:
        read_photos(find_images(tmp_path))
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 of 3 photos cannot be used:"
    assert "empty.jpg" in lines[1] and "phone.HEIC" in lines[2]
    for number in range(15):
        (tmp_path / f"{number}.jpg").write_bytes(b"")
    with pytest.raises(ImageError, match="and 7 more"):
        read_photos(find_images(tmp_path))


def test_listing_is_natural_and_leaves_out_the_rest(tmp_path: Path) -> None:
    for name in ["10.png", "2.png", "b.PNG", "A.png", ".hidden.png"]:
        gradient().save(tmp_path / name, format="PNG")
    (tmp_path / "2.txt").write_text("a caption")
    (tmp_path / "sub.png").mkdir()
    assert [path.name for path in find_images(tmp_path)] == ["2.png", "10.png", "A.png", "b.PNG"]
    assert find_images(tmp_path / "2.png") == [tmp_path / "2.png"]
    assert natural_key("a\u0308.png") == natural_key("\u00e4.png")
    assert sorted(["²x", "1x", "x"], key=natural_key) == ["1x", "x", "²x"]


@pytest.mark.parametrize(
    ("files", "folders", "expected"),
    [
        ([], [], "is empty; put three to ten photos there"),
        (["notes.txt", "x.zip"], [], "only 2 other files (.txt, .zip)"),
        ([], ["dog"], "only the folder 'dog'; name that one"),
    ],
)
def test_no_images_says_what_is_there(tmp_path: Path, files: list[str], folders: list[str], expected: str) -> None:
    for name in files:
        (tmp_path / name).write_text("x")
    for name in folders:
        (tmp_path / name).mkdir()
    with pytest.raises(DatasetError) as caught:
        find_images(tmp_path)
    assert expected in str(caught.value)
    with pytest.raises(DatasetError, match="no such folder"):
        find_images(tmp_path / "none")


def test_duplicates_are_found_by_pixels(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    gradient().save(tmp_path / "b.bmp")
    gradient(33, 33).save(tmp_path / "c.png")
    photos = read_photos(find_images(tmp_path))
    assert [(first.path.name, copy.path.name) for first, copy in duplicates(photos)] == [("a.png", "b.bmp")]
    assert photos[0].content_hash == pixel_hash(gradient())
