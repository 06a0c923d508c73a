"""What the learned encoder finds, beside texture and chance: ``python benchmarks/retrieval.py SHARED_DATA``.

Two public sets of labelled images come in as DICOM through the archive's door. For each seed the encoder is trained on
a part of the patients, and judged on those that were held out. Each image is its own patient (neither set tells whose
an image is), so the parts are disjoint by image. Prints a table in Markdown; the exit code is 1 when, on any set and
seed, the interval of the learned encoder's mAP does not lie above that of the texture encoder.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from commands.evaluation_pictures import chart, neighbour_sheet
from commands.evaluation_run import in_words
from commands.images import image_converter, is_image_file
from commands.judging import RANDOM, Terms, Verdict, judge
from commands.training_run import CHECKPOINT, Wishes, run_training
from config.settings import Settings, load_settings
from index.archive import Archive
from index.encoders import registry
from index.errors import InstanceConflict
from index.gallery import Part
from index.labels import read_labels

SETS = ("pneumoniamnist_png", "MedNIST")
LABELS = "SeriesDescription"
METRICS = ("P@1", "P@5", "P@10", "R@10", "mAP", "NDCG@10")
WIDEST = 1000
"""Columns of a picture for the documentation."""

DOCS = Path(__file__).resolve().parents[1] / "docs"
TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end of table -->)", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Result:
    """One set, one seed."""

    name: str
    seed: int
    seconds: float
    verdict: Verdict
    learned: str
    texture: str

    @property
    def beats(self) -> bool:
        """Whether the learned encoder's interval lies above the texture encoder's."""
        figures = self.verdict.figures
        return figures[self.learned]["mAP"].low > figures[self.texture]["mAP"].high

    @property
    def names(self) -> dict[str, str]:
        """What the encoders are called."""
        return {self.learned: "learned", self.texture: "texture", RANDOM: "chance"}

    def rows(self) -> list[str]:
        """The lines of the table."""
        held_out = len(self.verdict.gallery.items)
        trained_on = self.verdict.probes[self.learned].trained_on
        lines = []
        for key, name in self.names.items():
            probe = self.verdict.probes.get(key)
            accuracy = in_words(probe.accuracy) if probe else f"{self.verdict.probes[self.learned].majority:.3f}"
            cells = [in_words(self.verdict.figures[key][metric]) for metric in METRICS]
            parts = [self.name, str(self.seed), f"{trained_on} / {held_out}", name, *cells, accuracy]
            lines.append("| " + " | ".join(parts) + " |")
        return lines


def bring_in(folder: Path, archive: Archive) -> Counter[str]:
    """Store the images below `folder`; an image that the set has twice is stored once."""
    convert = image_converter(None, None, None, images=True)
    assert convert is not None
    outcomes: Counter[str] = Counter()
    for file in sorted(path for path in folder.rglob("*") if is_image_file(path)):
        try:
            outcomes[archive.ingest(convert(file)).outcome.value] += 1
        except InstanceConflict:
            outcomes["the same image under two names"] += 1
    return outcomes


def run(name: str, archive: Archive, settings: Settings, seed: int, held_out: float, threads: int) -> Result:
    """Train on one part, judge on the other; what a run in the same data folder trained is not trained again."""
    note = archive.data / f"retrieval-{seed}-{held_out:g}.json"
    if not note.exists():
        started = time.monotonic()
        resume = (registry.models_folder(archive) / CHECKPOINT).exists()
        run_training(archive, settings, Wishes(LABELS, held_out, seed, "small", None, 32, threads, resume, False, None))
        seconds = time.monotonic() - started
        note.write_text(json.dumps({"model": registry.trained(archive)[-1].model_id, "seconds": seconds}))
    trained = json.loads(note.read_text())
    learned, texture = registry.load(archive, trained["model"]), registry.built_in()
    terms = Terms(part=Part(held_out, seed), seed=seed, probe=True)
    verdict = judge(archive, [learned, texture], read_labels(archive, LABELS), terms, lambda _fraction: None)
    return Result(name, seed, trained["seconds"], verdict, learned.model_id, texture.model_id)


def table(results: list[Result]) -> str:
    """Return the results in Markdown."""
    head = ["set", "seed", "trained on / held out", "encoder", *METRICS, "linear probe"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += [row for result in results for row in result.rows()]
    seconds = ", ".join(f"{result.name} seed {result.seed} {result.seconds:.0f} s" for result in results)
    return "\n".join([*lines, "", f"Training, with its report, on {os.cpu_count()} cores: {seconds}.", ""])


def draw(results: list[Result], archives: dict[str, Archive], folder: Path) -> list[Path]:
    """Draw the chart and the sheets of the first seed."""
    first: dict[str, Result] = {}
    for result in results:
        first.setdefault(result.name, result)
    files = [folder / "retrieval.png", *(folder / f"retrieval-{name}.png" for name in first)]
    panels = {
        f"{name}, seed {result.seed}": {
            result.names[key]: {metric: result.verdict.figures[key][metric] for metric in METRICS}
            for key in result.names
        }
        for name, result in first.items()
    }
    chart(panels, files[0], grey="chance")
    for file, (name, result) in zip(files[1:], first.items(), strict=True):
        neighbour_sheet(archives[name], result.verdict, result.learned, Terms().exclude, file)
    for file in files:
        with Image.open(file) as image:
            small = image.convert("RGB")
            small.thumbnail((WIDEST, image.height), Image.Resampling.LANCZOS)
            small.quantize(64).save(file, optimize=True)
    return files


def main() -> int:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shared", type=Path, help="the folder that has pneumoniamnist_png and MedNIST")
    parser.add_argument("--seeds", default="0,1", help="of split and training, separated by commas")
    parser.add_argument("--held-out", type=float, default=0.3)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--data", type=Path, help="keep the data folders here, and go on where a run stopped")
    parser.add_argument("--write-docs", action="store_true", help="put table and pictures into docs/")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        results: list[Result] = []
        archives: dict[str, Archive] = {}
        for name in told.sets.split(","):
            settings = load_settings(overrides={"archive": {"data": str((told.data or Path(temporary)) / name)}})
            archives[name] = Archive.from_settings(settings.archive)
            print(name, dict(bring_in(told.shared / name, archives[name])), flush=True)
            for seed in map(int, told.seeds.split(",")):
                results.append(run(name, archives[name], settings, seed, told.held_out, told.threads))
                print(*results[-1].rows(), f"training {results[-1].seconds:.0f} s", sep="\n", flush=True)
        print(table(results))
        if told.write_docs:
            page = DOCS / "evaluation.md"
            page.write_text(TABLE.sub(lambda _: table(results), page.read_text(encoding="utf-8")), encoding="utf-8")
            print(*draw(results, archives, DOCS / "images"), sep="\n")
    failed = [f"{result.name} seed {result.seed}" for result in results if not result.beats]
    print("learned above texture in mAP, intervals apart:", f"not on {failed}" if failed else "on every set and seed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
