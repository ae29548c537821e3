"""The content of a sweep in a database, in a form that is the same for every store."""

from contextlib import closing

import servers


def new_database(uri, name):
    """Return the URI of an empty database next to another one."""
    import psycopg2

    with closing(psycopg2.connect(servers.plain(str(uri)))) as connection:
        connection.autocommit = True
        connection.cursor().execute(f'CREATE DATABASE "{name}"')
    return f"{str(uri).rpartition('/')[0]}/{name}"


def of_sweep(database, sweep):
    """Map MLflow's id to run id (or the sweep's name), for a sweep's runs."""
    wanted = (
        "SELECT t.run_uuid, t.value FROM tags t JOIN runs r ON r.run_uuid = t.run_uuid "
        "WHERE r.lifecycle_stage = 'active' AND "
    )
    parent = servers.query(database, f"{wanted} t.key = 'densevit.sweep' AND t.value = '{sweep}'")
    held = (
        "t.key = 'densevit.run' AND t.run_uuid IN (SELECT run_uuid FROM tags WHERE "
        f"key = 'densevit.sweeps' AND value = '{sweep}')"
    )
    return dict([*parent, *servers.query(database, wanted + held)])


def dump(database, sweep):
    """Return everything that is stored of a sweep, except ids and creation times."""
    names = of_sweep(database, sweep)
    found = {}
    for mlflow_id, name in names.items():
        where = f"WHERE run_uuid = '{mlflow_id}'"

        def rows(columns, table, where=where):
            return sorted(servers.query(database, f"SELECT {columns} FROM {table} {where}"))

        tags = [(k, names.get(v, v)) for k, v in rows("key, value", "tags") if k != "densevit.made"]
        found[name] = {
            "run": rows("name, status, start_time, end_time", "runs"),
            "metrics": rows("key, value, timestamp, step, is_nan", "metrics"),
            "latest": rows("key, value, timestamp, step, is_nan", "latest_metrics"),
            "params": rows("key, value", "params"),
            "tags": tags,
        }
    return found


def forget(database, sweep):
    """Delete a sweep's runs from the database, which MLflow itself never does."""
    import psycopg2

    ids = "', '".join(of_sweep(database, sweep))
    with closing(psycopg2.connect(servers.plain(str(database)))) as connection, connection:
        cursor = connection.cursor()
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            cursor.execute(f"DELETE FROM {table} WHERE run_uuid IN ('{ids}')")
