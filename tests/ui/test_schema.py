from typing import get_args

import pytest

from ui import schema


@pytest.mark.parametrize(
    ("table", "column", "values"),
    [
        ("users", "role", schema.Role),
        ("campaigns", "mode", schema.Mode),
        ("campaigns", "status", schema.CampaignStatus),
        ("items", "kind", schema.Kind),
        ("assignments", "purpose", schema.Purpose),
        ("assignments", "status", schema.AssignmentStatus),
        ("votes", "choice", schema.Choice),
    ],
)
def test_the_database_knows_the_same_words_as_the_program(table, column, values):
    named = f"ck_{table}_{column}_known"
    (found,) = [c for c in schema.Base.metadata.tables[table].constraints if c.name == named]
    listed = ", ".join(f"'{value}'" for value in get_args(values))
    assert str(found.sqltext) == f"{column} IN ({listed})"


def test_every_constraint_has_a_name_that_a_migration_can_use():
    for table in schema.Base.metadata.tables.values():
        assert all(constraint.name for constraint in table.constraints)
        assert all(index.name and len(index.name) < 64 for index in table.indexes)
