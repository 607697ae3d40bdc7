"""What an expression reads, and its variables."""

from __future__ import annotations

import pytest

from tools.dashboards.promql import metric_names, resolve, variables


@pytest.mark.parametrize(
    ("expr", "names"),
    [
        ("up == 0", {"up"}),
        ("a:b:rate5m > bool 1e3", {"a:b:rate5m"}),
        ('sum by (job, le) (rate(x_total{code="y_total",job=~"a{2}"}[5m])) > 0', {"x_total"}),
        ("a / on (job) group_left (version) b", {"a", "b"}),
        ("sum(a) without (le) or vector(0) unless b offset 5m", {"a", "b"}),
        ('count(ALERTS{alertname=~"Keyturn.*"})', {"ALERTS"}),
        ("histogram_quantile(0.99, sum by (le) (x:rate5m{$job}))", {"x:rate5m"}),
        ("predict_linear(free[1h], 4 * 3600) < limit", {"free", "limit"}),
        ("topk (3, rate (a [$__rate_interval]))", {"a"}),
    ],
)
def test_the_metrics_of_an_expression(expr: str, names: set[str]) -> None:
    assert metric_names(expr) == names


def test_variables_in_both_forms() -> None:
    assert variables('x{job=~"$job"}[$__range] ${datasource} 1$') == {
        "job",
        "__range",
        "datasource",
    }


def test_variables_are_replaced_and_unknown_ones_are_an_error() -> None:
    assert resolve("a[$w] ${v}", {"w": "5m", "v": "b"}) == "a[5m] b"
    with pytest.raises(KeyError, match="v"):
        resolve("a[$w] ${v}", {"w": "5m"})
