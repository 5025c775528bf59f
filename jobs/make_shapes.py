"""Write a synthetic corpus with exact masks in a published format.

    python jobs/make_shapes.py
    python jobs/make_shapes.py --preset train --out runs/refer --format refer --expressions.none 2
    python jobs/make_shapes.py --preset heldout --out s3://bucket/shapes-val --format sa1b --layout tar

Needs neither Ray nor a download. The same flags give the same bytes; repeating a killed run finishes it.
"""

from pipelines import cli
from pipelines.config import with_places
from pipelines.ingestion.synthetic.config import PRESETS, ShapesConfig


def main(argv: list[str] | None = None) -> int:
    config = cli.parse(ShapesConfig, PRESETS, argv, doc=__doc__)
    from pipelines import job
    from pipelines.ingestion.synthetic.corpus import make_shapes

    return job.guard(lambda: make_shapes(with_places(config, job.absolute)), config)


if __name__ == "__main__":
    cli.leave(main())
