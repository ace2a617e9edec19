"""instructor."""

import sys
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel

DEMO = OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none")
MODEL = "SmolLM2-135M-Instruct.Q4_1"


class Fact(BaseModel):
    """What is asked for."""

    kind: Literal["city", "country"]
    is_true: bool


for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    fact = instructor.from_openai(DEMO, mode=mode).chat.completions.create(
        model=MODEL,
        response_model=Fact,
        messages=[{"role": "user", "content": "Is Paris a city?"}],
        max_retries=0,
    )
    assert isinstance(fact, Fact), mode
