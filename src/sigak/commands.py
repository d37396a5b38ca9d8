"""What each verb of the command line does with its flags: call the library, show what came back."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sigak import models
from sigak.asking import Prompts
from sigak.errors import Failure, SigakError

if TYPE_CHECKING:
    from sigak.data import Dataset
    from sigak.prediction import Predictor

__all__ = [
    "run_augment",
    "run_convert",
    "run_data",
    "run_evaluate",
    "run_explain",
    "run_export",
    "run_find_lr",
    "run_image",
    "run_import",
    "run_lab",
    "run_models",
    "run_predict",
    "run_sweep",
    "run_train",
]

Values = dict[str, Any]


def _print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def run_train(values: Values) -> None:
    """`sigak train`"""
    from sigak.training import train

    as_json = values.pop("json")
    run = train(values.pop("model"), values.pop("data"), **values)
    if as_json:
        history = {
            k: [None if np.isnan(x) else x for x in v.tolist()] for k, v in run.history.items()
        }
        _print_json(
            {
                "folder": str(run.folder),
                "checkpoint": str(run.checkpoint),
                "best_epoch": run.best_epoch,
                "history": history,
                "evaluation": run.evaluation,
            }
        )


def run_lab(values: Values) -> None:
    """`sigak lab`"""
    from sigak.lab import compare

    as_json = values.pop("json")
    found = compare(values.pop("data"), values.pop("models"), **values)
    if as_json:
        _print_json(found.asdict())
    else:
        keys = ("train_accuracy", "val_accuracy", "test_accuracy", "gap")
        rows = [
            (row.model, f"{row.parameters:,}", *(_cell(getattr(row, key)) for key in keys))
            for row in found.rows
        ]
        _table([("network", "parameters", "train", "val", "test", "gap"), *rows])
        print("\n".join(["", *found.findings, found.advice]))
    _say(f"comparison {found.folder / 'comparison.html'}")
    if found.failures:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.failures.items())
        lost, all_of_them = len(found.failures), len(found.failures) + len(found.rows)
        raise Failure(f"{lost} of {all_of_them} networks could not be trained. {reasons}")


def run_find_lr(values: Values) -> None:
    """`sigak find-lr`"""
    from sigak import tune

    as_json, draw = values.pop("json"), values.pop("draw", "")
    model, dataset = values.pop("model"), values.pop("data")
    climb = {name: values.pop(name) for name in ("low", "high", "steps") if name in values}
    if values.pop("batch_size", False):
        sizes = tune.find_batch(model, dataset, **values)
        if as_json:
            return _print_json(sizes.asdict())
        rows = [(str(n), f"{r:,.0f}") for n, r in zip(sizes.sizes, sizes.images_per_second)]
        _table([("batch", "images/s"), *rows])
        return print(f"\n--batch {sizes.suggestion} ({sizes.stopped})")
    test = tune.find_lr(model, dataset, **climb, **values)
    if draw:
        tune.draw_rates(test, draw)
        _say(f"drawn in {draw}")
    if as_json:
        return _print_json(test.asdict())
    lost = "not reached" if test.divergence is None else f"{test.divergence:.2g}"
    print(f"steepest descent {test.steepest:.2g}, divergence {lost}")
    return print(f"--lr {test.suggestion:.2g}")


def run_sweep(values: Values) -> None:
    """`sigak sweep`"""
    from sigak.search import sweep

    as_json = values.pop("json")
    found = sweep(values.pop("model"), values.pop("data"), values.pop("over"), **values)
    if as_json:
        return _print_json(found.asdict())
    names = list(found.trials[0].params)
    rows = [
        (str(t.number), *(_cell(t.params[n]) for n in names), _cell(t.value), t.state)
        for t in sorted(found.trials, key=found.rank)
    ]
    _table([("trial", *names, found.monitor, "state"), *rows])
    return print(f"\n{found.command}")


def run_evaluate(values: Values) -> None:
    """`sigak evaluate`"""
    from sigak.evaluation import evaluate

    as_json = values.pop("json")
    checkpoint, data = values.pop("checkpoint"), values.pop("data")
    if checkpoint.endswith(".json"):
        from sigak.metrics import evaluate_files

        found = evaluate_files(data, checkpoint)
        figures = {"data": data, "split": "all", **found, "problems": []}
    else:
        figures = evaluate(checkpoint, data, **values)
    if as_json:
        return _print_json(figures)
    print(f"{figures['data']}, split {figures['split']}")
    for name, value in figures.items():
        if isinstance(value, float | int) and not isinstance(value, bool):
            print(f"  {name:<12} {value if isinstance(value, int) else f'{value:.4f}'}")
    if figures.get("per_class"):
        names = list(figures["per_class"][0])
        _table(
            [tuple(names), *(tuple(_cell(row[n]) for n in names) for row in figures["per_class"])]
        )
    _say_problems(figures["problems"])


def _cell(value: object) -> str:
    """A table's cell: shares to three digits, what was not measured as a dash."""
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _table(rows: Sequence[tuple[str, ...]]) -> None:
    """Columns as wide as their widest cell; the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
        print("  ".join(cells).rstrip())


def run_predict(values: Values) -> None:
    """`sigak predict`"""
    from sigak.data import Problem
    from sigak.prediction import load
    from sigak.recording import Recorder, shown

    predictor = load(values["checkpoint"], device=values["device"], engine=values["engine"])
    if values["samples"]:
        return _run_generate(predictor, values)
    if not (values["source"] or predictor.task.generative):
        raise SigakError("expected pictures, videos or folders; see `sigak predict --help`")
    predictor.refuse_generative()
    sources = predictor.find(values["source"])
    names = ("conf", "iou", "classes", "size", "every", "track", "tta", "tile")
    choices = {name: values[name] for name in names}
    choices |= {name: values[name] for name in Prompts.__dataclass_fields__ if name in values}
    if choices["classes"]:
        choices["classes"] = _class_names(choices["classes"])
    problems: list[Problem] = []
    answers = predictor.answers(
        sources,
        prepare=values["prepare"],
        batch=values["batch"],
        problems=problems,
        **choices,
    )
    moving = any(source.moving for source in sources)
    forms = [form for form in ("txt", "coco", "cutouts") if values.get(form)]
    if moving and "coco" in forms:
        raise SigakError(
            "--coco is for pictures; the answers for a video are in its .jsonl, a line a frame"
        )
    wanted = values["save"] or ("predictions" if forms or values["draw"] else "")
    folder = Path(wanted) if wanted else None
    count = 0
    try:
        with Recorder(folder, predictor.task, forms) as recorder:
            for sample, result in shown(answers, moving=moving, as_json=values["json"]):
                recorder.add(sample, result)
                count += 1
    finally:
        for problem in problems:
            _say(f"sigak: skipped {problem.source}: {problem.reason}")
        if folder and count:
            _say(f"answers and pictures are in {folder}")
    if not count:
        raise SigakError("none of the pictures could be read; see the sentences above")
    return None


def _run_generate(predictor: Predictor, values: Values) -> None:
    if values["source"] or values["prepare"]:
        raise SigakError(
            "--samples makes pictures of its own: leave out the pictures and --prepare"
        )
    if not values["save"]:
        raise SigakError("say where the pictures shall go: add --save FOLDER")
    made = predictor.generate(values["samples"], seed=values["seed"], batch=values["batch"])
    files = predictor.task.save(made, Path(values["save"]))
    if values["json"]:
        _print_json({"seed": values["seed"], "files": [str(path) for path in files]})
    _say(f"{len(made)} pictures, and a sheet of all, are in {values['save']}")


def run_explain(values: Values) -> None:
    """`sigak explain`"""
    from sigak.explanation import explain
    from sigak.io import image

    out, as_json = values.pop("out"), values.pop("json")
    found = explain(values.pop("checkpoint"), values.pop("source"), **values)
    out = out or f"{Path(found.result.source).stem}-explained.png"
    image.save(out, found.sheet())
    if as_json:
        _print_json(found.asdict())
    else:
        print(f"{found.result.source}: {found.result}")
        for heat in found.heats:
            place = "nothing" if heat.peak is None else "x {:.0f}, y {:.0f}".format(*heat.peak)
            print(f"  {heat.method}: {place} ({heat.note})")
    if found.note:
        _say(found.note)
    _say(f"explained in {out}")


def run_export(values: Values) -> None:
    """`sigak export`"""
    from sigak.exportation import export

    as_json = values.pop("json")
    done = export(values.pop("checkpoint"), values.pop("to"), **values)
    if as_json:
        _print_json(done.asdict())
    else:
        print(done)


def run_models(values: Values) -> None:
    """`sigak models`"""
    patterns = values["pattern"]
    if values["compare"]:
        return _compare(patterns, values)
    if values["summary"]:
        return _summary(patterns)
    found = models.matching(patterns or ["*"])
    rows = [_model_facts(name) for name in found]
    if values["json"]:
        return _print_json(rows)
    table = [("name", "task", "parameters", "trainable", "input", "weights", "licence")]
    for row in rows:
        count, color = row["parameters"], row["input"]["color"]
        tags = [w["tag"] for w in row["weights"]]
        weights = f"{tags[0]}{f' +{len(tags) - 1}' if len(tags) > 1 else ''}" if tags else "-"
        table.append(
            (
                row["name"],
                row["task"],
                f"{count['total']:,}",
                f"{count['trainable']:,}",
                f"{models.entry(row['name']).input.sides()} {color}",
                weights,
                row["licence"],
            )
        )
    _table(table)
    return None


def _model_facts(name: str) -> dict[str, Any]:
    row = models.entry(name)
    total, trainable = row.parameters
    return {
        "name": name,
        "task": row.task,
        "parameters": {"total": total, "trainable": trainable},
        "input": asdict(row.input),
        "classes": row.classes,
        "weights": [
            {
                "tag": w.tag,
                "url": w.url,
                "sha256": w.sha256,
                "licence": w.licence,
                "trained_on": w.trained_on,
            }
            for w in row.weights
        ],
        "paper": row.paper,
        "licence": row.licence,
        "note": row.note,
    }


def _summary(names: Sequence[str]) -> None:
    from sigak.summary import summarize

    if len(names) != 1:
        raise SigakError(f"--summary is of one network; received {len(names)} names")
    network = models.create(names[0])
    rows = summarize(network, models.input_shape(network, models.arguments(names[0])))
    _table([("layer", "output", "parameters"), *rows])


def _compare(patterns: Sequence[str], values: Values) -> None:
    """`sigak models --compare`"""
    from sigak import survey

    sort, files = values["sort"], values["out"]
    survey.check(sort, files)
    found = survey.compare(
        patterns,
        batch=values["batch"],
        speed=not values["no_speed"],
        seconds=values["seconds"],
        device=values["device"],
        progress=_say,
    )
    if sort:
        found.sort(sort)
    if values["json"]:
        _print_json(found.asdict())
    else:
        _table(found.table())
        print("\n".join(["", *found.notes]))
    for file in files:
        found.save(file)
        _say(f"written to {file}")


def run_data(values: Values) -> None:
    """`sigak data`"""
    from sigak import data
    from sigak.io import image

    draw, as_json, check = values.pop("draw"), values.pop("json"), values.pop("check")
    dataset = data.load(values.pop("data"), **values)
    if draw:
        image.save(draw, data.sheet(dataset))
        _say(f"samples drawn in {draw}")
    if check:
        return _check_data(dataset, as_json)
    if as_json:
        _print_json(data.summary(dataset))
    else:
        print(data.describe_text(dataset), end="")
    return None


def _check_data(dataset: Dataset, as_json: bool) -> None:
    """`sigak data --check`: exit code 1 where something was found."""
    from sigak import data, preflight

    findings = preflight.check(dataset, progress=_say)
    if as_json:
        _print_json(data.summary(dataset) | {"findings": [asdict(f) for f in findings]})
    else:
        print(preflight.describe_findings(findings), end="")
    if findings:
        raise Failure(f"things to look at in {dataset.name}: {len(findings):,}")


def run_convert(values: Values) -> None:
    """`sigak convert`"""
    from sigak.data.convert import convert

    as_json, images = values.pop("json"), not values.pop("no_images")
    made = convert(values.pop("source"), values.pop("destination"), images=images, **values)
    _say_problems(asdict(problem) for problem in made.problems)
    if as_json:
        return _print_json(asdict(made) | {"destination": str(made.destination)})
    for split, pictures in made.pictures.items():
        print(f"{split}: {pictures:,} pictures, {made.objects[split]:,} objects")
    for words in made.lost:
        _say(f"left out: {words}")
    return _say(f"written to {made.destination}")


def _say_problems(problems: Iterable[dict[str, Any]]) -> None:
    for problem in problems:
        _say(f"{problem['source']}: {problem['reason']} ({problem['action']})")


def run_image(values: Values) -> None:
    """`sigak image`"""
    from sigak.io import image, steps

    if values["list_steps"]:
        return print(steps.describe())
    if not values["source"]:
        raise SigakError("expected a picture, a folder or a pattern; see `sigak image --help`")
    found = image.expand(values["source"])
    chain = values["steps"]
    steps.parse(chain)
    if not values["out"]:
        if chain:
            raise SigakError("the steps make a new picture; say where to write it with --out FILE")
        facts = [{"source": name, **image.describe(thing)} for name, thing in found]
        if values["json"]:
            return _print_json(facts)
        for fact in facts:
            print("  ".join(f"{k} {v}" for k, v in fact.items()))
        return None
    out = Path(values["out"])
    several = len(found) > 1 or not out.suffix
    targets = _places([name for name, _ in found], out) if several else [out]
    for (name, thing), target in zip(found, targets, strict=True):
        image.save(target, steps.run(image.read_as_is(thing), chain))
        _say(f"{name} -> {target}")
    return None


def _places(sources: list[str], out: Path) -> list[Path]:
    """A PNG below `out` for each file, in the folders they lie in, no two the same."""
    root = os.path.commonpath([os.path.dirname(os.path.abspath(source)) for source in sources])
    places: dict[Path, None] = {}
    for source in sources:
        inside = out / os.path.relpath(source, root)
        place, number = inside.with_suffix(".png"), 2
        while place in places:  # a.jpg beside a.bmp
            place, number = inside.with_name(f"{inside.stem}-{number}.png"), number + 1
        places[place] = None
    return list(places)


def run_import(values: Values) -> None:
    """`sigak import`"""
    from sigak.foreign import adopt

    size = (values["size"], values["size"]) if values["size"] else None
    out = adopt(
        values["weights"],
        values["model"],
        classes=_class_names(values["classes"]),
        out=values["out"],
        size=size,
    )
    _say(f"checkpoint written: {out}")


def _class_names(text: str) -> list[str] | None:
    if not text:
        return None
    if "," not in text and Path(text).is_file():
        lines = Path(text).read_text(encoding="utf-8").splitlines()
        return [line.strip() for line in lines if line.strip()]
    return [name.strip() for name in text.split(",")]


def run_augment(values: Values) -> None:
    """`sigak augment`"""
    from sigak.augment.pipeline import Pipeline, preview
    from sigak.io import image

    if min(values["size"], values["rows"]) < 1:
        raise SigakError("--size and --rows must be at least 1")
    size = (values["size"], values["size"])
    pipeline = Pipeline.parse(values["augment"], size=size)
    preparation = image.Preparation(size=size, fit="crop")
    found = image.expand(values["source"])[: values["rows"]]
    pictures = np.stack([image.load(thing, preparation)[0] for _, thing in found])
    image.save(values["out"], preview(pictures, pipeline, len(pictures), values["seed"]))
    _say(f"{pipeline}: {values['out']}")
