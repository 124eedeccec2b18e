"""Clients of the running service."""

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.conftest import Service


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.address, timeout=300) as http:
        yield http
