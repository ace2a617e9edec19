"""Which draft a schema is read by."""

import json

import jsonschema_rs
import pytest

from coordinator.constraint.json_schema import prepare_schema


@pytest.mark.parametrize(
    ("named", "written"),
    [
        ("http://json-schema.org/draft-04/schema#", "http://json-schema.org/draft-04/schema"),
        ("http://json-schema.org/draft-05/schema#", "http://json-schema.org/draft-04/schema"),
        ("http://json-schema.org/draft-06/schema", "http://json-schema.org/draft-06/schema"),
        ("https://json-schema.org/draft-07/schema#", "http://json-schema.org/draft-07/schema"),
        (
            "http://json-schema.org/draft/2019-09/schema",
            "https://json-schema.org/draft/2019-09/schema",
        ),
        (
            "https://json-schema.org/draft/2020-12/schema#",
            "https://json-schema.org/draft/2020-12/schema",
        ),
        ("http://json-schema.org/schema#", None),
        ("https://spec.openapis.org/oas/3.1/dialect/base", None),
        ("https://json.schemastore.org/package", None),
        ("no URI [", None),
        ("", None),
    ],
)
def test_a_draft_has_one_name_and_what_is_none_has_none(named: str, written: str | None) -> None:
    schema = {"$schema": named, "items": {"$schema": named, "minLength": 1.0}}
    prepared = json.loads(prepare_schema(json.dumps(schema)).text)
    for one in (prepared, prepared["items"]):
        assert one.get("$schema", "").removesuffix("#") == (written or "")
    if written is not None:
        assert jsonschema_rs.meta.is_valid({"$schema": written})


@pytest.mark.parametrize("name", ["draft-03", "draft-02", "draft-00"])
def test_drafts_whose_keywords_mean_something_else_are_refused(name: str) -> None:
    old = {"$schema": f"http://json-schema.org/{name}/schema#", "disallow": "string"}
    for schema, path in ((old, "#/$schema"), ({"items": old}, "#/items/$schema")):
        with pytest.raises(ValueError, match="drafts from 4 on are") as caught:
            prepare_schema(json.dumps(schema))
        assert f"schema# at {path} is not supported" in str(caught.value).replace("...", "schema#")
