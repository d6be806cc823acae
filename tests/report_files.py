"""Write a small run folder and evaluation, as `ixtune train` and `ixtune evaluate` do, with known figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

HOSTILE = "</script></td><img src=x onerror=\"document.title='run'\"><svg onload=alert(1)>'\"&amp;"
SIZES = ((640, 400), (330, 300))


def write_run(folder: Path, **overrides: Any) -> Path:
    """Write a finished run of 20 steps; `overrides` are keys of its training section."""
    (folder / "adapter").mkdir(parents=True)
    training = {"max_steps": 20, "learning_rate": 1e-3, **overrides}
    recipe = {"base": "nano", "data": {"train": str(folder / "no-set")}, "training": training, "output": str(folder)}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    record = {"ixtune_version": "0.1", "base": "nano", "quantize": "nf4", "steps": 20, "versions": {"torch": "2.13.0"}}
    (folder / "adapter" / "ixtune.json").write_text(json.dumps(record), encoding="utf-8")
    lines: list[dict[str, Any]] = []
    for step in range(2, 21, 2):
        lines.append(
            {
                "step": step, "epoch": step / 20, "loss": 3 / step + 0.5, "learning_rate": 1e-3 * (1 - step / 40),
                "tokens_per_s": 1000.0 + step, "tokens": 500 * step, "supervised_tokens": 20 * step,
                "computed_tokens": 200 * step, "computed_tokens_per_s": 400.0 + step,
                "memory_gib": 1.25, "seconds": 1.5 * step, "mfu": None,
            }
        )  # fmt: skip
        if step % 10 == 0:
            lines.append({"step": step, "epoch": step / 20, "validation_loss": 4 / step + 0.6})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def evaluation(images: Path, *, blind: float = 0.1, hostile: bool = False) -> dict[str, Any]:
    """Return 40 answers: the base is right in 5, the adapter in 30, with 1 regression."""
    images.mkdir(parents=True, exist_ok=True)
    for width, height in SIZES:
        Image.effect_noise((width, height), 60).convert("RGB").save(images / f"{width}.png")
    answers = []
    for at in range(40):
        width, height = SIZES[at % 2]
        base, adapter = float(at < 5), float(1 <= at <= 30)
        path = str(images / f"{width}.png") if at != 4 else str(images / "moved.png")
        layout = {"rows": 1, "columns": 2, "tokens": 457} if width == 640 else {"rows": 1, "columns": 1, "tokens": 313}
        right = str(100 + at) if at % 4 else f"{100 + at} boxes"
        question = HOSTILE if hostile and at == 0 else f"What is in row {at}?" if at % 2 else "How many are there?"
        answers.append(
            {
                "id": HOSTILE if hostile and at == 0 else f"r{at}",
                "question": question,
                "form": HOSTILE if hostile and at == 0 else "What is in row #?" if at % 2 else "How many are there?",
                "references": [HOSTILE if hostile and at == 0 else right],
                "pictures": [{"path": path, "width": width, "height": height, **layout}],
                "answers": {
                    "base": right if base else "half a pair \ud800" if hostile else "nothing",
                    "adapter": right if adapter else HOSTILE if hostile else "7",
                    "adapter, images swapped": "7",
                    "majority answer": "100",
                },
                "scores": {"base": {"exact_match": base}, "adapter": {"exact_match": adapter}},
            }
        )
    means = (("base", "model", 0.125, 2.5), ("adapter", "model", 0.75, 0.5))
    controls = (("adapter, images swapped", "control", blind, None), ("majority answer", "control", 0.05, None))
    results = [
        {
            "name": name,
            "kind": kind,
            "loss": loss,
            "scores": {"exact_match": {"value": mean, "low": round(mean - 0.04, 3), "high": round(mean + 0.06, 3)}},
        }
        for name, kind, mean, loss in (*means, *controls)
    ]
    models = [
        {
            "name": name, "base": "nano", "adapter": path, "quantize": "nf4", "hd_num": 4, "base_identity": "b" * 64,
            "adapter_sha256": None, "generate_s": 1.5, "answer_tokens": 80,
        }
        for name, path in (("base", None), ("adapter", "run/adapter"))
    ]  # fmt: skip
    return {
        "format": 2,
        "ixtune_version": "0.1",
        "data": "prepared/test",
        "manifest_sha256": "c" * 64,
        "records": len(answers),
        "scores": ["exact_match"],
        "main_score": "exact_match",
        "models": models,
        "results": results,
        "comparisons": [
            {
                "name": "adapter", "than": "base", "score": "exact_match", "difference": 0.625, "low": 0.45,
                "high": 0.775, "p_value": 0.0001,
            }
        ],
        "answers": answers,
    }  # fmt: skip


def write_evaluation(path: Path, **options: Any) -> Path:
    """Write the file of `evaluation` with its images next to it."""
    content = evaluation(path.parent / "pictures", **options)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
