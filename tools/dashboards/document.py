"""Grafana's JSON of a dashboard (its schema version 39, of Grafana 11; later ones migrate it).

No identifier of one installation is in it: the data source is a variable, and Grafana gives the
dashboard its own id at the import.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.dashboards.model import Dashboard, Panel, Row, Variable

COLUMNS: Final = 24
SCHEMA_VERSION: Final = 39
TAG: Final = "keyturn"
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_JSON = dict[str, Any]


def document(dashboard: Dashboard) -> _JSON:
    """The JSON that Grafana imports."""
    return {
        "annotations": {"list": []},
        "description": dashboard.description,
        "editable": True,
        "graphTooltip": 1,  # one crosshair for all panels
        "links": [_link()],
        "panels": list(_panels(dashboard.rows)),
        "refresh": "30s",
        "schemaVersion": SCHEMA_VERSION,
        "tags": [TAG],
        "templating": {"list": [_source(), *map(_variable, dashboard.variables)]},
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "",
        "title": dashboard.title,
        "version": 1,
    }


def _link() -> _JSON:
    """To the other dashboards, found by their tag."""
    return {
        "asDropdown": True,
        "icon": "external link",
        "includeVars": False,
        "keepTime": True,
        "tags": [TAG],
        "targetBlank": False,
        "title": "Keyturn",
        "type": "dashboards",
    }


def _source() -> _JSON:
    return {
        "current": {},
        "hide": 0,
        "includeAll": False,
        "label": "Data source",
        "multi": False,
        "name": "datasource",
        "options": [],
        "query": "prometheus",
        "refresh": 1,
        "type": "datasource",
    }


def _variable(variable: Variable) -> _JSON:
    return {
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "datasource": SOURCE,
        "definition": variable.query,
        "hide": 0,
        "includeAll": True,
        "label": variable.label,
        "multi": True,
        "name": variable.name,
        "options": [],
        "query": {"qryType": 1, "query": variable.query, "refId": f"variable-{variable.name}"},
        "refresh": 2,  # whenever the time range changes: processes come and go
        "sort": 1,
        "type": "query",
    }


def _panels(rows: tuple[Row, ...]) -> Iterator[_JSON]:
    """All rows and panels in a flat list, each at its place."""
    numbers = count(1)
    y = 0
    for row in rows:
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
        yield {
            "collapsed": False,
            "gridPos": place,
            "id": next(numbers),
            "panels": [],
            "title": row.title,
            "type": "row",
        }
        y += 1
        x = line_height = 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, line_height = 0, y + line_height, 0
            place = {"h": panel.height, "w": panel.width, "x": x, "y": y}
            yield _panel(panel, next(numbers), place)
            x, line_height = x + panel.width, max(line_height, panel.height)
        y += line_height


def _panel(panel: Panel, number: int, place: dict[str, int]) -> _JSON:
    parts = {"timeseries": _timeseries, "stat": _stat, "table": _table}[panel.kind](panel)
    return {
        "datasource": SOURCE,
        "description": panel.description,
        "gridPos": place,
        "id": number,
        "targets": _targets(panel),
        "title": panel.title,
        "type": panel.kind,
        **parts,
    }


def _targets(panel: Panel) -> list[_JSON]:
    is_table = panel.kind == "table"
    return [
        {
            "datasource": SOURCE,
            "editorMode": "code",
            "expr": query.expr,
            "format": "table" if is_table else "time_series",
            "instant": is_table,
            "legendFormat": query.legend or "__auto",
            "range": not is_table,
            "refId": chr(ord("A") + at),
        }
        for at, query in enumerate(panel.queries)
    ]


def _field(panel: Panel, color: str, custom: _JSON) -> _JSON:
    steps: list[_JSON] = [{"color": "green", "value": None}]
    if panel.red_from is not None:
        steps.append({"color": "red", "value": panel.red_from})
    limits = {} if panel.maximum is None else {"max": panel.maximum}
    defaults: _JSON = {
        "color": {"mode": color},
        "custom": custom,
        "mappings": [],
        "min": 0,
        **limits,
        "thresholds": {"mode": "absolute", "steps": steps},
        "unit": panel.unit,
    }
    return {"defaults": defaults, "overrides": []}


def _timeseries(panel: Panel) -> _JSON:
    custom = {
        "drawStyle": "line",
        "fillOpacity": 30 if panel.stacked else 10,
        "lineWidth": 1,
        "showPoints": "auto",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if panel.stacked else "none"},
    }
    legend = {"calcs": ["mean", "max", "lastNotNull"], "displayMode": "table"}
    return {
        "fieldConfig": _field(panel, "palette-classic", custom),
        "options": {
            "legend": {**legend, "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def _stat(panel: Panel) -> _JSON:
    return {
        "fieldConfig": _field(panel, "thresholds", {}),
        "options": {
            "colorMode": "value",
            "graphMode": "area",
            "justifyMode": "auto",
            "orientation": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "value",
        },
    }


def _table(panel: Panel) -> _JSON:
    hidden = dict.fromkeys(("Time", "Value", "__name__"), True)
    return {
        "fieldConfig": _field(panel, "thresholds", {"align": "auto"}),
        "options": {"showHeader": True},
        "transformations": [{"id": "organize", "options": {"excludeByName": hidden}}],
    }
