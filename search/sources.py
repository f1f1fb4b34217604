"""What trials are made from besides networks: images, teachers, recipes; and that a study stays with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from mnet_search.models.arch import MnetError
from mnet_search.models.tables import lookup
from mnet_search.search.data import Data, DataOptions, describe, read
from mnet_search.search.data_cache import pinned
from mnet_search.search.recipes import RECIPES
from mnet_search.search.teachers import load_teacher
from mnet_search.spaces import schema
from mnet_search.spaces.identity import difference
from mnet_search.spaces.space import Params, Space
from mnet_search.spaces.survey import corners
from mnet_search.studies.export import data_facts
from mnet_search.studies.store import Store
from mnet_search.studies.urls import database_path


def data_options(setting: schema.Data) -> DataOptions:
    return DataOptions(**setting.model_dump())


def read_all(space: Space, earlier: Mapping[str, Any]) -> dict[schema.Data, Data]:
    """The images of every setting of the data that trials may have, streamed or not as the study's `earlier` provenance
    says. Raises DataError, SpaceError.
    """
    digests = {setting: data_facts(earlier, setting).get("data_digest") for setting in space.data_settings}
    options = {setting: data_options(setting) for setting in digests}
    return {s: read(pinned(options[s], digest) if digest else options[s]) for s, digest in digests.items()}


def check_teachers(space: Space) -> dict[str, str]:
    """The digest of each teacher. Raises MnetError where one is not there, or has not learnt the data's classes."""
    codes: Iterable[Params] = corners(space) if space.settings.names else [{}]
    pairs = {(space.training_of(params).teacher, space.data_of(params)) for params in codes}
    return {
        teacher: load_teacher(teacher, describe(data_options(setting))).digest
        for teacher, setting in pairs
        if teacher is not None
    }


def recipes_of(space: Space) -> dict[str, dict[str, Any]]:
    """The recipes that trials may have, as they are now: their names alone do not say how a trial was trained."""
    grid = space.parameters["training.recipe"].grid() if "training.recipe" in space.parameters else None
    names = {space.file.training.recipe, *map(str, grid or [])}
    return {name: asdict(lookup(RECIPES, name, "recipe")) for name in sorted(names)}


def earlier_facts(storage: str, study: str) -> Mapping[str, Any]:
    """The provenance of a study that exists, else nothing."""
    path = database_path(storage)
    if path is not None and not path.exists():
        return {}
    with Store(storage, create=True) as store:
        return store.provenance(study) if study in store.names() else {}


def check_same_sources(study: str, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises MnetError where a study's trials were trained on other images, by another teacher, or by a recipe that
    meant something else under the same name: they could not be compared.
    """
    again = "or start a new study with --study NAME"
    for row in now.get("data", [now]):
        setting = schema.Data(**row["settings"]) if "settings" in row else schema.Data()
        old, new = data_facts(earlier, setting).get("data_digest"), row.get("data_digest")
        if old and old != new:
            raise MnetError(
                f"study {study!r} was begun on other images (their digest was {old[:12]}, it is {new[:12]} now); put "
                f"them back, {again}"
            )
    for name, digest in now["teachers"].items():
        old = earlier.get("teachers", {}).get(name, digest)
        if old != digest:
            raise MnetError(
                f"study {study!r} was begun with another teacher under {name!r} (its digest was {old[:12]}, it is "
                f"{digest[:12]} now); put it back, {again}"
            )
    changes = difference(earlier.get("recipes") or now["recipes"], now["recipes"])
    if changes:
        raise MnetError(
            f"study {study!r} was begun with another meaning of its recipe ({'; '.join(changes)}); use the version "
            f"that began it, {again}"
        )


def facts_of(data: Mapping[schema.Data, Data]) -> dict[str, Any]:
    """What a study keeps of its data: of the first setting, and of each one where they vary (`data`)."""
    each: list[dict[str, Any]] = [
        {
            "data_digest": images.digest,
            "validation_images": len(images.validation),
            "train_images": len(images.train),
        }
        for images in data.values()
    ]
    settings = (setting.model_dump(exclude_none=True) for setting in data)
    varied = [{"settings": setting, **facts} for setting, facts in zip(settings, each, strict=True)]
    if not each:  # nothing is trained
        return {}
    return each[0] | ({"data": varied} if len(varied) > 1 else {})
