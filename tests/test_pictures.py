"""Pictures are read as they look; every caption convention is read, and what is left out is counted."""

from __future__ import annotations

import io
import json
import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from image_readers import read_training_images
from resurgence.cli import main
from resurgence.data.real_sets import real_set
from resurgence.data.training_images import training_set
from resurgence.diffusion.image_sets import decode_images
from resurgence.diffusion.pictures import MOST, read_picture, square
from resurgence.files import files_at
from tiny import make_pipeline

# EXIF orientation -> how the stored pixels (H, W, C) become upright
UPRIGHT = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2), 6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2), 8: lambda a: a.transpose(1, 0, 2)[::-1],
}  # fmt: skip


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(seed: int, *shape: int, high: int = 256, kind: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape).astype(kind)


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(read_picture(data, "picture"))


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(UPRIGHT)), st.integers(1, 9), st.integers(1, 9), st.sampled_from(["PNG", "TIFF", "WEBP"]))
def test_orientation(orientation: int, height: int, width: int, kind: str) -> None:
    stored = noise(orientation, height, width, 3)
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[0x0112] = orientation
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert np.array_equal(pixels_of(encoded(image, kind, exif=exif, **options)), UPRIGHT[orientation](stored))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 99), st.sampled_from(["RGBA", "LA"]))
def test_transparent_parts_become_white(seed: int, mode: str) -> None:
    stored = noise(seed, 5, 7, len(mode))
    colour, alpha = stored[..., :-1].astype(float), stored[..., -1:] / 255
    expected = colour * alpha + 255 * (1 - alpha)
    shown = pixels_of(encoded(Image.fromarray(stored, mode)))
    assert np.abs(shown - np.broadcast_to(expected, shown.shape)).max() <= 1


def test_a_transparent_colour_of_a_palette_becomes_white() -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    shown = pixels_of(encoded(image, transparency=1))
    assert shown.tolist() == [[[255, 0, 0], [255, 255, 255]], [[0, 0, 255], [255, 255, 255]]]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99))
def test_sixteen_bits_of_grey_are_scaled(seed: int) -> None:
    stored = noise(seed, 4, 6, high=65536, kind=np.uint16)
    shown = pixels_of(encoded(Image.fromarray(stored)))
    assert np.abs(shown - (stored / 65535 * 255)[..., None]).max() <= 0.5


def png(depth: int, kind: int, values: np.ndarray, transparent: tuple[int, ...] | None, palette: bytes) -> bytes:
    """A PNG of stored values (H, W, C) with 1 to 16 bits, as its specification says; kind: the colour type."""
    weights = 2 ** np.arange(depth)[::-1]
    bits = (values.reshape(len(values), -1, 1) // weights % 2).reshape(len(values), -1).astype(np.uint8)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"PLTE", palette), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    if transparent is not None:
        key = bytes(transparent) if kind == 3 else struct.pack(f">{len(transparent)}H", *transparent)
        chunks.insert(2, (b"tRNS", key))
    written = [name + content for name, content in chunks if content or name != b"PLTE"]
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in written]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> stored values of a pixel
KINDS = [(kind, depth) for kind in CHANNELS for depth in (1, 2, 4, 8, 16)
         if depth >= 8 * (kind in (2, 4, 6)) and (kind != 3 or depth < 16)]  # fmt: skip


def shown(stored: list[int], kind: int, depth: int, transparent: tuple[int, ...] | None, palette: bytes) -> list[float]:
    """The colour of a pixel on white, by the specification of PNG."""
    full = 2**depth - 1
    if kind == 3:
        (place,) = stored
        colour = [float(v) for v in palette[3 * place : 3 * place + 3]]
        alpha = transparent[place] / 255 if transparent is not None and place < len(transparent) else 1.0
    else:
        colour, alpha = [value / full * 255 for value in stored[: 3 if kind in (2, 6) else 1]], 1.0
        if kind in (4, 6):
            alpha = stored[-1] / full
        elif transparent is not None and tuple(stored) == transparent:
            alpha = 0.0
    return [value * alpha + 255 * (1 - alpha) for value in (colour * 3 if len(colour) == 1 else colour)]


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(KINDS), st.data())
def test_all_colour_types_and_depths_of_png(case: tuple[int, int], data: st.DataObject) -> None:
    kind, depth = case
    height, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    values = noise(data.draw(st.integers(0, 999)), height, width, CHANNELS[kind], high=2**depth, kind=np.int64)
    palette = noise(7, 3 * 2**depth).tobytes() if kind == 3 else b""
    transparent = None
    if kind in (0, 2) and data.draw(st.booleans()):
        if depth == 16 and kind == 2:
            values = values // 257 * 257  # Pillow reads the high bytes of colours only: as 8 bits, scaled
        transparent = tuple(int(v) for v in values[-1, -1])
    elif kind == 3 and data.draw(st.booleans()):
        transparent = tuple(int(v) for v in noise(8, min(2**depth, 3)))
    expected = [[shown(pixel, kind, depth, transparent, palette) for pixel in row] for row in values.tolist()]
    tolerance = 2 if depth == 16 and kind in (4, 6) else 1  # Pillow cuts off the low bytes of colour and of alpha
    difference = pixels_of(png(depth, kind, values, transparent, palette)) - np.array(expected)
    assert np.abs(difference).max() <= tolerance + 0.01


def tiff(bits: int, photometric: int, width: int, content: bytes) -> bytes:
    """A grey TIFF of one row, uncompressed."""
    short = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 277: 1, 278: 1}
    tags = [(tag, 3, value) for tag, value in short.items()] + [(273, 4, 122), (279, 4, len(content))]
    tags.sort()
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + content


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([(8, 0), (8, 1), (12, 1), (16, 0), (16, 1)]), st.data())
def test_grey_of_tiff(case: tuple[int, int], data: st.DataObject) -> None:
    bits, photometric = case
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=2, max_size=2))
    packed = "".join(f"{value:0{bits}b}" for value in values)
    content = int(packed, 2).to_bytes(len(packed) // 8, "big") if bits < 16 else struct.pack("<2H", *values)
    expected = [value / (2**bits - 1) * 255 for value in values]
    if photometric == 0:
        expected = [255 - value for value in expected]
    assert np.abs(pixels_of(tiff(bits, photometric, 2, content))[0, :, 0] - expected).max() <= 0.51


def test_cmyk_and_one_bit() -> None:
    assert pixels_of(encoded(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF"))[0, 0].tolist() == [255, 0, 0]
    assert pixels_of(encoded(Image.new("1", (2, 2), 1)))[0, 0].tolist() == [255, 255, 255]


def profile(swapped: bool) -> bytes:
    """The ICC profile of sRGB; or, with another name, of a display whose red and blue primaries are exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if swapped:
        tags = {bytes(data[k : k + 4]): k + 4 for k in range(132, 132 + 12 * int.from_bytes(data[128:132], "big"), 12)}
        red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
        data[red : red + 8], data[blue : blue + 8] = data[blue : blue + 8], data[red : red + 8]
        data = data.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    return bytes(data)


def test_a_colour_profile_is_applied() -> None:
    stored = noise(0, 6, 6, 3)
    image = Image.fromarray(stored)
    assert np.array_equal(pixels_of(encoded(image, icc_profile=profile(swapped=False))), stored)
    shown = pixels_of(encoded(image, icc_profile=profile(swapped=True)))
    assert np.abs(shown.astype(int) - stored[..., ::-1]).max() <= 2
    alpha = np.full((6, 6, 1), 255, np.uint8)
    alpha[:3] = 0
    layered = pixels_of(encoded(Image.fromarray(np.concatenate([stored, alpha], 2)), icc_profile=profile(swapped=True)))
    assert (layered[:3] == 255).all() and np.abs(layered[3:].astype(int) - stored[3:, :, ::-1]).max() <= 2
    paletted = Image.fromarray(stored).quantize(4)
    expected = np.asarray(paletted.convert("RGB"))[..., ::-1].astype(int)
    assert np.abs(pixels_of(encoded(paletted, icc_profile=profile(swapped=True))) - expected).max() <= 2
    with pytest.raises(ValueError, match=r"^picture has a colour profile that cannot be applied .*; remove"):
        pixels_of(encoded(Image.new("CMYK", (2, 2)), "TIFF", icc_profile=profile(swapped=False)))
    with pytest.raises(ValueError, match=r"^picture has a colour profile that cannot be applied .*; remove"):
        pixels_of(encoded(image, icc_profile=b"no profile"))


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert pixels_of(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0, 0].tolist() == [255, 0, 0]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "AVIF"]), st.integers(0, 95))
def test_a_truncated_picture_is_named(kind: str, percent: int) -> None:
    whole = encoded(Image.fromarray(noise(1, 40, 40, 3)), kind)
    with pytest.raises(ValueError, match=r"^dog\.png .*; ") as caught:
        read_picture(whole[: percent * len(whole) // 100], "dog.png")
    assert "remove it" in str(caught.value)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200))
def test_bytes_of_anything_are_no_crash(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^dog\.png "):
        read_picture(data, "dog.png")


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "AVIF"]), st.lists(
        st.tuples(st.integers(0, 9999), st.integers(0, 255)), min_size=1, max_size=4
    ),
)  # fmt: skip
def test_a_picture_with_other_bytes_is_read_or_named(kind: str, changes: list[tuple[int, int]]) -> None:
    content = bytearray(encoded(Image.fromarray(noise(1, 13, 17, 3)), kind))
    for place, value in changes:
        content[place % len(content)] = value
    try:
        assert read_picture(bytes(content), "dog.png").mode == "RGB"
    except ValueError as error:
        assert str(error).startswith("dog.png ") and "; " in str(error)


@pytest.mark.parametrize("head", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"%PDF-1.4\n", b"<svg></svg>"])
def test_formats_that_run_programs_are_not_opened(head: bytes) -> None:
    with pytest.raises(ValueError, match=r"^dog\.png cannot be read as a picture; convert"):
        read_picture(head + bytes(99), "dog.png")


def test_a_narrow_picture_is_not_scaled_up() -> None:
    with pytest.raises(ValueError, match=r"^dog\.png is too narrow \(1 x 9000 pixels\); crop it"):
        square(Image.new("RGB", (1, 9000)), 512, "dog.png")
    assert square(Image.new("RGB", (1, 30)), 512, "dog.png").shape == (512, 512, 3)


def test_a_huge_picture_is_not_decoded() -> None:
    side = 9460  # a bit above the limit
    assert side**2 > MOST
    for size in ((side, side), (20000, 10000)):
        with pytest.raises(ValueError, match=r"^dog\.png is too large .*; scale it down"):
            read_picture(encoded(Image.new("1", size)), "dog.png")


def test_pixels_without_a_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mode 'F'; save it with 8 or 16 bits"):
        pixels_of(encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"))


# --- captions


def draw(folder: Path, *names: str) -> Path:
    """Pictures whose red channel is their number."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / name)
    return folder


def pairs(folder: Path) -> dict[int, str]:
    """Number of a picture -> its caption."""
    read = read_training_images(folder, 8)
    numbers = [round((value + 1) * 127.5) for value in read.images[:, 0, 0, 0].tolist()]
    return dict(zip(numbers, read.captions, strict=True))


@pytest.mark.parametrize("suffix", [".txt", ".caption"])
def test_captions_beside_the_pictures(tmp_path: Path, suffix: str) -> None:
    draw(tmp_path, "000.png", "sub/001.png", "002.png")
    for name, text in (("000", "a dog\n"), ("sub/001", "\ufeffa cat\nsecond line\n")):
        (tmp_path / f"{name}{suffix}").write_text(text, encoding="utf-8")
    (tmp_path / "LICENSE.txt").write_text("free")
    (tmp_path / "notes.md").write_text("notes")
    assert {n: c.lstrip("\ufeff") for n, c in pairs(tmp_path).items()} == {0: "a dog", 1: "a cat"}
    left_out = read_training_images(tmp_path, 8).left_out
    assert {reason: [Path(name).name for name in names] for reason, names in left_out.items()} == {
        "without caption": ["002.png"], "text without a picture of its name": ["LICENSE.txt"],
        "not a picture": ["notes.md"], "further captions": [f"001{suffix}"],
    }  # fmt: skip


def test_what_is_left_out_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path, *(f"{number}.png" for number in range(9)))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "3.png", "text": "a dog"}\n')
    with caplog.at_level(logging.INFO):
        assert pairs(tmp_path) == {3: "a dog"}
    assert "1 pictures; 8 left out: without caption (0.png, 1.png, 2.png, 4.png, 5.png, ... 8 in all)" in caplog.text


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_metadata_in_sub_folders(tmp_path: Path, kind: str) -> None:
    draw(tmp_path, "train/a/0.png", "train/1.png")
    rows = [{"file_name": "a/0.png", "text": "a dog, red"}, {"file_name": "1.png", "text": "a cat"}]
    file = tmp_path / f"train/metadata.{kind}"
    if kind == "jsonl":
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif kind == "csv":
        pd.DataFrame(rows).to_csv(file, index=False)
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    assert sorted(pairs(tmp_path).values()) == ["a cat", "a dog, red"]


def test_one_picture_may_have_several_rows(tmp_path: Path) -> None:
    draw(tmp_path, "0.png")
    rows = [{"file_name": "0.png", "text": text} for text in ("a dog", "an animal")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_training_images(tmp_path, 8).captions == ["a dog", "an animal"]


def jpeg(height: int, width: int) -> bytes:
    return encoded(Image.fromarray(noise(0, height, width, 3)), "JPEG")


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet_of_datasets_in_shards_and_sizes(tmp_path: Path, column: str, as_struct: bool) -> None:
    (tmp_path / "data").mkdir()
    for shard, sizes in enumerate([[(16, 16), (20, 16)], [(9, 30)]]):
        cells = [{"bytes": jpeg(*size), "path": None} if as_struct else jpeg(*size) for size in sizes]
        table = pa.table({"image": cells, column: [f"dog {shard}"] * len(sizes)})
        pq.write_table(table, tmp_path / f"data/train-0000{shard}-of-00002.parquet")
    images, captions, _ = read_training_images(tmp_path, 12)
    assert images.shape == (3, 3, 12, 12) and captions == ["dog 0", "dog 0", "dog 1"]
    (tmp_path / "data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 2 shards of a set; fetch"):
        read_training_images(tmp_path, 12)


ROW = '{"file_name": "0.png", "text": "a"}'
BAD = {  # file or files to add to a folder with 0.png, and the message
    "a row of a missing file": (
        {"metadata.jsonl": '{"file_name": "x.png", "text": "a"}'},
        r"x\.png is in the",
    ),
    "no JSON": ({"metadata.jsonl": "{file_name: 0.png}"}, r"metadata\.jsonl cannot be read"),
    "no object": ({"metadata.jsonl": "[1]"}, r"metadata\.jsonl, row 1: \[1\]; it needs file_name"),
    "no caption": ({"metadata.csv": "file_name\n0.png\n"}, r"metadata\.csv, row 1: .*; it needs file_name"),
    "a number": ({"metadata.jsonl": '{"file_name": "0.png", "text": 3}'}, r"0\.png has the caption 3; write text"),
    "two metadata files": (
        {"metadata.csv": "", "metadata.jsonl": ""},
        r"metadata\.jsonl, metadata\.csv; remove",
    ),
    "an empty text file": ({"0.txt": "\n"}, r"0\.txt is empty; write the caption of 0\.png"),
    "two texts": ({"0.txt": "a", "0.caption": "b"}, r"0\.png has two captions, in \.txt and \.caption; remove one"),
    "two pictures of a text": ({"0.jpg": "", "0.txt": "a"}, r"0\.txt belongs to 0\.jpg and 0\.png; rename one"),
    "metadata against text": (
        {"metadata.jsonl": ROW, "0.txt": "b"},
        r"0\.png has two captions, 'a' and 'b'; remove",
    ),
    "two sets": ({"a.parquet": "", "b.parquet": ""}, r"2 image sets; name one of a\.parquet, b\.parquet"),
    "a damaged set": ({"a.parquet": "no Parquet"}, r"a\.parquet is damaged .*; delete it"),
    "a pointer of git-lfs": (
        {"metadata.jsonl": ROW.replace("0.png", "1.png"), "1.png": "version https://git-lfs.github.com/spec/v1\noid"},
        r"1\.png is a Git LFS pointer, not the picture itself; run git lfs pull",
    ),
    "an empty picture": ({"0.txt": "a", "1.txt": "a", "1.jpg": ""}, r"1\.jpg is empty; replace it"),
    "text as a picture": ({"0.txt": "a", "1.txt": "a", "1.jpg": "x"}, r"1\.jpg cannot be read as a picture; convert"),
    "two bad pictures": (
        {"0.txt": "a", "1.txt": "a", "2.txt": "a", "1.jpg": "x", "2.gif": ""},
        r"2 of 3 pictures cannot be read; mend or remove them: .*1\.jpg cannot be .*2\.gif is empty",
    ),
    "a name without a letter": ({"1_2.txt": "", "1_2.png": ""}, r"1_2\.txt is empty; write the caption"),
    "names without letters": ({}, r"0\.png has no caption, as 1 of 1 pictures, and its name has no letter; write"),
    "a table of another name": (
        {"captions.csv": "file_name,text\n0.png,a dog\n"},
        r"captions\.csv may hold captions, and is not read; write metadata\.jsonl or",
    ),
    "a text of another name": ({"prompts.txt": "a dog"}, r"prompts\.txt may hold captions, and is not read; write"),
    "two columns": (
        {"metadata.jsonl": '{"file_name": "0.png", "text": "a", "caption": "b"}'},
        r"0\.png has different captions, text 'a', caption 'b'; keep one",
    ),
    "a picture elsewhere": (
        {"metadata.jsonl": '{"file_name": "../0.png", "text": "a"}'},
        r"metadata\.jsonl, row 1: \.\./0\.png lies outside of its folder; name",
    ),
    "a row by another path": (
        {"metadata.jsonl": '{"file_name": "./x/../0.png", "text": "a"}', "0.txt": "b"},
        r"0\.png has two captions, 'a' and 'b'; remove",
    ),
    "empty captions": (
        {"metadata.csv": "file_name,text\n0.png,\n"},
        r"no pictures with captions: without caption \(0\.",
    ),
    "commas": ({"metadata.csv": "file_name,text\n0.png,a dog, red\n"}, r"line 2 has not 2 values.*; put text"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_named(tmp_path: Path, name: str) -> None:
    files, message = BAD[name]
    draw(tmp_path, "0.png")
    for file, text in files.items():
        (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_training_images(tmp_path, 8)


def test_metadata_without_a_row_for_a_picture_reads_the_text_beside_it(tmp_path: Path) -> None:
    draw(tmp_path, "0.png", "1.png")
    (tmp_path / "metadata.jsonl").write_text('\ufeff{"file_name": "0.png", "text": "a\u2028dog"}\r\n', encoding="utf-8")
    (tmp_path / "1.TXT").write_text("a cat")
    assert pairs(tmp_path) == {0: "a\u2028dog", 1: "a cat"}


def test_hidden_pictures_and_repeats_are_counted(tmp_path: Path) -> None:
    draw(tmp_path, "10_dog/a dog_1.png", "5_cat/a cat_1.png", ".ipynb_checkpoints/a dog_1-checkpoint.png")
    assert read_training_images(tmp_path, 8).left_out == {
        "hidden": [".ipynb_checkpoints/a dog_1-checkpoint.png"],
        "repeats in names of sub-folders": ["10_dog", "5_cat"],
    }


def test_linked_folders_are_read(tmp_path: Path) -> None:
    draw(tmp_path / "elsewhere", "a dog_1.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/linked").symlink_to(tmp_path / "elsewhere")
    assert pairs(tmp_path / "set") == {0: "a dog"}


def test_names_as_captions_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert pairs(draw(tmp_path, "a dog_1.png")) == {0: "a dog"}
    assert "no captions; the names of the files stand for them, such as 'a dog'" in caplog.text


def write_set(file: Path, **columns: list) -> None:
    pq.write_table(pa.table({"image": [jpeg(8, 8)], "text": ["a dog"], **columns}), file)


@pytest.mark.parametrize("names", [["0000", "0001"], ["train.0001-of-0002", "train.0002-of-0002"]])
def test_shards_by_number_and_files_of_a_pattern_are_one_set(tmp_path: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        write_set(tmp_path / f"{name}.parquet", text=[f"dog {number}"])
    assert read_training_images(tmp_path, 8).captions == ["dog 0", "dog 1"]
    write_set(tmp_path / "x.parquet", text=["a cat"])
    with pytest.raises(ValueError, match=r"2 image sets; name one of .*, or all by a pattern: '.*/\*\*/\*\.parquet'"):
        read_training_images(tmp_path, 8)
    assert read_training_images(tmp_path / "**/*.parquet", 8).captions == ["dog 0", "dog 1", "a cat"]
    with pytest.raises(FileNotFoundError, match=r"\*\.arrow is missing; give"):
        read_training_images(tmp_path / "*.arrow", 8)


def test_the_folders_of_a_pattern_are_read_each_as_if_it_were_alone(tmp_path: Path) -> None:
    """Of one file name, with captions in three conventions: as the pictures of each folder, one after the other."""
    folders = [tmp_path / f"photos-{number}" for number in range(3)]
    draw(folders[0], "0.png", "a dog.png")
    (folders[0] / "0.txt").write_text("a cat")
    draw(folders[1], "0.png", "a bird_1.png")
    (folders[1] / "0.png").rename(folders[1] / "a hen_0.png")
    folders[2].mkdir()
    write_set(folders[2] / "x.parquet")
    (tmp_path / "other").mkdir()
    together, alone = training_set(tmp_path / "photos-*"), [training_set(folder) for folder in folders]
    assert together.sources == [source for one in alone for source in one.sources] and len(together.sources) == 4
    assert together.left_out == {"without caption": ["photos-0/a dog.png"]} and alone[0].left_out["without caption"]
    assert files_at(tmp_path / "photos-*") == sorted(file for folder in folders for file in folder.iterdir())
    rows = real_set(tmp_path / "photos-*", [], None).rows
    assert rows["file"].tolist()[0] == "photos-0/0.png" and rows["file"].is_unique
    write_set(tmp_path / "photos-3.parquet")
    with pytest.raises(ValueError, match=r"photos-\* names files and folders; let the pattern name Parquet files"):
        training_set(tmp_path / "photos-*")


def test_cells_may_name_files(tmp_path: Path) -> None:
    draw(tmp_path / "files", "0.png")
    write_set(tmp_path / "a.parquet", image=[{"bytes": None, "path": "files/0.png"}])
    assert read_training_images(tmp_path / "a.parquet", 8).captions == ["a dog"]
    (tmp_path / "files/0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.parquet, row 0: .*files/0\.png is missing; correct"):
        read_training_images(tmp_path / "a.parquet", 8)


CELLS = {
    "a number": ({"image": [3]}, "row 0 has an image of the type int; write bytes"),
    "a list": ({"image": [[jpeg(8, 8)]]}, "row 0 has an image of the type list; write bytes"),
    "two columns": ({"prompt": ["a cat"]}, "row 0 has different captions, text 'a dog', prompt 'a cat'; keep one"),
    "a caption of numbers": ({"text": [3]}, "row 0 has the caption 3; write text"),
    "no caption": ({"text": [None]}, r"without caption \(a\.parquet, row 0\); give"),
    "no picture": ({"image": pa.array([None], pa.binary())}, r"without picture \(a\.parquet, row 0\); give"),
    "no content": ({"image": [b""]}, r"a\.parquet, row 0 is empty; replace"),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_bad_row_is_named(tmp_path: Path, name: str) -> None:
    columns, message = CELLS[name]
    write_set(tmp_path / "a.parquet", **columns)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_training_images(tmp_path, 8)


def test_a_pattern_is_an_input_of_the_manifest(tmp_path: Path) -> None:
    make_pipeline().save_pretrained(tmp_path / "base")
    for name in ("x", "y"):  # of one file name
        (tmp_path / name).mkdir()
        write_set(tmp_path / name / "train.parquet")
    options = f"--base {tmp_path}/base --images {tmp_path}/?/*.parquet --out {tmp_path}/out --set steps=1 batch=1"
    assert main.main(["finetune", *options.split()]) == 0
    inputs = json.loads((tmp_path / "out/manifest.json").read_text())["inputs"]
    assert {name for name in inputs if name.startswith("images")} == {
        "images 0: train.parquet",
        "images 1: train.parquet",
    }


def test_a_damaged_image_of_a_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"image 1 of .*images\.parquet is damaged or truncated .*; replace"):
        decode_images([jpeg(8, 8), jpeg(8, 8)[:-40]], tmp_path / "images.parquet")


def test_other_columns_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"img": [b""]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet has the columns img; it needs image and one of text"):
        read_training_images(tmp_path, 8)


def test_bad_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none is missing; give"):
        read_training_images(tmp_path / "none", 8)
    with pytest.raises(FileNotFoundError, match="holds no pictures with captions; give"):
        read_training_images(tmp_path, 8)
    draw(tmp_path, "0.png")
    with pytest.raises(ValueError, match=r"0\.png is a single file; give"):
        read_training_images(tmp_path / "0.png", 8)


def test_the_manifest_lists_what_is_left_out(tmp_path: Path) -> None:
    make_pipeline().save_pretrained(tmp_path / "base")
    draw(tmp_path / "set", "0.png", "1.png")
    (tmp_path / "set/0.txt").write_text("a dog")
    options = f"--base {tmp_path}/base --images {tmp_path}/set --out {tmp_path}/out --set steps=1 batch=1"
    assert main.main(["finetune", *options.split()]) == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["parameters"]["left_out"] == {"without caption": ["1.png"]}
