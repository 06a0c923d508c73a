"""``tharsis models``: the encoders of an archive, which one answers, and going back to the one before.

Encoders bring large libraries with them, which are loaded when a command runs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from commands.archive import open_archive
from commands.console import ConfigOption, DataOption, JsonOption, fail, out, print_json, print_table
from index import embeddings
from index.archive import Archive
from index.errors import UnknownModel, WrongState

models_app = typer.Typer(
    no_args_is_help=True,
    help="List the encoders that make images searchable, activate one, go back, delete one.",
)

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL_ID", help="As `tharsis models list` shows it.")]


@dataclass(frozen=True)
class _Model:
    """A line of the list; `state` is active, wanted, ready (has vectors), or empty."""

    model_id: str
    state: str
    dimension: int
    series: int
    share: float
    facts: dict[str, Any]


@models_app.command("list")
def list_models(config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """List the encoders: which one answers, which one is to follow it, and how much each has embedded."""
    found = _models(open_archive(config, data))
    if as_json:
        print_json([asdict(model) for model in found])
        return
    table = Table(Column("model", no_wrap=True), "state", "d", "series embedded", "trained on", "held-out mAP")
    for model in found:
        row = (
            model.model_id,
            model.state,
            str(model.dimension),
            f"{model.series:,} ({model.share:.0%})",
            str(model.facts.get("labels", "")),
            _figure(model.facts.get("mean_average_precision")),
        )
        table.add_row(*map(escape, row))
    print_table(table)


def _figure(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else ""


def _models(archive: Archive) -> list[_Model]:
    from index.encoders import registry

    facts = {weights.model_id: weights.facts for weights in registry.trained(archive)}
    embedded = embeddings.series_embedded(archive)
    whole = max(embedded.values(), default=0)
    found = []
    for model in embeddings.models(archive):
        series = embedded.get(model.model_id, 0)
        state = "active" if model.active else "wanted" if model.wanted else "ready" if series else ""
        share = series / whole if whole else 0.0
        found.append(
            _Model(model.model_id, state, model.dimension, series, share, facts.get(model.model_id, {}))
        )
    return found


@models_app.command("activate")
def activate(model_id: ModelArgument, config: ConfigOption = None, data: DataOption = None) -> None:
    """Let an encoder answer from now on, as soon as it has embedded what the archive holds.

    A worker of the node does that in the background (`tharsis jobs list` shows how far it is); the encoder that was
    active answers until then.
    """
    from index.encoders import registry
    from plugins.embedding import replace_encoder

    archive = open_archive(config, data)
    try:
        encoder = registry.load(archive, model_id)
    except UnknownModel as error:
        fail(str(error))
    embeddings.register(archive, encoder.model_id, encoder.dimension)
    if embeddings.model(archive, model_id).active:
        following = embeddings.wanted_model(archive)
        embeddings.want(archive, model_id)  # that is: no other one
        rest = f"; {following.model_id} does not follow it any more" if following is not None else ""
        out.print(f"{model_id} is the active encoder{rest}", highlight=False, soft_wrap=True)
        return
    replace_encoder(archive, model_id)
    left = len(embeddings.series_lacking(archive, model_id))
    out.print(f"{model_id} will answer when it has embedded {left:,} series", highlight=False, soft_wrap=True)


@models_app.command("rollback")
def rollback(config: ConfigOption = None, data: DataOption = None) -> None:
    """Answer with the encoder that was active before, at once.

    Series that it has not seen, because they came since, are embedded in the background.
    """
    from index.encoders import registry
    from plugins.embedding import restore_encoder

    archive = open_archive(config, data)
    previous = embeddings.previous_model(archive)
    if previous is None:
        fail("no other encoder was active before")
    try:
        registry.load(archive, previous.model_id)
    except UnknownModel as error:  # it would answer, and embed nothing that comes in
        fail(f"the encoder that was active before cannot be used any more: {error}")
    restore_encoder(archive, previous.model_id)
    left = len(embeddings.series_lacking(archive, previous.model_id))
    rest = f"; {left:,} series are still to be embedded with it" if left else ""
    out.print(f"{previous.model_id} answers again{rest}", highlight=False, soft_wrap=True)


@models_app.command("delete")
def delete(model_id: ModelArgument, config: ConfigOption = None, data: DataOption = None) -> None:
    """Delete an encoder that is not active: its vectors and its weights."""
    from index.encoders import registry

    archive = open_archive(config, data)
    try:
        vectors = embeddings.forget(archive, model_id)
    except (UnknownModel, WrongState) as error:
        fail(str(error))
    registry.forget(archive, model_id)
    out.print(f"{model_id} and its {vectors:,} vectors are deleted", highlight=False, soft_wrap=True)
