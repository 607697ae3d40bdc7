"""`python -m tools.dashboards`: writes `deploy/grafana/dashboards`."""

from tools.dashboards import write

if __name__ == "__main__":
    print(f"{write()} files written")
