import pytest

from bdnfs.core.errors import SpecError
from bdnfs.spec.auth import METHODS, WeightsAuth, check_secret_name
from bdnfs.spec.load import parse_spec
from bdnfs.spec.source import parse_source
from bdnfs.spec.weights import Weights


@pytest.mark.parametrize("method", METHODS)
def test_each_method_takes_exactly_its_fields(method: str) -> None:
    own = {field: f"value-of-{field}"[:60] for field in METHODS[method]}
    auth = WeightsAuth(method.lower(), **own)
    assert auth.auth_method == method
    assert {field: getattr(auth, field) for field in own} == own
    for missing in own:
        with pytest.raises(SpecError, match=f"{missing} is missing"):
            WeightsAuth(method, **{**own, missing: ""})
    foreign = {field: other for other, fields in METHODS.items() if other != method for field in fields}
    for field, owner in foreign.items():
        with pytest.raises(SpecError, match=f"{field} belongs to auth_method {owner}"):
            WeightsAuth(method, **own, **{field: "x"})


def test_an_empty_field_of_another_method_counts_as_left_out() -> None:
    auth = WeightsAuth("CUSTOM_SECRET", auth_secret_name="token", aws_oidc_region="")
    assert auth.aws_oidc_region is None


@pytest.mark.parametrize("method", ["", "SECRET", "CUSTOM-SECRET"])
def test_an_unknown_method_is_refused_with_the_known_ones(method: str) -> None:
    with pytest.raises(SpecError, match="CUSTOM_SECRET, AWS_OIDC, GCP_OIDC, AWS_ASSUME_ROLE"):
        WeightsAuth(method, auth_secret_name="x")


@pytest.mark.parametrize("name", ["hf_access_token", "a", "A-1.b", "9" * 253])
def test_names_of_secrets(name: str) -> None:
    assert check_secret_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "../etc/shadow", "/etc/shadow", "a\x00", "a\n", "a b", "é", "a" * 254],
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match="can't name a secret"):
        check_secret_name(name)
    with pytest.raises(SpecError):
        WeightsAuth("CUSTOM_SECRET", auth_secret_name=name)


OWN = {
    method: WeightsAuth(method, **dict.fromkeys(METHODS[method], "x"))
    for method in ("CUSTOM_SECRET", "AWS_OIDC", "GCP_OIDC", "AWS_ASSUME_ROLE")
}


@pytest.mark.parametrize(
    ("method", "schemes"), [("AWS_OIDC", {"s3"}), ("AWS_ASSUME_ROLE", {"s3"}), ("GCP_OIDC", {"gs"})]
)
def test_a_method_goes_with_its_own_store_alone(method: str, schemes: set[str]) -> None:
    for scheme in ("hf", "s3", "gs", "azure", "r2", "cw", "https"):
        source = {"hf": "hf://a/b", "r2": "r2://account.bucket/c"}.get(scheme, f"{scheme}://a/b/c")
        found = parse_source(source)
        Weights(found, "/m", auth=OWN["CUSTOM_SECRET"])
        if scheme in schemes:
            Weights(found, "/m", auth=OWN[method])
        else:
            with pytest.raises(
                SpecError, match=f"{method} goes with .* not with {scheme}://; use .*CUSTOM_SECRET"
            ):
                Weights(found, "/m", auth=OWN[method])


def test_in_a_spec_the_place_is_named() -> None:
    auth = {"auth_method": "gcp_oidc", **dict.fromkeys(METHODS["GCP_OIDC"], "x")}
    spec = {"weights": [{"source": "s3://b/p", "mount_location": "/m", "auth": auth}]}
    with pytest.raises(
        SpecError, match=r"^spec.yaml: weights\[0\].auth: auth_method GCP_OIDC goes with gs://"
    ):
        parse_spec(spec, "spec.yaml")
