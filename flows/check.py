"""Is there a server, a work pool, a worker? `python -m flows.check [server|pool|worker|deployments]` names what is missing.

A deployed run that no worker picks up waits for ever without a word, so `make deploy` and `make retrain` ask first.
"""

import sys
from pathlib import Path

POOL = "clp-process"
LEVELS = ("server", "pool", "worker")
FILE = Path("prefect.yaml")


def missing(level: str = "worker", pool: str = POOL) -> str | None:
    """Return one line that names the first thing missing up to `level` and its remedy, or None."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import WorkerStatus
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if url is None:  # Prefect would start a throw-away server of its own, which no worker can reach
        return "no Prefect server is named; run in the project folder or set PREFECT_API_URL"
    with get_client(sync_client=True) as client:
        if error := client.api_healthcheck():
            return f"no Prefect server answers at {url} ({_one_line(error)}); start it with `make server`"
        if level == "server":
            return None
        try:
            client.read_work_pool(pool)
        except ObjectNotFound:
            return f"the server at {url} has no work pool {pool!r}; create it with `make deploy`"
        if level == "pool":
            return None
        workers = client.read_workers_for_work_pool(pool)
    if not any(worker.status == WorkerStatus.ONLINE for worker in workers):
        return f"no worker is online in the work pool {pool!r}; start one with `make worker`"
    return None


def wrong(file: Path = FILE, pool: str = POOL) -> str | None:
    """Return one line that names the first mistake in the deployments of a prefect.yaml, or None."""
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        deployments = YAML(typ="safe", pure=True).load(file)["deployments"]
    except (OSError, YAMLError, KeyError, TypeError) as error:
        return f"{file}: no deployments can be read ({_one_line(error)}); restore the file"
    for deployment in deployments:
        where = f"{file}: deployment {deployment.get('name')!r}"
        if (named := deployment.get("work_pool", {}).get("name")) != pool:
            return f"{where}: work pool {named!r} is not {pool!r}, which `make worker` serves; name that one"
        for schedule in deployment.get("schedules", []):
            try:
                CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
            except KeyError as error:
                return f"{where}: a schedule lacks {error}; give both cron and timezone"
            except ValidationError as error:
                reason = error.errors()[0]["msg"].removeprefix("Value error, ")
                return f"{where}: schedule {schedule['cron']!r} in {schedule['timezone']!r}: {reason}; mend it"
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def main(arguments: list[str]) -> int:
    """Print what is missing and return 1, or print nothing and return 0."""
    level = arguments[0] if arguments else "worker"
    if level not in (*LEVELS, "deployments") or len(arguments) > 1:
        print(f"usage: python -m flows.check [{'|'.join(LEVELS)}|deployments]", file=sys.stderr)
        return 2
    if line := wrong() if level == "deployments" else missing(level):
        print(f"error: {line}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
