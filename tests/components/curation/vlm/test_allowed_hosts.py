"""Images stay on the machine or the cluster unless the user allows a host by name."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.curation.vlm.allowed_hosts import check_address
from components.errors import BadInput

LOCAL_ADDRESSES = [
    "http://127.0.0.1:8000/v1",
    "http://127.3.4.5/v1",
    "http://localhost:8000/v1/",
    "https://LOCALHOST/v1",
    "http://[::1]:8000/v1",
    "http://vllm.omnimri.svc:8000/v1",
    "http://vllm.omnimri.svc.cluster.local/v1",
]
REMOTE_ADDRESSES = [
    "https://api.openai.com/v1",
    "http://8.8.8.8/v1",
    "http://10.0.0.7:8000/v1",
    "http://localhost.example.org/v1",
    "http://127.0.0.1.example.org/v1",
    "http://localhost@example.org/v1",
    "http://user:word@127.0.0.1/v1",
    "http://svc/v1",
    "http://vllm.svc.example.org/v1",
    "http://0.0.0.0:8000/v1",
    "http://[::ffff:8.8.8.8]/v1",
    "ftp://127.0.0.1/v1",
    "127.0.0.1:8000",
    "",
]


@pytest.mark.parametrize("url", LOCAL_ADDRESSES)
def test_addresses_of_this_machine_and_its_cluster_are_allowed(url: str) -> None:
    assert check_address(url) == url.rstrip("/")


@pytest.mark.parametrize("url", REMOTE_ADDRESSES)
def test_every_other_address_is_refused(url: str) -> None:
    with pytest.raises(BadInput, match=r"curation\.visual\.server"):
        check_address(url)


def test_a_host_that_the_user_names_is_allowed_and_no_other() -> None:
    assert check_address("https://vlm.hospital.example/v1", ["vlm.hospital.example"])
    with pytest.raises(BadInput, match=r"other\.example is outside"):
        check_address("https://other.example/v1", ["vlm.hospital.example"])


@settings(max_examples=50)
@given(host=st.from_regex(r"[a-z]{1,12}(\.[a-z]{1,8}){1,3}", fullmatch=True))
def test_no_public_host_name_is_allowed(host: str) -> None:
    if not host.endswith((".svc", ".cluster.local")):
        with pytest.raises(BadInput):
            check_address(f"https://{host}/v1")
