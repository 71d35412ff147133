"""What the sections of the configuration are made of: the kinds of values, the setting with its explanation, the section."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict

from studio.training.config.words import check_prompt, check_template

Int = Annotated[int, Strict()]
Float = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Bool = Annotated[bool, Strict()]
Positive = Annotated[Int, Field(ge=1)]
Count = Annotated[Int, Field(ge=0)]
Share = Annotated[Float, Field(ge=0.0, le=1.0)]
NotNegative = Annotated[Float, Field(ge=0.0)]
AboveZero = Annotated[Float, Field(gt=0.0)]
Template = Annotated[str, AfterValidator(check_template)]
Prompt = Annotated[str, AfterValidator(check_prompt)]


def setting(default: Any, description: str, *, flag: str | None = None) -> Any:
    """A setting with its explanation, and its command line flag where that is not `--its-name`."""
    return Field(default=default, description=description, json_schema_extra=None if flag is None else {"flag": flag})


class Section(BaseModel):
    """A table of the configuration: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, str_strip_whitespace=True)
