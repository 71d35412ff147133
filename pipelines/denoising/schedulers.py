"""The samplers people know by name, made from a base model's own noise schedule."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from studio.pipelines.errors import UserError


@dataclass(frozen=True)
class _Sampler:
    class_name: str
    title: str
    settings: dict[str, Any] = field(default_factory=dict)


_SAMPLERS = {
    "ddim": _Sampler("DDIMScheduler", "DDIM", {"clip_sample": False}),
    "euler": _Sampler("EulerDiscreteScheduler", "Euler"),
    "euler_a": _Sampler("EulerAncestralDiscreteScheduler", "Euler a"),
    "dpm++": _Sampler("DPMSolverMultistepScheduler", "DPM++ 2M", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
}

SCHEDULER_NAMES: tuple[str, ...] = tuple(_SAMPLERS)


def make_scheduler(base_scheduler: Any, name: str) -> Any:
    """A new diffusers scheduler called `name` with the noise schedule and prediction type of a base model's own.

    Betas, prediction type, timestep spacing and zero terminal SNR are the base's, because the model was trained with
    them; only the way of integrating changes. Betas rescaled to zero terminal SNR go with v-prediction and trailing
    timesteps (Lin et al. 2023): the first is required, the second set. The Euler and DPM++ schedulers then start at
    σ = 4096 instead of infinity, which is diffusers' rule.

    Raises:
        UserError: for an unknown name, with the nearest one, or a base whose schedule contradicts itself.
    """
    import diffusers

    sampler = _sampler(name)
    config = dict(base_scheduler.config)
    settings = {"set_alpha_to_one": False} | config | sampler.settings
    if config.get("rescale_betas_zero_snr"):
        if config.get("prediction_type") != "v_prediction":
            raise UserError(
                "The base model's scheduler has zero terminal SNR and does not predict v: at the first step there is "
                "nothing but noise, and predicting it says nothing. Its scheduler_config.json is wrong."
            )
        settings["timestep_spacing"] = "trailing"
    return getattr(diffusers, sampler.class_name).from_config(settings)


def scheduler_title(name: str) -> str:
    """What the sampler called `name` is called in other tools' picture metadata, as "Euler a"."""
    return _sampler(name).title


def _sampler(name: str) -> _Sampler:
    if name in _SAMPLERS:
        return _SAMPLERS[name]
    simple = name.lower().replace(" ", "_").replace("-", "_")
    near = [simple] if simple in _SAMPLERS else get_close_matches(simple, SCHEDULER_NAMES, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"There is no scheduler {name!r}.{hint} Choose one of: {', '.join(SCHEDULER_NAMES)}.")
