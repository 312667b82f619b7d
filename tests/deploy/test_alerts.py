"""Each alert fires when it should and at no other time, by promtool: a healthy service, of which one thing is changed."""

from pathlib import Path

import pytest
import yaml

from tests.deploy.tools import K8S, run, tool
from tests.service import ROOT

RULES = K8S / "components/monitoring/alerts.yaml"
ALERTS = {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule}

ANSWERED = 'convserve_requests_total{job="convserve",route="/predict",status="200"}'
FAILED = 'convserve_requests_total{job="convserve",route="/predict",status="503"}'
QUICK = 'convserve_request_seconds_bucket{job="convserve",route="/predict",le="0.5"}'
READY = 'convserve_ready{job="convserve",instance="a"}'
UP = 'up{job="convserve",instance="a"}'
WAIT = 'convserve_estimated_wait_seconds{job="convserve",instance="a"}'
REFUSED = 'convserve_rejected_total{job="convserve",reason="overloaded"}'
MEMORY = 'process_resident_memory_bytes{job="convserve",instance="a"}'
MODEL = 'convserve_model_info{{job="convserve",instance="{}",sha256="{}"}}'
REFUSED_MODEL = 'convserve_model_loads_total{job="convserve",instance="a",outcome="refused"}'
DRIFT = 'convserve_drift_psi{job="convserve",instance="a",feature="brightness"}'
DRIFT_LIMIT = 'convserve_drift_limit{job="convserve",instance="a",feature="brightness"}'
HOURS = 7

HEALTHY = {  # series to its samples, one a minute
    ANSWERED: "0+600x480",
    'convserve_request_seconds_count{job="convserve",route="/predict"}': "0+600x480",
    QUICK: "0+600x480",
    READY: "1x480",
    UP: "1x480",
    WAIT: "0.01x480",
    REFUSED: "0x480",
    'convserve_rejected_total{job="convserve",reason="undecodable_image"}': "0+60x480",  # the clients' fault
    MEMORY: "200000000x480",
    MODEL.format("a", 1): "1x480",
    MODEL.format("b", 1): "1x480",
    REFUSED_MODEL: "2x480",
    DRIFT: "0.08x480",
    DRIFT_LIMIT: "0.1x480",
}
CASES: dict[str, tuple[dict[str, str], set[str]]] = {  # what is changed, what fires
    "all is well": ({}, set()),
    "1 of 50 answers is a 5xx": ({FAILED: "0+12x480"}, {"ConvServeErrorsBurningFast", "ConvServeErrorsBurningSlowly"}),
    "1 of 100 answers is a 5xx": ({FAILED: "0+6x480"}, {"ConvServeErrorsBurningSlowly"}),
    "1 of 5 answers is slow": ({QUICK: "0+480x480"}, {"ConvServeSlowBurningFast", "ConvServeSlowBurningSlowly"}),
    "1 of 10 answers is slow": ({QUICK: "0+540x480"}, {"ConvServeSlowBurningSlowly"}),
    "an hour of 5xx five hours ago": ({FAILED: "0x60 0+60x60 3600x360"}, set()),
    "an instance does not answer": ({UP: "0x480"}, {"ConvServeDown"}),
    "no instance answers": ({READY: "_x480"}, {"ConvServeAbsent"}),
    "an instance is not ready": ({READY: "0x480"}, {"ConvServeNotReady"}),
    "an image would wait 2 s": ({WAIT: "2x480"}, {"ConvServeSaturated"}),
    "1 of 30 requests is refused": ({REFUSED: "0+20x480"}, {"ConvServeRefusing"}),
    "memory is nearly used up": ({MEMORY: "2000000000x480"}, {"ConvServeMemoryHigh"}),
    "two models serve": ({MODEL.format("b", 1): "_x480", MODEL.format("b", 2): "1x480"}, {"ConvServeModelsDiffer"}),
    "a model is refused": ({REFUSED_MODEL: "0x400 1x80"}, {"ConvServeModelRefused"}),
    "brightness has drifted": ({DRIFT: "0.2x480"}, {"ConvServeDrift"}),
    "brightness differs as few images may": ({DRIFT: "0.2x480", DRIFT_LIMIT: "0.3x480"}, set()),
    "brightness was another for half an hour": ({DRIFT: "0.08x389 0.2x90"}, set()),
}


def promtool_case(name: str, changed: dict[str, str], firing: set[str]) -> dict[str, object]:
    """One test of promtool's: after seven hours exactly these alerts fire."""
    samples = [{"labels": f'{{alertname="{one}"}}', "value": 1} for one in sorted(firing)]
    return {
        "name": name,
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in (HEALTHY | changed).items()],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{HOURS}h",
                "exp_samples": samples,
            }
        ],
    }


def test_each_alert_fires_when_it_should_and_no_other(tmp_path: Path) -> None:
    tests = [promtool_case(name, *case) for name, case in CASES.items()]
    file = tmp_path / "alerts.test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "2m", "tests": tests}))
    run([tool("promtool"), "test", "rules", file])


def test_every_alert_has_a_case_and_a_chapter_in_the_runbook() -> None:
    assert set.union(*(firing for _, firing in CASES.values())) == ALERTS
    explained = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    assert {one for one in ALERTS if f"### {one}\n" in explained} == ALERTS


@pytest.mark.parametrize(
    "arguments", [("rules", "--lint-fatal", RULES), ("config", "--syntax-only", ROOT / "docs/compose/prometheus.yml")]
)
def test_promtool_finds_no_fault(arguments: tuple[str | Path, ...]) -> None:
    run([tool("promtool"), "check", *arguments])


def test_the_operators_rules_are_prometheus_own() -> None:
    operator = yaml.safe_load((RULES.parent / "prometheus-rule.yaml").read_text())["spec"]
    assert operator == yaml.safe_load(RULES.read_text())
