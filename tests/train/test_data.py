"""The order of samples is one sequence for any number of ranks, loader processes and restarts."""

import io
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import ExifTags, Image

from mode_ray.config.images import ImagesConfig
from mode_ray.config.run import RunConfig
from mode_ray.config.train import TrainPlacement
from mode_ray.errors import DataError, UsageError
from mode_ray.models.clip import ClipModel
from mode_ray.pairs.index import PairIndex
from mode_ray.pairs.index_files import write_index
from mode_ray.pairs.order import SampleOrder
from mode_ray.pairs.reader import Pair, PairReader
from mode_ray.storage import Location
from mode_ray.train.data import PairDataset, train_loader
from mode_ray.train.step.batch import TextPreparation, TrainBatch
from mode_ray.train.step.rank import ONLY_RANK, Rank
from mode_ray.train.step.text_groups import GroupedTexts, TextGrouping
from mode_ray.util.threads import limited_threads

BATCH = 8
SAMPLES = 64  # more than the 48 pairs: the last batches lie in a second epoch


@pytest.fixture
def make_dataset(
    all_pairs: PairIndex, make_config: Callable[..., RunConfig], new_clip: Callable[[], ClipModel]
) -> Callable[[int], PairDataset]:
    clip = new_clip()
    return lambda seed: PairDataset(all_pairs, make_config(), clip, seed)


def load(
    dataset: PairDataset, first: int = 0, rank: int = 0, world_size: int = 1, workers: int = 0
) -> list[TrainBatch]:
    placement = TrainPlacement(loader_workers=workers)
    return list(train_loader(dataset, range(first, SAMPLES, BATCH), Rank(rank, world_size), placement))


def tokens_of(batch: TrainBatch) -> torch.Tensor:
    """The captions of a batch that are not grouped."""
    assert isinstance(batch.texts, torch.Tensor)
    return batch.texts


def assert_equal(left: list[TrainBatch], right: list[TrainBatch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(tokens_of(a), tokens_of(b))
        assert torch.equal(a.caption_ids, b.caption_ids)
        assert a.ledger == b.ledger != 0


class TestBatches:
    def test_shapes_and_types(self, make_dataset: Callable[[int], PairDataset]) -> None:
        batches = load(make_dataset(0))
        assert len(batches) == SAMPLES // BATCH
        for batch in batches:
            assert (batch.images.shape, batch.images.dtype) == ((BATCH, 3, 16, 16), torch.uint8)
            assert (tokens_of(batch).shape, tokens_of(batch).dtype) == ((BATCH, 16), torch.int64)
            assert batch.bad_images == ()

    def test_images_stay_with_their_captions(
        self, make_dataset: Callable[[int], PairDataset], new_clip: Callable[[], ClipModel]
    ) -> None:
        # The end-of-text token sits behind the caption, so texts are compared by their third token, the colour.
        colour_tokens = new_clip().tokenizer(["a red", "a green", "a blue"])[:, 2].tolist()
        for batch in load(make_dataset(0)):
            brightest = batch.images.float().mean(dim=(2, 3)).argmax(dim=1)
            for token, channel in zip(tokens_of(batch)[:, 2].tolist(), brightest.tolist(), strict=True):
                if token in colour_tokens:
                    assert channel == colour_tokens.index(token)

    @pytest.mark.parametrize("world_size", [2, 4])
    def test_the_ranks_parts_make_up_the_batch_of_one(
        self, make_dataset: Callable[[int], PairDataset], world_size: int
    ) -> None:
        whole = load(make_dataset(0))
        parts = [load(make_dataset(0), rank=rank, world_size=world_size) for rank in range(world_size)]
        joined = [
            TrainBatch(
                torch.cat([p.images for p in part]),
                torch.cat([tokens_of(p) for p in part]),
                torch.cat([p.caption_ids for p in part]),
                ledger=sum(p.ledger for p in part) % 2**63,
            )
            for part in zip(*parts, strict=True)
        ]
        assert_equal(joined, whole)

    def test_ranks_that_do_not_divide_the_batch_are_refused(self, make_dataset: Callable[[int], PairDataset]) -> None:
        with pytest.raises(UsageError, match=r"batch_size=8.*3 workers"):
            load(make_dataset(0), world_size=3)

    def test_resuming_at_a_sample_gives_the_rest_bit_for_bit(self, make_dataset: Callable[[int], PairDataset]) -> None:
        whole = load(make_dataset(0))
        assert_equal(load(make_dataset(0), first=3 * BATCH), whole[3:])

    def test_two_loader_processes_give_what_none_gives(self, make_dataset: Callable[[int], PairDataset]) -> None:
        assert_equal(load(make_dataset(0), workers=2), load(make_dataset(0)))

    def test_without_loader_processes_a_thread_prepares_the_next_batches(
        self, make_dataset: Callable[[int], PairDataset], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded: list[str] = []
        torch_threads: list[int] = []
        real = PairDataset._decode

        def noting(self: PairDataset, positions: Sequence[int], pairs: Sequence[Pair]) -> TrainBatch:
            batch = real(self, positions, pairs)
            torch_threads.append(torch.get_num_threads())
            loaded.append(threading.current_thread().name)
            return batch

        monkeypatch.setattr(PairDataset, "_decode", noting)
        batches = iter(train_loader(make_dataset(0), range(0, SAMPLES, BATCH), ONLY_RANK, TrainPlacement()))
        with limited_threads(2):  # of the model's
            next(batches)
            deadline = time.monotonic() + 30
            while len(loaded) < 4 and time.monotonic() < deadline:
                time.sleep(0.001)
        assert len(loaded) == 4, "three batches more than were taken are loaded in advance"
        assert threading.current_thread().name not in loaded
        assert set(torch_threads) == {1}, "a team of threads of its own would slow the model's"

    def test_captions_are_grouped_as_the_loop_would(
        self,
        all_pairs: PairIndex,
        make_config: Callable[..., RunConfig],
        new_clip: Callable[[], ClipModel],
    ) -> None:
        prepare = TextPreparation(TextGrouping("argmax", 0, groups=2, multiple=8), micro_batch_size=5)
        plain = PairDataset(all_pairs, make_config(), new_clip(), 0)
        grouped = PairDataset(all_pairs, make_config(), new_clip(), 0, prepare=prepare)
        tokens = tokens_of(plain[range(8)])
        for workers in (0, 1):
            batch = load(grouped, workers=workers)[0]
            assert [len(part.places_b) for part in batch.texts if isinstance(part, GroupedTexts)] == [5, 3]
            for found, expected in zip(batch.texts, prepare(tokens), strict=True):
                assert isinstance(expected, GroupedTexts)
                assert found[2] == expected.shapes
                assert all(map(torch.equal, found[:2], expected.tensors))

    def test_batches_in_advance_are_bounded_in_bytes(
        self, make_dataset: Callable[[int], PairDataset], caplog: pytest.LogCaptureFixture
    ) -> None:
        dataset = make_dataset(0)
        batch_bytes = BATCH * dataset.sample_bytes
        assert batch_bytes >= sum(t.nbytes for t in dataset[range(BATCH)].tensors())

        def loader(workers: int, read_ahead_bytes: int) -> Any:  # noqa: ANN401 - torch's loader
            placement = TrainPlacement(loader_workers=workers, read_ahead_bytes=read_ahead_bytes)
            return train_loader(dataset, range(0, SAMPLES, BATCH), ONLY_RANK, placement)

        assert loader(2, 100 * batch_bytes).prefetch_factor == 4
        bounded = loader(2, 5 * batch_bytes)
        assert (bounded.num_workers, bounded.prefetch_factor) == (2, 2)
        assert caplog.messages == []
        few = loader(3, 2 * batch_bytes)
        assert (few.num_workers, few.prefetch_factor) == (2, 1)
        assert "2 of 3 loader processes are started" in caplog.text

    @pytest.mark.parametrize(("workers", "warned"), [(0, "one thread"), (1, "one loader process"), (2, None)])
    def test_a_gpu_without_loader_processes_is_warned_of(
        self,
        make_dataset: Callable[[int], PairDataset],
        caplog: pytest.LogCaptureFixture,
        workers: int,
        warned: str | None,
    ) -> None:
        placement = TrainPlacement(use_gpu=True, loader_workers=workers)
        train_loader(make_dataset(0), range(0, SAMPLES, BATCH), ONLY_RANK, placement)
        assert len(caplog.messages) == (warned is not None)
        if warned is not None:
            assert f"a GPU is fed by {warned}" in caplog.text

    def test_the_next_pairs_are_read_while_a_batch_is_decoded(
        self, make_dataset: Callable[[int], PairDataset]
    ) -> None:
        dataset = make_dataset(0)
        batches = dataset.batches([range(start, start + BATCH) for start in range(0, SAMPLES, BATCH)])
        next(batches)
        assert any(thread.name.startswith("read-ahead") for thread in threading.enumerate())

    def test_a_mapped_index_goes_to_loader_processes_by_its_path(
        self,
        all_pairs: PairIndex,
        make_config: Callable[..., RunConfig],
        new_clip: Callable[[], ClipModel],
        tmp_path: Path,
    ) -> None:
        rows = pa.table(all_pairs.columns_at(np.arange(len(all_pairs))))
        write_index(Location(str(tmp_path / "all.arrow")), [rows] * 200, {"members": "all"})
        mapped = PairIndex.open(all_pairs.work_units, tmp_path / "all.arrow")
        size = len(ForkingPickler.dumps(PairDataset(mapped, make_config(), new_clip(), 0)))
        small = len(ForkingPickler.dumps(PairDataset(all_pairs, make_config(), new_clip(), 0)))
        assert len(mapped) * mapped.dtype.itemsize > 400_000
        assert size < small

    def test_a_pair_is_cropped_anew_in_every_epoch(self, make_dataset: Callable[[int], PairDataset]) -> None:
        dataset = make_dataset(0)
        order = SampleOrder(48, seed=0)
        again = 48 + order.pairs_at(np.arange(48, 96)).tolist().index(order.pairs_at([0])[0])
        first, second = dataset[[0]], dataset[[again]]
        assert torch.equal(tokens_of(first), tokens_of(second))
        assert not torch.equal(first.images, second.images)

    def test_loading_leaves_the_global_random_state_alone(self, make_dataset: Callable[[int], PairDataset]) -> None:
        dataset = make_dataset(0)
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        dataset[[0, 1]]
        assert torch.equal(torch.rand(1), expected)

    @pytest.mark.parametrize("seed", [20_261_123, 2**63])
    def test_any_seed_that_the_config_takes_works(self, make_dataset: Callable[[int], PairDataset], seed: int) -> None:
        batch = make_dataset(seed)[[0, 1]]
        assert not torch.equal(batch.images, make_dataset(0)[[0, 1]].images)


class TestBadImages:
    @pytest.fixture
    def spoil(self, data_folder: Path, all_pairs: PairIndex) -> Callable[..., None]:
        """Overwrites images in the tar with zeros; the index keeps pointing at them."""

        def overwrite(rows: range) -> None:
            with (data_folder / "a.tar").open("r+b") as archive:
                for row in rows:
                    pair = all_pairs.columns_at([row])
                    archive.seek(pair["image_offset"][0])
                    archive.write(b"\0" * pair["image_bytes"][0])

        return overwrite

    def position_of(self, pair: int) -> int:
        return int(np.flatnonzero(SampleOrder(48, seed=0).pairs_at(np.arange(48)) == pair)[0])

    def test_they_are_named_and_decoded_ones_take_their_places(
        self, make_dataset: Callable[[int], PairDataset], spoil: Callable[..., None]
    ) -> None:
        positions = [self.position_of(pair) for pair in (5, 30, 40)]
        before = make_dataset(0)[positions]
        spoil(range(5, 6))
        batch = make_dataset(0)[positions]
        assert len(batch.bad_images) == 1
        assert "a.tar: sample 5: not an image of a known format" in batch.bad_images[0]
        # The two decoded pairs, as they were, and the first of them again: as many as without the bad one.
        assert torch.equal(batch.images, before.images[[1, 2, 1]])
        assert torch.equal(tokens_of(batch), tokens_of(before)[[1, 2, 1]])

    def test_a_batch_without_any_image_is_an_error(
        self, make_dataset: Callable[[int], PairDataset], spoil: Callable[..., None]
    ) -> None:
        spoil(range(2))
        with pytest.raises(DataError, match=r"no image of a whole batch can be decoded.*a\.tar: sample"):
            make_dataset(0)[[self.position_of(0), self.position_of(1)]]

    def test_too_large_images_count_as_bad(
        self, all_pairs: PairIndex, make_config: Callable[..., RunConfig], new_clip: Callable[[], ClipModel]
    ) -> None:
        config = make_config(limits={"max_image_pixels": 24 * 24 - 1})
        with pytest.raises(DataError, match="24 x 24 pixels, more than 575 allowed"):
            PairDataset(all_pairs, config, new_clip(), seed=0)[[0]]


def test_photos_are_upright(
    data_folder: Path, all_pairs: PairIndex, make_config: Callable[..., RunConfig], new_clip: Callable[[], ClipModel]
) -> None:
    config, clip = make_config(), new_clip()
    like_open_clip = config.model_copy(update={"images": ImagesConfig(decoding="open_clip")})
    upright = PairDataset(all_pairs, config, clip, 0)[list(range(48))]
    file = data_folder / "b.parquet"
    table = pq.read_table(file)
    turned = pa.array([turned_with_tag(data) for data in table["image"].to_pylist()])
    pq.write_table(table.set_column(table.schema.get_field_index("image"), "image", turned), file)
    batch = PairDataset(all_pairs, config, clip, 0)[list(range(48))]
    assert batch.bad_images == ()
    assert torch.equal(batch.images, upright.images)
    assert not torch.equal(PairDataset(all_pairs, like_open_clip, clip, 0)[list(range(48))].images, upright.images)


def turned_with_tag(data: bytes) -> bytes:
    """An image as a phone stores it: turned, and with a tag how to turn it back."""
    exif, stream = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(io.BytesIO(data)).transpose(Image.Transpose.ROTATE_90).save(stream, "PNG", exif=exif)
    return stream.getvalue()


def test_the_reader_finds_the_pairs_of_both_formats_in_any_order(
    all_pairs: PairIndex, make_config: Callable[..., RunConfig]
) -> None:
    positions = np.random.default_rng(0).permutation(48).tolist()
    pairs = PairReader(all_pairs, make_config().captions).read(positions)
    assert [int(pair.caption.split()[-1]) for pair in pairs] == positions
    assert all(io.BytesIO(pair.image).read(4) == b"\x89PNG" for pair in pairs)
