"""The files of a trial's training set, which its launcher writes and its workers open."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mode_ray.cluster.clustering import Clustering
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.pairs.index import PairIndex
from mode_ray.pairs.index_files import RunParts, in_this_process
from mode_ray.pairs.materialise import MaterialisedSet, SourceIndex, captions_of_tars
from mode_ray.pairs.order import GroupedOrder, PairOrder, SampleOrder
from mode_ray.pairs.training_set import SetFiles, open_training_set, write_training_set
from mode_ray.run_directory import PLAN_FILE, TRAINING_SETS, WORK_UNITS_FILE, training_set_file
from mode_ray.storage import Location
from mode_ray.train.runs.trial import TrialJob, training_summary
from mode_ray.train.source import read_block_pairs, source_mode


@dataclass(frozen=True)
class TrialData:
    """The training set of a trial, in the source shards or in its own tars."""

    job: TrialJob

    @property
    def captions(self) -> CaptionsConfig:
        """Names of captions and images in the shards of `open`."""
        captions = self.job.config.captions
        return captions_of_tars(captions) if self.is_materialised else captions

    @property
    def is_materialised(self) -> bool:
        """Whether the set is copied to its own tars; these are shuffled, so a set in groups is not."""
        return source_mode(self.job.config) == "materialised" and self.job.trial.members.kind != "clustered"

    def write_index(self, run_parts: RunParts = in_this_process) -> None:
        """Write the index over the source shards, unless it exists.

        Raises:
            DataError: The set is empty.
        """
        write_training_set(self._files, self._folder, run_parts)

    def open(self) -> PairIndex:
        """The index that the trial reads.

        Raises:
            DataError: It was not written, or was made of other assignments.
        """
        return self.materialised().open() if self.is_materialised else self.open_source()

    def order(self, pairs: int) -> PairOrder:
        """The order of the trial's samples.

        Args:
            pairs: Size of the training set.

        Raises:
            DataError: The set is in groups, and the stage's plan, which has their sizes, does not fit it.
        """
        train, members = self.job.config.train, self.job.trial.members
        if members.kind != "clustered":
            return SampleOrder(pairs, members.seed, read_block_pairs(self.job.config))
        sizes = (training_summary(self.job.experts) or {}).get("pairs_by_expert", [])
        if sum(sizes) != pairs:
            raise DataError(
                f"{self.job.experts / PLAN_FILE}: its experts have {sum(sizes):,} pairs, and the training set of "
                f"{self.job.trial.name} has {pairs:,}; run `mode-ray train` again to write both"
            )
        return GroupedOrder(sizes, members.seed, train.batch_size, train.data.block_pairs)

    def open_source(self) -> PairIndex:
        """The index over the source shards.

        Raises:
            DataError: It was not written, or was made of other assignments.
        """
        return open_training_set(self._files, self._folder)

    def materialised(self) -> MaterialisedSet:
        """The set's own tars."""
        members, data = self.job.trial.members, self.job.config.train.data
        source = SourceIndex(
            training_set_file(self._folder, members.name),
            self.job.experts / WORK_UNITS_FILE,
            self._files.provenance(),
        )
        return MaterialisedSet(self._folder / members.name, source, data.pairs_per_shard, data.block_pairs)

    @property
    def _folder(self) -> Location:
        return self.job.experts / TRAINING_SETS

    @property
    def _files(self) -> SetFiles:
        job = self.job
        return SetFiles(job.trial.members, job.assignments, job.experts / WORK_UNITS_FILE, self._group_m)

    @cached_property
    def _group_m(self) -> np.ndarray:
        """Coarse map of the set; empty for `all`, which needs none."""
        members = self.job.trial.members
        if members.kind == "all":
            return np.empty(0, np.int32)
        return Clustering.load(self.job.clusters).coarse[members.experts]
