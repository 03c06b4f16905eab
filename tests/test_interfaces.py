"""Which interface leads where, on this machine."""

from __future__ import annotations

import os
import sys

import pytest

from runtime.interfaces import _interface_of, address_towards, choose_interface

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="interfaces are asked for their addresses as on Linux")


@on_linux
def test_the_loopback_is_found_by_its_address() -> None:
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert _interface_of("127.0.0.1") == "lo"
    assert _interface_of("192.0.2.1") is None


def test_a_host_without_an_address_leads_nowhere() -> None:
    assert address_towards("no-such-host.invalid") is None


def test_what_the_user_has_chosen_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"


@on_linux
def test_the_loopback_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] != "lo"
