"""The configuration: who wins, what is refused, and that no secret shows."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from client.config import load_config
from client.errors import Misconfigured


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment without any setting; returns where the config file would be."""
    for name in ("ENDPOINT", "TOKEN", "PROFILE", "DEADLINE_S", "MAX_THREADS"):
        monkeypatch.delenv(f"FOREBAY_{name}", raising=False)
    path = tmp_path / "config.toml"
    monkeypatch.setenv("FOREBAY_CONFIG", str(path))
    return path


def test_defaults() -> None:
    config, origin = load_config()
    assert config.endpoints == ("http://127.0.0.1:7070",)
    assert config.token is None
    assert origin == "the default"


def test_arguments_win_over_variables_and_variables_over_the_profile(
    monkeypatch: pytest.MonkeyPatch, no_settings: Path
) -> None:
    no_settings.write_text('[profiles.lab]\nendpoint = "http://profile:1"\nmax_threads = 3\ntoken = "from-profile"\n')
    config, origin = load_config(profile="lab")
    assert (config.endpoint, config.max_threads, config.token) == ("http://profile:1", 3, "from-profile")
    assert origin == f"profile 'lab' in {no_settings}"

    monkeypatch.setenv("FOREBAY_PROFILE", "lab")
    monkeypatch.setenv("FOREBAY_ENDPOINT", "http://variable:1")
    monkeypatch.setenv("FOREBAY_MAX_THREADS", "5")
    config, origin = load_config()
    assert (config.endpoint, config.max_threads, config.token) == ("http://variable:1", 5, "from-profile")
    assert origin == "FOREBAY_ENDPOINT"

    config, origin = load_config(endpoints=["http://argument:1", "http://[::1]:2"], token="given")
    assert (config.endpoints, config.token) == (("http://argument:1", "http://[::1]:2"), "given")
    assert origin == "the endpoints argument"


def test_a_profile_without_an_endpoint_is_not_named_as_its_origin(no_settings: Path) -> None:
    no_settings.write_text("[profiles.lab]\nmax_threads = 3\n")
    assert load_config(profile="lab")[1] == "the default"


def test_endpoints_are_split_and_trimmed() -> None:
    config, _ = load_config(endpoints=" http://a:1/ , http://b:2,")
    assert config.endpoints == ("http://a:1", "http://b:2")


@pytest.mark.parametrize("endpoints", ["", " , ", [], "127.0.0.1:7070", "http://a:1,https://b:2", "http://a:x"])
def test_bad_endpoints_say_where_they_came_from_and_how_they_should_look(endpoints: str | list[str]) -> None:
    with pytest.raises(Misconfigured, match=r"\(from the endpoints argument\).*http://") as caught:
        load_config(endpoints=endpoints)
    assert "Value error" not in caught.value.message


def test_values_out_of_bounds_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_MAX_THREADS", "0")
    monkeypatch.setenv("FOREBAY_DEADLINE_S", "soon")
    with pytest.raises(Misconfigured, match=r"max_threads.*deadline_s|deadline_s.*max_threads"):
        load_config()


def test_settings_of_a_node_in_the_environment_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_DATA_DIR", "/somewhere")
    load_config()


def test_an_unknown_setting_in_a_profile_is_named(no_settings: Path) -> None:
    no_settings.write_text('[profiles.lab]\nendpoints = "http://a:1"\n')
    with pytest.raises(Misconfigured, match="endpoints"):
        load_config(profile="lab")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no config file"),
        (b"[profiles", "not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
        (b"", "no section"),
        (b"[profiles.other]\n", "no section"),
        (b"profiles = 5\n", "no section"),
        (b"[profiles]\nlab = 5\n", "no section of settings"),
    ],
)
def test_a_profile_that_is_not_there_says_what_is_missing(no_settings: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        no_settings.write_bytes(content)
    with pytest.raises(Misconfigured, match=said):
        load_config(profile="lab")


def test_a_config_file_that_is_a_folder_is_misconfigured(no_settings: Path) -> None:
    no_settings.mkdir()
    with pytest.raises(Misconfigured, match="can't be read"):
        load_config(profile="lab")


def test_the_token_shows_neither_in_the_configuration_nor_in_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_TOKEN", "hush")
    config, _ = load_config()
    assert config.token == "hush"
    assert "hush" not in repr(config) + str(config)
    monkeypatch.setenv("FOREBAY_TOKEN", "hush hush")
    with pytest.raises(Misconfigured, match="token") as caught:
        load_config()
    assert "hush hush" not in "".join(traceback.format_exception(caught.value))


def test_an_empty_token_is_none_to_send(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_TOKEN", "")
    assert not load_config()[0].token


def test_the_configuration_is_frozen() -> None:
    config, _ = load_config()
    with pytest.raises(Exception, match="frozen"):
        config.token = "other"
