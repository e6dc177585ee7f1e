"""Schedulers by name: near matches, settings taken over, and each one independent of the batch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline

from engine.diffusion import families, schedulers
from engine.diffusion.checkpoint import Checkpoint, check_generate, inspect, load
from engine.diffusion.sampler import Request, Sampler
from engine.errors import ConfigError
from engine.spec.recipe import GenerateSpec, ModelSpec
from tests.support.checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def pipeline(inspected: dict[str, Checkpoint]) -> Any:
    return load(inspected["digits"], "cpu", "float32")


CONFIG = {
    "beta_start": 0.001,
    "beta_end": 0.013,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 900,
    "prediction_type": "v_prediction",
    "steps_offset": 1,
}


@pytest.mark.parametrize(("typo", "near"), [("dpmsolver", "dpmsolver++"), ("Euler", "euler"), ("unpic", "unipc")])
def test_a_typo_gets_its_near_match(typo: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown scheduler '{typo}'; did you mean {near.replace('+', '[+]')}\w*\?"):
        schedulers.check_name(typo)


def test_a_name_like_no_other_gets_the_whole_list() -> None:
    with pytest.raises(ConfigError, match=r"use one of ddim, ddpm, .*unipc"):
        schedulers.check_name("zzz")


def test_names_are_checked_without_torch_and_diffusers() -> None:
    code = """
import sys
from engine.diffusion.schedulers import NAMES, check_name
for name in NAMES:
    check_name(name)
print(bool({"torch", "diffusers", "numpy"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("name", schedulers.DIFFUSION)
def test_noise_schedule_and_prediction_type_are_the_checkpoints(name: str) -> None:
    config = schedulers.make(name, CONFIG).config
    kept = {key: config[key] for key in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")}
    assert kept == {key: CONFIG[key] for key in kept}
    assert config["prediction_type"] == "v_prediction"
    assert not config.get("clip_sample", False)


@pytest.mark.parametrize("name", schedulers.FLOW)
def test_flow_samplers_follow_the_checkpoints_shift(name: str) -> None:
    """Their first steps begin at noise alone; the noise that stock pipelines hand no generator for stays off."""
    scheduler: Any = schedulers.make(name, {"shift": 3.0, "num_train_timesteps": 1000, "stochastic_sampling": True})
    scheduler.set_timesteps(5)
    assert scheduler.config.shift == 3.0
    assert scheduler.sigmas[0].item() == pytest.approx(1.0)
    assert scheduler.timesteps[0].item() == pytest.approx(1000.0)
    assert name != "flow_euler" or not scheduler.config.stochastic_sampling


@pytest.mark.parametrize("kind", schedulers.SAMPLERS)
def test_samplers_of_the_other_kinds_of_training_are_refused(kind: Any) -> None:
    refused = 0
    for other, known in schedulers.SAMPLERS.items():
        for name in known:
            if name in schedulers.SAMPLERS[kind]:
                schedulers.check_kind(name, kind, "this")
                continue
            with pytest.raises(
                ConfigError, match=r"generate\.scheduler: .*; set generate\.scheduler to (flow_euler|dpm)"
            ):
                schedulers.check_kind(name, kind, "this")
            refused += other != kind
    assert refused == {"diffusion": 2, "flow": 24, "edm": 18}[kind]


@pytest.mark.parametrize("name", schedulers.EDM)
def test_edm_samplers_take_the_published_noise_levels(name: str) -> None:
    """Table 1 of arXiv 2206.00364: from 80 to 0.002 with rho 7; times are ln(s) / 4."""
    scheduler: Any = schedulers.make(name, {"_class_name": "EDMEulerScheduler"}, "edm")
    scheduler.set_timesteps(18)
    levels = np.array([(80 ** (1 / 7) + n / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for n in range(18)])
    found = list(dict.fromkeys(scheduler.timesteps.tolist()))
    np.testing.assert_allclose(found, np.log(levels) / 4, rtol=1e-4, atol=1e-5)
    assert levels[0] == pytest.approx(80)
    assert levels[-1] == pytest.approx(0.002)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("dpmsolver++_karras", {"use_karras_sigmas": True}),
        ("dpmsolver++_sde", {"algorithm_type": "sde-dpmsolver++"}),
        ("pndm", {"skip_prk_steps": True}),
        ("unipc_karras", {"use_karras_sigmas": True}),
        ("unipc", {"use_karras_sigmas": False}),
    ],
)
def test_variants_set_what_their_names_say(name: str, setting: dict) -> None:
    assert schedulers.make(name, CONFIG).config.items() >= setting.items()


@pytest.mark.parametrize(("steps", "strength", "run"), [(20, 1.0, 20), (30, 0.75, 22), (10, 0.5, 5), (3, 0.34, 1)])
def test_strength_leaves_so_many_steps(steps: int, strength: float, run: int) -> None:
    assert schedulers.check_steps("unipc", CONFIG, steps, strength) == run


def test_steps_that_a_scheduler_cannot_run_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"generate\.strength: 3 steps at strength 0\.3 leave nothing"):
        schedulers.check_steps("ddim", CONFIG, 3, 0.3)
    with pytest.raises(ConfigError, match=r"generate\.num_inference_steps: lcm cannot run 51 steps"):
        schedulers.check_steps("lcm", CONFIG, 51, 1.0)
    with pytest.raises(ConfigError, match="ddpm cannot run 901 steps"):
        schedulers.check_steps("ddpm", CONFIG, 901, 1.0)


SD1 = CONFIG | {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "clip_sample": False,
}
ZERO_SNR = SD1 | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
WITHOUT_ZERO_SNR = {"deis", "dpmsolver++_single", "heun", "kdpm2", "kdpm2_a", "lms", "pndm", "sasolver"}


@pytest.mark.parametrize("name", schedulers.DIFFUSION)
def test_noise_that_a_sampler_cannot_reach_is_refused_with_samplers_that_can(name: str) -> None:
    """Against the classes' own signatures, by building the noise schedule: zero terminal SNR or not."""
    alphas = schedulers.make(name, ZERO_SNR).alphas_cumprod
    assert (float(alphas[-1]) > 1e-4) == (name in WITHOUT_ZERO_SNR)
    if name not in WITHOUT_ZERO_SNR:
        assert schedulers.check_steps(name, ZERO_SNR, 4, 1.0) == 4
        return
    with pytest.raises(ConfigError) as caught:
        schedulers.check_steps(name, ZERO_SNR, 4, 1.0)
    assert f"generate.scheduler: {name} does not take rescale_betas_zero_snr (True)" in str(caught.value)
    fits = str(caught.value).partition("set it to ")[2].split(" or ")
    assert set(fits) == set(schedulers.DIFFUSION) - WITHOUT_ZERO_SNR


@pytest.mark.parametrize(
    ("setting", "value"), [("shift_terminal", 0.02), ("use_dynamic_shifting", True), ("invert_sigmas", True)]
)
def test_flow_settings_that_only_one_sampler_takes_are_refused_by_the_other(setting: str, value: Any) -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, setting: value}
    assert schedulers.left_out("flow_euler", config) == []
    with pytest.raises(ConfigError, match=rf"flow_heun does not take {setting} .*; set it to flow_euler$"):
        schedulers.left_out("flow_heun", config)


def test_what_only_says_how_steps_are_taken_is_told() -> None:
    assert schedulers.left_out("dpmsolver++", SD1 | {"skip_prk_steps": True}) == ["skip_prk_steps=True"]
    assert schedulers.left_out("pndm", SD1 | {"skip_prk_steps": True}) == []
    assert schedulers.left_out("euler", SD1 | {"set_alpha_to_one": False, "trained_betas": None, "_odd": 1}) == []
    assert schedulers.left_out("ddim", SD1 | {"use_karras_sigmas": True}) == ["use_karras_sigmas=True"]
    flow = {"stochastic_sampling": True}
    assert schedulers.left_out("flow_euler", flow) == ["stochastic_sampling=True"]


@pytest.mark.parametrize(
    ("name", "changes", "steps", "why"),
    [
        ("ddim", {"steps_offset": 1}, 1000, "index 1000 is out of bounds"),
        ("pndm", {"steps_offset": 1}, 1000, "index 1000 is out of bounds"),
        ("dpmsolver++", {}, 1000, "the numbers become infinite"),
        ("dpmsolver++", {"timestep_spacing": "leading"}, 1000, "index 1001 is out of bounds"),
        ("euler", {"beta_schedule": "sigmoid"}, 4, "sigmoid is not implemented"),
        ("sasolver", {"algorithm_type": "dpmsolver"}, 4, "dpmsolver is not implemented"),
        ("ddpm", {"variance_type": "learned_range"}, 4, "unsupported operand"),
        ("euler_karras", {"use_beta_sigmas": True}, 4, "Only one of"),
        ("ddim", {"beta_start": "small"}, 4, ""),
        ("ddim", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 4, "the numbers become infinite"),
    ],
)
def test_what_fails_only_while_it_draws_is_refused_before(
    name: str, changes: dict[str, Any], steps: int, why: str
) -> None:
    """`NotImplementedError`, `TypeError`, an index at the last step, not a number: one line all the same."""
    with pytest.raises(ConfigError, match=rf"{re.escape(name)} cannot run {steps} steps under .*: {why}") as caught:
        schedulers.check_steps(name, SD1 | changes, steps, 1.0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("explicit", [True, False])
def test_the_check_of_the_file_and_the_sampler_see_the_same_settings(explicit: bool, tmp_path: Path) -> None:
    """Stable Diffusion's pipeline changes `steps_offset` and `clip_sample` of a file that sets them; what it leaves
    alone stays."""
    folder = write_checkpoint(tmp_path, "digits")
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text()) | {"steps_offset": 0, "clip_sample": True}
    if not explicit:
        del config["steps_offset"], config["clip_sample"]
    path.write_text(json.dumps(config))
    checkpoint = inspect(ModelSpec(checkpoint=str(folder)), 8)
    stock: Any = StableDiffusionPipeline.from_pretrained(folder)
    stock.scheduler = schedulers.make("heun", stock.scheduler.config)
    pipeline = load(checkpoint, "cpu", "float32")
    sampler = Sampler(pipeline, GenerateSpec(scheduler="heun", num_inference_steps=4))
    from_file = schedulers.make("heun", families.of(pipeline).scheduler_config(config))
    values = [
        (one.config.steps_offset, one.config.clip_sample)
        for one in (stock.scheduler, sampler.pipeline.scheduler, from_file)
    ]
    assert values == [(1 if explicit else 0, False)] * 3
    failing = GenerateSpec(scheduler="ddim", num_inference_steps=1000)
    if explicit:
        with pytest.raises(ConfigError, match="ddim cannot run 1000 steps"):
            check_generate(checkpoint, failing)
    else:
        assert check_generate(checkpoint, failing) == ["skip_prk_steps=True"]


def test_a_scheduler_file_that_its_own_class_cannot_read_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "digits")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"beta_schedule": "sigmoid"}))
    with pytest.raises(ConfigError, match=r"scheduler: cannot be loaded \(sigmoid is not implemented"):
        inspect(ModelSpec(checkpoint=str(folder)), 8)


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("name", schedulers.DIFFUSION)
def test_a_sample_is_the_same_in_any_batch(pipeline: Any, name: str, strength: float) -> None:
    """First of three, last of three, alone: noise of each step too must come from the sample's own generator."""
    spec = GenerateSpec(scheduler=name, num_inference_steps=3, strength=strength, pairing="own")
    sampler = Sampler(pipeline, spec)
    latents = np.random.default_rng(1).normal(size=(2, 4, 4, 4)).astype(np.float32)
    requests = [
        Request("photo of digit one", 2**63, None, latents[0]),
        Request("photo of digit two", 1, None, latents[1]),
        Request("photo of digit one", 2, None, latents[0]),
    ]
    together, backwards, alone = (
        np.stack([drawn.pixels for drawn in results]).astype(int)
        for results in (sampler.draw(requests), sampler.draw(requests[::-1])[::-1], sampler.draw(requests[:1]))
    )
    assert np.abs(together - backwards).max() <= 2
    assert np.abs(together[0] - alone[0]).max() <= 2
    assert np.abs(together[0] - together[2]).max() > 8


def test_a_pipeline_that_tells_the_first_step_samples_where_steps_have_equal_times() -> None:
    """SDXL's stock pipeline does; others leave it to the sampler, which then begins with the second and ends past the
    last."""
    cosine = {"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2"}
    assert schedulers.check_steps("dpmsolver++_karras", cosine, 1000, 1.0, counts_steps=True) == 1000
    with pytest.raises(ConfigError, match="cannot run 1000 steps"):
        schedulers.check_steps("dpmsolver++_karras", cosine, 1000, 1.0)
