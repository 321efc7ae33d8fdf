"""Listening sockets: opened side by side, and never over somebody else's."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from proxy import descriptors, listeners
from proxy.addresses import Address
from proxy.listeners import AddressError, listening_inodes, open_shared, owner_of, probe
from proxy.supervisor import backoff

PROC_NET_TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0
   1: 0100007F:3A99 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0
   2: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1 0
   3: 00000000:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 444 1 0
"""


def free_address() -> Address:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return Address("127.0.0.1", server.getsockname()[1])


def test_each_copy_listens_and_connections_reach_one_of_them() -> None:
    address = free_address()
    copies = open_shared(address, 3)
    try:
        with socket.create_connection(address):
            accepted = 0
            for copy in copies:
                try:
                    copy.accept()[0].close()
                    accepted += 1
                except BlockingIOError:
                    pass
            assert accepted == 1
    finally:
        listeners.close(copies)


def test_a_taken_port_is_told_with_its_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        name = Path("/proc/self/comm").read_text().strip()
        with pytest.raises(AddressError) as caught:
            open_shared(Address("127.0.0.1", port), 2)
        assert str(caught.value) == f"port {port} is taken by pid {os.getpid()}, {name} (127.0.0.1:{port})"
        assert owner_of(port) == (os.getpid(), name)


def test_even_a_port_that_others_share_is_taken() -> None:
    address = free_address()
    copies = open_shared(address, 1)
    try:
        with pytest.raises(AddressError, match="is taken by pid"):
            probe(address)
    finally:
        listeners.close(copies)


def test_a_port_left_in_time_wait_is_free() -> None:
    address = free_address()
    (server,) = open_shared(address, 1)
    server.setblocking(True)
    client = socket.create_connection(address)
    accepted, _ = server.accept()
    accepted.close()  # closes first, so the server's side keeps TIME_WAIT
    client.recv(1)
    client.close()
    server.close()
    probe(address)


def test_an_address_that_is_not_ours_is_told() -> None:
    with pytest.raises(
        AddressError, match=r"cannot listen on 192\.0\.2\.1:1: Cannot assign requested address"
    ):
        probe(Address("192.0.2.1", 1))


def test_wildcards_of_both_families_stand_side_by_side() -> None:
    port = free_address().port
    four = open_shared(Address("0.0.0.0", port), 1)
    try:
        six = open_shared(Address("::", port), 1)
    finally:
        listeners.close(four)
    listeners.close(six)


def test_listeners_of_a_port_are_read_from_proc() -> None:
    assert listening_inodes(PROC_NET_TCP, 15001) == {"111", "444"}
    assert listening_inodes(PROC_NET_TCP, 80) == set()
    assert listening_inodes("", 80) == set()


def test_a_low_limit_of_files_is_told_with_what_to_do() -> None:
    assert descriptors.shortage(2 * 100 + descriptors.RESERVE, 100) is None
    said = descriptors.shortage(1024, 8192)
    assert said is not None
    assert "enough for 384 of its 8192 connections" in said
    assert "LimitNOFILE=16640" in said


def test_the_first_death_costs_no_time_and_endless_ones_not_much() -> None:
    assert [backoff(n) for n in range(5)] == [0, 0, 0.1, 0.2, 0.4]
    assert backoff(100) == 5.0
