import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdnfs.core.errors import CredentialsError, SpecError
from bdnfs.core.units import GIB, MIB
from bdnfs.spec import config as config_module
from bdnfs.spec.config import (
    CacheConfig,
    Config,
    Secret,
    SecretsConfig,
    UpstreamConfig,
    load_config,
    parse_config,
)
from bdnfs.spec.upstream import OidcConfig


@pytest.fixture(autouse=True)
def no_system_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine has in /etc and /secrets must not decide a test."""
    monkeypatch.setattr(config_module, "SYSTEM_CONFIG", str(tmp_path / "etc.yaml"))
    monkeypatch.setattr(config_module, "SYSTEM_SECRETS", str(tmp_path / "secrets"))


def write(path: Path, content: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return str(path)


def test_everything_has_a_default(tmp_path: Path) -> None:
    home = str(tmp_path)
    assert load_config(None, {"HOME": home}) == Config(
        cache=CacheConfig(f"{home}/.cache/bdnfs", None, GIB),
        secrets=SecretsConfig(f"{home}/.config/bdnfs/secrets"),
        upstream=UpstreamConfig(
            hf_endpoint="https://huggingface.co", fetches_max=16, stall_s=30.0, attempts=5
        ),
        read_deadline_s=300.0,
    )


def test_the_whole_config_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.yaml",
        "cache: {directory: ~/nvme, capacity: 1.5TiB, reserve: 10GB}\n"
        "secrets: {directory: /run/secrets}\n"
        "tenant: team-a\n"
        "read_deadline: 2m\n"
        "upstream: {hf_endpoint: 'http://hub:8080/', fetches: 32, stall: 5, attempts: 1}\n",
    )
    assert load_config(path, {"HOME": "/home/u"}) == Config(
        cache=CacheConfig("/home/u/nvme", 3 << 39, 10**10),
        secrets=SecretsConfig("/run/secrets"),
        upstream=UpstreamConfig(hf_endpoint="http://hub:8080", fetches_max=32, stall_s=5.0, attempts=1),
        tenant="team-a",
        read_deadline_s=120.0,
        path=path,
    )


def test_the_first_config_that_is_there_counts(tmp_path: Path) -> None:
    home = tmp_path / "home"
    environment = {"HOME": str(home)}

    def tenant(explicit: str | None = None) -> str | None:
        return load_config(explicit, environment).tenant

    assert tenant() is None
    write(tmp_path / "etc.yaml", "tenant: system")
    assert tenant() == "system"
    write(home / ".config/bdnfs/config.yaml", "tenant: user")
    assert tenant() == "user"
    environment["XDG_CONFIG_HOME"] = str(tmp_path / "xdg")
    assert tenant() == "system"
    write(tmp_path / "xdg/bdnfs/config.yaml", "tenant: xdg")
    assert tenant() == "xdg"
    environment["BDNFS_CONFIG"] = write(tmp_path / "variable.yaml", "tenant: variable")
    assert tenant() == "variable"
    assert tenant(write(tmp_path / "explicit.yaml", "tenant: explicit")) == "explicit"


def test_a_config_that_is_named_must_be_there(tmp_path: Path) -> None:
    for explicit, environment in [
        (str(tmp_path / "no.yaml"), {}),
        (None, {"BDNFS_CONFIG": str(tmp_path / "no.yaml")}),
    ]:
        with pytest.raises(SpecError, match=r"can't read the config '.*no\.yaml': No such file"):
            load_config(explicit, environment)


def test_an_empty_config_is_all_defaults(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "# nothing yet\n")
    assert load_config(path, {}).upstream == UpstreamConfig()


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "cache: {directory: /a}\nupstream: {hf_endpoint: 'https://a'}\n")
    config = load_config(path, {"HOME": "/h", "BDNFS_CACHE_DIR": "~/b", "HF_ENDPOINT": "https://b/"})
    assert config.cache.directory == "/h/b"
    assert config.upstream.hf_endpoint == "https://b"


def test_the_cache_lies_in_the_users_cache_home() -> None:
    assert load_config(None, {"HOME": "/h", "XDG_CACHE_HOME": "/x"}).cache.directory == "/x/bdnfs"
    # The base directory specification: a relative value is to be ignored.
    assert load_config(None, {"HOME": "/h", "XDG_CACHE_HOME": "x"}).cache.directory == "/h/.cache/bdnfs"


def test_no_home_is_no_reason_to_fail() -> None:
    assert load_config(None, {}).cache.directory.startswith("/")


def test_the_system_secrets_are_used_where_there_are_any(tmp_path: Path) -> None:
    assert load_config(None, {"HOME": "/h"}).secrets.directory == "/h/.config/bdnfs/secrets"
    (tmp_path / "secrets").mkdir()
    assert load_config(None, {"HOME": "/h"}).secrets.directory == str(tmp_path / "secrets")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "c.yaml: expected a mapping"),
        ({"cahce": {}}, "c.yaml: cahce: unknown key; did you mean 'cache'?"),
        ({"cache": {"dir": "/x"}}, "c.yaml: cache.dir: unknown key; did you mean 'directory'?"),
        ({"cache": "/x"}, "c.yaml: cache: expected a mapping"),
        ({"cache": {"directory": "x"}}, "c.yaml: cache.directory: 'x' is relative"),
        ({"cache": {"directory": ["x"]}}, "c.yaml: cache.directory: expected text, found a list"),
        ({"cache": {"capacity": "lots"}}, "c.yaml: cache.capacity: 'lots' is not a size"),
        ({"cache": {"capacity": True}}, "c.yaml: cache.capacity: expected a size"),
        ({"cache": {"capacity": 0}}, "c.yaml: cache.capacity: 0 B is too little"),
        ({"cache": {"capacity": 64 * MIB - 1}}, "c.yaml: cache.capacity: 64 MiB is too little"),
        ({"cache": {"reserve": -1}}, "c.yaml: cache.reserve: -1 is not a size"),
        ({"cache": {"reserve": 1.5}}, "c.yaml: cache.reserve: expected a size"),
        ({"mirror": "hf://b/p"}, "c.yaml: mirror: 'hf://b/p' can't be a mirror"),
        ({"mirror": "relative"}, "c.yaml: mirror: 'relative' can't be a mirror"),
        ({"mirror": {}}, "c.yaml: mirror: has no url"),
        (
            {"mirror": {"url": "/m", "namespace": "Objects!"}},
            "c.yaml: mirror.namespace: 'Objects!': 'Objects!' is no namespace's name",
        ),
        (
            {"mirror": {"url": "/m", "auth_secret_name": "../x"}},
            "c.yaml: mirror.auth_secret_name: auth_secret_name '../x' can't",
        ),
        ({"cluster": {}}, "c.yaml: cluster: needs a mirror"),
        ({"cluster": {}, "mirror": "/m"}, "c.yaml: cluster: needs one of members"),
        ({"secrets": {"directory": "./s"}}, "c.yaml: secrets.directory: './s' is relative"),
        ({"tenant": "a/b"}, "c.yaml: tenant: 'a/b' can't name a tenant"),
        ({"tenant": 7}, "c.yaml: tenant: expected text, found the number 7; put it in quotes"),
        ({"read_deadline": "0s"}, "c.yaml: read_deadline: '0s' leaves no time"),
        ({"read_deadline": "never"}, "c.yaml: read_deadline: 'never' is not a duration"),
        ({"read_deadline": [1]}, "c.yaml: read_deadline: expected a duration"),
        ({"upstream": {"fetches": 0}}, "c.yaml: upstream.fetches: expected a number from 1 to"),
        ({"upstream": {"attempts": "5"}}, "c.yaml: upstream.attempts: expected a number from 1 to"),
        ({"upstream": {"hf_token": "hunter2"}}, "c.yaml: upstream.hf_token: unknown key"),
        ({"upstream": {"hf_endpoint": "hub"}}, "c.yaml: upstream.hf_endpoint: 'hub' is not a URL"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(data: object, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_config(data, "c.yaml", {"HOME": "/h"})
    assert str(caught.value).startswith(message)
    assert "hunter2" not in str(caught.value)


def test_a_relative_cache_directory_in_the_environment_is_refused() -> None:
    with pytest.raises(SpecError, match="BDNFS_CACHE_DIR: 'x' is relative"):
        load_config(None, {"BDNFS_CACHE_DIR": "x"})


@pytest.mark.parametrize(
    "value",
    ["hub", "ftp://h", "http://", "http://h:x", "http://u:hunter2@h", "http://h?x=hunter2", "http://a b"],
)
def test_an_endpoint_that_is_no_url_is_refused(value: str) -> None:
    with pytest.raises(SpecError, match=r"^HF_ENDPOINT: ") as caught:
        load_config(None, {"HF_ENDPOINT": value})
    assert "hunter2" not in str(caught.value)


def token(environment: dict[str, str]) -> str | None:
    secret = load_config(None, environment).upstream.hf_token
    return secret.value if secret else None


def test_the_hubs_token_is_found_as_the_hubs_client_finds_it(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path)}
    assert token(environment) is None
    write(tmp_path / ".cache/huggingface/token", "of-home\n")
    assert token(environment) == "of-home"
    write(tmp_path / "xdg/huggingface/token", "of-xdg")
    environment["XDG_CACHE_HOME"] = str(tmp_path / "xdg")
    assert token(environment) == "of-xdg"
    write(tmp_path / "hf/token", "of-hf-home")
    environment["HF_HOME"] = "~/hf"
    assert token(environment) == "of-hf-home"
    environment["HF_TOKEN_PATH"] = write(tmp_path / "t", "of-path")
    assert token(environment) == "of-path"
    environment["HUGGING_FACE_HUB_TOKEN"] = "of-old-variable"
    assert token(environment) == "of-old-variable"
    environment["HF_TOKEN"] = " of-variable\n"
    assert token(environment) == "of-variable"
    environment["HF_TOKEN"] = ""
    assert token(environment) == "of-old-variable"
    del environment["HUGGING_FACE_HUB_TOKEN"]
    assert token({**environment, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}) is None


@pytest.mark.parametrize("value", ["hunter2 x", "hunter2\nHost: evil", "hünter2", "\x7fhunter2"])
def test_a_token_that_is_none_is_refused_and_not_shown(tmp_path: Path, value: str) -> None:
    with pytest.raises(CredentialsError, match="HF_TOKEN") as caught:
        load_config(None, {"HF_TOKEN": value})
    assert value not in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "offline"), [("1", True), ("yes", True), ("TRUE", True), ("0", False), ("", False)]
)
def test_the_hubs_offline_variable_is_honoured(value: str, offline: bool) -> None:
    assert load_config(None, {"HF_HUB_OFFLINE": value}).offline is offline


def test_aws_variables_are_taken_as_they_are() -> None:
    environment = {
        "AWS_ACCESS_KEY_ID": "AK",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9000",
        "AWS_REGION": "",
        "AWS_PROFILE": "p",
        "OTHER": "x",
    }
    aws = load_config(None, environment).upstream.aws
    assert aws == {name: environment[name] for name in environment if name not in ("AWS_REGION", "OTHER")}


@pytest.mark.parametrize(
    ("environment", "proxies"),
    [
        ({}, {}),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "a,.b"}, {"https": "http://p:1", "no": "a,.b"}),
        ({"https_proxy": "http://low", "HTTPS_PROXY": "http://up"}, {"https": "http://low"}),
        ({"https_proxy": "", "HTTPS_PROXY": "http://up"}, {}),
        ({"HTTP_PROXY": "http://p", "all_proxy": "socks5://q"}, {"http": "http://p", "all": "socks5://q"}),
        ({"HTTP_PROXY": "http://evil", "REQUEST_METHOD": "GET"}, {}),
        ({"http_proxy": "http://p", "REQUEST_METHOD": "GET"}, {"http": "http://p"}),
    ],
)
def test_proxies_are_read_in_both_cases(environment: dict[str, str], proxies: dict[str, str]) -> None:
    assert load_config(None, environment).upstream.proxies == proxies


def test_the_usual_variables_name_the_certificates() -> None:
    names = ["SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE"]
    environment: dict[str, str] = {}
    assert load_config(None, environment).upstream.ca_bundle is None
    for name in names:
        environment[name] = f"/{name}.pem"
        assert load_config(None, environment).upstream.ca_bundle == f"/{name}.pem"


def secretive() -> Config:
    return load_config(
        None,
        {
            "HOME": "/h",
            "HF_TOKEN": "hunter2",
            "AWS_SECRET_ACCESS_KEY": "hunter2",
            "AWS_SESSION_TOKEN": "hunter2",
            "HTTPS_PROXY": "http://u:hunter2@proxy",
        },
    )


def test_nothing_shows_the_secrets_of_a_config() -> None:
    from rich.pretty import pretty_repr

    config = secretive()
    for text in (repr(config), str(config), f"{config.upstream}", pretty_repr(config), repr(vars_of(config))):
        assert "hunter2" not in text
        assert "AWS_SECRET_ACCESS_KEY" in text


def vars_of(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__struct_fields__}


def test_a_config_travels_to_a_child_whole() -> None:
    config = secretive()
    again = msgspec.json.decode(msgspec.json.encode(config), type=Config)
    assert again == config
    assert again.upstream.hf_token == Secret("hunter2")
    assert again.upstream.aws["AWS_SESSION_TOKEN"] == "hunter2"


def test_reading_the_config_makes_nothing(tmp_path: Path) -> None:
    load_config(None, {"HOME": str(tmp_path)})
    assert os.listdir(tmp_path) == []


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["/a", "5m", "1TiB"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)
SECTIONS = {
    "cache": ["directory", "capacity", "reserve"],
    "secrets": ["directory"],
    "upstream": ["hf_endpoint", "fetches", "stall", "attempts"],
}
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        **{
            key: st.fixed_dictionaries({}, optional=dict.fromkeys(names, ANY))
            for key, names in SECTIONS.items()
        },
        **dict.fromkeys(["tenant", "read_deadline"], ANY),
    },
)


@given(
    ANY | CONFIGS,
    st.dictionaries(
        st.sampled_from(["HF_ENDPOINT", "HOME", "BDNFS_CACHE_DIR", "https_proxy"]), st.text(max_size=9)
    ),
)
def test_any_data_is_a_config_or_a_spec_error(data: object, environment: dict[str, str]) -> None:
    try:
        config = parse_config(data, "c.yaml", environment)
    except SpecError:
        return
    assert config.cache.directory.startswith("/")
    assert config.read_deadline_s > 0


def test_oidc_tokens_are_where_the_config_says_else_where_the_sdks_look(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "oidc: {aws_token_file: ~/aws, gcp_token_file: /run/gcp}\n")
    variables = {"HOME": "/home/u", "AWS_WEB_IDENTITY_TOKEN_FILE": "/run/aws"}
    assert load_config(path, variables).upstream.oidc == OidcConfig("/home/u/aws", "/run/gcp")
    assert parse_config({}, None, variables).upstream.oidc == OidcConfig("/run/aws", None)
    with pytest.raises(SpecError, match=r"oidc.aws_token_file: 'x' is relative"):
        parse_config({"oidc": {"aws_token_file": "x"}}, None, {})
    with pytest.raises(SpecError, match="did you mean 'aws_token_file'"):
        parse_config({"oidc": {"aws_token": "/x"}}, None, {})


def test_a_login_is_remembered_by_its_file(tmp_path: Path) -> None:
    home = str(tmp_path)
    (tmp_path / ".cache/huggingface").mkdir(parents=True)
    write(tmp_path / ".cache/huggingface/token", "hf_login\n")
    found = load_config(None, {"HOME": home}).upstream
    assert (found.hf_token, found.hf_login) == (Secret("hf_login"), f"{home}/.cache/huggingface/token")
    found = load_config(None, {"HOME": home, "HF_TOKEN": "hf_variable"}).upstream
    assert (found.hf_token, found.hf_login) == (Secret("hf_variable"), None)
