"""Draw every character under the embedded image backbone, or one like it; write a sheet and how many are read right.

    python experiments/draw_glyphs.py FOLDER

The sheet is FOLDER/samples.png, what the glyph judge reads on it FOLDER/samples.json.
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from fedgen.backbones import Diffusion
from fedgen.data.glyphs import CHARACTERS, prompt_of
from fedgen.quality.judge import Judge
from fedgen.records import Document
from fedgen.sheet import save_sheet
from fedgen.store import write_whole

STEPS, SEEDS, A_ROW = 10, range(4), 31


def main() -> None:
    folder = Path(sys.argv[1])
    backbone, judge = Diffusion(str(folder)).load(), Judge()
    asked = [Document("", "", prompt_of(character)) for character in CHARACTERS]
    rows, right = [], {}
    for guidance in (1.0, 2.0):
        drawn = [
            backbone.paint(asked, [torch.Generator().manual_seed(seed)] * len(asked), steps=STEPS, guidance=guidance)
            for seed in SEEDS
        ]
        said = [judge.letters(pictures, CHARACTERS) for pictures in drawn]
        hits = [one == true for each in said for one, true in zip(each, CHARACTERS, strict=True)]
        small = [one == true for each in said for one, true in zip(each, CHARACTERS, strict=True) if true.islower()]
        right[f"guidance {guidance:g}"] = {
            "all characters": round(sum(hits) / len(hits), 4),
            "small letters": round(sum(small) / len(small), 4),
        }
        rows += [(f"guidance {guidance:g}", drawn[0][at : at + A_ROW]) for at in range(0, len(asked), A_ROW)]
    made = {"steps": STEPS, "seed": SEEDS[0]}
    save_sheet(folder / "samples.png", rows, made)
    found = {"read_right": right, "pictures": len(CHARACTERS) * len(SEEDS), "steps": STEPS, "seeds": list(SEEDS)}
    write_whole(folder / "samples.json", (json.dumps(found, indent=1) + "\n").encode())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
