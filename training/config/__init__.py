"""Settings of a training run: one schema, read from TOML and flags, completed by the model family's defaults."""

from studio.training.config.comparing import (
    MAY_CHANGE_ON_RESUME,
    ConfigChange,
    config_difference,
    config_hash,
    flat_settings,
)
from studio.training.config.defaults import config_warnings, resolve_defaults
from studio.training.config.loading import load_config, read_toml, validate
from studio.training.config.options import REQUIRED, Option, option_named, options
from studio.training.config.schema import (
    SECTIONS,
    AdapterConfig,
    ConceptConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from studio.training.config.section import Section
from studio.training.config.writing import dump_toml

__all__ = [
    "MAY_CHANGE_ON_RESUME",
    "REQUIRED",
    "SECTIONS",
    "AdapterConfig",
    "ConceptConfig",
    "ConfigChange",
    "DataConfig",
    "LossConfig",
    "ModelConfig",
    "Option",
    "OptimizerConfig",
    "RunConfig",
    "ScheduleConfig",
    "Section",
    "TrainConfig",
    "config_difference",
    "config_hash",
    "config_warnings",
    "dump_toml",
    "flat_settings",
    "load_config",
    "option_named",
    "options",
    "read_toml",
    "resolve_defaults",
    "validate",
]
