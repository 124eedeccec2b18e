"""The Dockerfile and the compose file, as far as they can be checked without a Docker engine."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import PREFIX, Settings
from tests.conftest import ROOT
from tests.programs import program, run

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PROFILES = ("gpu", "cpu")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def test_hadolint_finds_nothing() -> None:
    assert run(program("hadolint"), "--no-color", "--failure-threshold=style", ROOT / "Dockerfile") == ""


def test_the_image_has_the_vllm_that_the_project_asks_for() -> None:
    (pinned,) = PROJECT["optional-dependencies"]["gpu"]
    assert f"vllm/vllm-openai:v{pinned.removeprefix('vllm==')}\n" in DOCKERFILE


def test_image_and_makefile_install_alike() -> None:
    assert "deploy/install python3 ${VARIANT}" in DOCKERFILE
    assert "pip install" not in DOCKERFILE
    assert "deploy/install $(VENV)/bin/python $(DEVICE)" in (ROOT / "Makefile").read_text(encoding="utf-8")
    refused = subprocess.run([ROOT / "deploy/install", "python3", "tpu"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr) == (2, "deploy/install: 'tpu' is not cpu, gpu or vllm.\n")


def test_everything_that_the_image_copies_exists_and_passes_the_dockerignore() -> None:
    copied = {source for line in re.findall(r"^COPY (.+)", DOCKERFILE, re.MULTILINE) for source in line.split()[:-1]}
    assert {"app", "model", "pyproject.toml", "deploy/install"} <= copied
    passes = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for source in copied:
        assert (ROOT / source).exists()
        assert any(f"!{pattern}" in passes for pattern in (source, f"{source}/**", f"{Path(source).parent}/**"))


def test_the_service_is_process_one_and_not_root() -> None:
    assert 'ENTRYPOINT ["python3", "-m", "app"]' in DOCKERFILE
    assert re.search(r"^USER [1-9][0-9]*$", DOCKERFILE, re.MULTILINE)


@pytest.mark.parametrize("profile", PROFILES)
def test_compose_reads_the_file(profile: str) -> None:
    plugin = ["docker", "compose"]
    there = shutil.which("docker") and subprocess.run([*plugin, "version"], capture_output=True).returncode == 0
    command = plugin if there else [program("docker-compose")]
    run(*command, "--profile", profile, "config", "--quiet", cwd=ROOT)


def test_without_a_profile_the_gpu_service_runs(compose: dict[str, Any]) -> None:
    assert "COMPOSE_PROFILES=gpu\n" in (ROOT / ".env").read_text(encoding="utf-8")
    assert {name: service.get("profiles") for name, service in compose["services"].items()} == {
        "gpu": ["gpu"],
        "cpu": ["cpu"],
        "prometheus": None,
        "grafana": None,
    }


@pytest.mark.parametrize("profile", PROFILES)
def test_no_two_services_of_a_profile_want_one_port(compose: dict[str, Any], profile: str) -> None:
    active = [service for service in compose["services"].values() if service.get("profiles", [profile]) == [profile]]
    ports = [port for service in active for port in service["ports"]]
    assert len(ports) == len(set(ports)) == 3
    assert all(port.startswith("${BIND_ADDRESS:-127.0.0.1}:") for port in ports)


def test_prometheus_scrapes_whichever_service_runs(compose: dict[str, Any]) -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    host, port = target.split(":")
    for profile in PROFILES:
        service = compose["services"][profile]
        assert service["networks"]["default"]["aliases"] == [host]
        assert service["ports"][0].endswith(f":{port}")
    assert f"KIMI_PORT={port}" in DOCKERFILE


def test_what_is_mounted_exists(compose: dict[str, Any]) -> None:
    mounts = [volume.split(":") for service in compose["services"].values() for volume in service.get("volumes", [])]
    for source, *_ in mounts:
        assert (ROOT / source).is_dir() if source.startswith("./") else source in compose["volumes"]


def test_every_setting_named_here_is_one() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    files = [ROOT / "Dockerfile", ROOT / "docker-compose.yml", ROOT / "Makefile", ROOT / "README.md"]
    files += [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    for path in files:
        assert set(re.findall(r"\bKIMI_[A-Z_]+\b", path.read_text(encoding="utf-8"))) <= known, path


def test_images_are_pinned(compose: dict[str, Any]) -> None:
    pulled = [service["image"] for service in compose["services"].values() if "build" not in service]
    pulled += re.findall(r"^ARG \w+_IMAGE=(.+)", DOCKERFILE, re.MULTILINE)
    assert len(pulled) == 4
    assert all(re.search(r":v?\d+\.\d+", image) for image in pulled)
