"""The node's configuration: from the environment, checked at start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from client.errors import Misconfigured
from storenode.config import NodeConfig, load_node_config

REQUIRED: dict[str, Any] = {"data_dir": "/data", "meta": "sqlite:////meta/meta.db"}


def test_settings_come_from_the_environment_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_DATA_DIR", "/from/env")
    monkeypatch.setenv("FOREBAY_META", "sqlite:///meta.db")
    monkeypatch.setenv("FOREBAY_PORT", "8080")
    config = load_node_config(port=9090)
    assert (config.data_dir, config.port) == (Path("/from/env"), 9090)
    assert config.meta_engine == Path("meta.db")
    assert load_node_config(**REQUIRED).meta_engine == Path("/meta/meta.db")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_no_secret(host: str) -> None:
    assert load_node_config(**REQUIRED, host=host).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "node.example", "localhost.example", ""])
def test_other_addresses_need_a_secret_or_the_operator_to_say_so(host: str) -> None:
    with pytest.raises(Misconfigured, match=r"FOREBAY_SECRET_FILE.*forebay secret create.*--insecure"):
        load_node_config(**REQUIRED, host=host)
    with pytest.raises(Misconfigured, match="--insecure"):
        NodeConfig(**REQUIRED, host=host)
    assert load_node_config(**REQUIRED, host=host, insecure=True).host == host
    assert load_node_config(**REQUIRED, host=host, secret_file=Path("/secret")).host == host


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"port": 70_000}, "FOREBAY_PORT"),
        ({"meta": "redis://x"}, r"expected sqlite:///PATH or etcd://.*found 'redis://x'"),
        ({"meta": "etcd://"}, "HOST:PORT"),
        ({"max_etcd_connections": 0}, "FOREBAY_MAX_ETCD_CONNECTIONS"),
        ({"meta": "sqlite:///"}, "expected sqlite:///PATH"),
        ({"weight": 0}, "FOREBAY_WEIGHT"),
        ({"weight": float("inf")}, "FOREBAY_WEIGHT"),
        ({"max_body_bytes": 1 << 20}, "two chunks"),
        ({"colour": "blue"}, "colour"),
        ({"data_dir": None}, "FOREBAY_DATA_DIR"),
    ],
)
def test_wrong_settings_name_the_variable(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(Misconfigured, match=said):
        load_node_config(**{**REQUIRED, **settings})


def test_missing_settings_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOREBAY_DATA_DIR", raising=False)
    monkeypatch.delenv("FOREBAY_META", raising=False)
    with pytest.raises(Misconfigured, match=r"FOREBAY_META.*FOREBAY_DATA_DIR"):
        load_node_config()


def test_configuration_is_frozen() -> None:
    config = load_node_config(**REQUIRED)
    with pytest.raises(ValueError, match="frozen"):
        config.port = 1
