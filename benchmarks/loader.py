"""A core loads at least 1.5 times the images of version 0.1.0, and twice those of WebDataset with torchvision.

All three read the same tars of JPEGs with sides of 340 and of 512 pixels, decode, crop to 224 pixels and tokenize, in
one process without loader processes. The figure is images per second of processor time, which includes the reading
thread, so that other load on the machine distorts it less. We send pixels as uint8, and the training device normalises
them; the others normalise in the loader. The peer is `get_wds_dataset` of the installed open_clip_train, with
open_clip's own transform and tokenizer. Version 0.1.0 is a checkout with a virtual environment, named by `--before`.

Then the requests and bytes of reading from S3 (moto's server): pairs in random order, as the mode `index` reads them,
and blocks of `train.data.read_block_pairs`, as the mode `materialised` reads its shuffled copy.

The images are noise with the spectrum of photos: they decode as slowly as photos of the same number of bytes.
"""

import argparse
import io
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from captions import real_captions
from frame import Timings, alternate, arguments, finish
from PIL import Image

from mode_ray.config.captions import CaptionsConfig
from mode_ray.config.run import RunConfig
from mode_ray.config.train import ModelConfig, TrainDataConfig
from mode_ray.models.clip import build_clip
from mode_ray.pairs.index import SHARD, PairIndex
from mode_ray.pairs.materialise import write_pairs
from mode_ray.pairs.order import SampleOrder
from mode_ray.pairs.reader import Pair, PairReader
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location
from mode_ray.train.data import PairDataset

ARCHITECTURE = "ViT-S-32"
SIDES = (340, 512)
DISTINCT_IMAGES = 128
SOURCE_PAIRS_PER_TAR = 500  # small, because moto reads a whole object for each range
BATCH = 128
RANK_BATCH = 512  # of one GPU
QUALITY = 88
SPECTRUM = 1.5
DEVIATION, MEAN = 55.0, 120.0
SERVER_SECONDS = 60.0
# The newest that open_clip's trainer allows; the project itself has a later one.
PEER_PACKAGES = ("webdataset==0.2.86",)
_REQUEST = re.compile(rb'"(?:\x1b\[[0-9;]*m)*(GET|HEAD) ')
# Names of version 0.1.0.
BEFORE = """
import sys, time
import pyarrow.parquet as pq
import torch
from mode_ray.captions.shards import Shard
from mode_ray.config import CaptionsConfig, RunConfig
from mode_ray.pair_index import PairIndex
from mode_ray.train.data import PairDataset
from mode_ray.train.model import build_clip
from mode_ray.train_config import ModelConfig

folder, batches, size, architecture = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
table = pq.read_table(folder + "/index.parquet")
tars = table.schema.metadata[b"tars"].decode().split()
shards = [Shard(unit=str(n), uri=f"{folder}/{tar}", format="webdataset") for n, tar in enumerate(tars)]
config = RunConfig(run="/nowhere", captions=CaptionsConfig(paths=(folder,)), train={"dense_samples": 32768})
dataset = PairDataset(PairIndex(shards, table), config, build_clip(ModelConfig(architecture=architecture), 0), 0)
dataset[list(range(size))]
began = time.process_time()
for start in range(size, (batches + 1) * size, size):
    dataset[list(range(start, start + size))]
print(time.process_time() - began)
"""


def photo(side: int, seed: int) -> bytes:
    """A JPEG of correlated noise in three channels, whose spectrum falls like that of photos."""
    frequencies = np.fft.fftfreq(side)
    radius = np.hypot(frequencies[:, None], frequencies[None])
    radius[0, 0] = 1 / side
    noise = np.random.default_rng(seed).standard_normal((3, side, side))
    waves = np.fft.ifft2(np.fft.fft2(noise) / radius**SPECTRUM).real
    waves = 0.3 * waves + 0.7 * waves[:1]
    values = (waves - waves.mean()) / waves.std() * DEVIATION + MEAN
    stream = io.BytesIO()
    Image.fromarray(values.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def write_tars(folder: Location, side: int, pairs: int, pairs_per_tar: int = SOURCE_PAIRS_PER_TAR) -> pa.Table:
    """Tars of so many pairs with captions of their own; returns their index, which is also in `index.parquet`."""
    images = [photo(side, seed) for seed in range(min(pairs, DISTINCT_IMAGES))]
    captions = real_captions(pairs)
    tables, names = [], []
    for number, first in enumerate(range(0, pairs, pairs_per_tar)):
        members = [
            Pair(images[place % len(images)], captions[place % len(captions)], "")
            for place in range(first, min(pairs, first + pairs_per_tar))
        ]
        names.append(f"{number:05d}.tar")
        table = write_pairs(folder / names[-1], members, first)
        tables.append(table.add_column(0, SHARD, pa.array(np.full(len(members), number, np.int32))))
    index = pa.concat_tables(tables).combine_chunks().replace_schema_metadata({b"tars": " ".join(names).encode()})
    folder_file = folder / "index.parquet"
    with folder_file.open_atomic() as stream:
        pq.write_table(index, stream)
    return index


def opened(folder: Location, table: pa.Table) -> PairIndex:
    """The index of `write_tars`."""
    names = table.schema.metadata[b"tars"].decode().split()
    units = [
        WorkUnit(unit=str(number), uri=(folder / name).uri, format="webdataset") for number, name in enumerate(names)
    ]
    return PairIndex.of(units, table)


def load_ours(folder: Path, batches: int) -> float:
    """Processor seconds of our batches, after a first one."""
    location = Location.parse(str(folder))
    config = RunConfig(run=str(folder / "run"), captions=CaptionsConfig(paths=(str(folder),)))
    clip = build_clip(ModelConfig(architecture=ARCHITECTURE), 0)
    dataset = PairDataset(opened(location, pq.read_table(folder / "index.parquet")), config, clip, 0)
    loaded = dataset.batches(range(start, start + BATCH) for start in range(0, (batches + 1) * BATCH, BATCH))
    next(loaded)
    began = time.process_time()
    for batch in loaded:
        if batch.bad_images or len(batch.images) != BATCH:
            raise RuntimeError(f"a batch of {len(batch.images)} images with errors {batch.bad_images}")
    return time.process_time() - began


def load_webdataset(folder: Path, batches: int) -> float:
    """Processor seconds of open_clip's own pipeline for as many batches, after a first one."""
    from open_clip_train.data import get_wds_dataset  # type: ignore[import-untyped]

    clip = build_clip(ModelConfig(architecture=ARCHITECTURE), 0)
    last = max(int(file.stem) for file in folder.glob("*.tar"))
    settings = argparse.Namespace(
        train_data=f"{folder}/{{00000..{last:05d}}}.tar",
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        train_num_samples=(batches + 1) * BATCH,
        seed=0,
        batch_size=BATCH,
        workers=0,
        world_size=1,
    )
    loader = iter(get_wds_dataset(settings, clip.train_transform, True, tokenizer=clip.tokenizer).dataloader)
    next(loader)
    began = time.process_time()
    for _ in range(batches):
        images, _ = next(loader)
        if len(images) != BATCH:
            raise RuntimeError(f"a batch of {len(images)} images")
    return time.process_time() - began


LOADERS = {"ours": load_ours, "webdataset": load_webdataset}


def in_own_process(loader: str, folder: Path, batches: int, side: Path | None = None) -> float:
    """Run a loader in a process of its own, with the packages in `side`; returns processor seconds."""
    command = [sys.executable, __file__, "--part", loader, "--folder", str(folder), "--batches", str(batches)]
    return _seconds(command, Path.cwd(), side)


def before(checkout: Path, folder: Path, batches: int) -> float:
    """The loader of version 0.1.0, in its checkout's environment; processor seconds."""
    python = checkout / ".venv/bin/python"
    return _seconds([str(python), "-c", BEFORE, str(folder), str(batches), str(BATCH), ARCHITECTURE], checkout)


def _seconds(command: Sequence[str], folder: Path, side: Path | None = None) -> float:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if side is not None:
        environment["PYTHONPATH"] = str(side)
    done = subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr[-3000:]}")
    return float(done.stdout.splitlines()[-1])


@dataclass(frozen=True)
class Traffic:
    """What reading a number of samples took.

    Attributes:
        samples: Their number.
        gets: GET requests that the server logged.
        heads: HEAD requests.
        bytes_read: Bytes of the requested ranges.
        member_bytes: Bytes of images and captions.
    """

    samples: int
    gets: int
    heads: int
    bytes_read: int
    member_bytes: int

    @property
    def gets_per_1000_samples(self) -> float:
        """GET requests per 1,000 samples."""
        return 1000 * self.gets / self.samples


def read_all(index: PairIndex, block_pairs: int, samples: int, log: Path) -> Traffic:
    """Read samples in the order of a run, a GPU's part of a batch at a time, without decoding them."""
    reader = PairReader(index, CaptionsConfig(paths=("s3://pairs",)))
    order = SampleOrder(len(index), 0, block_pairs)
    skipped = log.stat().st_size
    for start in range(0, samples, RANK_BATCH):
        reader.read(order.pairs_at(np.arange(start, min(samples, start + RANK_BATCH))))
    requests = _REQUEST.findall(log.read_bytes()[skipped:])
    gets, counters = requests.count(b"GET"), reader.counters
    if gets != counters.requests:
        raise RuntimeError(f"the server logged {gets} GET requests, and the reader counted {counters.requests}")
    return Traffic(samples, gets, requests.count(b"HEAD"), counters.bytes_read, counters.member_bytes)


@contextmanager
def s3_server(folder: Path) -> Iterator[Path]:
    """Moto's S3 server with a bucket `pairs`, for this process' environment; yields its log."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",  # pragma: allowlist secret
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    import boto3

    log = folder / "server.log"
    command = [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_for(port, server)
            boto3.client("s3").create_bucket(Bucket="pairs")
            yield log
        finally:
            server.terminate()
            server.wait()


def _wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + SERVER_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError("moto's server did not start")


def traffic(folder: Path, pairs: int, samples: Mapping[str, int]) -> dict[str, Traffic]:
    """The traffic of both modes, for so many samples: single pairs of source tars, and blocks of copied ones."""
    defaults = TrainDataConfig()
    blocks = {"index": defaults.block_pairs, "materialised": defaults.read_block_pairs or defaults.block_pairs}
    tars = {"index": SOURCE_PAIRS_PER_TAR, "materialised": defaults.pairs_per_shard}
    found = {}
    with s3_server(folder) as log:
        for mode, block in blocks.items():
            location = Location.parse(f"s3://pairs/{mode}")
            index = opened(location, write_tars(location, max(SIDES), pairs, tars[mode]))
            found[mode] = read_all(index, block, samples[mode], log)
    return found


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--before", type=Path, help="a checkout of version 0.1.0 with a virtual environment in .venv")
    parser.add_argument("--part", choices=LOADERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batches", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        torch.set_num_threads(1)
        print(LOADERS[options.part](options.folder, options.batches))
        return
    batches, repeats, pairs = (3, 1, 2_000) if options.quick else (12, 5, 20_000)
    # Requests of the mode index are proportional to the samples; 100,000 of them would take moto an hour.
    samples = {"index": 512, "materialised": 4_000} if options.quick else {"index": 4_096, "materialised": 100_000}
    repeats = options.repeats or repeats
    load_before = os.getloadavg()[0]
    timings: dict[int, Timings] = {}
    with tempfile.TemporaryDirectory() as scratch:
        packages = Path(scratch) / "packages"
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(packages)]
        subprocess.run([*install, *PEER_PACKAGES], check=True)
        for side in SIDES:
            folder = Path(scratch) / str(side)
            write_tars(Location.parse(str(folder)), side, 2 * (batches + 1) * BATCH)
            peers = {"webdataset": partial(in_own_process, "webdataset", folder, batches, packages)}
            if options.before:
                peers["before"] = partial(before, options.before.resolve(), folder, batches)
            timings[side] = alternate(partial(in_own_process, "ours", folder, batches), peers, repeats, warm_up=False)
            for name, seconds in timings[side].median_seconds.items():
                print(f"{side} px: {name:10} {batches * BATCH / seconds:6.0f} images per second of a core")
        read = traffic(Path(scratch), pairs, samples)
    if not options.before:
        print("no --before CHECKOUT: images_per_second_vs_before is left out")
    for mode, one in read.items():
        print(f"{mode:12} {one.gets} GETs, {one.heads} HEADs, {one.bytes_read / one.member_bytes:.3f} of the bytes")
    peers_measured = {"webdataset", *(("before",) if options.before else ())}
    copied = read["materialised"]
    finish(
        "loader",
        {
            **{
                f"images_per_second_vs_{peer}": min(one.speed_up(peer) for one in timings.values())
                for peer in sorted(peers_measured)
            },
            "gets_per_1000_samples_materialised": copied.gets_per_1000_samples,
            "bytes_ratio_materialised": copied.bytes_read / copied.member_bytes,
            "gets_index_vs_materialised": read["index"].gets_per_1000_samples / copied.gets_per_1000_samples,
        },
        {
            "images_per_core_second": {
                str(side): {name: batches * BATCH / seconds for name, seconds in one.median_seconds.items()}
                for side, one in timings.items()
            },
            "speed_ups": {
                str(side): {peer: one.speed_up(peer) for peer in sorted(peers_measured)}
                for side, one in timings.items()
            },
            "traffic": {mode: vars(one) for mode, one in read.items()},
            "batch": BATCH,
            "batches": batches,
            "rounds": repeats,
            "load_average": [load_before, os.getloadavg()[0]],
            "spread": {
                str(side): {name: statistics.pstdev(rounds) for name, rounds in one.seconds.items()}
                for side, one in timings.items()
            },
        },
    )


if __name__ == "__main__":
    main()
