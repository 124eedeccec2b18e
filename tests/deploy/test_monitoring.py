"""Alerts and dashboard, asked of a real Prometheus that scrapes a running service."""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deploy.serve import free_port
from tests.conftest import ROOT, Service
from tests.programs import program, run

RECORDING = ROOT / "tests/data/demo.flac"
RULES = ROOT / "deploy/prometheus/alerts.yml"
CONFIG = ROOT / "deploy/prometheus/prometheus.yml"
ALERTS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads(
    (ROOT / "deploy/grafana/dashboards/kimi-transcribe.json").read_text(encoding="utf-8")
)
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"].replace("$instance", ".*").replace("$__rate_interval", "1m")
    for panel in PANELS
    for target in panel["targets"]
}
SERIES = re.compile(r"\b(?:kimi_\w+|vllm:\w+|process_\w+)")
WAIT_SECONDS = 60.0


@pytest.fixture(scope="module")
def prometheus(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Prometheus as deployed, but for the address it scrapes and a quicker pace, after some requests."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES)]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [service.address.removeprefix("http://")]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    command = [
        program("prometheus"),
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    with subprocess.Popen(command) as process, httpx.Client(base_url=f"http://{address}/api/v1") as client:
        try:
            until(lambda: httpx.get(f"http://{address}/-/ready").is_success)
            until(lambda: ask(client, "up == 1"))
            for content in (RECORDING.read_bytes(), RECORDING.read_bytes(), b"no recording"):
                files = {"file": ("recording", content)}
                httpx.post(f"{service.address}/transcribe", files=files, data={"max_tokens": "32"}, timeout=120)
            until(lambda: ask(client, 'count_over_time(kimi_rejected_total{reason="unsupported_format"}[1m]) > 2'))
            yield client
        finally:
            process.terminate()


def until(condition: Callable[[], Any]) -> None:
    """Wait for `condition`, for at most a minute."""
    end = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            if condition():
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < end
        time.sleep(0.2)


def ask(client: httpx.Client, query: str) -> list[Any]:
    answer = client.get("/query", params={"query": query}).json()
    assert answer["status"] == "success", answer
    result: list[Any] = answer["data"]["result"]
    return result


def test_promtool_accepts_configuration_and_alerts() -> None:
    run(program("promtool"), "check", "config", CONFIG)


def test_alerts_fire_when_they_should() -> None:
    run(program("promtool"), "test", "rules", ROOT / "tests/deploy/alerts_test.yml")


def test_every_alert_is_tested_and_says_how_bad_it_is_and_what_to_do() -> None:
    tested = yaml.safe_load((ROOT / "tests/deploy/alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    assert {alert["alert"] for alert in ALERTS} <= {test["name"] for test in tested}
    for alert in ALERTS:
        assert alert["for"]
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert alert["annotations"].keys() == {"summary", "runbook"}


def test_alerts_watch_errors_that_there_are() -> None:
    codes = set(
        re.findall(r"`(\w+)`", (ROOT / "README.md").read_text(encoding="utf-8").split("| status | `code` |")[1])
    )
    for alert in ALERTS:
        for reasons in re.findall(r'reason=~?"([^"]+)"', alert["expr"]):
            assert set(reasons.split("|")) <= codes


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_of_the_dashboard_has_an_answer(prometheus: httpx.Client, name: str) -> None:
    assert ask(prometheus, QUERIES[name])


def test_alerts_are_evaluated_without_error(prometheus: httpx.Client) -> None:
    def rules() -> list[dict[str, Any]]:
        (group,) = prometheus.get("/rules").json()["data"]["groups"]
        found: list[dict[str, Any]] = group["rules"]
        return found

    until(lambda: all(rule["health"] != "unknown" for rule in rules()))
    assert {rule["name"]: rule["health"] for rule in rules()} == {alert["alert"]: "ok" for alert in ALERTS}


@pytest.mark.usefixtures("prometheus")
def test_series_exist_and_the_service_s_own_are_all_shown(service: Service) -> None:
    text = httpx.get(f"{service.address}/metrics").text
    families = list(text_string_to_metric_families(text))
    names = {sample.name for family in families for sample in family.samples}
    shown = {name for query in QUERIES.values() for name in SERIES.findall(query)}
    alerted = {name for alert in ALERTS for name in SERIES.findall(alert["expr"])}
    assert shown | alerted <= names
    own = {family.name for family in families if family.name.startswith("kimi_")}
    assert own <= {re.sub("_(bucket|sum|total)$", "", name) for name in shown}


def test_the_dashboard_is_whole() -> None:
    data_source = yaml.safe_load(
        (ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8")
    )["datasources"][0]
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        covered = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not covered & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        cells |= covered
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {data_source["uid"]}


def test_the_home_dashboard_is_the_one_that_is_mounted() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["grafana"]
    mounts = dict(volume.split(":")[:2][::-1] for volume in compose["volumes"])
    home = Path(compose["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (ROOT / mounts[str(home.parent)] / home.name).is_file()
    provider = yaml.safe_load(
        (ROOT / "deploy/grafana/provisioning/dashboards/kimi-transcribe.yml").read_text(encoding="utf-8")
    )["providers"][0]
    assert provider["options"]["path"] == str(home.parent)
