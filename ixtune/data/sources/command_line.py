"""Turn the paths on the command line into sources: data, or files that list sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from ixtune.data.containers.json_object import is_annotations, is_questions
from ixtune.data.remote_files import is_remote
from ixtune.data.sources.data_config import is_config, read_config
from ixtune.data.sources.dataset_info import is_dataset_info, source_of
from ixtune.data.sources.internvl_meta import is_meta, sources_of
from ixtune.data.sources.mixture_file import is_mixture, read_mixture
from ixtune.data.sources.source import Source
from ixtune.errors import UsageError


def sources_given(paths: Sequence[str], defaults: Source, thousands: bool, dataset: str | None = None) -> list[Source]:
    """Return the sources that some paths name.

    Args:
        paths: Data as in `Source.path`, data configs (.yaml), the official data.txt, a dataset_info.json of
            LLaMA-Factory, a meta JSON of InternVL; two files of VQA v2 side by side are one source.
        defaults: Settings for each source that does not set them itself; the path is ignored.
        thousands: The numbers of a data.txt are thousands of records; else they are weights.
        dataset: The dataset of a dataset_info.json or a meta JSON.

    Raises:
        UsageError: A list of sources is wrong, or a dataset is named and no dataset_info.json is given.
    """
    found: list[Source] = []
    named = False
    paths, pairs = _paired(paths)
    for path in paths:
        if is_remote(path):
            found.append(replace(defaults, path=path))
        elif is_config(Path(path)):
            found += [_filled(source, defaults) for source in read_config(Path(path))]
        elif is_mixture(Path(path)):
            found += [_filled(source, defaults) for source in read_mixture(Path(path), thousands)]
        elif is_dataset_info(Path(path)):
            named = True
            found.append(source_of(Path(path), dataset, defaults))
        elif is_meta(Path(path)):
            named = True
            found += sources_of(Path(path), dataset, defaults)
        else:
            found.append(replace(defaults, path=path, annotations=pairs.get(path)))
    if dataset is not None and not named:
        raise UsageError(
            f"--dataset {dataset}, and no dataset_info.json or meta JSON is given",
            hint="pass the path of a dataset_info.json, or remove --dataset",
        )
    return found


def _paired(paths: Sequence[str]) -> tuple[list[str], dict[str, Path]]:
    """Return the paths without the answer files that belong to given questions, and question file -> answer file."""
    objects = [path for path in paths if path.lower().endswith(".json") and Path(path).is_file()]
    if len(objects) < 2:
        return list(paths), {}
    asked = [path for path in objects if is_questions(Path(path))]
    answers = [path for path in objects if is_annotations(Path(path))] if asked else []
    if len(asked) != len(answers):
        return list(paths), {}
    pairs = {question: Path(answer) for question, answer in zip(asked, answers, strict=True)}
    return [path for path in paths if path not in answers], pairs


def _filled(source: Source, defaults: Source) -> Source:
    """Fill in the defaults for the settings that a source leaves out."""
    empty = {one.name: getattr(defaults, one.name) for one in fields(Source) if getattr(source, one.name) in (None, ())}
    if source.image_root is not None or source.remote_root is not None:  # a source has one image root
        empty = {name: value for name, value in empty.items() if name not in ("image_root", "remote_root")}
    return replace(source, **empty)
