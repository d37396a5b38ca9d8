"""The preflight: what is wrong with data, found before a network is trained on it.

Every picture is decoded once, into a thumbnail; the checks look at those: empty and badly scaled
pictures, odd sizes, gray among colour, uneven classes, near copies within and across splits, and
labels that a small network, trained on other pictures, confidently denies (in the spirit of
confident learning, Northcutt et al. 2019, https://arxiv.org/abs/1911.00068).

A finding is a reason to look, not a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sigak import models
from sigak.data import Dataset, Split
from sigak.data.splits import THREADS, shuffled
from sigak.io import image
from sigak.structures import UNKNOWN, SigakError

__all__ = ["Finding", "check", "describe_findings"]

_THUMBNAIL = image.Preparation((32, 32))
_FLAT = 2  # levels of 255 that a picture without content spans at the most
_DARK = 32  # brightest level of a picture that looks black
_UNEVEN = 10  # times the pictures of the smallest class that the largest may have
_FEW = 10  # pictures a class should have to learn from
_OUTLIER = 6.0  # robust standard deviations from the median
_FACTOR = 3.0  # times the median's size or shape that an outlier has in any case
_COPY = 0.97  # least correlation of two thumbnails of one scene
_CLOSER = 0.1  # share of the usual distance between neighbours that copies keep at the most
_SURE, _DENIED = 0.95, 0.01  # a suspicious label: the network's answer, and what it gives the label
_TRUSTED = 0.7  # accuracy on unseen pictures from which the small network is believed
_MOST = 50_000  # pictures compared with each other or put to the small network
_SHOWN = 10  # findings of a kind that are listed for people


@dataclass(frozen=True)
class Finding:
    """One thing to look at: its kind (file, range, size, color, balance, copy, leak or label), the
    picture or what else it is about, the reason, and what to do.
    """

    kind: str
    source: str
    reason: str
    advice: str


@dataclass
class _Look:
    """All pictures that could be read, in the order of the splits.

    thumbnails (N, 32, 32, 3) uint8; sizes (N, 2) as (H, W); labels (N,); splits and sources N each.
    """

    thumbnails: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    splits: list[str]
    sources: list[str]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.sources)

    def label(self, place: int) -> str:
        """The class name of a picture."""
        known = self.labels[place] != UNKNOWN
        return self.classes[self.labels[place]] if known else "unknown"


def check(
    dataset: Dataset, *, seed: int = 0, progress: Callable[[str], None] | None = None
) -> list[Finding]:
    """Everything suspicious in `dataset`, the gravest kinds first; an empty list is a clean set.

    seed: of the small network that judges the labels. progress: told what is being done.
    Near copies and labels are checked on up to 50,000 pictures, evenly spread.
    """
    if dataset.kind == "volume":
        raise SigakError(
            f"the checks look at pictures, {dataset.name} holds volumes; `sigak data` without "
            f"--check names the files that do not fit"
        )
    say = progress or (lambda _: None)
    say(f"looking at {sum(map(len, dataset.splits.values())):,} pictures")
    findings = list(_known_problems(dataset))
    look = _look(dataset, findings)
    findings += [*_ranges(look), *_sizes(look), *_colors(look, dataset.color), *_balance(dataset)]
    say("comparing them with each other")
    told = {problem.source for problem in dataset.problems}
    findings += _copies(look, told)
    if dataset.kind == "label":
        say("asking a small network about the labels")
        findings += _labels(look, seed)
    order = ["file", "leak", "label", "range", "copy", "color", "size", "balance"]
    return sorted(findings, key=lambda finding: order.index(finding.kind))


# ------------------------------------------------------------------ looking


def _known_problems(dataset: Dataset) -> Iterator[Finding]:
    """What loading the data has found already: damaged and useless files, identical pictures."""
    advice = {
        "skipped": "mend or remove it; training leaves it out",
        "ignored": "move it out of the data if it does not belong there",
    }
    for problem in dataset.problems:
        same = problem.reason.startswith("identical to")
        what = "keep one of the two" if same else "look whether that is meant"
        kind = "leak" if same else "file"
        yield Finding(kind, problem.source, problem.reason, advice.get(problem.action, what))


def _look(dataset: Dataset, findings: list[Finding]) -> _Look:
    """Decode every picture; what fails in spite of a sound header joins the findings."""
    kept: list[tuple[np.ndarray, tuple[int, int], int, str, str]] = []
    for name, split in dataset.splits.items():
        with ThreadPoolExecutor(THREADS) as pool:
            loaded = pool.map(lambda i, split=split: _thumbnail(split, i), range(len(split)))  # type: ignore[misc]
            for record, found in zip(split.records, loaded):
                if isinstance(found, str):
                    advice = "mend or remove it; training leaves it out"
                    findings.append(Finding("file", record.source, found, advice))
                else:
                    kept.append((*found, record.label, name, record.source))
    if not kept:
        raise SigakError(f"none of the pictures of {dataset.name} could be read")
    thumbnails, sizes, labels, splits, sources = zip(*kept, strict=True)
    return _Look(
        np.stack(thumbnails),
        np.array(sizes),
        np.array(labels),
        list(splits),
        list(sources),
        dataset.classes,
    )


def _thumbnail(split: Split, place: int) -> tuple[np.ndarray, tuple[int, int]] | str:
    """The thumbnail and (H, W) of a picture, or why it cannot be read."""
    source = split.records[place].source if split.pixels is None else split.pixels[place]
    try:
        pixels, _, size = image.load(source, _THUMBNAIL, reduced=True)
    except SigakError as error:
        return str(error)
    return pixels, size


# ------------------------------------------------------------------ single pictures


def _ranges(look: _Look) -> Iterator[Finding]:
    """Pictures without content, and pictures whose values use a corner of their range."""
    flat = look.thumbnails.reshape(len(look), -1)
    low, high = flat.min(1), flat.max(1)
    for place in np.flatnonzero((high.astype(int) - low <= _FLAT) | (high < _DARK)):
        source = look.sources[place]
        if high[place] - int(low[place]) <= _FLAT:
            tone = {0: "black", 255: "white"}.get(int(low[place]), "of one colour")
            yield Finding("range", source, f"the picture is all {tone}", "remove it")
        elif _deep(source):
            yield Finding(
                "range",
                source,
                f"a 16-bit picture whose values end near {int(high[place]) * 256}, so that it "
                "looks black in 8 bits; cameras and scanners often fill 10 or 12 of the 16 bits",
                "multiply the values so that they reach 65,535",
            )
        else:
            reason = f"nearly black: the brightest level is {high[place]} of 255"
            yield Finding("range", source, reason, "look at it; brighten or remove it")


def _deep(source: str) -> bool:
    """Whether a file holds integers of more than 8 bits; pictures in memory do not."""
    try:
        return str(image.describe(source)["mode"]).startswith("I")
    except SigakError:
        return False


def _sizes(look: _Look) -> Iterator[Finding]:
    """Pictures far larger, smaller or of another shape than most."""
    height, width = look.sizes[:, 0].astype(float), look.sizes[:, 1].astype(float)
    facts = (("side", np.sqrt(height * width)), ("width / height", width / height))
    for name, values in facts:
        middle = float(np.median(values))
        away = np.abs(np.log(values / middle))
        usual = 1.4826 * float(np.median(away))  # of a normal spread its standard deviation
        for place in np.flatnonzero(away > max(_OUTLIER * usual, np.log(_FACTOR))):
            reason = (
                f"{look.sizes[place, 0]} high x {look.sizes[place, 1]} wide: its {name} is "
                f"{values[place]:.3g}, half of all pictures are below {middle:.3g}"
            )
            advice = (
                "look whether it is a thumbnail, a strip or a page; --fit says how it is fitted"
            )
            yield Finding("size", look.sources[place], reason, advice)


def _colors(look: _Look, color: str) -> Iterator[Finding]:
    """Gray pictures among colour, or colour among gray: a network may learn that instead."""
    spread = look.thumbnails.max(3).astype(int) - look.thumbnails.min(3)
    gray = spread.reshape(len(look), -1).max(1) <= _FLAT
    count = int(gray.sum())
    if color == "gray" or count in (0, len(look)):
        return
    few = gray if 2 * count <= len(look) else ~gray
    word = "gray" if few is gray else "in colour"
    by_class = [f"{name} {few[look.labels == k].mean():.0%}" for k, name in enumerate(look.classes)
                if (look.labels == k).any()]  # fmt: skip
    sources = [look.sources[i] for i in np.flatnonzero(few)[:3]]
    yield Finding(
        "color",
        ", ".join(sources),
        f"{few.sum():,} of {len(look):,} pictures are {word}, the others are not"
        + ("; by class: " + ", ".join(by_class[:8]) if by_class else ""),
        "train with --color gray if colour does not matter, above all where the classes differ",
    )


def _balance(dataset: Dataset) -> Iterator[Finding]:
    """Classes with too few pictures or objects, or far fewer than others."""
    first = dataset.splits.get("train", next(iter(dataset.splits.values())))
    if dataset.kind == "class_map":
        return
    things = "pictures" if dataset.kind == "label" else "objects"
    labels = first.object_labels
    counts = np.bincount(labels[labels != UNKNOWN], minlength=len(dataset.classes))
    most = int(counts.argmax())
    for label in np.flatnonzero((counts < _FEW) | (counts * _UNEVEN < counts[most])):
        yield Finding(
            "balance",
            dataset.classes[label],
            f"{counts[label]:,} {things} in {first.name}, of {dataset.classes[most]!r} there are "
            f"{counts[most]:,}",
            "add pictures, and judge by the figures per class rather than by accuracy",
        )


# ------------------------------------------------------------------ copies


def _copies(look: _Look, told: set[str]) -> Iterator[Finding]:
    """Near copies: leaks between splits, contradicting labels, and how many there are besides.

    told: sources that loading has named as identical to another already.
    """
    chosen = _spread(len(look))
    harmless = []
    for one, other, alike in _neighbours(look.thumbnails[chosen]):
        first, second = int(chosen[one]), int(chosen[other])
        if look.sources[second] in told:
            continue
        reason = f"a near copy of {look.sources[first]} (correlation {alike:.3f})"
        apart = look.labels[first] != look.labels[second]
        if look.splits[first] != look.splits[second]:
            reason += f", which is in {look.splits[first]}, this one in {look.splits[second]}"
            advice = "keep both in one split, or remove one: the score would be too good"
        elif apart:
            advice = "look which label is right"
        else:
            harmless.append((second, reason))
            continue
        if apart:
            reason += f"; there it is {look.label(first)!r} and here {look.label(second)!r}"
        kind = "leak" if look.splits[first] != look.splits[second] else "label"
        yield Finding(kind, look.sources[second], reason, advice)
    if harmless:
        second, reason = harmless[0]
        yield Finding(
            "copy",
            look.sources[second],
            f"{reason}; {len(harmless):,} pictures are near copies of one of the same class and "
            "split",
            "remove copies, or keep them together when you split the data",
        )


def _spread(count: int) -> np.ndarray:
    """All places, or `_MOST` of them from all over."""
    return np.linspace(0, count - 1, min(count, _MOST)).astype(np.int64)


def _neighbours(thumbnails: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """(place, later place, correlation) of thumbnails that are alike.

    A fingerprint is the 16x16 gray thumbnail, its mean taken off and scaled to length 1: another
    size, compression, brightness or contrast leave it nearly the same. Alike is a correlation of
    at least 0.97 that is also far closer than neighbours are in this set, because the pictures of
    some sets (digits, products on white) all look alike.
    """
    gray = torch.from_numpy(thumbnails).float().mean(3)
    small = F.avg_pool2d(gray[:, None], 2).flatten(1)
    small = small - small.mean(1, keepdim=True)
    length = small.norm(dim=1, keepdim=True)
    places = torch.nonzero(length[:, 0] > _FLAT * 16)[:, 0]  # flat pictures are all alike
    prints = (small / length)[places]
    if len(prints) < 2:
        return
    near, where = _nearest(prints)
    usual = float((1 - near[:, 0]).median())
    least = min(max(_COPY, 1 - _CLOSER * usual), 0.998)
    pairs: dict[int, tuple[int, float]] = {}
    for one, rank in torch.nonzero(near >= least).tolist():
        ends = sorted((int(places[one]), int(places[where[one, rank]])))
        pairs[ends[1]] = pairs.get(ends[1]) or (ends[0], float(near[one, rank]))
    for later, (earlier, alike) in sorted(pairs.items()):
        yield earlier, later, alike


def _nearest(prints: Tensor, most: int = 4, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """(N, K) correlations with the K nearest others, the highest first, and their places."""
    count = min(most, len(prints) - 1)
    found = []
    for start in range(0, len(prints), chunk):
        part = prints[start : start + chunk] @ prints.T
        rows = torch.arange(len(part))
        part[rows, start + rows] = -1.0  # not itself
        found.append(part.topk(count))
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


# ------------------------------------------------------------------ labels


def _labels(look: _Look, seed: int) -> Iterator[Finding]:
    """Labels that small networks, which learnt from other pictures, deny with confidence.

    Two rounds of two-fold cross-validation; both must agree. Nothing is said where the classes are
    too small, or the networks are too often wrong to be believed.
    """
    chosen = _spread(len(look))
    chosen = chosen[look.labels[chosen] != UNKNOWN]
    counts = np.bincount(look.labels[chosen], minlength=len(look.classes))
    if counts[counts > 0].min() < 2 * _FEW:
        return
    pictures = torch.from_numpy(look.thumbnails[chosen])
    labels = torch.from_numpy(look.labels[chosen]).long()
    rounds = [_unseen(pictures, labels, len(look.classes), seed + i) for i in range(2)]
    scores = torch.stack(rounds).mean(0)
    answers = scores.argmax(1)
    if float((answers == labels).float().mean()) < _TRUSTED:
        return
    given = scores.gather(1, labels[:, None])[:, 0]
    agreed = (rounds[0].argmax(1) == answers) & (rounds[1].argmax(1) == answers)
    best = scores.amax(1)
    doubtful = torch.nonzero(agreed & (best >= _SURE) & (given <= _DENIED))[:, 0]
    for place in doubtful[best[doubtful].argsort(descending=True)].tolist():
        spot = int(chosen[place])
        yield Finding(
            "label",
            look.sources[spot],
            f"labelled {look.label(spot)!r}, but small networks that learnt from other pictures "
            f"say {look.classes[int(answers[place])]!r} ({best[place]:.1%})",
            "look at it, and put it into its class if the label is wrong",
        )


def _unseen(pictures: Tensor, labels: Tensor, classes: int, seed: int) -> Tensor:
    """(N, K) probabilities of each picture by a network that has not seen it."""
    order = torch.tensor(shuffled([str(i) for i in range(len(labels))], seed))
    order = order[labels[order].argsort(stable=True)]  # every other one, class by class
    scores = torch.zeros(len(labels), classes)
    for here, there in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = models.create("lenet5", classes=classes, size=(32, 32), color="rgb")
            _fit(network, pictures[here], labels[here])
        network.eval()
        with torch.inference_mode():
            parts = [
                network(_floating(part)).softmax(1) for part in torch.split(pictures[there], 512)
            ]
        scores[there] = torch.cat(parts)
    return scores


def _floating(pictures: Tensor) -> Tensor:
    """(B, H, W, C) uint8 as a network takes it, in channels_last memory."""
    return pictures.permute(0, 3, 1, 2).float() / 255


def _fit(network: torch.nn.Module, pictures: Tensor, labels: Tensor, batch: int = 32) -> None:
    """A short training: 8 passes, but 100 to 500 steps of `batch` pictures."""
    steps = min(max(8 * len(labels) // batch, 100), 500)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    network.train()
    for _ in range(steps):
        part = torch.randint(len(labels), (batch,))
        loss = F.cross_entropy(network(_floating(pictures[part])), labels[part])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


# ------------------------------------------------------------------ telling


def describe_findings(findings: Sequence[Finding]) -> str:
    """The findings for people, kind by kind."""
    if not findings:
        return "nothing suspicious was found\n"
    lines = []
    for kind in dict.fromkeys(finding.kind for finding in findings):
        these = [finding for finding in findings if finding.kind == kind]
        lines.append(f"{kind} ({len(these):,})")
        for finding in these[:_SHOWN]:
            lines.append(f"  {finding.source}: {finding.reason}. {_sentence(finding.advice)}")
        if len(these) > _SHOWN:
            lines.append(f"  and {len(these) - _SHOWN:,} more; --json lists them all")
    return "\n".join(lines) + "\n"


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + "."
