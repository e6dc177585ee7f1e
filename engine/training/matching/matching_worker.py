"""What each Ray Train worker of the fine-tune runs: load, resume, train, show samples, publish."""

from __future__ import annotations

import time
from typing import Any, TypedDict

import pyarrow as pa

from engine import output
from engine.conditions import featuremodel
from engine.conditions.table import Conditions
from engine.diffusion import families
from engine.training import setup
from engine.training import training_state as checkpoint
from engine.training.latent_cache import Inputs
from engine.training.loop import Loop
from engine.training.matching import adapter, data, publish_match
from engine.training.matching.latent_features import features
from engine.training.matching.matching_job import Job
from engine.training.matching.matching_stage import MatchStage
from engine.training.matching.matching_watch import Watch
from engine.training.resume import resume
from engine.training.setup import Ended, Place

CHECKPOINTS = output.MATCH_CHECKPOINTS


class Config(TypedDict):
    """What the workers are sent: the catalog's training split, and its conditions."""

    job: Job
    rows: pa.Table
    conditions: Conditions


def train(config: Config) -> Ended:
    """The loop for `setup.run`."""
    return Matching(config["job"], setup.place(), config["rows"], config["conditions"]).run()


class Matching:
    """The fine-tune of one generator on one set of images; every worker makes one."""

    def __init__(
        self, job: Job, place: Place, rows: pa.Table, conditions: Conditions, inputs: Inputs | None = None
    ) -> None:
        """`inputs`: what it learns from, where the caller has it in memory; else what `data.precompute` has stored, or
        live."""
        self.job, self.place, match = job, place, job.match
        self.pipeline: Any = data.pipeline_of(job.checkpoint, str(place.device), match)
        self.family = families.of(self.pipeline)
        encoding = data.Encoding(self.pipeline, flip=data.flips(job.spec))
        where = encoding.encoder.place(conditions.features.shape[1]) if match.visual_token != "none" else None
        if inputs is None and match.precompute:
            inputs = data.load(job.store, conditions, where)
        self.inputs = inputs or data.live(job.spec, rows, conditions, encoding, where)
        denoiser: Any = getattr(self.pipeline, self.family.denoiser)
        self.denoiser = adapter.attach(denoiser, match, job.spec.seed)
        if match.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        process = self.family.process(self.pipeline.scheduler.config, place.device)
        self.stage = MatchStage(
            match, job.spec.seed, place, self.family, self.denoiser, self.inputs, process, self._features()
        )
        if match.precompute and not (match.samples and place.rank == 0):
            self._forget_text()
        self.watch = Watch(job.spec, job.store, self.pipeline, self.denoiser, conditions, place, job.board)

    def run(self) -> Ended:
        """Train what is left, publish from rank 0; gives {"done": bool, "message": str}."""
        resumed = resume(self.job.store, CHECKPOINTS, self.job.made_from, self.place)
        loop = Loop(
            self.stage,
            self.place,
            None if resumed is None else resumed["loop"],
            compiled=self.job.spec.resources.compile_training,
        )
        try:
            return self._run(loop)
        finally:
            self.watch.close()

    def _run(self, loop: Loop) -> Ended:
        job, match = self.job, self.job.match
        done = loop.run(
            checkpoint_every=match.checkpoint_every,
            save=lambda: self._save(loop),
            out_of_time=lambda: job.deadline is not None and time.time() >= job.deadline,
            tell=lambda step, loss: self.watch.tell(self.stage, step, loss),
            look=lambda step: match.sample_every is not None and step % match.sample_every == 0,
        )
        if not done:
            where = f"step {loop.step} of {match.steps}"
            return {"done": False, "message": f"the fine-tune stopped at {where}; the same command goes on from there"}
        if self.stage.ema:
            self.stage.ema.copy_to(adapter.trained(self.denoiser))
        if self.place.rank == 0:
            self.watch.samples(match.steps)
            publish_match.publish(job, self.stage, loop, self.denoiser, self.family, len(self.inputs.labels))
        return {"done": True, "message": "match/ is whole"}

    def _save(self, loop: Loop) -> None:
        if self.place.rank == 0:
            state = {"made_from": self.job.made_from, "loop": loop.state()}
            checkpoint.save(self.job.store, CHECKPOINTS, loop.step, state)

    def _forget_text(self) -> None:
        """Free the memory of text encoders that nobody asks any more."""
        names = [name for name in self.pipeline.components if name.startswith("text_encoder")]
        self.pipeline.register_modules(**dict.fromkeys(names))

    def _features(self) -> Any:
        if self.job.match.mmd != "kernel_feature":
            return None
        model = featuremodel.resolve(self.job.spec.conditions.features, self.job.checkpoint.path)
        return features(self.pipeline.vae, model, self.place.device, self.job.features)
