"""Training batches: a pure function of seed and step, for any number of processes, threads and resumptions."""

import dataclasses
import hashlib
import itertools

import grain
import numpy as np
import pytest

from cprl_jax.data import crops, pipeline
from cprl_jax.runtime.errors import UserError

OPTIONS = {"batch_size": 4, "crop_size": 16, "seed": 0}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_batch_holds_crops_of_its_rows(make_dataset):
    dataset = make_dataset(10)
    batches = pipeline.training_batches(dataset, range(3, 10), **OPTIONS)
    assert isinstance(batches, grain.MapDataset)
    seen = {False: 0, True: 0}
    for step in range(20):
        batch = batches[step]
        assert batch["image"].shape == (4, 16, 16, 3) and batch["image"].dtype == np.uint8
        assert batch["mos"].dtype == np.float32 and batch["row"].dtype == np.int32
        np.testing.assert_array_equal(batch["mos"], dataset.mos[batch["row"]])
        for image, row in zip(batch["image"], batch["row"], strict=True):
            top, left = image[0, :, 1].min(), image[0, :, 2].min()
            crop = dataset.images[row][top : top + 16, left : left + 16]
            mirrored = bool(image[0, 0, 2] > image[0, 1, 2])
            np.testing.assert_array_equal(image, crop[:, ::-1] if mirrored else crop)
            seen[mirrored] += 1
    assert min(seen.values()) > 20


def test_batch_is_a_pure_function_of_the_step(make_dataset):
    dataset = make_dataset(10)
    batches = pipeline.training_batches(dataset, range(10), **OPTIONS)
    forwards = [batches[step] for step in range(12)]
    again = pipeline.training_batches(dataset, range(10), **OPTIONS)
    for step in reversed(range(12)):
        assert_equal(again[step], forwards[step])
    other = pipeline.training_batches(dataset, range(10), **(OPTIONS | {"seed": 1}))
    assert any((other[step]["row"] != forwards[step]["row"]).any() for step in range(12))
    assert_equal(batches[10**12], again[10**12])  # there is no last step to run into


@pytest.mark.parametrize("start, threads", [(0, 1), (0, 3), (5, 1), (7, 4), (5, 0)])
def test_prefetch_gives_the_same_batches_from_any_step(make_dataset, start, threads):
    batches = pipeline.training_batches(make_dataset(10), range(10), **OPTIONS)
    iterator = pipeline.prefetch(batches, start, threads=threads)
    for step, batch in enumerate(itertools.islice(iterator, 9), start=start):
        assert_equal(batch, batches[step])
    iterator.close()


@pytest.mark.parametrize("before, after", [(1, 1), (1, 4), (4, 1), (3, 2)])
def test_interrupted_and_resumed_with_other_workers(make_dataset, before, after):
    dataset = make_dataset(10)
    batches = pipeline.training_batches(dataset, range(10), **OPTIONS)
    uninterrupted = list(itertools.islice(pipeline.prefetch(batches, threads=2), 12))
    for k in (1, 5, 11):
        iterator = pipeline.prefetch(batches, threads=before)
        seen = list(itertools.islice(iterator, k))  # the threads are ahead of it when it stops
        iterator.close()
        again = pipeline.training_batches(dataset, range(10), **OPTIONS)  # as in a new program
        iterator = pipeline.prefetch(again, k, threads=after)
        seen += list(itertools.islice(iterator, 12 - k))
        iterator.close()
        for batch, expected in zip(seen, uninterrupted, strict=True):
            assert_equal(batch, expected)


def test_bytes_stay_as_they_are(make_dataset):
    """A run that resumes after an update of the package sees what it would have seen before."""
    batches = pipeline.training_batches(make_dataset(10), range(10), **OPTIONS)
    digest = hashlib.sha256()
    for step in range(8):
        for key in ("image", "mos", "row"):
            digest.update(batches[step][key].tobytes())
    assert digest.hexdigest()[:16] == "ee4f791efc652f06"


@pytest.mark.parametrize("process_count", [1, 2])
def test_plans_say_where_the_crops_of_the_batches_lie(make_dataset, process_count):
    toy = make_dataset(9)
    images = [toy.images[i][: 10 + 4 * i, : 50 - 4 * i] for i in range(9)]  # some lower, some narrower than the crop
    dataset = dataclasses.replace(toy, images=images)
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    shares = {"process_index": process_count - 1, "process_count": process_count}
    batches = pipeline.training_batches(dataset, range(1, 9), **OPTIONS, **shares)
    plans = pipeline.training_plans(dataset, range(1, 9), sizes=sizes, **OPTIONS, **shares)
    for step in range(6):
        batch, plan = batches[step], plans[step]
        assert [plan[key].dtype for key in ("row", "offset", "flip", "mos")] == [np.int32, np.int32, bool, np.float32]
        np.testing.assert_array_equal(plan["row"], batch["row"])
        np.testing.assert_array_equal(plan["mos"], batch["mos"])
        for i, (top, left) in enumerate(plan["offset"]):
            crop = crops.pad(images[plan["row"][i]], 16)[top : top + 16, left : left + 16]
            np.testing.assert_array_equal(batch["image"][i], crop[:, ::-1] if plan["flip"][i] else crop)


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_the_global_batch(make_dataset, process_count):
    dataset = make_dataset(11)
    whole = pipeline.training_batches(dataset, range(11), **OPTIONS)
    shares = [
        pipeline.training_batches(dataset, range(11), **OPTIONS, process_index=i, process_count=process_count)
        for i in range(process_count)
    ]
    for step in range(8):
        parts = [share[step] for share in shares]
        assert all(len(part["row"]) == 4 // process_count for part in parts)
        assert_equal({key: np.concatenate([part[key] for part in parts]) for key in parts[0]}, whole[step])


def test_processes_are_disjoint_in_every_epoch(make_dataset):
    dataset = make_dataset(12)
    shares = [
        pipeline.training_batches(dataset, range(12), **OPTIONS, process_index=i, process_count=2) for i in range(2)
    ]
    for epoch in range(3):
        rows = [{int(row) for step in range(3) for row in share[3 * epoch + step]["row"]} for share in shares]
        assert rows[0] | rows[1] == set(range(12)) and not rows[0] & rows[1]


@pytest.mark.parametrize("count", [11, 13])
def test_processes_are_disjoint_where_batches_cross_epochs(make_dataset, count):
    """An epoch that does not consist of whole batches: each row still goes to one process alone."""
    dataset = make_dataset(count)
    shares = [
        pipeline.training_batches(dataset, range(count), **OPTIONS, process_index=i, process_count=2) for i in range(2)
    ]
    epochs = [[set(), set()] for _ in range(4)]
    for place in range(4 * count):  # in the stream of rows; a batch is two rows of process 0, then two of process 1
        step, i = divmod(place, 4)
        row = int(shares[i // 2][step]["row"][i % 2])
        epochs[place // count][i // 2].add(row)
    for first, second in epochs:
        assert first | second == set(range(count)) and not first & second
        assert abs(len(first) - len(second)) <= 2


@pytest.mark.parametrize("count, batch_size", [(12, 4), (10, 4), (3, 8), (1, 4), (7, 7)])
def test_every_epoch_visits_every_row_once(make_dataset, count, batch_size):
    dataset = make_dataset(count + 2)
    rows = list(range(1, count + 1))
    batches = pipeline.training_batches(dataset, rows, **(OPTIONS | {"batch_size": batch_size}))
    stream = np.concatenate([batches[step]["row"] for step in range(6 * count)])
    epochs = stream[: len(stream) // count * count].reshape(-1, count)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(rows, (len(epochs), 1)))
    if count > 5:
        assert len({tuple(epoch) for epoch in epochs}) > 1  # a new order each time


def test_places_and_mirroring_are_uniform(make_dataset):
    dataset = make_dataset(4, size=(19, 17))
    batches = pipeline.training_batches(dataset, range(4), **(OPTIONS | {"batch_size": 64}))
    images = np.concatenate([batches[step]["image"] for step in range(60)])
    count = len(images)
    tops, lefts = images[:, 0, 0, 1], images[:, 0, :, 2].min(axis=1)
    mirrored = images[:, 0, 0, 2] > images[:, 0, 1, 2]
    for values, positions in ((tops, 4), (lefts, 2), (mirrored, 2)):
        expected = count / positions
        spread = np.sqrt(expected * (1 - 1 / positions))
        assert (np.abs(np.bincount(values, minlength=positions) - expected) < 4.5 * spread).all()
    assert abs(np.corrcoef(tops, mirrored)[0, 1]) < 0.08 and abs(np.corrcoef(tops, lefts)[0, 1]) < 0.08


@pytest.mark.parametrize("size", [(16, 16), (15, 40), (7, 5), (1, 1)])
def test_images_no_larger_than_the_crop(make_dataset, size):
    dataset = make_dataset(3, size=size)
    batch = pipeline.training_batches(dataset, range(3), **OPTIONS)[0]
    assert batch["image"].shape == (4, 16, 16, 3)
    for image, row in zip(batch["image"], batch["row"], strict=True):
        assert set(image[..., 0].ravel()) == {row}


@pytest.mark.parametrize(
    "options, said",
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"crop_size": 0}, "crop_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"process_index": 2, "process_count": 2}, "process_index=2"),
        ({"process_count": 3}, "batch_size=4 cannot be shared equally by 3 processes"),
        ({"rows": []}, "at least one row"),
        ({"rows": [10]}, r"within 0\.\.9"),
        ({"rows": [-1]}, r"within 0\.\.9"),
    ],
)
def test_options_out_of_range(make_dataset, options, said):
    options = {"rows": range(10)} | OPTIONS | options
    with pytest.raises(UserError, match=said):
        pipeline.training_batches(make_dataset(10), options.pop("rows"), **options)


def test_batches_do_not_share_memory(make_dataset):
    batches = pipeline.training_batches(make_dataset(10), range(10), **OPTIONS)
    before = batches[0]
    before["image"][:] = 255
    before["mos"][:] = 0
    before["row"][:] = 0
    assert batches[0]["image"].min() == 0
    assert len(set(batches[0]["row"].tolist())) == 4
