"""A folder of images with a CSV file: read as documented, and every mistake reported with its line."""

import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from cprl_jax.data import own
from cprl_jax.runtime.errors import UserError


def pixels(seed, height=12, width=16):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Images a.png, b.bmp, sub/c.webp, d.tif of different sizes, without a CSV file."""
    (tmp_path / "sub").mkdir()
    for seed, name in enumerate(["a.png", "b.bmp", "sub/c.webp", "d.tif"]):
        Image.fromarray(pixels(seed, 12 + seed)).save(tmp_path / name, lossless=True)
    return tmp_path


def write(folder, text, *, encoding="utf-8", name="labels.csv"):
    (folder / name).write_text(text, encoding=encoding)


def test_two_columns(folder):
    write(folder, "image,mos\na.png,12.5\nb.bmp,100\nsub/c.webp,0\n./d.tif,7\n")
    dataset = own.load(folder)
    assert dataset.name == "own"
    assert dataset.names.tolist() == dataset.references.tolist() == ["a.png", "b.bmp", "sub/c.webp", "d.tif"]
    assert dataset.mos.tolist() == dataset.mos_raw.tolist() == [12.5, 100, 0, 7]
    assert np.isnan(dataset.mos_std).all() and not dataset.levels.any() and not len(dataset.pristine)
    assert set(dataset.distortions) == set(dataset.parts) == {""}
    for seed, image in enumerate(dataset.images):
        np.testing.assert_array_equal(image, pixels(seed, 12 + seed))


def test_all_columns_in_any_order(folder, caplog):
    write(
        folder,
        "# weak labels\n\n# more of it\nSplit,level, MOS ,weather,std,reference,distortion,image\n"
        'train,2,3,sunny,0.5,roof,"blur, motion",a.png\n'
        "test,1.0,5,,,lake,jpeg,b.bmp\n\n"
        "validation,,1,,nan,,,sub\\c.webp\n",
        encoding="utf-8-sig",
    )
    with caplog.at_level(logging.INFO, logger="absl"):
        dataset = own.load(folder, mos_worst=1, mos_best=5)
    assert "columns that are ignored: weather" in caplog.text
    assert dataset.names.tolist() == ["a.png", "b.bmp", "sub/c.webp"]
    assert dataset.mos.tolist() == [50, 100, 0] and dataset.mos_raw.tolist() == [3, 5, 1]
    np.testing.assert_array_equal(dataset.mos_std, np.float32([0.5, np.nan, np.nan]))
    assert dataset.references.tolist() == ["roof", "lake", "sub/c.webp"]
    assert dataset.distortions.tolist() == ["blur, motion", "jpeg", ""]
    assert dataset.levels.tolist() == [2, 1, 0]
    assert dataset.parts.tolist() == ["train", "test", "validation"]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_have_decimal_commas(folder, delimiter):
    write(folder, delimiter.join(["image", "mos"]) + f"\na.png{delimiter}3,25\nb.bmp{delimiter}4.5\n")
    assert own.load(folder).mos.tolist() == [3.25, 4.5]


def test_labels_that_grow_with_the_damage(folder):
    write(folder, "image,mos\na.png,0\nb.bmp,9\nd.tif,3\n", name="dmos.csv")
    dataset = own.load(folder, "dmos.csv", mos_worst=9, mos_best=0)
    np.testing.assert_allclose(dataset.mos, [100, 0, 200 / 3], rtol=1e-6)
    assert dataset.mos_raw.tolist() == [0, 9, 3]


def test_pristine_photographs(folder):
    (folder / "references").mkdir()
    Image.fromarray(pixels(10)).save(folder / "references" / "roof.v1.PNG")
    Image.fromarray(pixels(11)).save(folder / "references" / "lake.bmp")
    write(folder, "image,mos,reference\na.png,1,roof.v1\nb.bmp,2,d.tif\nsub/c.webp,3,lake.bmp\nd.tif,4,nowhere\n")
    pristine = own.load(folder).pristine
    assert sorted(pristine) == ["d.tif", "lake.bmp", "roof.v1"]
    np.testing.assert_array_equal(pristine["roof.v1"], pixels(10))
    np.testing.assert_array_equal(pristine["lake.bmp"], pixels(11))
    np.testing.assert_array_equal(pristine["d.tif"], pixels(3, 15))


def test_images_are_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels(0)).save(tmp_path / "a.png", exif=exif)
    write(tmp_path, "image,mos\na.png,1\n")
    np.testing.assert_array_equal(own.load(tmp_path).images[0], np.rot90(pixels(0), -1))


def test_all_problems_at_once(folder):
    (folder / "references").mkdir()
    for suffix in ("png", "bmp"):
        Image.fromarray(pixels(9)).save(folder / "references" / f"twice.{suffix}")
    (folder / "references" / "broken.png").write_bytes(b"no image")
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no image")
    lines = [
        ("a.png,101,twice,,,", "'a.png'): mos is '101', not a number from 0 to 100"),
        ("b.bmp,nan,broken,,,", "'b.bmp'): mos is 'nan'"),
        ("sub/c.webp,,,,,", "mos is ''"),
        ("d.tif,1,,1.5,-1,dev", "level is '1.5'"),
        ("a.png,1,,,,", "listed before, in line 2"),
        ("gone.png,1,,,,", "no such file"),
        ("../a.png,1,,,,", "leaves the folder"),
        (f"{folder}/a.png,1,,,,", "leaves the folder"),
        ("cut.png,1,,,,", "'cut.png'): the image cannot be read: "),
        ("text.jpg,1,,,,", "'text.jpg'): the image cannot be read: not an image in JPEG"),
        ("a.png,1", "2 values in 6 columns"),
        (",1,,,,", "names no image"),
    ]
    write(folder, "\n".join(["image,mos,reference,level,std,split", *(line for line, _ in lines)]))
    with pytest.raises(UserError) as raised:
        own.load(folder)
    message = str(raised.value)
    assert "\n" not in message and "have 16 problems" in message
    for number, (_, text) in enumerate(lines, start=2):
        assert any(f"line {number}" in part and text in part for part in message.split("; ")), text
    for text in ("std is '-1'", "split is 'dev', not train, validation, test", "line 2: several files in references"):
        assert text in message
    assert "reference 'broken.png': the image cannot be read" in message


def test_no_more_problems_than_a_person_reads(folder):
    write(folder, "image,mos\n" + "".join(f"gone{i}.png,1\n" for i in range(30)))
    with pytest.raises(UserError, match="have 30 problems.*gone19.png.*and 10 more$"):
        own.load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "labels.csv is empty"),
        ("# only a comment\n", "labels.csv is empty"),
        ("image,mos\n", "names no image"),
        ("name,score\na.png,1\n", "line 1: 'name,score' must name the columns image and mos"),
        ("# a\nimage,mos,mos\n", "line 2: column mos occurs twice"),
        ('image,mos\n"a.png,1\n', "line 2: unexpected end of data"),
    ],
)
def test_files_that_are_no_tables(folder, text, message):
    write(folder, text)
    with pytest.raises(UserError, match=message):
        own.load(folder)


@pytest.mark.parametrize(
    ("scores", "worst", "best", "suggested"),
    [
        ((1.2, 4.9), 0, 100, (1, 5)),
        ((0, 1), 0, 100, (0, 1)),
        ((0.5, 5), 0, 100, (0, 5)),
        ((1, 9), 0, 100, (1, 10)),
        ((0, 10), 0, 100, (0, 10)),
        ((1.2, 4.9), 100, 0, (5, 1)),
        ((1.2, 30), 0, 100, None),
        ((1.2, 4.9), 1, 5, None),
        ((1.2, 4.9), 0, 9, (1, 5)),
        ((0, 1), 0, 10, (0, 1)),
        ((0, 1), 1.5, 0, None),
        ((0, 1), 2, 0, (1, 0)),
        ((0, 90), 0, 1000, (0, 100)),
        ((1, 9), 0, 10, None),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_scores_of_another_scale(tmp_path, caplog, scores, worst, best, suggested):
    def make(count):
        lines = ["image,mos"]
        for number, score in enumerate(np.linspace(*scores, count)):
            Image.fromarray(pixels(number, 3, 4)).save(tmp_path / f"{number}.png")
            lines.append(f"{number}.png,{score}")
        write(tmp_path, "\n".join(lines))

    make(own.FEW)
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert len(own.load(tmp_path, mos_worst=worst, mos_best=best)) == own.FEW
    make(own.FEW + 1)
    if suggested is None:
        assert "scale" not in caplog.text
        own.load(tmp_path, mos_worst=worst, mos_best=best)
        return
    text = f"--config.dataset.mos_worst={suggested[0]} --config.dataset.mos_best={suggested[1]}"
    assert text in caplog.text
    if {worst, best} != {0, 100}:  # given by a person
        assert len(own.load(tmp_path, mos_worst=worst, mos_best=best)) == own.FEW + 1
        return
    with pytest.raises(UserError, match=rf"labels\.csv: all mos are from .*{text}"):
        own.load(tmp_path, mos_worst=worst, mos_best=best)


@pytest.mark.parametrize(
    "scores",
    [
        (0, 19),
        (0, 14),
        (1.2, 10.1),
        (*np.linspace(0, 0.96, 23), 100),
        (*np.linspace(1, 5, 23), 11),
        (50, 50.001),
        (20, 60),
    ],
    ids=range(7),
)
def test_scores_that_crowd_together_are_a_warning(tmp_path, caplog, scores):
    lines = ["image,mos"]
    for number, score in enumerate(np.linspace(*scores, 24) if len(scores) == 2 else scores):
        Image.fromarray(pixels(number, 3, 4)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{score}")
    write(tmp_path, "\n".join(lines))
    with caplog.at_level(logging.WARNING, logger="absl"):
        own.load(tmp_path)
    assert ("most mos are close together" in caplog.text) == (scores != (20, 60))


@pytest.mark.parametrize(
    ("column", "value"), [("level", "1e19"), ("level", "3e9"), ("level", "inf"), ("std", "1e39"), ("std", "inf")]
)
def test_numbers_that_nothing_can_hold_are_named(folder, column, value):
    write(folder, f"image,mos,{column}\na.png,20,{value}\nb.bmp,30,1\n")
    with pytest.raises(UserError, match=rf"line 2 \('a\.png'\): {column} is '{value}', not a (whole )?number"):
        own.load(folder)
    with pytest.raises(UserError, match="mos_best=1e[+]39"):
        own.load(folder, mos_best=1e39)


def test_scores_that_are_all_equal(folder):
    write(folder, "image,mos\na.png,50\nb.bmp,50.0000001\n")
    with pytest.raises(UserError, match=r"labels\.csv: mos is 50 for all 2 images"):
        own.load(folder)


def test_paths_that_the_system_does_not_take(folder, monkeypatch):
    write(folder, "image,mos,reference\na.png,20,roof\nb.bmp,30,roof\n")
    long = 300 * "n"
    for options, message in (
        ({"folder": "~nobody-of-that-name/images"}, "config.dataset.manual_dir"),
        ({"folder": folder / long}, "config.dataset.manual_dir"),
        ({"labels": f"{long}.csv"}, "config.dataset.labels"),
        ({"labels": "~nobody-of-that-name/labels.csv"}, "config.dataset.labels"),
        ({"data_dir": "~nobody-of-that-name/data", "cache": "disk"}, "config.dataset.data_dir"),
        ({"data_dir": "/proc/nowhere", "cache": "disk"}, "config.dataset.data_dir=FOLDER"),
    ):
        with pytest.raises(UserError, match=message):
            own.load(**{"folder": folder} | options)
    write(folder, f"image,mos,reference\na.png,20,{long}\nb.bmp,30,roof\n")
    assert not len(own.load(folder).pristine)
    write(folder, f"image,mos\na.png,20\n{long}.png,30\n")
    with pytest.raises(UserError, match="line 3 .*no such file"):
        own.load(folder)
    write(folder, "image,mos\na.png,20\nb.bmp,30\n")

    def refuse(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(own.photographs, "content", refuse)
    with pytest.raises(UserError, match="line 2 .*Permission denied.*line 3"):
        own.load(folder)
    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    with pytest.raises(UserError, match=r"labels\.csv cannot be read: Permission denied"):
        own.load(folder)


def test_notes_beside_references_are_not_references(folder):
    (folder / "references").mkdir()
    (folder / "references" / "._roof.png").write_bytes(b"\0\5\x16\7")
    Image.fromarray(pixels(9)).save(folder / "references" / "roof.png")
    write(folder, "image,mos,reference\na.png,20,roof\nb.bmp,30,._roof\n")
    assert list(own.load(folder).pristine) == ["roof"]


def test_other_refusals(folder, tmp_path):
    with pytest.raises(UserError, match="manual_dir=FOLDER"):
        own.load("")
    with pytest.raises(UserError, match="there is no folder.*manual_dir=FOLDER"):
        own.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"labels\.csv; write one with a line image,mos.*dataset.labels=FILE"):
        own.load(folder)
    write(folder, "image,mos\nä.png,1\n", encoding="latin-1")
    with pytest.raises(UserError, match="not UTF-8"):
        own.load(folder)
    with pytest.raises(UserError, match="two different numbers"):
        own.load(folder, mos_worst=5, mos_best=5)
    with pytest.raises(ValueError, match="cache='tape'"):
        own.load(folder, cache="tape")


def test_the_same_content_twice_is_a_warning(folder, caplog):
    shutil.copy(folder / "a.png", folder / "e.png")
    write(folder, "image,mos\na.png,1\nb.bmp,2\ne.png,3\n")
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert len(own.load(folder)) == 3
    assert "identical, but rated separately: a.png, e.png" in caplog.text


def test_links_may_lead_elsewhere(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.move(folder / "a.png", elsewhere / "a.png")
    (folder / "a.png").symlink_to(elsewhere / "a.png")
    write(folder, "image,mos\na.png,1\n")
    np.testing.assert_array_equal(own.load(folder).images[0], pixels(0))


def test_each_image_is_decoded_once(folder, monkeypatch):
    write(folder, "image,mos\na.png,1\nb.bmp,2\n")
    decoded = []
    decode = own.decode_photograph
    monkeypatch.setattr(own, "decode_photograph", lambda data: decoded.append(len(data)) or decode(data))
    dataset = own.load(folder)
    assert [image.shape[0] for image in dataset.images] == [12, 13] and len(decoded) == 2


def test_disk_cache(folder, tmp_path_factory, monkeypatch):
    write(folder, "image,mos\na.png,1\nb.bmp,2\n")
    data_dir = tmp_path_factory.mktemp("data")
    options = {"cache": "disk", "data_dir": str(data_dir)}
    for image, seed in zip(own.load(folder, **options).images, (0, 1), strict=True):
        np.testing.assert_array_equal(image, pixels(seed, 12 + seed))
    with monkeypatch.context() as patch:
        patch.setattr(own, "decode_photograph", None)  # nothing is decoded again
        assert own.load(folder, **options).images[1].shape == (13, 16, 3)
    Image.fromarray(pixels(7)).save(folder / "a.png")  # other content, other file
    np.testing.assert_array_equal(own.load(folder, **options).images[0], pixels(7))
    assert len(list((data_dir / "own").iterdir())) == 2
