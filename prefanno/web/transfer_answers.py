"""The schemas of answers about data in and out; as in `answers.py`."""

from marshmallow import fields

from prefanno.web.answers import Answer, Done


class Format(Answer):
    """One installed format."""

    name = fields.String(required=True)
    export = fields.Boolean(required=True)
    import_ = fields.Boolean(required=True, data_key="import")


class FormatsData(Answer):
    """All of them."""

    items = fields.List(fields.Nested(Format), required=True)


class Formats(Done):
    """The answer of `GET /api/formats`."""

    data = fields.Nested(FormatsData, required=True)


class BadLine(Answer):
    """A row that cannot be imported."""

    line = fields.Integer(required=True)
    reason = fields.String(required=True)


class ImportedData(Answer):
    """What was found, and what was added, or would be in a dry run; of lines, the first thousand."""

    dry_run = fields.Boolean(required=True)
    added = fields.Integer(required=True)
    duplicates = fields.Integer(required=True)
    near_duplicates = fields.Integer(required=True)
    bad = fields.Integer(required=True)
    near_lines = fields.List(fields.Integer(), required=True)
    bad_lines = fields.List(fields.Nested(BadLine), required=True)


class Imported(Done):
    """The answer of `POST /api/import`."""

    data = fields.Nested(ImportedData, required=True)
