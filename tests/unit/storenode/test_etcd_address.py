"""The setting that says where etcd is."""

from __future__ import annotations

import pytest

from client.errors import Misconfigured
from storenode.config import load_node_config
from storenode.etcd_address import Endpoint, EtcdAddress


@pytest.mark.parametrize(
    ("url", "endpoints", "prefix", "tls"),
    [
        ("etcd://one:2379", [("one", 2379)], "forebay", False),
        ("etcds://10.0.0.1:1,[::1]:2,three:3/blue-1", [("10.0.0.1", 1), ("::1", 2), ("three", 3)], "blue-1", True),
    ],
)
def test_an_address_has_members_a_prefix_and_perhaps_tls(
    url: str, endpoints: list[tuple[str, int]], prefix: str, tls: bool
) -> None:
    expected = EtcdAddress(endpoints=tuple(Endpoint(host=host, port=port) for host, port in endpoints), prefix=prefix, tls=tls)
    assert EtcdAddress.parse(url) == expected
    assert EtcdAddress.parse(str(expected)) == expected
    assert load_node_config(data_dir="/data", meta=url).meta_engine == expected


@pytest.mark.parametrize(
    "url",
    [
        "etcd://",
        "etcd://one",
        "etcd://one:x",
        "etcd://one:0",
        "etcd://one:1,",
        "etcd://::1:2379",
        "etcd://[::1:2379",
        "etcd://one:1/",
        "etcd://one:1/a/b",
        "etcd://one:1/" + "x" * 33,
        "etcd://one:1?x",
        "http://one:1",
    ],
)
def test_what_is_no_address_is_refused_with_the_form(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected etcd://HOST:PORT\[,HOST:PORT...\]\[/PREFIX\]"):
        EtcdAddress.parse(url)


@pytest.mark.parametrize("url", ["etcd://me:secret@one:1", "etcds://me:secret@one:1/p", "postgres://me:secret@one"])
def test_a_password_in_the_address_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        load_node_config(data_dir="/data", meta=url)
    assert "secret" not in str(refused.value)
    assert "secret" not in str(refused.value.__cause__)


def test_a_password_is_not_part_of_what_a_configuration_shows() -> None:
    config = load_node_config(data_dir="/data", meta="etcd://one:1", etcd_user="me", etcd_password="hunter2")
    assert "hunter2" not in repr(config)
