import time

import pytest

from prompts.metrics import sql_result
from prompts.sql import MAX_ROWS, MAX_SIZE, read_rows
from workbench.errors import UserError

SCHEMA = """
CREATE TABLE pets (name TEXT, kind TEXT, weight REAL, age INTEGER);
INSERT INTO pets VALUES ('Ada', 'cat', 4.5, 3), ('Bo', 'dog', 20.25, 5), ('Cy', 'cat', 3.0, 5);
"""


def sql(text: str, target: str, schema: str = SCHEMA) -> float:
    return sql_result(text, [target], {"schema": schema})


def test_rows_come_back_or_the_reason_why_there_are_none():
    assert read_rows(SCHEMA, "SELECT name, age FROM pets ORDER BY age, name") == [
        ("Ada", 3), ("Bo", 5), ("Cy", 5),
    ]  # fmt: skip
    assert read_rows(SCHEMA, "SELECT name FROM cats") == "no such table: cats"
    count = (
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT {}) SELECT x FROM n"
    )
    assert len(read_rows("", count.format(MAX_ROWS))) == MAX_ROWS
    assert read_rows("", count.format(MAX_ROWS + 1)) == f"more than {MAX_ROWS} rows"


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("SELECT name FROM pets WHERE kind = 'cat'", "select name from pets where kind='cat'", 1.0),
        ("SELECT name FROM pets ORDER BY name DESC", "SELECT name FROM pets", 1.0),
        ("SELECT name FROM pets", "SELECT name FROM pets ORDER BY weight", 0.0),
        ("SELECT name FROM pets ORDER BY weight;", "SELECT name FROM pets ORDER BY weight", 1.0),
        ("SELECT name AS n FROM pets", "SELECT name FROM pets", 1.0),
        ("SELECT kind FROM pets", "SELECT DISTINCT kind FROM pets", 0.0),  # rows count as often
        ("SELECT COUNT(*) FROM pets", "SELECT 3", 1.0),
        ("SELECT 3.0", "SELECT 3", 1.0),
        ("SELECT 0.1 + 0.2", "SELECT 0.3", 1.0),
        ("SELECT 1234567891", "SELECT 1234567890", 0.0),
        ("SELECT '3'", "SELECT 3", 0.0),
        ("SELECT name FROM cats", "SELECT name FROM pets", 0.0),  # no such table
        ("SELECT name, kind FROM pets", "SELECT name FROM pets", 0.0),
        ("SELECT 1; SELECT 2", "SELECT 2", 0.0),
        ("", "SELECT 2", 0.0),
        ("Here you are: SELECT 2", "SELECT 2", 0.0),
        ("SELECT NULL", "SELECT NULL", 1.0),
    ],
)
def test_sql_is_judged_by_its_rows(text, target, expected):
    assert sql(text, target) == expected


def test_an_inner_order_by_orders_nothing():
    inner = "(SELECT age FROM pets ORDER BY age)"
    gold = f"SELECT name FROM pets WHERE age IN {inner} OR name = 'order by'"
    assert sql("SELECT name FROM pets ORDER BY name DESC", gold) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "DELETE FROM pets",
        "DROP TABLE pets",
        "INSERT INTO pets VALUES ('X', 'cat', 1, 1) RETURNING name",
        "CREATE TABLE x AS SELECT 1",
        "PRAGMA table_info(pets)",
        "SELECT load_extension('/tmp/x.so')",
    ],
)
def test_a_query_may_only_read(text):
    assert sql(text, "SELECT name FROM pets") == 0.0


def test_rows_that_would_fill_the_memory_are_not_collected():
    columns = ", ".join(["printf('%.*c', 19999, 'x')"] * 100)
    many = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 9999)"
    refused = read_rows("", f"{many} SELECT {columns} FROM n")
    assert refused == f"rows of more than {MAX_SIZE:,} characters"


@pytest.mark.parametrize(
    "schema",
    [
        "CREATE TABLE t AS SELECT zeroblob(900000000)",
        "CREATE TABLE t(a); INSERT INTO t WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL "
        "SELECT x + 1 FROM n LIMIT 100) SELECT zeroblob(900000) FROM n",
    ],
)
def test_a_schema_that_would_fill_the_memory_is_refused(schema):
    with pytest.raises(UserError, match=r"the field schema does not run as SQL \(.*; mend it"):
        read_rows(schema, "SELECT 1")


def test_attached_files_are_refused_in_queries_and_in_schemas(tmp_path):
    file = tmp_path / "x.db"
    assert sql(f"ATTACH '{file}' AS x", "SELECT 1") == 0.0
    with pytest.raises(UserError, match="schema does not run"):
        sql("SELECT 1", "SELECT 1", schema=f"ATTACH '{file}' AS x; CREATE TABLE x.t (a);")
    assert not file.exists()


@pytest.mark.parametrize(
    "text",
    [
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT COUNT(*) FROM n",
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n",
        "SELECT LENGTH(HEX(ZEROBLOB(2000000000)))",
        "SELECT REPLACE(HEX(ZEROBLOB(9000)), '0', HEX(ZEROBLOB(9000)))",
        f"SELECT {'(' * 2000}1{')' * 2000}",
        "SELECT '" + "x" * 30_000 + "'",
        "SELECT '\0'",
        "SELECT '\ud800'",
    ],
)
def test_an_endless_or_bloated_query_ends_soon_and_scores_0(text):
    started = time.perf_counter()
    assert sql(text, "SELECT 1") == 0.0
    assert time.perf_counter() - started < 5
