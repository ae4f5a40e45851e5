import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdnfs.core.errors import SpecError
from bdnfs.spec.auth import WeightsAuth
from bdnfs.spec.document import parse_yaml
from bdnfs.spec.load import WEIGHTS_MAX, load_spec, parse_spec
from bdnfs.spec.patterns import Patterns
from bdnfs.spec.source import parse_source
from bdnfs.spec.weights import Spec, Weights

# The spec of the design, word for word.
DESIGN = """
weights:
  - source: hf://Qwen/Qwen3-0.6B@main
    mount_location: /app/models/Qwen/Qwen3-0.6B
    allow_patterns: ["*.safetensors", "*.json", "tokenizer*"]
    ignore_patterns: ["*.md"]
    auth: {auth_method: CUSTOM_SECRET, auth_secret_name: hf_access_token}
"""
EXPECTED = Weights(
    parse_source("hf://Qwen/Qwen3-0.6B@main"),
    "/app/models/Qwen/Qwen3-0.6B",
    Patterns(("*.safetensors", "*.json", "tokenizer*"), ("*.md",)),
    WeightsAuth("CUSTOM_SECRET", auth_secret_name="hf_access_token"),
)


def one(**fields: object) -> dict[str, Any]:
    return {"weights": [{"source": "hf://o/r", "mount_location": "/app/m", **fields}]}


def test_the_spec_of_the_design_is_read(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(DESIGN)
    path = str(tmp_path / "spec.yaml")
    assert load_spec(path) == Spec((EXPECTED,), path)
    assert load_spec("spec.yaml", "/app", cwd=str(tmp_path)) == Spec((EXPECTED,), path)
    assert EXPECTED.secret_name == "hf_access_token"


def test_a_spec_may_be_json(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(parse_yaml(DESIGN, "x")))
    assert load_spec(str(tmp_path / "spec.json")).weights == (EXPECTED,)


def test_only_source_and_mount_location_are_needed() -> None:
    assert parse_spec(one(), "w") == Spec((Weights(parse_source("hf://o/r"), "/app/m"),))
    nothing = dict.fromkeys(("allow_patterns", "ignore_patterns", "auth", "auth_secret_name"))
    assert parse_spec(one(**nothing), "w") == parse_spec(one(), "w")


def test_a_secret_beside_the_source_is_the_same_as_in_auth() -> None:
    beside = parse_spec(one(auth_secret_name="s"), "w")
    assert beside == parse_spec(one(auth={"auth_method": "custom_secret", "auth_secret_name": "s"}), "w")
    assert beside.weights[0].secret_name == "s"
    assert parse_spec(one(), "w").weights[0].secret_name is None


@pytest.mark.parametrize(
    ("mountpoint", "location"),
    [("/app/m", "/app/m"), ("m", "/work/dir/m"), ("../m/", "/work/m"), (None, "."), ("//app//m", "/app/m")],
)
def test_one_source_appears_at_its_mountpoint(mountpoint: str | None, location: str) -> None:
    spec = load_spec("hf://o/r@main", mountpoint, cwd="/work/dir")
    assert spec == Spec((Weights(parse_source("hf://o/r@main"), location),), None)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "spec.yaml: is empty"),
        ([], "spec.yaml: expected a mapping"),
        ("text", "spec.yaml: expected a mapping"),
        ({}, "spec.yaml: weights: expected a list"),
        ({"wieghts": []}, "spec.yaml: wieghts: unknown key; did you mean 'weights'?"),
        ({"weights": [], "model_name": "x"}, "spec.yaml: model_name: unknown key; known here: weights"),
        ({3: 4}, "spec.yaml: the number 3: unknown key"),
        ({"weights": None}, "spec.yaml: weights: expected a list"),
        ({"weights": []}, "spec.yaml: weights: declares nothing"),
        ({"weights": {}}, "spec.yaml: weights: expected a list"),
        ({"weights": ["hf://o/r"]}, "spec.yaml: weights[0]: expected a mapping with source, mount_location"),
        (
            {"weights": [{"sorce": "hf://o/r"}]},
            "spec.yaml: weights[0].sorce: unknown key; did you mean 'source'?",
        ),
        ({"weights": [{"source": "hf://o/r"}]}, "spec.yaml: weights[0].mount_location: is missing"),
        ({"weights": [{"mount_location": "/m"}]}, "spec.yaml: weights[0].source: is missing"),
        (
            one(source=3),
            "spec.yaml: weights[0].source: expected text such as hf://org/repo, found the number 3",
        ),
        (
            one(source="org/repo"),
            "spec.yaml: weights[0].source: source 'org/repo' has no scheme; did you mean 'hf://",
        ),
        (one(mount_location=""), "spec.yaml: weights[0].mount_location: is empty"),
        (
            one(mount_location=5),
            "spec.yaml: weights[0].mount_location: expected text, found the number 5; put it in",
        ),
        (one(mount_location="/"), "spec.yaml: weights[0]: mount_location '/' is the root directory"),
        (one(mount_location="/a/../.."), "spec.yaml: weights[0]: mount_location '/a/../..' holds '..'"),
        (
            one(allow_patterns="*.json"),
            "spec.yaml: weights[0].allow_patterns: expected a list, found the text '*.json'",
        ),
        (one(ignore_patterns={"a": 1}), "spec.yaml: weights[0].ignore_patterns: expected a list of texts"),
        (
            one(allow_patterns=["a", 1]),
            "spec.yaml: weights[0].allow_patterns[1]: expected text, found the number 1",
        ),
        (
            one(allow_patterns=["a", None]),
            "spec.yaml: weights[0].allow_patterns[1]: expected text, found nothing",
        ),
        (
            one(allow_patterns=["/a"]),
            "spec.yaml: weights[0]: allow_patterns: the pattern '/a' starts with '/'",
        ),
        (one(allow_patterns=["a"] * 5000), "spec.yaml: weights[0].allow_patterns: holds 5000 entries"),
        (one(auth="x"), "spec.yaml: weights[0].auth: expected a mapping"),
        (one(auth={}), "spec.yaml: weights[0].auth.auth_method: is missing"),
        (
            one(auth={"auth_secret_name": "x"}),
            "spec.yaml: weights[0].auth.auth_method: is missing; CUSTOM_SECRET",
        ),
        (
            one(auth={"method": "x"}),
            "spec.yaml: weights[0].auth.method: unknown key; did you mean 'auth_method'?",
        ),
        (one(auth={"auth_method": "X"}), "spec.yaml: weights[0].auth: auth_method 'X' is not one of"),
        (one(auth={"auth_method": "AWS_OIDC"}), "spec.yaml: weights[0].auth: auth_method AWS_OIDC needs"),
        (
            one(auth_secret_name="../x"),
            "spec.yaml: weights[0].auth_secret_name: auth_secret_name '../x' can't name",
        ),
        (
            one(auth={"auth_method": "CUSTOM_SECRET", "auth_secret_name": "a"}, auth_secret_name="a"),
            "spec.yaml: weights[0].auth_secret_name: credentials are named in auth too",
        ),
        ({"weights": [one()["weights"][0]] * (WEIGHTS_MAX + 1)}, "spec.yaml: weights: declares 1001 sources"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(data: object, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(data, "spec.yaml")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("locations", "message"),
    [
        (["/m", "/m"], "mount_location '/m' is there twice, for weights[0] and weights[1]"),
        (["/m/", "//m/."], "mount_location '/m' is there twice"),
        (["/m", "/m/x"], "mount_location '/m/x' (weights[1]) lies inside '/m' (weights[0])"),
        (["/m/x/y", "/m-1", "/m"], "mount_location '/m/x/y' (weights[0]) lies inside '/m' (weights[2])"),
        (["m", "m/x"], "mount_location 'm/x' (weights[1]) lies inside 'm' (weights[0])"),
    ],
)
def test_locations_in_one_another_are_refused(locations: list[str], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec({"weights": [one(mount_location=each)["weights"][0] for each in locations]}, "w")
    assert message in str(caught.value)


def test_locations_beside_one_another_pass() -> None:
    locations = ["/m/x", "/m/x-1", "/m/x.y", "/mx", "m/x"]
    spec = parse_spec({"weights": [one(mount_location=each)["weights"][0] for each in locations]}, "w")
    assert [each.mount_location for each in spec.weights] == locations


def test_a_password_in_a_spec_is_not_shown() -> None:
    for source in ("https://u:hunter2@h/x", "https://h/x?sig=hunter2"):
        with pytest.raises(SpecError) as caught:
            parse_spec(one(source=source), "w")
        assert "hunter2" not in str(caught.value)
        with pytest.raises(SpecError) as caught:
            load_spec(source, "/proc/x")
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("given_text", "message"),
    [
        ("missing.yaml", "no such file; name a spec.yaml, or a source"),
        ("org/repo", "a source needs its scheme: hf://org/repo"),
        ("config.py", "no such file"),
        (".", "it is a directory"),
        ("hg://x/y", "unknown scheme"),
        ("bdn:a/b", "no namespace's name"),
        ("", "it is a directory"),
    ],
)
def test_what_is_neither_spec_nor_source_is_refused(tmp_path: Path, given_text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(given_text, "/m", cwd=str(tmp_path))
    assert message in str(caught.value)


def test_yaml_of_aliases_to_aliases_is_refused_without_being_written_out(tmp_path: Path) -> None:
    bomb = "weights: &a0 [x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 31)
    )
    (tmp_path / "spec.yaml").write_text(bomb + "weights2: [*a30]\n")
    with pytest.raises(SpecError) as caught:
        load_spec(str(tmp_path / "spec.yaml"))
    assert len(str(caught.value)) < 300


KEYS = [
    "weights",
    "source",
    "mount_location",
    "allow_patterns",
    "ignore_patterns",
    "auth",
    "auth_secret_name",
    "x",
]
ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["hf://o/r", "s3://b", "/m", "m", "*.json", "CUSTOM_SECRET"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
        | st.dictionaries(st.one_of(st.text(max_size=4), st.integers(), st.none()), inner, max_size=2)
    ),
    max_leaves=12,
)
WEIGHTS = st.fixed_dictionaries(
    {"source": ANY, "mount_location": ANY}, optional=dict.fromkeys(KEYS[3:7], ANY)
)


@given(ANY | st.builds(lambda weights: {"weights": weights}, st.lists(WEIGHTS | ANY, max_size=3)))
def test_any_data_is_a_spec_or_a_spec_error(data: object) -> None:
    try:
        spec = parse_spec(data, "w")
    except SpecError:
        return
    assert spec.weights
