"""Checks of gpu_check.py: the training loop, its speed, its loader, its snapshots and its strategies.

Batches come from the product's own loader, over tars of synthetic pairs.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from gpu_check_frame import Context, Marks, built, dataset, run_config, small_tower, write_pairs
from open_clip.loss import ClipLoss

from mode_ray.config.run import RunConfig
from mode_ray.models.clip import ClipModel
from mode_ray.pairs.members import TrainingSet
from mode_ray.train.data import PairDataset, train_loader
from mode_ray.train.plan import Trial
from mode_ray.train.step.batch import TrainBatch
from mode_ray.train.step.loop import TrainLoop
from mode_ray.train.step.parallel import transformer_blocks
from mode_ray.train.step.rank import ONLY_RANK, Rank

_PIXELS = 340
_LOSSES: dict[str, dict[str, Any]] = {
    "clip": {"kind": "clip"},
    "siglip": {"kind": "siglip"},
    "equal captions": {"kind": "clip", "mask_equal_captions": True},
}
_MB = 1 << 20


def loop_of(config: RunConfig, clip: ClipModel, device: torch.device, rank: Rank = ONLY_RANK) -> TrainLoop:
    """The training loop of a config."""
    trial = Trial(name="dense", members=TrainingSet(kind="all"), samples=config.train.budget_samples)
    return TrainLoop(clip.module, trial, config.train, 0.5, rank, device)


def batches_of(data: PairDataset, config: RunConfig, workers: int = 0, rank: Rank = ONLY_RANK) -> Iterator[TrainBatch]:
    """The batches of a config, from the product's loader."""
    return iter(loader_of(data, config, workers, rank=rank))


def loader_of(
    data: PairDataset, config: RunConfig, workers: int, first: int = 0, rank: Rank = ONLY_RANK
) -> Iterable[TrainBatch]:
    """The product's loader with so many processes, beginning at a sample."""
    positions = range(first, config.train.budget_samples, config.train.batch_size)
    placement = config.train.placement.model_copy(update={"loader_workers": workers})
    return train_loader(data, positions, rank, placement, pin_memory=torch.cuda.is_available())


def check_loop(context: Context, marks: Marks) -> None:
    """The loop at context 77 in bfloat16, every switch against the plain loop in float32 on the CPU.

    Eager: all combinations. Compiled, on CUDA: four that have every switch on and off, because each takes seconds.
    """
    batch, steps = context.size(64, 16), context.size(20, 3)
    tower = small_tower(context.folder / "tower")
    units = write_pairs(context.folder / "pairs", batch * context.size(4, 2), 48)
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    cases = [
        {"loss": loss, "groups": groups, "micro": micro, "checkpointing": checkpointing, "compile": False}
        for loss, groups, micro, checkpointing in product(_LOSSES, (1, 4), (False, True), (False, True))
    ]
    cases = cases[:: context.size(1, 5)]
    if context.on_cuda:
        for loss, groups, micro, checkpointing in (
            ("clip", 4, False, False),
            ("clip", 4, True, True),
            ("siglip", 1, False, True),
            ("equal captions", 4, True, False),
        ):
            cases.append(
                {"loss": loss, "groups": groups, "micro": micro, "checkpointing": checkpointing, "compile": True}
            )
    references: dict[str, tuple[list[float], torch.Tensor]] = {}
    loss_error, cosine, worst = 0.0, 1.0, {}
    for case in cases:
        name = case["loss"]
        if name not in references:
            plain = run_config(
                context.folder,
                tower,
                batch,
                steps,
                precision="float32",
                loss=_LOSSES[name],
                placement={"text_length_groups": 1},
            )
            references[name] = _trained(plain, units, torch.device("cpu"))
        placement = {
            "text_length_groups": case["groups"],
            "micro_batch_size": batch // 4 if case["micro"] else None,
            "gradient_checkpointing": case["checkpointing"],
            "compile": case["compile"],
        }
        config = run_config(context.folder, tower, batch, steps, loss=_LOSSES[name], placement=placement)
        losses, gradient = _trained(config, units, context.device)
        expected, expected_gradient = references[name]
        error = max(abs(ours - theirs) for ours, theirs in zip(losses, expected, strict=True))
        similarity = float(torch.nn.functional.cosine_similarity(gradient, expected_gradient, dim=0))
        if error > loss_error or similarity < cosine:
            worst = case
        loss_error, cosine = max(loss_error, error), min(cosine, similarity)
    marks.note("cases", len(cases))
    marks.note("compiled_cases", sum(case["compile"] for case in cases))
    marks.note("worst_case", worst)
    marks.at_most("loss_error", loss_error, 5e-3)
    marks.at_least("gradient_cosine", cosine, 0.999)


def _trained(config: RunConfig, units: list[Any], device: torch.device) -> tuple[list[float], torch.Tensor]:
    """The losses of all steps, and the gradient of the first."""
    clip = built(config)
    loop = loop_of(config, clip, device)
    losses: list[float] = []
    gradient = torch.empty(0)
    for batch in batches_of(dataset(units, config, clip), config):
        losses.append(loop.step(batch))
        if len(losses) == 1:
            gradients = [
                p.grad.detach().flatten().float().cpu() for p in clip.module.parameters() if p.grad is not None
            ]
            gradient = torch.cat(gradients)
    return losses, gradient


def check_train_speed(context: Context, marks: Marks) -> None:
    """Samples a second of steps on one batch, of the loader's path, and of open_clip's model in amp_bf16 beside it."""
    processes = max(1, len(os.sched_getaffinity(0)) - 2) if context.on_cuda else 1
    architectures = [("B32", "ViT-B-32", 1_024, 3_000.0, 5_000.0), ("B16", "ViT-B-16", 512, 0.0, 0.0)]
    if context.quick:
        architectures = [("small", small_tower(context.folder / "tower"), 16, 0.0, 0.0)]
    units = write_pairs(context.folder / "pairs", context.size(4_096, 64), context.size(256, 48))
    for name, architecture, batch, eager_mark, compiled_mark in architectures:
        steps = context.size(20, 3)
        rates = {}
        for compiled in (False, True) if context.on_cuda else (False,):
            config = run_config(context.folder, architecture, batch, 3 * steps, placement={"compile": compiled})
            clip = built(config)
            loop = loop_of(config, clip, context.device)
            data = dataset(units, config, clip, loop.prepare_texts)
            resident = next(batches_of(data, config)).to(context.device)
            loop.step(resident)
            rates[compiled] = batch / context.seconds(lambda step=loop.step, one=resident: step(one), steps)  # type: ignore[misc]
        marks.note(f"{name}_step_samples_per_second", rates[False])
        if context.on_cuda:
            marks.note(f"{name}_compiled_samples_per_second", rates[True])
        if eager_mark:
            marks.at_least(f"{name}_eager", rates[False], eager_mark, speed=True)
            marks.at_least(f"{name}_compiled", rates[True], compiled_mark, speed=True)
        fed = _fed_rate(context, config, data, processes)
        marks.at_least(f"{name}_fed_over_resident", fed / rates[context.on_cuda], 0.95, speed=True)
        plain = next(batches_of(dataset(units, config, clip), config))
        peer, peer_loss = _open_clip_rate(context, config, plain, steps)
        marks.note(f"{name}_open_clip_samples_per_second", peer)
        marks.at_least(f"{name}_over_open_clip", max(rates.values()) / peer, 1.15, speed=True)
        ours = loop_of(config, built(config), context.device).step(resident)
        marks.at_most(f"{name}_loss_from_open_clip", abs(ours - peer_loss), 0.02)


def _fed_rate(context: Context, config: RunConfig, data: PairDataset, processes: int) -> float:
    """Samples a second of the loop with its loader, after the first third."""
    loop = loop_of(config, built(config), context.device)
    times: list[float] = []

    def after_step() -> None:
        times.append(time.perf_counter())

    loop.run(lambda first: loader_of(data, config, processes, first), lambda _: None, after_step)
    first = len(times) // 3
    return config.train.batch_size * (len(times) - 1 - first) / (times[-1] - times[first])


def _open_clip_rate(context: Context, config: RunConfig, batch: TrainBatch, steps: int) -> tuple[float, float]:
    """Samples a second of open_clip's own step (`open_clip_train.train`) in amp_bf16, and its first loss.

    The images are on the device before the clock starts, normalised as our loop sees them.
    """
    clip = built(config)
    module: Any = clip.module.to(context.device).train()
    images = _normalised(batch, clip).to(context.device)
    assert isinstance(batch.texts, torch.Tensor)
    texts = batch.texts.to(context.device)
    loss_of = ClipLoss(local_loss=True, gather_with_grad=True, cache_labels=True)
    decayed = [parameter for parameter in module.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in module.parameters() if parameter.ndim < 2]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98), eps=1e-6)
    losses: list[float] = []

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(context.device.type, torch.bfloat16):
            features = module(images, texts)
            loss = loss_of(**features)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            module.logit_scale.clamp_(0, 4.6052)
        if not losses:
            losses.append(float(loss.detach()))

    return len(images) / context.seconds(step, steps), losses[0]


def _normalised(batch: TrainBatch, clip: ClipModel) -> torch.Tensor:
    """The images of a batch as floats for the model; batches may hold pixels."""
    if batch.images.dtype != torch.uint8:
        return batch.images
    normalise: Any = clip.train_transform
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (_steps(normalise).mean, _steps(normalise).std))
    return (batch.images.float() / 255 - mean) / std


def _steps(transform: Any) -> Any:  # noqa: ANN401  (torchvision's Normalize)
    return transform.transforms[-1]


def check_loader(context: Context, marks: Marks) -> None:
    """Images a second and core of the loader, alone and with training; that the processes change no sample."""
    cores = len(os.sched_getaffinity(0))
    counts = [count for count in (4, 8, 14) if count <= cores] if not context.quick else [1]
    units = write_pairs(context.folder / "pairs", context.size(8_192, 64), context.size(_PIXELS, 96))
    architecture = small_tower(context.folder / "tower") if context.quick else "ViT-B-32"
    batch = context.size(512, 16)
    config = run_config(context.folder, architecture, batch, context.size(32, 4))
    clip = built(config)
    data = dataset(units, config, clip)
    ledgers = [one.ledger for one in islice(batches_of(data, config), 3)]
    best = 0.0
    for count in counts or [1]:
        with _shm_peak() as peak:
            times, seen = [], []
            for one in batches_of(data, config, count):
                times.append(time.perf_counter())
                seen.append(one.ledger)
        marks.holds(f"same_samples_{count}", seen[:3] == ledgers, f"{count} loader processes change the samples")
        first = len(times) // 3
        rate = batch * (len(times) - 1 - first) / (times[-1] - times[first])
        marks.note(f"images_per_second_{count}", rate)
        marks.note(f"shm_mb_{count}", peak[0] / _MB)
        best = max(best, rate / count)
        marks.at_most(f"shm_gb_{count}", peak[0] / (1 << 30), 4.0, speed=True)
    marks.at_least("images_per_second_a_core", best, 550.0, speed=True)
    loop = loop_of(config, clip, context.device)
    points: list[dict[str, float]] = []
    loop.run(
        lambda first: loader_of(data, config, (counts or [1])[-1], first),
        points.append,
        lambda: None,
    )
    marks.at_most("data_wait_share", points[-1]["data_wait_share"], 0.03, speed=True)


@contextmanager
def _shm_peak() -> Iterator[list[int]]:
    """The most bytes that /dev/shm holds during the block, beyond those before it."""

    def used() -> int:
        stat = os.statvfs("/dev/shm")  # noqa: S108
        return stat.f_frsize * (stat.f_blocks - stat.f_bfree)

    before, peak, ended = used(), [0], threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            peak[0] = max(peak[0], used() - before)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield peak
    finally:
        ended.set()
        looking.join()


def check_resume(context: Context, marks: Marks) -> None:
    """A snapshot is taken in a second, and a run resumed from it has the same next loss."""
    architecture = small_tower(context.folder / "tower") if context.quick else "ViT-B-16"
    batch = context.size(64, 16)
    units = write_pairs(context.folder / "pairs", 8 * batch, 48)
    config = run_config(context.folder, architecture, batch, 6)
    clip = built(config)
    loop = loop_of(config, clip, context.device)
    batches = list(batches_of(dataset(units, config, clip), config))
    for one in batches[:3]:
        loop.step(one)
    context.wait()
    began = time.perf_counter()
    snapshot = loop.gather_snapshot()
    marks.at_most("stall_seconds", time.perf_counter() - began, 1.0, speed=True)
    expected = [loop.step(one) for one in batches[3:]]
    resumed = loop_of(config, built(config), context.device)
    resumed.load_weights_on_all_ranks(snapshot.weights)
    resumed.load_state_on_all_ranks(snapshot.state, continues=True)
    marks.holds("position", resumed.state.samples_seen == 3 * batch, "the resumed run is at another sample")
    errors = [abs(resumed.step(one) - loss) for one, loss in zip(batches[3:], expected, strict=True)]
    marks.at_most("next_loss_error", errors[0], 1e-3)
    marks.note("last_loss_error", errors[-1])


def check_two_processes(context: Context, marks: Marks) -> None:
    """Two processes on one device (DDP over gloo) train as one; a sharded model computes as a whole one."""
    batch, steps = 32, 4
    tower = small_tower(context.folder / "tower")
    write_pairs(context.folder / "pairs", batch * steps, 48)
    ranks = []
    for rank in range(2):
        command = [
            sys.executable,
            __file__,
            str(context.folder),
            str(context.device),
            str(rank),
            str(batch),
            str(steps),
        ]
        ranks.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    answers = [process.communicate() for process in ranks]
    for process, (_, errors) in zip(ranks, answers, strict=True):
        if process.returncode:
            raise RuntimeError(errors[-2_000:])
    both = json.loads(answers[0][0].splitlines()[-1])
    one = _rank_losses(context.folder, tower, context.device, ONLY_RANK, batch, steps)
    error = max(abs(ours - theirs) for ours, theirs in zip(both, one, strict=True))
    marks.at_most("ddp_loss_error", error, 1e-3)
    if context.on_cuda:
        marks.at_most("fsdp_feature_error", _sharded_error(context, tower), 1e-3)


def _rank_losses(folder: Path, tower: str, device: torch.device, rank: Rank, batch: int, steps: int) -> list[float]:
    config = run_config(folder, tower, batch, steps, precision="float32")
    clip = built(config)
    from mode_ray.stages.work_unit import WorkUnit

    units = [
        WorkUnit(unit=path.stem, uri=str(path), format="webdataset", size_bytes=path.stat().st_size)
        for path in sorted((folder / "pairs").glob("*.tar"))
    ]
    loop = loop_of(config, clip, device, rank)
    return [loop.step(one) for one in batches_of(dataset(units, config, clip), config, rank=rank)]


def _sharded_error(context: Context, tower: str) -> float:
    """The largest difference of image features between a model and its copy sharded over a mesh of one by NCCL."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group("nccl", store=store, rank=0, world_size=1)
    config = run_config(context.folder, tower, 8, 1, precision="float32")
    whole: Any = built(config).module.to(context.device)
    shards: Any = built(config).module.to(context.device)
    mesh = init_device_mesh("cuda", (1,))
    for block in transformer_blocks(shards).values():
        fully_shard(block, mesh=mesh)
    fully_shard(shards, mesh=mesh, ignored_params={shards.logit_scale})
    images = torch.randn(8, 3, 32, 32, device=context.device)
    texts = torch.randint(1, 49_000, (8, 77), device=context.device)
    outputs = [model(images, texts) for model in (whole, shards)]
    error = max(float((a - b).abs().max()) for a, b in zip(*(out.values() for out in outputs), strict=True))
    torch.distributed.destroy_process_group()
    return error


def main() -> None:
    """One of the two ranks of `check_two_processes`."""
    folder, device = Path(sys.argv[1]), torch.device(sys.argv[2])
    number, batch, steps = map(int, sys.argv[3:])
    if device.type == "cpu":
        torch.set_num_threads(1)  # as in gpu_check.py
    store = torch.distributed.FileStore(str(folder / "store"), 2)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=number, world_size=2)
    print(json.dumps(_rank_losses(folder, str(folder / "tower"), device, Rank(number, 2), batch, steps)))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
